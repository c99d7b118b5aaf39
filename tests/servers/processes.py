"""Processes that end with the one that started them, and waiting for them to answer."""

import ctypes
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_PAUSE_SECONDS = 0.05


class NotReadyError(Exception):
    """A server ended, or did not answer in time."""


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def start(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start it, killed when the thread that calls this ends; all it says goes to the log."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | dict(environment or {}),
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - whoever starts servers has one thread
        )


def run(command: Sequence[str | Path], log: Path, *, seconds: float) -> None:
    """Run it to its end; NotReadyError where it fails or takes longer."""
    try:
        with log.open("ab") as file:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=seconds,
                check=True,
            )
    except subprocess.SubprocessError as error:
        raise NotReadyError(f"{error}:\n{_end_of(log)}") from error


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, *, seconds: float
) -> None:
    """Wait until it is ready; NotReadyError where it ends or takes longer."""
    end = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise NotReadyError(f"{process.args!r} does not answer:\n{_end_of(log)}")
        select.select([], [], [], _PAUSE_SECONDS)


def free_port() -> int:
    """A port of loopback that nobody listened on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as caller:
        caller.settimeout(1)
        return caller.connect_ex(("127.0.0.1", port)) == 0


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
