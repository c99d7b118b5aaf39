"""Turns: one thread at a time does what needs many small steps of Python.

Each system call lets go of the interpreter's lock, and whoever waits for it takes it. Two threads
that walk or read small files side by side thus exchange it ten times a file, and spend more time on
that than on the files (measured: 12 s of CPU for 100,000 files, against 9 s with turns, and 45 %
more wall time). So they take turns, for a batch at a time, and go side by side only where the lock
isn't needed: compressing, sealing, hashing of large pieces.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turn:
    """What a thread holds while it works in small steps. Not to be taken twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the turn, after whoever has it now."""
        with self._lock:
            yield

    @contextmanager
    def let_go(self) -> Iterator[None]:
        """Within `taken`: let others have it, for a wait or for long steps."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
