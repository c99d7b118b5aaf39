"""`tidemark`: from a typed line to an exit code.

Nouns are loaded when they are used, so that help, completion and `version` start quickly: the
table below is all that they need. This is the one place where errors become exit codes.
"""

import contextlib
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click
from typing_extensions import override

from coordinator.cli.command import COMPLETE_VARIABLE, Defaults, Noun, shared_options
from coordinator.cli.failure import FAILED, INTERRUPTED, CommandError, report

# name: module, help. In the order in which they are met.
_NOUNS = {
    "up": ("coordinator.cli.up.command", "Run coordinator and agent on this machine."),
    "status": ("coordinator.cli.status", "Show nodes, volumes, and what is unprotected."),
    "node": ("coordinator.cli.node", "Enrol, list and revoke nodes."),
    "volume": ("coordinator.cli.volume", "List volumes and their protection, and move them."),
    "backup": ("coordinator.cli.backup", "Back volumes up."),
    "snapshot": ("coordinator.cli.snapshot", "List snapshots and look into them."),
    "restore": ("coordinator.cli.restore", "Restore snapshots."),
    "verify": ("coordinator.cli.verify", "Prove that snapshots can be restored."),
    "job": ("coordinator.cli.job", "List, watch and cancel jobs."),
    "repo": ("coordinator.cli.repo", "Look after the repository and its recovery kit."),
    "bandwidth": ("coordinator.cli.bandwidth", "Show and set limits of the network."),
    "doctor": ("coordinator.cli.doctor", "Check that everything is as it must be."),
    "version": ("coordinator.cli.version", "Print the version of this command."),
    "completion": ("coordinator.cli.completion", "Print a shell's completion script."),
}
# More than any command loads, few enough for one that runs for long.
_GC_OBJECTS = 100_000


class Nouns(Noun):
    """The commands, each known by name and help until it is needed."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are met, not of the alphabet."""
        return list(self.commands)

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Load the command that is meant."""
        if args and args[0] in _NOUNS:
            self.commands[args[0]] = importlib.import_module(_NOUNS[args[0]][0]).app
        return super().resolve_command(ctx, args)


def application() -> Nouns:
    """The command line with all its nouns, none of them loaded."""

    @click.pass_context
    def root(ctx: click.Context, *, output: str | None, context: str | None) -> None:
        ctx.obj = Defaults(output=output, context=context)
        if ctx.invoked_subcommand is None:
            click.echo(ctx.get_help())

    return Nouns(
        "tidemark",
        help="Tidemark protects the data of containers: it backs volumes up, and proves it.",
        callback=root,
        params=shared_options(),
        invoke_without_command=True,
        no_args_is_help=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        commands={name: click.Command(name, short_help=text) for name, (_, text) in _NOUNS.items()},
    )


def main() -> NoReturn:
    """Entry point of `tidemark`."""
    # What a command loads, it keeps: there is nothing to collect in it, however often one looks.
    gc.set_threshold(_GC_OBJECTS)
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # To take apart all that was loaded takes as long as a call to the coordinator.
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    # gRPC's own lines on stderr say less than the errors made from its answers.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        code = _invoke(list(arguments))
    except BrokenPipeError:
        # Whoever read has seen enough; nobody is left to be told.
        _drop_stdout()
        return FAILED
    except Exception as error:  # noqa: BLE001 - the guard of the process
        failure = as_failure(error)
    except KeyboardInterrupt:
        failure = CommandError("interrupted", exit_code=INTERRUPTED)
    else:
        if code == 0:
            return 0
        failure = CommandError("the command failed", exit_code=code)
    report(failure, output=asked_format(arguments))
    return failure.exit_code


def as_failure(error: Exception) -> CommandError:
    """Any error as reason, advice and exit code."""
    if isinstance(error, CommandError):
        return error
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "tidemark"
        return CommandError(
            error.format_message().rstrip("."),
            hint=f"`{path} --help` shows what is possible",
            exit_code=error.exit_code,
        )
    if isinstance(error, click.ClickException):
        return CommandError(error.format_message(), exit_code=error.exit_code)
    if isinstance(error, click.Abort):
        return CommandError("interrupted", exit_code=INTERRUPTED)
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return CommandError(f"{where}{error.strerror or error}")
    traceback.print_exception(error)
    return CommandError(
        f"internal error: {type(error).__name__}: {error}",
        hint="this is a defect of tidemark; please report it with the lines above",
    )


def asked_format(arguments: Sequence[str]) -> str:
    """The last `-o` of a line that perhaps could not be parsed."""
    found = "table"
    for place, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument in ("-o", "--output"):
            found = next(iter(arguments[place + 1 : place + 2]), found)
        elif argument.startswith("--output="):
            found = argument.partition("=")[2]
        elif argument.startswith("-o"):
            found = argument[2:].removeprefix("=")
    return found if found in ("json", "yaml") else "table"


def _invoke(arguments: list[str]) -> int:
    code = application().main(
        arguments,
        prog_name="tidemark",
        complete_var=COMPLETE_VARIABLE,
        standalone_mode=False,
    )
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _drop_stdout() -> None:
    # The interpreter flushes stdout once more when it ends, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
