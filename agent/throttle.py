"""How fast this node may use the network, as the coordinator grants it for a moment at a time.

Without any limit nothing is told and nothing waits. Once a limit is in force, a grant is good until
its lease is over; then the rate falls to the floor that came with it, and never back to no limit: a
coordinator that is gone has not lifted anything. Whoever moves bytes calls `take` first, in pieces
of `piece_bytes`, and is served in the order of coming. Used from one event loop only.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from agent.pacing import Pace
from agent.services import Clock

# Pieces when nothing is limited, and the largest there are.
PIECE_BYTES: Final = 1024 * 1024
# A call without much data, or a request; the coordinator syncs files for some calls.
CALL_SECONDS: Final = 60.0
# The slowest line that a transfer is allowed to be on, beside that.
BYTES_PER_SECOND_MIN: Final = 64 * 1024
# A line that stutters faster than 50 times a second is smooth to everybody on it.
_PIECE_SECONDS: Final = 0.02
# Smaller pieces would be mostly the headers around them.
_PIECE_BYTES_MIN: Final = 64
# A flow that took nothing for so long has ended, or waits for something else than us. Others may
# have its part then; it gets it back a moment after it has asked.
_IDLE_SECONDS: Final = 0.1
# What is measured in less says little.
_MEASURED_SECONDS: Final = 0.25


class Grant(NamedTuple):
    """What the coordinator allows for a moment, in bytes per second."""

    number: int
    upload: int
    restore: int
    floor: int
    lease_seconds: float


class Flow(NamedTuple):
    """What became of one direction since it was last measured."""

    wants: bool
    used_bytes: int
    blocked_seconds: float


class Demand(NamedTuple):
    """What the coordinator is told."""

    number: int
    """Of the newest grant."""
    seconds: float
    """For how long was measured."""
    upload: Flow
    restore: Flow


class Stream:
    """Bytes that belong together."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended: Callable[[], None] | None = ended

    def end(self) -> None:
        """Nothing more of it follows. Twice is once."""
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended()


class Throttle:
    """One direction."""

    def __init__(self, clock: Clock, on_change: Callable[[], None]) -> None:
        """`on_change` is called when something begins to flow, and when a flow has said its end."""
        self._clock = clock
        self._on_change = on_change
        self._pace: Pace | None = None
        self._lease_seconds = self._lease_until = 0.0
        self._floor = 0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._takers = self._flows = 0
        # Whether the coordinator knows that something wants to flow.
        self._is_told = False
        self._taken_at = -math.inf
        self._used_bytes = 0
        self._blocked_seconds = 0.0
        self.waited_seconds = 0.0
        """In all."""

    @property
    def is_limited(self) -> bool:
        """Whether anything has to wait."""
        return self._pace is not None

    @property
    def rate(self) -> float:
        """Bytes per second now; infinite without a limit."""
        return math.inf if self._pace is None else self._pace.rate

    @property
    def piece_bytes(self) -> int:
        """How much should be asked for at a time."""
        return PIECE_BYTES if self._pace is None else min(PIECE_BYTES, self._piece_of(self._pace))

    def _piece_of(self, pace: Pace) -> int:
        """What goes at the present rate in a moment that nobody notices."""
        return max(_PIECE_BYTES_MIN, int((pace.rate or self._floor) * _PIECE_SECONDS))

    async def take(self, nbytes: int) -> float:
        """Wait until so many bytes may go; the seconds that it took."""
        if self._pace is None:
            return 0.0
        began = self._clock.monotonic()
        while nbytes > 0:
            nbytes -= await self.take_some(nbytes)
        return self._clock.monotonic() - began

    async def take_some(self, most: int, piece_max: int = PIECE_BYTES) -> int:
        """Wait until anything may go; how much may, which is a piece at the rate of that moment."""
        if self._pace is None:
            return most
        began = self._clock.monotonic()
        self._begin_taking(began)
        try:
            async with self._turn:
                return await self._wait_for_piece(min(most, piece_max))
        finally:
            self._takers -= 1
            self._taken_at = self._clock.monotonic()
            self.waited_seconds += self._taken_at - began

    def postpone(self, nbytes: int, since: float, until: float) -> None:
        """Say that what was taken at `since` was held up, and came as if taken at `until`.

        Somebody on the line sees it go together with what follows, which has to wait for that.
        """
        if self._pace is not None and until > since:
            self._pace.postpone(nbytes, since, until)

    def begin_flow(self) -> Stream:
        """Say that many bytes are about to be taken; whoever says so says when it was all."""
        stream = Stream(self._end_flow)
        self._flows += 1
        return stream

    def _end_flow(self) -> None:
        self._flows -= 1
        if self._flows == 0 and self._takers == 0:
            self._taken_at = -math.inf
            if self._pace is not None:
                self._on_change()

    def grant(self, rate: int, floor: int, lease_seconds: float) -> None:
        """Go by this rate until the lease is over."""
        now = self._clock.monotonic()
        if self._pace is None:
            self._pace = Pace(rate, now)
        elif rate != self._pace.rate:
            self._fall(now)
            self._pace.set_rate(rate, now)
        self._floor, self._lease_seconds = floor, lease_seconds
        self._lease_until = now + lease_seconds
        self._changed.set()

    def lift(self) -> None:
        """Let everything go: nothing limits it any more."""
        self._pace = None
        self._changed.set()

    def wants(self, now: float) -> bool:
        """Whether something flows, or waits to."""
        return self._takers > 0 or self._flows > 0 or now - self._taken_at < _IDLE_SECONDS

    def is_news(self, now: float) -> bool:
        """Whether that is another thing than the coordinator was told."""
        return self.wants(now) != self._is_told

    def measure(self, now: float, *, begin_anew: bool) -> Flow:
        """What became of it since the measurement began."""
        self._is_told = self.wants(now)
        flow = Flow(self._is_told, self._used_bytes, self._blocked_seconds)
        if begin_anew:
            self._used_bytes, self._blocked_seconds = 0, 0.0
        return flow

    def _begin_taking(self, now: float) -> None:
        self._takers += 1
        if self._is_told:
            return
        self._is_told = True
        if now >= self._lease_until:
            # A node that wants nothing is granted nothing: the answer to our question is waited
            # for as long as for any renewal.
            self._lease_until = now + self._lease_seconds
            if self._pace is not None:
                self._pace.set_rate(0, now)
        self._on_change()

    def _fall(self, now: float) -> None:
        """Fall to the floor, if the lease was over by now."""
        if self._pace is not None and now >= self._lease_until and self._pace.rate != self._floor:
            self._pace.set_rate(self._floor, self._lease_until)

    async def _wait_for_piece(self, most: int) -> int:
        while (pace := self._pace) is not None:
            self._changed.clear()
            now = self._clock.monotonic()
            self._fall(now)
            piece = min(most, self._piece_of(pace))
            delay = pace.delay(piece, now)
            if not delay:
                pace.spend(piece, now)
                self._used_bytes += piece
                return piece
            if now < self._lease_until:
                delay = min(delay, self._lease_until - now)
            await self._pause(delay)
            self._blocked_seconds += self._clock.monotonic() - now
        return most

    async def _pause(self, seconds: float) -> None:
        """Wait so long, but not beyond the next grant."""
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self._changed.wait()
        except TimeoutError:
            return


class Throttles:
    """Both directions of the network, as one grant rules them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ask: Callable[[], None] = _nobody
        self.upload = Throttle(clock, self._tell)
        self.restore = Throttle(clock, self._tell)
        self._number = 0
        self._measured_at = clock.monotonic()
        self._limited = asyncio.Event()

    def tell_with(self, ask: Callable[[], None]) -> None:
        """Call this when the coordinator should be told of our demand."""
        self._ask = ask

    def on_grant(self, grant: Grant | None) -> None:
        """Go by a grant; None lifts all limits."""
        if grant is None:
            self._limited.clear()
            self.upload.lift()
            self.restore.lift()
            return
        self._limited.set()
        self._number = grant.number
        self.upload.grant(grant.upload, grant.floor, grant.lease_seconds)
        self.restore.grant(grant.restore, grant.floor, grant.lease_seconds)
        self._ask()

    def demand(self) -> Demand | None:
        """What to tell the coordinator; None while there is no limit."""
        if not self.upload.is_limited:
            return None
        now = self._clock.monotonic()
        seconds = now - self._measured_at
        # What is told between two measurements counts on.
        begin_anew = seconds >= _MEASURED_SECONDS
        if begin_anew:
            self._measured_at = now
        return Demand(
            self._number,
            seconds,
            self.upload.measure(now, begin_anew=begin_anew),
            self.restore.measure(now, begin_anew=begin_anew),
        )

    async def run(self) -> None:
        """Let the coordinator know when a flow has ended, until canceled."""
        while True:
            await self._limited.wait()
            await asyncio.sleep(_IDLE_SECONDS / 4)
            now = self._clock.monotonic()
            if self.upload.is_news(now) or self.restore.is_news(now):
                self._ask()

    def _tell(self) -> None:
        self._ask()


def _nobody() -> None:
    """Nobody is asked before there is a connection."""


def transfer_seconds(size_bytes: int) -> float:
    """Return how long a call or a request may take that carries so much of a pack."""
    return CALL_SECONDS + size_bytes / BYTES_PER_SECOND_MIN


class Deadline:
    """Until when a call must have ended, but for what it waits by our own choice."""

    def __init__(self, seconds: float) -> None:
        self.timeout = asyncio.timeout(seconds)

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Let the time within not count."""
        loop = asyncio.get_running_loop()
        began, end = loop.time(), self.timeout.when()
        self.timeout.reschedule(None)
        yield
        if end is not None:
            self.timeout.reschedule(end + loop.time() - began)
