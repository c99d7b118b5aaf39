"""Another store, left alone while it fails: calls that cannot succeed fail at once.

A call that may wait is parked instead, until its own deadline. When the circuit is due for its
probe, the parked call that came first is the probe; when it closes, parked calls run a few at a
time, in their order, each of them once. So a store that is back is not met by all that waited.

What counts is the operation as the store below ends it: above a RetryingStore, after all tries.
An object that is missing, taken or damaged, and a full store, are answers.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

from typing_extensions import override

from repository.errors import DamagedError, StoreError, StoreUnavailableError
from repository.store.around import SigningAround, StoreAround, WriterAround
from repository.store.circuit import Circuit, Limits, Outcome, Phase, Ticket
from repository.store.interface import (
    ObjectInfo,
    ObjectWriter,
    Signing,
    Store,
    StoredObject,
)

# Of the parked calls. As many as agents send at once to a coordinator that has a few of them.
_RELEASED_MAX: Final = 4
# More than the calls of all jobs that a coordinator runs at once; beyond it something is wrong.
_PARKED_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class State:
    """A circuit for those who look at it."""

    phase: Phase
    failures: int
    """In a row."""
    failing_seconds: float
    """Since the first of these; 0 without any."""
    retry_in_seconds: float
    """Until the probe, while it is open."""
    parked: int
    """Calls that wait."""
    openings: int
    """Since the start."""


class Breaker:
    """The circuit of one store, and the calls that wait for it. Belongs to one event loop.

    `clock` counts seconds as the event loop does.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        released_max: int = _RELEASED_MAX,
    ) -> None:
        self._limits = limits or Limits()
        self._clock = clock
        self._released_max = released_max
        self._circuit = Circuit()
        self._parked: deque[asyncio.Future[Ticket]] = deque()
        self._released = 0
        self._openings = 0
        self._timer: asyncio.TimerHandle | None = None

    def state(self) -> State:
        """As it is now."""
        circuit, now = self._circuit, self._clock()
        is_open = circuit.phase is Phase.OPEN
        return State(
            phase=circuit.phase,
            failures=circuit.failures,
            failing_seconds=now - circuit.failing_since if circuit.failures else 0.0,
            retry_in_seconds=max(0.0, circuit.retry_at - now) if is_open else 0.0,
            parked=len(self._parked),
            openings=self._openings,
        )

    @asynccontextmanager
    async def call(
        self, wait_seconds: float = 0.0, *, is_proof: bool = True
    ) -> AsyncIterator[Ticket]:
        """Around a call of the store; StoreUnavailableError instead, at once or after the wait.

        `is_proof`: whether it succeeds only if the store works.
        """
        ticket = self._admit()
        was_parked = ticket is None
        if ticket is None:
            ticket = await self._park(wait_seconds)
        outcome = Outcome.NOTHING
        try:
            yield ticket
            outcome = Outcome.ANSWERED if is_proof else Outcome.NOTHING
        except StoreUnavailableError:
            outcome = Outcome.FAILED
            raise
        except (StoreError, DamagedError):
            outcome = Outcome.ANSWERED
            raise
        finally:
            self._settle(ticket, outcome, was_parked=was_parked)

    def failed(self, ticket: Ticket) -> None:
        """A call that goes on after it was let through has failed."""
        self._settle(ticket, Outcome.FAILED, was_parked=False)

    def _admit(self) -> Ticket | None:
        self._circuit, ticket = self._circuit.admit(self._clock())
        return ticket

    def _settle(self, ticket: Ticket, outcome: Outcome, *, was_parked: bool) -> None:
        before = self._circuit.period
        self._circuit = self._circuit.settle(ticket, outcome, self._clock(), self._limits)
        if outcome is Outcome.FAILED and self._circuit.period != before:
            self._openings += 1
        self._released -= was_parked
        self._hand_out()

    async def _park(self, wait_seconds: float) -> Ticket:
        if wait_seconds <= 0 or len(self._parked) >= _PARKED_MAX:
            raise self._refusal()
        future: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._parked.append(future)
        self._hand_out()
        try:
            await asyncio.wait([future], timeout=wait_seconds)
        except BaseException:
            self._leave(future)
            raise
        if not future.done():
            self._leave(future)
            raise self._refusal()
        return future.result()

    def _leave(self, future: asyncio.Future[Ticket]) -> None:
        if future.done():
            # Let through in the very moment when it was canceled: it is another one's turn.
            self._settle(future.result(), Outcome.NOTHING, was_parked=True)
        else:
            self._parked.remove(future)

    def _hand_out(self) -> None:
        """Let parked calls through, as many as may be."""
        while self._parked and self._released < self._released_max:
            ticket = self._admit()
            if ticket is None:
                self._wait_for_probe()
                return
            self._released += 1
            self._parked.popleft().set_result(ticket)

    def _wait_for_probe(self) -> None:
        if self._circuit.phase is Phase.OPEN and self._timer is None:
            delay = max(0.0, self._circuit.retry_at - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._probe)

    def _probe(self) -> None:
        self._timer = None
        self._hand_out()

    def _refusal(self) -> StoreUnavailableError:
        state = self.state()
        return StoreUnavailableError(
            f"the store has failed for {state.failing_seconds:.0f} s;"
            f" it is asked again in {state.retry_in_seconds:.0f} s",
            hint="check the way to the store; once it answers, everything goes on by itself",
        )


class BreakingStore(StoreAround):
    """Reads and writes through to another store, as long as that one is not left alone."""

    def __init__(self, inner: Store, breaker: Breaker, *, wait_seconds: float = 0.0) -> None:
        super().__init__(inner)
        self._breaker = breaker
        self._wait_seconds = wait_seconds

    def patient(self, wait_seconds: float) -> "BreakingStore":
        """The same store, where each call that is not let through waits for so long first."""
        return BreakingStore(self._inner, self._breaker, wait_seconds=wait_seconds)

    @override
    def writer(self, name: str) -> ObjectWriter:
        return _BreakingWriter(self._inner.writer(name), self._breaker, self._wait_seconds)

    @override
    async def put(self, name: str, data: bytes) -> None:
        async with self._breaker.call(self._wait_seconds):
            await self._inner.put(name, data)

    @override
    async def get(self, name: str) -> bytes:
        async with self._breaker.call(self._wait_seconds):
            return await self._inner.get(name)

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        async with self._breaker.call(self._wait_seconds):
            return await self._inner.get_range(name, offset, length)

    @override
    async def head(self, name: str) -> ObjectInfo:
        async with self._breaker.call(self._wait_seconds):
            return await self._inner.head(name)

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        listing = self._inner.list_objects(prefix)
        async with self._breaker.call(self._wait_seconds):
            try:
                async for info in listing:
                    yield info
            finally:
                if isinstance(listing, AsyncGenerator):
                    await listing.aclose()

    @override
    async def delete(self, name: str) -> None:
        async with self._breaker.call(self._wait_seconds):
            await self._inner.delete(name)


class BreakingSigning(SigningAround):
    """Asks what there is as long as the store is not left alone. To sign asks nobody."""

    def __init__(self, inner: Signing, breaker: Breaker, *, wait_seconds: float = 0.0) -> None:
        super().__init__(inner)
        self._breaker = breaker
        self._wait_seconds = wait_seconds

    @override
    async def stored(self, name: str, offset: int, length: int) -> StoredObject:
        async with self._breaker.call(self._wait_seconds):
            return await self._inner.stored(name, offset, length)


class _BreakingWriter(WriterAround):
    """An object on its way. Only the commit proves that the store works.

    It is opened only when it could be committed now, so that no pack is taken in for nothing.
    """

    def __init__(self, inner: ObjectWriter, breaker: Breaker, wait_seconds: float) -> None:
        super().__init__(inner)
        self._breaker = breaker
        self._wait_seconds = wait_seconds
        self._ticket = Ticket(period=-1)

    @override
    async def __aenter__(self) -> Self:
        async with self._breaker.call(self._wait_seconds, is_proof=False) as ticket:
            await self._inner.__aenter__()
            self._ticket = ticket
        return self

    @override
    async def write(self, *pieces: bytes | bytearray | memoryview) -> None:
        try:
            await self._inner.write(*pieces)
        except StoreUnavailableError:
            self._breaker.failed(self._ticket)
            raise

    @override
    async def commit(self) -> None:
        async with self._breaker.call(self._wait_seconds):
            await self._inner.commit()
