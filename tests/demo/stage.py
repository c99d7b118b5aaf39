"""How the demonstration looks, and how it drives the command."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

COMMAND = Path(sys.executable).with_name("tidemark")
_READY_SECONDS = 60
_STOP_SECONDS = 30


class DemoError(Exception):
    """The demonstration did not go as it must."""


@dataclass(frozen=True)
class Row:
    """A line of the closing table."""

    step: str
    seconds: float
    read: int | None = None
    stored: int | None = None
    note: str = ""


@dataclass
class Stage:
    """A place to run in, a console to speak on, and what was measured."""

    place: Path
    console: Console = field(default_factory=lambda: Console(highlight=False))
    rows: list[Row] = field(default_factory=list)
    step_number: int = 0

    def title(self) -> None:
        """Say what is going to happen."""
        self.console.print(
            Panel.fit(
                "[bold]Tidemark[/] backs up container volumes, and proves that they come back.\n"
                "[dim]Everything below is the installed [bold]tidemark[/bold] command, on real "
                "data, in a directory that is removed at the end.[/]",
                border_style="cyan",
                box=box.ROUNDED,
            )
        )

    def step(self, text: str) -> None:
        """Begin a step."""
        self.step_number += 1
        self.console.print(f"\n[bold cyan]{self.step_number}. {text}[/]")

    def say(self, text: str) -> None:
        """Something that went as it must."""
        self.console.print(Text.assemble(("   ✓ ", "bold green"), text), soft_wrap=True)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self.console.print(Text("     " + text, style="dim"), soft_wrap=True)

    def run(self, *arguments: str, code: int = 0) -> Any:
        """Run one command, show it, and return the document that it printed."""
        shown = shlex.join(["tidemark", *arguments]).replace(str(self.place), "…")
        self.console.print(Text.assemble(("   $ ", "bold"), (shown, "bold")), soft_wrap=True)
        with self.console.status("   running", spinner="dots"):
            done = subprocess.run(
                [COMMAND, *arguments, "-o", "json"],
                capture_output=True,
                text=True,
                env=self._environment(),
                check=False,
            )
        if done.returncode != code:
            raise DemoError(f"{shown} exited {done.returncode} instead of {code}:\n{done.stderr}")
        return json.loads(done.stdout) if done.stdout else None

    @contextmanager
    def up(self, *protect: str, docker: bool = False) -> Iterator[None]:
        """Run `tidemark up` until the block ends."""
        flags = [flag for one in protect for flag in ("--protect", one)]
        flags += ["--docker"] if docker else []
        arguments = ["up", "--data", str(self.place / "tidemark"), *flags, "--every", "off"]
        shown = shlex.join(["tidemark", *arguments]).replace(str(self.place), "…")
        self.console.print(Text.assemble(("   $ ", "bold"), (shown + " &", "bold")), soft_wrap=True)
        began = time.monotonic()
        with (self.place / "up.log").open("wb") as log:
            process = subprocess.Popen(
                [COMMAND, *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment(),
            )
        try:
            with self.console.status("   starting a coordinator and an agent", spinner="dots"):
                ready = process.stdout.readline().decode() if process.stdout else ""
            if not ready.startswith("ready "):
                raise DemoError(f"`tidemark up` failed:\n{(self.place / 'up.log').read_text()}")
            seconds = time.monotonic() - began
            self.say(f"coordinator and agent speak mTLS, ready after {seconds:.1f} s")
            self.note(ready.strip().replace(str(self.place), "…"))
            yield
        finally:
            process.terminate()
            process.wait(_STOP_SECONDS)
            if process.stdout:
                process.stdout.close()

    def measured(self, row: Row) -> None:
        """Keep a line for the closing table."""
        self.rows.append(row)

    def closing_table(self, stored_bytes: int, seconds: float) -> None:
        """What each step read, stored and took."""
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", title="What each step did")
        table.add_column("step")
        for title in ("read", "stored", "took"):
            table.add_column(title, justify="right")
        table.add_column("", style="dim")
        for row in self.rows:
            table.add_row(
                row.step, _size(row.read), _size(row.stored), f"{row.seconds:.2f} s", row.note
            )
        self.console.print()
        self.console.print(table)
        self.say(f"the repository holds both snapshots in {_size(stored_bytes)}")
        self.say(f"all done in {seconds:.0f} s; nothing is left behind")

    def _environment(self) -> dict[str, str]:
        mine = {k: v for k, v in os.environ.items() if not k.startswith("TIDEMARK_")}
        return mine | {"XDG_CONFIG_HOME": str(self.place / "home")}


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return ""
    if size_bytes < 1024 * 1024:
        return f"{size_bytes / 1024:.0f} KiB"
    return f"{size_bytes / 1024 / 1024:.1f} MiB"
