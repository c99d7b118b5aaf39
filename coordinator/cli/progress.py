"""A job's progress on a terminal: a bar, the rate and the time left. Loaded only there."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from coordinator.cli.output import printable
from proto.tidemark.v1.admin_pb2 import Job


class ProgressBar:
    """One bar on stderr, drawn over itself and gone at the end."""

    def __init__(self, title: str, *, console: Console | None = None) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TextColumn("{task.fields[files]}", style="dim", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left", style="dim"),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._title = printable(title)
        self._task = self._progress.add_task(self._title, total=None, files="")

    def start(self) -> None:
        """Begin to draw."""
        self._progress.start()

    def show(self, job: Job) -> None:
        """Draw how far the job has come."""
        now = job.progress
        total = now.bytes_total if now.HasField("bytes_total") else None
        files = f"{now.files_done:,}"
        if now.HasField("files_total"):
            files += f"/{now.files_total:,}"
        self._progress.update(
            self._task,
            completed=now.bytes_done,
            total=total or None,
            description=f"{self._title} {printable(now.activity) or 'waiting'}",
            files=f"{files} files" if now.files_done else "",
        )

    def stop(self) -> None:
        """Remove the bar."""
        self._progress.stop()
