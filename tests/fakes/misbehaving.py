"""A store that misbehaves as stores behind a network do, by a plan drawn from a seed.

The twin, in process, of the proxy in tests/faults/misbehaving.py; both draw from the same Plan.
Who notices what:

- An error, a lost connection, an answer that never comes or that breaks off, whether the effect
  took place or not: RetryingStore, which asks again. A refusal of the key it doubts a few times.
- A listing whose names come twice: RetryingStore, which says so.
- A flipped bit: whoever reads, since packs are named by their hash and roots are signed.
- A listing that is stale, empty or short, and in good order: nobody who sees nothing but it. A
  store that pages its listings sees a page that is missing; a collection must never condemn by a
  listing alone. So these lies are in no plan that does not ask for them.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeVar

from typing_extensions import override

from repository.errors import StoreForbiddenError, StoreUnavailableError
from repository.store.around import WriterAround
from repository.store.interface import ObjectInfo, ObjectWriter, Operation, Store

_T = TypeVar("_T")
# Longer than anybody waits.
FOREVER_SECONDS: Final = 1e6


class Fault(StrEnum):
    """What goes wrong with one request."""

    ERROR = "500"
    SLOW_DOWN = "503 SlowDown"
    TOO_MANY = "429"
    FORBIDDEN = "403"
    RESET = "reset"
    HANG = "hang"
    ERROR_IN_200 = "200 with an error body"
    DONE_THEN_RESET = "done, then reset"
    DONE_THEN_HANG = "done, then hang"
    SLOW = "slow body"
    TRUNCATED = "truncated body"
    FLIPPED = "flipped bit"
    LIST_TWICE = "names twice"
    LIST_STALE = "stale listing"
    LIST_EMPTY = "empty listing"
    LIST_SHORT = "partial listing"


_ANY: Final = frozenset(
    {
        Fault.ERROR,
        Fault.SLOW_DOWN,
        Fault.TOO_MANY,
        Fault.FORBIDDEN,
        Fault.RESET,
        Fault.HANG,
        Fault.DONE_THEN_RESET,
        Fault.DONE_THEN_HANG,
    }
)
_LISTING: Final = frozenset(
    {Fault.LIST_TWICE, Fault.LIST_STALE, Fault.LIST_EMPTY, Fault.LIST_SHORT}
)
APPLICABLE: Final[Mapping[Operation, frozenset[Fault]]] = {
    Operation.PUT: _ANY | {Fault.ERROR_IN_200},
    Operation.GET: _ANY | {Fault.SLOW, Fault.TRUNCATED, Fault.FLIPPED},
    Operation.HEAD: _ANY,
    Operation.LIST: _ANY | _LISTING | {Fault.ERROR_IN_200, Fault.SLOW, Fault.TRUNCATED},
    Operation.DELETE: _ANY,
}
# Those that are noticed.
NOTICED: Final = frozenset(Fault) - {
    Fault.LIST_STALE,
    Fault.LIST_EMPTY,
    Fault.LIST_SHORT,
}


@dataclass
class Plan:
    """Which request meets which fault, drawn from the seed: for each operation in its order.

    What it says is enough to have the same again.
    """

    seed: int
    rate: float
    kinds: frozenset[Fault] = NOTICED
    drawn: list[tuple[Operation, int, Fault]] = field(default_factory=list, repr=False)
    """Operation, its number from 1, and what became of it."""

    def __post_init__(self) -> None:
        self._sources = {each: random.Random(f"{self.seed} {each}") for each in Operation}
        self._choices = {each: sorted(APPLICABLE[each] & self.kinds) for each in Operation}
        self.requests: Counter[Operation] = Counter()

    def draw(self, operation: Operation) -> Fault | None:
        """The next request of this operation."""
        self.requests[operation] += 1
        source = self._sources[operation]
        choices = self._choices[operation]
        if source.random() >= self.rate or not choices:
            return None
        fault = source.choice(choices)
        self.drawn.append((operation, self.requests[operation], fault))
        return fault

    def part(self, length: int) -> tuple[int, int]:
        """Begin and end of some part of so many, with at least one of them if there is any."""
        if not length:
            return 0, 0
        source = self._sources[Operation.LIST]
        begin = source.randrange(length)
        return begin, source.randint(begin + 1, length)

    def counted(self) -> Counter[Fault]:
        """How often each fault came."""
        return Counter(fault for _, _, fault in self.drawn)


_BEFORE: Final = frozenset(
    {Fault.ERROR, Fault.SLOW_DOWN, Fault.TOO_MANY, Fault.RESET, Fault.ERROR_IN_200}
)


class MisbehavingStore(Store):
    """Another store behind such a network. Exchange `plan` at any time.

    Every request takes up to `latency_seconds` each way; a slow body comes with
    `slow_bytes_per_second`.
    """

    def __init__(
        self,
        inner: Store,
        plan: Plan,
        *,
        latency_seconds: float = 0.05,
        slow_bytes_per_second: float = 10 * 1024,
    ) -> None:
        self.inner = inner
        self.plan = plan
        self.is_down = False
        """While it is, nothing is answered but by an error."""
        self._random = random.Random(plan.seed)
        self._latency_seconds = latency_seconds
        self._slow_bytes_per_second = slow_bytes_per_second
        self._listings: dict[str, list[ObjectInfo]] = {}

    async def request(
        self, operation: Operation, work: Callable[[], Awaitable[_T]]
    ) -> tuple[_T, Fault | None]:
        """One request, with what else is to become of its answer."""
        fault = self.plan.draw(operation)
        await self._travel()
        if fault is Fault.FORBIDDEN:
            raise StoreForbiddenError("the store refuses the key (403)")
        if fault is Fault.HANG:
            await asyncio.sleep(FOREVER_SECONDS)
        if self.is_down or fault in _BEFORE:
            raise StoreUnavailableError(f"the store failed ({fault or 'down'})")
        result = await work()
        if fault is Fault.DONE_THEN_HANG:
            await asyncio.sleep(FOREVER_SECONDS)
        await self._travel()
        if fault is Fault.DONE_THEN_RESET:
            raise StoreUnavailableError(f"the store failed ({fault})")
        return result, fault

    async def _travel(self) -> None:
        if self._latency_seconds:
            await asyncio.sleep(self._random.random() * self._latency_seconds)

    async def read(self, work: Callable[[], Awaitable[bytes]]) -> bytes:
        data, fault = await self.request(Operation.GET, work)
        if fault is Fault.TRUNCATED:
            raise StoreUnavailableError(f"the store failed ({fault})")
        if fault is Fault.SLOW:
            await asyncio.sleep(len(data) / self._slow_bytes_per_second)
        if fault is Fault.FLIPPED and data:
            flipped = bytearray(data)
            flipped[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
            return bytes(flipped)
        return data

    @override
    def writer(self, name: str) -> ObjectWriter:
        return _MisbehavingWriter(self, self.inner.writer(name))

    @override
    async def put(self, name: str, data: bytes) -> None:
        await self.request(Operation.PUT, lambda: self.inner.put(name, data))

    @override
    async def get(self, name: str) -> bytes:
        return await self.read(lambda: self.inner.get(name))

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        return await self.read(lambda: self.inner.get_range(name, offset, length))

    @override
    async def head(self, name: str) -> ObjectInfo:
        info, _ = await self.request(Operation.HEAD, lambda: self.inner.head(name))
        return info

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async def listed() -> list[ObjectInfo]:
            return [info async for info in self.inner.list_objects(prefix)]

        infos, fault = await self.request(Operation.LIST, listed)
        for info in self._told(prefix, infos, fault):
            if fault is Fault.SLOW:
                await asyncio.sleep(len(info.name) / self._slow_bytes_per_second)
            yield info
        if fault is Fault.TRUNCATED:
            raise StoreUnavailableError(f"the store failed ({fault})")

    def _told(self, prefix: str, infos: list[ObjectInfo], fault: Fault | None) -> list[ObjectInfo]:
        """What is told of a listing."""
        before, self._listings[prefix] = self._listings.get(prefix, []), infos
        begin, end = self.plan.part(len(infos))
        if fault is Fault.TRUNCATED:
            return infos[:begin]
        if fault is Fault.LIST_TWICE:
            return infos[:end] + infos[begin:]
        if fault is Fault.LIST_STALE:
            return before
        if fault is Fault.LIST_EMPTY:
            return []
        if fault is Fault.LIST_SHORT:
            return infos[:begin] + infos[end:]
        return infos

    @override
    async def delete(self, name: str) -> None:
        await self.request(Operation.DELETE, lambda: self.inner.delete(name))

    @override
    def remove_leftovers(self) -> None:
        self.inner.remove_leftovers()


class _MisbehavingWriter(WriterAround):
    """Sends all of it with the commit, as an object store has it."""

    def __init__(self, store: MisbehavingStore, inner: ObjectWriter) -> None:
        super().__init__(inner)
        self._store = store

    @override
    async def commit(self) -> None:
        await self._store.request(Operation.PUT, self._inner.commit)
