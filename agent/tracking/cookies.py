"""The barrier: a name made in the agent's own directory, whose event comes through the same queue.

A queue keeps its order. So once the event of a name is here, that of everything which had returned
before the name was made is here as well.
"""

import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.errors import StateError

# Enough that no other name in any event holds it by chance.
_RANDOM_BYTES: Final = 16


class _Seen(threading.Event):
    """Set once there is word of a name."""

    is_dropped = False
    """Whether the word is that its event may have been dropped."""


class Cookies:
    """Names that are waited for. Used from any thread."""

    def __init__(self, state: Path) -> None:
        """Make a directory of its own in the agent's state, empty. Raises StateError."""
        self.directory = state / "cookies"
        self._lock = threading.Lock()
        self._waiting: dict[bytes, _Seen] = {}
        self._broken = False
        self.awaited = threading.Event()
        """Set while somebody waits: whoever reads the queue takes no nap then."""
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            for left in self.directory.iterdir():
                left.unlink()
        except OSError as error:
            raise StateError(
                f"cannot use {self.directory}: {error.strerror}",
                hint="check that the state directory's disk has space and can be written",
            ) from error

    def wait(self, timeout_seconds: float) -> bool:
        """Make a name, take it away, and wait for its event; False if that cannot be had in time.

        A disk without space, say, makes no name: then no event will come either.
        """
        end = time.monotonic() + timeout_seconds
        while True:
            name, seen = secrets.token_hex(_RANDOM_BYTES).encode(), _Seen()
            with self._lock:
                self._waiting[name] = seen
                self.awaited.set()
            try:
                self._leave(name)
                come = not self._broken and seen.wait(end - time.monotonic())
            except OSError:
                return False
            finally:
                with self._lock:
                    del self._waiting[name]
                    if not self._waiting:
                        self.awaited.clear()
            if not come or self._broken:
                return False
            if not seen.is_dropped:
                return True

    def _leave(self, name: bytes) -> None:
        path = os.fsencode(self.directory) + b"/" + name
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with suppress(FileNotFoundError):
            os.unlink(path)

    def see(self, name: bytes) -> None:
        """Tell that everything up to the event of that name is here."""
        with self._lock:
            seen = self._waiting.get(name)
        if seen is not None:
            seen.set()

    def see_in(self, events: bytes) -> None:
        """The same for all names that a stretch of the queue holds, whatever its form."""
        if self._waiting:
            with self._lock:
                waiting = list(self._waiting)
            for name in waiting:
                if name in events:
                    self.see(name)

    def drop(self) -> None:
        """Make new names for all that are waited for: the queue was full, and may not have them."""
        with self._lock:
            for seen in self._waiting.values():
                if not seen.is_set():
                    seen.is_dropped = True
                    seen.set()

    def break_off(self) -> None:
        """Wait for nothing any more: no event will come."""
        with self._lock:
            self._broken = True
            for seen in self._waiting.values():
                seen.set()
