"""Documents on stdout: as tables for people, as JSON or YAML for scripts.

A table is for eyes: control characters of hostile file names never reach the terminal raw.
`rich` draws it on a terminal; in a pipe it is plain, aligned text, and `rich` is not loaded.
"""

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.cli.documents import Document


class Format(StrEnum):
    """How a document is written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True)
class Table:
    """Rows of text under titles; `right` are the columns of numbers."""

    titles: Sequence[str]
    rows: list[Sequence[str]]
    right: frozenset[int] = field(default_factory=frozenset)
    # Said instead of a table without rows.
    empty: str = "nothing to show"


def fields_table(fields: Sequence[tuple[str, str]]) -> Table:
    """One thing, told line by line."""
    return Table(titles=(), rows=[(name, value) for name, value in fields])


def write(made: Any, output: Format, table: Callable[[], Table | str]) -> None:
    """Write one document; `table` is asked only where it is wanted."""
    if output is Format.TABLE:
        shown = table()
        text = shown + "\n" if isinstance(shown, str) else _drawn(shown)
    else:
        text = encode(made, output)
    _out(text)


def write_stream(
    items: Iterable["Document"], output: Format, line: Callable[["Document"], str]
) -> None:
    """Write a list of any length, one element at a time."""
    if output is Format.TABLE:
        for item in items:
            _out(line(item) + "\n")
    elif output is Format.YAML:
        began = False
        for item in items:
            began = True
            _out(encode([item], output))
        if not began:
            _out("[]\n")
    else:
        separator = "[\n"
        for item in items:
            _out(separator + "  " + encode(item, output).rstrip("\n").replace("\n", "\n  "))
            separator = ",\n"
        _out("[]\n" if separator == "[\n" else "\n]\n")


def write_bytes(data: bytes) -> None:
    """Write content as it is."""
    sys.stdout.buffer.write(data)


def encode(made: Any, output: Format) -> str:
    """JSON or YAML, with a line feed at its end."""
    if output is Format.YAML:
        text: str = importlib.import_module("yaml").safe_dump(
            made, sort_keys=False, allow_unicode=True
        )
        return text
    text = json.dumps(made, indent=2, ensure_ascii=False)
    # Valid JSON may hold these raw, but a terminal would obey some of them.
    return re.sub("[\x7f-\x9f\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def printable(text: str) -> str:
    r"""The text with `\xNN` for what a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def _drawn(table: Table) -> str:
    if not table.rows:
        return table.empty + "\n"
    if sys.stdout.isatty():
        drawn: str = importlib.import_module("coordinator.cli.tables").draw(table)
        return drawn
    return plain(table)


def plain(table: Table) -> str:
    """Columns aligned with blanks, two between columns."""
    rows = [[printable(cell) for cell in row] for row in table.rows]
    lines = [[title.upper() for title in table.titles], *rows] if table.titles else rows
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ""
    for line in lines:
        cells = [
            cell.rjust(widths[column]) if column in table.right else cell.ljust(widths[column])
            for column, cell in enumerate(line)
        ]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def _out(text: str) -> None:
    # Bytes: the locale must not decide whether a document can be written.
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
