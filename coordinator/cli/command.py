"""What every command has: `-o`, `--context`, and the way from a typed line to a call.

A verb is a function whose first argument is the Invocation; `verb` registers it and gives it the
options that all verbs share, so that they are accepted everywhere and defined once.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from typing_extensions import override

from coordinator.cli.contexts import find_context
from coordinator.cli.output import Format, Table, write

if TYPE_CHECKING:
    from coordinator.cli.client import Client

# The variable through which a shell asks for completions.
COMPLETE_VARIABLE = "_TIDEMARK_COMPLETE"
# What users of kubectl and velero type; accepted, and not in --help.
_ALIASES = {"get": "list", "describe": "show"}


@dataclass
class Defaults:
    """What was given before the noun."""

    output: str | None = None
    context: str | None = None


class Invocation:
    """One run of one command: how to print, and whom to ask. Connects when first asked."""

    def __init__(self, output: Format, context: str | None) -> None:
        self.output = output
        self._context = context

    @functools.cached_property
    def client(self) -> "Client":
        """The connection to the coordinator."""
        # Commands that ask nobody start without gRPC.
        client: Client = importlib.import_module("coordinator.cli.client").Client(
            find_context(self._context)
        )
        return client

    def print(self, made: Any, table: Callable[[], Table | str]) -> None:
        """Write a document to stdout."""
        write(made, self.output, table)


class Noun(click.Group):
    """A group of verbs, which knows the verbs of others too."""

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb, or the one that the alias stands for."""
        return super().get_command(ctx, _ALIASES.get(cmd_name, cmd_name))

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown verb is told the known ones."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"no such command: {args[0]!r}; there are {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)


def noun(name: str, text: str) -> Noun:
    """A group of verbs."""
    return Noun(name, help=text, no_args_is_help=False)


def verb(group: Noun, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a verb of a noun, with the shared options."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        group.add_command(_command(name, function))
        return function

    return register


def single(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command without verbs."""
    return functools.partial(_command, name)


def shared_options() -> list[click.Parameter]:
    """`-o` and `--context`."""
    return [
        click.Option(
            ["--output", "-o"],
            type=click.Choice([one.value for one in Format]),
            help="How to print.",
        ),
        click.Option(["--context"], metavar="FILE", help="Context file of the coordinator to ask."),
    ]


def _command(name: str, function: Callable[..., None]) -> click.Command:
    @functools.wraps(function)
    def run(*, output: str | None, context: str | None, **arguments: Any) -> None:
        ctx = click.get_current_context()
        before = ctx.find_object(Defaults) or Defaults()
        chosen = Format(output or before.output or Format.TABLE)
        function(Invocation(chosen, context or before.context), **arguments)

    command = click.command(name)(run)
    command.params.extend(shared_options())
    return command
