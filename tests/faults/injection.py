"""System calls of a running process that fail with EIO: strace does it, from outside."""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def failing(daemon: int, calls: str, trace: Path, paths: Sequence[Path] = ()) -> Iterator[None]:
    """Let these system calls of a process fail, for as long as the block lasts.

    `calls`: separated by commas; `paths`: only those that touch one of them. Each that failed has
    a line with EIO in the trace.
    """
    chosen = [word for path in paths for word in ("-P", str(path))]
    command = ["strace", "-f", "-p", str(daemon), "-o", str(trace), "-e", f"trace={calls}"]
    strace = subprocess.Popen(
        [*command, *chosen, "-e", f"inject={calls}:error=EIO"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert strace.stderr is not None
    try:
        attached = next((line for line in strace.stderr if b"attached" in line), b"")
        assert attached, "strace could not attach"
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(10)
        strace.stderr.close()


def failed_calls(trace: Path) -> int:
    """How many calls have failed so far."""
    return trace.read_text(errors="replace").count("EIO")
