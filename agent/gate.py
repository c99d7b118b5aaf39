"""How many may be in at once; how many that is may change while they are in and wait."""

import threading


class Gate:
    """Used from many threads."""

    def __init__(self, most: int) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self.most = most
        """What it was made for."""
        self._allowed = most

    def enter(self) -> None:
        """Wait until there is room; whoever enters leaves."""
        with self._changed:
            while self._inside >= self._allowed:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        """Let the next one in."""
        with self._changed:
            self._inside -= 1
            self._changed.notify()

    def allow(self, count: int) -> bool:
        """Let so many be in from now on, one at least; whether that is another number."""
        count = max(1, min(self.most, count))
        with self._changed:
            is_other = count != self._allowed
            self._allowed = count
            self._changed.notify_all()
        return is_other
