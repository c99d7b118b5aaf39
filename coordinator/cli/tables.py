"""Tables on a terminal. Loaded only there: `rich` takes a fifth of a second."""

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from coordinator.cli.output import Table, printable

# Words that tell at a glance how things stand.
_STYLES = {
    "Completed": "green",
    "PartiallyFailed": "yellow",
    "Failed": "bold red",
    "Canceled": "magenta",
    "InProgress": "cyan",
    "connected": "green",
    "disconnected": "yellow",
    "revoked": "red",
    "protected": "green",
    "unprotected": "bold red",
    "ok": "green",
    "FAILED": "bold red",
}


def draw(table: Table) -> str:
    """The table in the terminal's width."""
    console = Console()
    with console.capture() as captured:
        console.print(_rich(table))
    return captured.get()


def _rich(table: Table) -> RichTable:
    titled = bool(table.titles)
    made = RichTable(
        box=box.SIMPLE_HEAD if titled else None,
        show_header=titled,
        header_style="bold",
        pad_edge=False,
    )
    titles = table.titles or [""] * len(table.rows[0])
    for column, title in enumerate(titles):
        made.add_column(
            title,
            justify="right" if column in table.right else "left",
            style="bold" if not titled and column == 0 else "",
            overflow="fold",
        )
    for row in table.rows:
        made.add_row(*(Text(printable(cell), style=_STYLES.get(cell, "")) for cell in row))
    return made
