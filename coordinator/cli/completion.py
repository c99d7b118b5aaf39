"""`tidemark completion`: the script that lets a shell complete names and options."""

import click
from click.shell_completion import get_completion_class

from coordinator.cli.command import COMPLETE_VARIABLE, Invocation, single


@single("completion")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def app(cli: Invocation, *, shell: str) -> None:
    """Print the completion script of SHELL: bash, zsh or fish.

    Load it with: source <(tidemark completion bash)
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    script = found(click.Command("tidemark"), {}, "tidemark", COMPLETE_VARIABLE).source()
    cli.print({"shell": shell, "script": script}, lambda: script)
