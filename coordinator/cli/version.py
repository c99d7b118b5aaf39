"""`tidemark version`. Loads nothing that takes time."""

import importlib.metadata
import platform

from coordinator.cli.command import Invocation, single

_DISTRIBUTION = "tidemark-backup"


@single("version")
def app(cli: Invocation) -> None:
    """Print the version of this command."""
    made = {
        "version": importlib.metadata.version(_DISTRIBUTION),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}".lower(),
    }
    cli.print(made, lambda: f"tidemark {made['version']}")
