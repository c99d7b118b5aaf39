"""How fast volumes may be read, where the agent's settings say so. Used from many threads.

Each reader is given its turn when it asks, so they are served in the order of coming.
"""

import threading
from collections.abc import Callable
from typing import Final

# A reader that comes late to its turn does not lose it, as long as it is not later than this.
_SAVED_SECONDS: Final = 0.02


class DiskThrottle:
    """A steady rate of reading."""

    def __init__(self, rate: int, monotonic: Callable[[], float]) -> None:
        """`rate`: bytes per second; `monotonic`: seconds of a clock that never goes back."""
        self._rate = rate
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._free_at = monotonic()
        self.waited_seconds = 0.0
        """In all."""

    def take(self, nbytes: int) -> None:
        """Wait until so many bytes may be read, after all who came before."""
        with self._lock:
            now = self._monotonic()
            begin = max(self._free_at, now - _SAVED_SECONDS)
            self._free_at = begin + nbytes / self._rate
            wait = self._free_at - now
            self.waited_seconds += max(0.0, wait)
        if wait > 0:
            self._ended.wait(wait)

    def end(self) -> None:
        """Let everybody go: the agent stops, and waits for who reads."""
        self._ended.set()
