"""How a command ends that did not do what it was asked.

A failing command ends stderr with one line of JSON, so that a script need not guess. Only a
person, that is a terminal with tables, is spared it and reads the message and the hint alone.
"""

import json
import sys
from typing import TextIO

FAILED = 1
USAGE = 2
PARTLY = 3
BUSY = 11
INTERRUPTED = 130


class CommandError(Exception):
    """A command ends with this exit code, this reason and this advice."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class UsageError(CommandError):
    """What was typed cannot be meant."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=USAGE)


def report(error: CommandError, *, output: str, stream: TextIO | None = None) -> None:
    """Write the reason for a person and, unless it is one who reads it, the line for a script."""
    stream = sys.stderr if stream is None else stream
    human = output == "table"
    if human:
        stream.write(f"Error: {error.message}\n")
        if error.hint:
            stream.write(f"Hint: {error.hint}\n")
    if not (human and stream.isatty()):
        stream.write(exit_line(error) + "\n")
    stream.flush()


def exit_line(error: CommandError) -> str:
    """The line that a script reads."""
    document = {
        "message_type": "exit_error",
        "code": error.exit_code,
        "message": error.message,
        "hint": error.hint,
    }
    return json.dumps(document)
