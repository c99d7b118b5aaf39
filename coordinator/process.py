"""This process among others: one per data directory, and not longer than its parent if so asked."""

import ctypes
import fcntl
import os
import signal
from pathlib import Path
from typing import Final

from coordinator.errors import BusyError, TidemarkError

_PR_SET_PDEATHSIG: Final = 1


class DataLock:
    """The right to a data directory. The kernel gives it back however the process dies."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise BusyError(
                f"another coordinator works on {directory}",
                hint="stop it first, or give another --data directory",
            ) from error

    def close(self) -> None:
        """Give it back."""
        os.close(self._descriptor)


def end_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the parent dies; if it is dead already, end now."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise TidemarkError(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    # The parent may have died before the request was made; then nothing would ever come.
    if os.getppid() != parent:
        raise TidemarkError("the process that started this one is gone")
