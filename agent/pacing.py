"""When so many bytes may go, at a rate. Pure: times are seconds of a clock that never goes back.

Two promises. On the whole no more goes than the rate allows: what was not used is kept for a
quarter of a second, so that a late wake-up costs nothing, and no longer. And in no second that one
may look at does more than 2 % above the rate go, whenever that second begins and however the rate
changed in it.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from operator import itemgetter
from typing import Final

WINDOW_SECONDS: Final = 1.0
# The fleet's promise is 5 %; what lies between is for lines that deliver unevenly.
_WINDOW_PART: Final = 1.02
# Two busy cores let a thread wait for some tens of milliseconds.
_SAVED_SECONDS: Final = 0.25
_LOWERED_SECONDS: Final = 0.02
# Late wake-ups of a moment; more than that is gone.
_ROOM_SECONDS: Final = 0.04
# What comes later than usual by less fits between what goes here and what is promised.
_LAG_SECONDS: Final = 0.02
# What is shorter than this is not worth waiting for.
_NOW_SECONDS: Final = 1e-6


class Pace:
    """A rate that may change, and what went at it. Times given must never go back."""

    def __init__(self, rate: float, now: float) -> None:
        """Bytes per second, beginning now; nothing is saved yet."""
        self.rate = rate
        self._saved = 0.0
        self._saved_at = now
        # The rates of the last second, each with when it began; what went in it, each with when.
        self._rates = deque([(now, rate)])
        self._sent: deque[tuple[float, int]] = deque()
        self._sent_bytes = 0

    def set_rate(self, rate: float, now: float) -> None:
        """Go on at another rate, from that moment or from the last one that was told of."""
        now = max(now, self._saved_at)
        self._save(now)
        # What was saved at a higher rate would be too much for the first moment of a lower one.
        kept_seconds = _SAVED_SECONDS if rate >= self.rate else _LOWERED_SECONDS
        self.rate = rate
        self._saved = min(self._saved, rate * kept_seconds)
        self._rates.append((now, rate))

    def delay(self, size_bytes: int, now: float) -> float:
        """Seconds until so many bytes may go, as far as is known now; zero if they may.

        Infinite at a rate of zero. What is too large to be saved for goes in debt.
        """
        self._save(now)
        self._forget(now)
        if self.rate <= 0:
            return float("inf")
        needed = min(size_bytes, self.rate * _SAVED_SECONDS / 2)
        room = self._until_room(size_bytes, now)
        if room > 0:
            # Who waits for the last second to pass saves little: else what went at once in that
            # second would go at once in each one that follows.
            self._saved = min(self._saved, max(needed, self.rate * _ROOM_SECONDS))
        wait = max(0.0, (needed - self._saved) / self.rate, room)
        return 0.0 if wait < _NOW_SECONDS else wait

    def spend(self, size_bytes: int, now: float) -> None:
        """So many bytes go."""
        self._save(now)
        self._saved -= size_bytes
        self._sent.append((now, size_bytes))
        self._sent_bytes += size_bytes

    def postpone(self, size_bytes: int, since: float, until: float) -> None:
        """Count so many bytes, which were to go at `since`, as going at `until`."""
        kept = deque[tuple[float, int]]()
        left = size_bytes
        while self._sent and (self._sent[-1][0] > since or left):
            at, size = self._sent.pop()
            part = 0 if at > since else min(size, left)
            left -= part
            if size > part:
                kept.appendleft((at, size - part))
        # What is left had gone from the last second already.
        self._sent_bytes += left
        self._sent = deque(sorted([*self._sent, *kept, (until, size_bytes)]))

    def _save(self, now: float) -> None:
        saved = self._saved + (now - self._saved_at) * self.rate
        self._saved = min(saved, self.rate * _SAVED_SECONDS)
        self._saved_at = now

    def _forget(self, now: float) -> None:
        since = now - WINDOW_SECONDS
        while self._sent and self._sent[0][0] <= since:
            self._sent_bytes -= self._sent.popleft()[1]
        while len(self._rates) > 1 and self._rates[1][0] <= since:
            self._rates.popleft()

    def _until_room(self, size_bytes: int, now: float) -> float:
        """Until the last second has room for so much more, if the rate stays as it is."""
        over = self._sent_bytes + size_bytes - self._allowed(now) * _WINDOW_PART
        if over <= 0:
            return 0.0
        # From here on the second moves: what was sent leaves it, and other rates do.
        at = now
        began, first_rate = self._rates[0]
        leaving_rate = first_rate if began <= now - WINDOW_SECONDS else 0.0
        for until, size, next_rate in self._leaving(now):
            growth = (self.rate - leaving_rate) * _WINDOW_PART
            if 0 < over <= growth * (until - at):
                return at + over / growth - now
            over -= growth * (until - at) + size
            at = until
            leaving_rate = leaving_rate if next_rate is None else next_rate
            if over <= 0:
                break
        # What is larger than a second has room for goes alone.
        return at - now

    def _leaving(self, now: float) -> Iterator[tuple[float, int, float | None]]:
        """Yield what leaves the last second, in order: when, how much, and from when what rate."""
        since = now - WINDOW_SECONDS
        rates = ((at + WINDOW_SECONDS, 0, rate) for at, rate in self._rates if at > since)
        sent = ((at + WINDOW_SECONDS, size, None) for at, size in self._sent)
        yield from heapq.merge(rates, sent, key=itemgetter(0))

    def _allowed(self, now: float) -> float:
        """What the rates of the last second add up to."""
        since, total = now - WINDOW_SECONDS, 0.0
        end = now
        for began, rate in reversed(self._rates):
            total += rate * (end - max(began, since))
            end = max(began, since)
        return total


class Lag:
    """How much later than usual what was asked for comes.

    A line's own delay is the same for all that goes over it, and changes nothing in how much comes
    in a second. What was held up somewhere comes together with what follows it.
    """

    def __init__(self) -> None:
        self._before = self._least = float("inf")

    def begin_anew(self) -> None:
        """Forget all but what was learned since this was called last: lines change."""
        self._before, self._least = self._least, float("inf")

    def of(self, delay_seconds: float) -> float:
        """By how much it came too late, after such a delay; zero for what nobody notices.

        Never less than it was: who knows the shortest delay only roughly counts it somewhat later.
        """
        self._least = min(self._least, delay_seconds)
        lag = delay_seconds - min(self._before, self._least)
        return 0.0 if lag < _LAG_SECONDS else min(delay_seconds, lag + _LAG_SECONDS)
