"""This process among others: one per data directory, and not longer than its parent if so asked.

And what it keeps of the memory it has used.
"""

import ctypes
import fcntl
import os
import signal
from pathlib import Path
from typing import Final

from coordinator.errors import BusyError, TidemarkError

_PR_SET_PDEATHSIG: Final = 1
# From <malloc.h>.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
# More than a piece of a pack, a batch of them, or a read of one: these are made and let go all the
# time, and the kernel clears each page that it gives out anew.
_MMAP_BYTES: Final = 6 * 1024 * 1024
# What may stay free at the end of an arena.
_TRIM_BYTES: Final = 16 * 1024 * 1024
_ARENAS: Final = 4


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


def bound_memory() -> None:
    """Keep what packs pass through, and give the rest back: a service is idle most of the time.

    Left alone, glibc maps and unmaps the memory of each piece of a pack (measured with gRPC alone:
    0.73 s of CPU to send 512 MiB, against 0.32 s), and every thread keeps an arena of its own.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, which has no such habits
        return
    mallopt(_M_ARENA_MAX, _ARENAS)
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
