"""Which container engine `up` protects: chosen with `--docker`, and remembered in DIR/docker."""

from collections.abc import Mapping
from pathlib import Path

from coordinator.cli.failure import CommandError, UsageError
from coordinator.cli.up.protection import write_private

_DEFAULT = "unix:///var/run/docker.sock"
_UNIX = "unix:///"


def choose_engine(file: Path, wanted: bool | None, environment: Mapping[str, str]) -> str | None:
    """The engine's address, or None for none; what was not said stays as it was the last time."""
    if wanted is None:
        return _remembered(file)
    if not wanted:
        file.unlink(missing_ok=True)
        return None
    address = environment.get("DOCKER_HOST") or _DEFAULT
    if not address.startswith(_UNIX):
        raise UsageError(
            f"DOCKER_HOST is {address}, and only an engine on this machine can be protected: "
            "volumes are read where they lie",
            hint="unset DOCKER_HOST, or run `tidemark up` where that engine runs",
        )
    write_private(file, address.encode() + b"\n")
    return address


def _remembered(file: Path) -> str | None:
    try:
        address = file.read_text().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(
            f"{file} cannot be read: {error}", hint="say --docker or --no-docker"
        ) from error
    if not address.startswith(_UNIX):
        raise CommandError(f"{file} is damaged", hint="say --docker or --no-docker")
    return address
