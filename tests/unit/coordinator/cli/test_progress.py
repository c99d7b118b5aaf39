import io

from rich.console import Console

from coordinator.cli.progress import ProgressBar
from proto.tidemark.v1.admin_pb2 import Job


def test_a_bar_shows_rate_time_left_and_what_is_being_done() -> None:
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=200, color_system=None)
    bar = ProgressBar("backup a\x1b[2Jb", console=console)
    job = Job()
    job.progress.activity = "reading"
    job.progress.files_total = 10
    job.progress.bytes_total = 100_000_000

    bar.start()
    for step in range(1, 4):
        job.progress.files_done = step
        job.progress.bytes_done = step * 10_000_000
        bar.show(job)
    bar.stop()

    text = drawn.getvalue()
    assert "backup a\\x1b[2Jb reading" in text
    assert "3/10 files" in text
    assert "28.6/95.4 MiB" in text
    assert "/s" in text
    assert " left" in text
