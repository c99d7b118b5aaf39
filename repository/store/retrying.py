"""Another store, asked again while it is unavailable: for those behind a network.

What is repeated, and what makes that right:

- Only StoreUnavailableError, and an answer that did not come in time. Every other error is an
  answer. A refusal of the key is one that is doubted a few times: keys are looked up in a service
  of their own, and some stores tell its trouble so.
- A name is written once and with one content. So a `put` or a commit that was done although its
  answer was lost comes back as ObjectExistsError, and is a success if the object's bytes are ours.
- A `delete` that was done so comes back as ObjectMissingError, and is a success. No name is used
  twice, so what a lost try does later removes nothing that is wanted.
- A listing begins anew behind what it has given. One that lacks a name which it gave before and
  which is still there is one that failed; one that is out of order is an error for good, as it may
  have passed over anything.
- Pieces of a writer are not kept here: after a failed `write` only the caller can begin anew.

What cannot be noticed here: an answer in good order that is false. Whoever reads knows the hash of
what he wants, and a store that pages its listings must see that no page is missing.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Final, NoReturn, Self, TypeVar

from blake3 import blake3
from typing_extensions import override

from repository.errors import (
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreForbiddenError,
    StoreUnavailableError,
)
from repository.store.around import SigningAround
from repository.store.interface import (
    ObjectInfo,
    ObjectWriter,
    Operation,
    Signing,
    Store,
    StoredObject,
)
from repository.store.patience import Patience

_T = TypeVar("_T")
_HINT: Final = "check the way to the store, and that it works"
# Hashed between two turns of the event loop; more goes to a thread. About 0.2 ms.
_HASH_INLINE_BYTES: Final = 256 * 1024
# Of an operation. One that is refused at one time in five for no reason passes but for one in 600;
# one that is refused rightly costs its second.
_REFUSALS_DOUBTED: Final = 3
# What is read at once of an object that is compared with what was written.
_COMPARE_BYTES: Final = 4 * 1024 * 1024

_random: Final = random.SystemRandom()


class Persistence:
    """Makes a call again until it succeeds, fails for good, or its time is over."""

    def __init__(
        self,
        patience: Patience,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        draw: Callable[[], float],
    ) -> None:
        self._patience = patience
        self._clock = clock
        self._sleep = sleep
        self._draw = draw

    def begin(self, operation: Operation, size_bytes: int | None = 0) -> "Course":
        """An operation; its deadline runs from now."""
        return Course(self._patience, self._clock, operation, size_bytes)

    async def call(
        self,
        operation: Operation,
        work: Callable[[int], Awaitable[_T]],
        size_bytes: int | None = 0,
    ) -> _T:
        """Call `work` with the number of tries before; StoreUnavailableError in the end."""
        course = self.begin(operation, size_bytes)
        while True:
            try:
                return await course.within(work(course.tries))
            except (StoreUnavailableError, StoreForbiddenError) as error:
                await self.pause(course, error)

    async def pause(
        self, course: "Course", error: StoreUnavailableError | StoreForbiddenError
    ) -> None:
        """Wait until the next try; where there is none any more, raise what it comes to."""
        course.tries += 1
        if isinstance(error, StoreForbiddenError):
            course.refusals += 1
            if course.refusals > _REFUSALS_DOUBTED:
                raise error
        spare = course.spare_seconds()
        wait = self._patience.next_wait_seconds(course.tries, spare, self._draw())
        if wait is None:
            course.give_up(error)
        await self._sleep(wait)


def persistence(patience: Patience) -> Persistence:
    """As much of it, by this machine's clock."""
    return Persistence(patience, time.monotonic, asyncio.sleep, _random.random)


class Course:
    """One operation from its first try to its deadline."""

    def __init__(
        self,
        patience: Patience,
        clock: Callable[[], float],
        operation: Operation,
        size_bytes: int | None,
    ) -> None:
        self._patience = patience
        self._clock = clock
        self._operation = operation
        self._size_bytes = size_bytes
        self.restart()

    def restart(self) -> None:
        """It got on: its time begins anew."""
        self.tries = 0
        self.refusals = 0
        self._began = self._clock()
        self._deadline = self._began + self._patience.deadline_seconds(
            self._operation, self._size_bytes
        )

    def left_seconds(self) -> float:
        """Until the deadline."""
        return self._deadline - self._clock()

    def spare_seconds(self) -> float:
        """Within how long the next try has to begin."""
        passed = self._clock() - self._began
        return self._patience.spare_seconds(self._operation, self._size_bytes, passed)

    async def within(self, work: Awaitable[_T]) -> _T:
        """One try, in the time that it may take; StoreUnavailableError when that is over."""
        limit = self._patience.limit_seconds(self._operation, self._size_bytes, self.tries)
        limit = min(limit, self.left_seconds())
        try:
            async with asyncio.timeout(limit):
                return await work
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"the store did not answer a {self._operation} within {limit:.0f} s", hint=_HINT
            ) from error

    def give_up(self, error: StoreUnavailableError | StoreForbiddenError) -> NoReturn:
        """Raise the last error, with how often and how long it was tried."""
        took = self._clock() - self._began
        raise StoreUnavailableError(
            f"{error.message} (tried {self.tries} times in {took:.0f} s)", hint=error.hint or _HINT
        ) from error


class RetryingStore(Store):
    """Reads and writes through to another store, as often as it takes.

    `clock` counts seconds as the event loop does; `draw` gives numbers from 0 to 1.
    """

    def __init__(
        self,
        inner: Store,
        patience: Patience | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = _random.random,
    ) -> None:
        self._inner = inner
        self._persistence = Persistence(patience or Patience(), clock, sleep, draw)

    async def persist(self, operation: Operation, work: Callable[[], Awaitable[_T]]) -> _T:
        """Ask something else of the store, as often as it takes: twice must be once."""
        return await self._persistence.call(operation, lambda _: work())

    @override
    def writer(self, name: str) -> ObjectWriter:
        return _RetryingWriter(self._inner, name, self._persistence)

    @override
    async def put(self, name: str, data: bytes) -> None:
        async def put(tries: int) -> None:
            try:
                await self._inner.put(name, data)
            except ObjectExistsError:
                if not tries or not await _holds(self._inner, name, len(data), blake3(data)):
                    raise

        await self._persistence.call(Operation.PUT, put, len(data))

    @override
    async def get(self, name: str) -> bytes:
        return await self._persistence.call(Operation.GET, lambda _: self._inner.get(name), None)

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        return await self._persistence.call(
            Operation.GET, lambda _: self._inner.get_range(name, offset, length), length
        )

    @override
    async def head(self, name: str) -> ObjectInfo:
        return await self._persistence.call(Operation.HEAD, lambda _: self._inner.head(name))

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        course = self._persistence.begin(Operation.LIST)
        last = ""
        while True:
            try:
                async with aclosing(self._list_behind(prefix, last, course)) as listing:
                    async for info in listing:
                        last = info.name
                        yield info
                        # However long the caller took over it, and whatever was tried before.
                        course.restart()
            except (StoreUnavailableError, StoreForbiddenError) as error:
                await self._persistence.pause(course, error)
            else:
                return

    async def _list_behind(
        self, prefix: str, last: str, course: Course
    ) -> AsyncGenerator[ObjectInfo, None]:
        """What one listing has behind a name; StoreError if it cannot be right."""
        previous = ""
        async with aclosing(_each(self._inner.list_objects(prefix), course)) as listing:
            async for info in listing:
                if info.name <= previous or not info.name.startswith(prefix):
                    # Not tried again: what it left out before may lie among what was given.
                    raise StoreError(
                        f"the store's listing is out of order: {info.name} after {previous}",
                        hint="try again; a store that does it again is none for a repository",
                    )
                if previous < last < info.name:
                    await self._check_gone(last, course)
                if info.name > last:
                    yield info
                previous = info.name
        if previous < last:
            await self._check_gone(last, course)

    async def _check_gone(self, name: str, course: Course) -> None:
        """It was listed before and is not now: deleted meanwhile, or the listing falls short."""
        try:
            await course.within(self._inner.head(name))
        except ObjectMissingError:
            return
        raise StoreUnavailableError(f"a listing lacks {name}, which is there", hint=_HINT)

    @override
    async def delete(self, name: str) -> None:
        async def delete(tries: int) -> None:
            try:
                await self._inner.delete(name)
            except ObjectMissingError:
                if not tries:
                    raise

        await self._persistence.call(Operation.DELETE, delete)

    @override
    def remove_leftovers(self) -> None:
        self._inner.remove_leftovers()


class RetryingSigning(SigningAround):
    """Asks as often as it takes what there is, or a whole pack would be sent again for it."""

    def __init__(
        self,
        inner: Signing,
        patience: Patience | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = _random.random,
    ) -> None:
        super().__init__(inner)
        self._persistence = Persistence(patience or Patience(), clock, sleep, draw)

    @override
    async def stored(self, name: str, offset: int, length: int) -> StoredObject:
        return await self._persistence.call(
            Operation.GET, lambda _: self._inner.stored(name, offset, length)
        )


async def _each(
    listing: AsyncIterator[ObjectInfo], course: Course
) -> AsyncGenerator[ObjectInfo, None]:
    """A listing whose every name has to come in time."""
    try:
        while (info := await course.within(anext(listing, None))) is not None:
            yield info
    finally:
        if isinstance(listing, AsyncGenerator):
            await listing.aclose()


async def _holds(store: Store, name: str, size: int, expected: blake3) -> bool:
    """Whether an object that is there has this content."""
    try:
        if (await store.head(name)).size != size:
            return False
        hasher = blake3()
        for offset in range(0, size, _COMPARE_BYTES):
            piece = await store.get_range(name, offset, min(_COMPARE_BYTES, size - offset))
            await _hash(hasher, piece)
    except ObjectMissingError as error:
        raise StoreUnavailableError(
            f"the store says both that it has {name} and that it has not", hint=_HINT
        ) from error
    return hasher.digest() == expected.digest()


async def _hash(hasher: blake3, piece: bytes | bytearray | memoryview) -> None:
    if len(piece) <= _HASH_INLINE_BYTES:
        hasher.update(piece)
    else:
        await asyncio.to_thread(hasher.update, piece)


class _RetryingWriter(ObjectWriter):
    """An object on its way. Opening and commit are repeated, pieces are not."""

    def __init__(self, store: Store, name: str, persistence: Persistence) -> None:
        self._store = store
        self._name = name
        self._persistence = persistence
        self._writer = store.writer(name)
        self._hasher = blake3()
        self._size = 0
        self._commits = 0

    @override
    async def __aenter__(self) -> Self:
        async def enter(tries: int) -> None:
            if tries:
                self._writer = self._store.writer(self._name)
            await self._writer.__aenter__()

        await self._persistence.call(Operation.PUT, enter)
        return self

    @override
    async def write(self, *pieces: bytes | bytearray | memoryview) -> None:
        size = sum(memoryview(piece).nbytes for piece in pieces)
        course = self._persistence.begin(Operation.PUT, size)
        await course.within(self._writer.write(*pieces))
        for piece in pieces:
            await _hash(self._hasher, piece)
        self._size += size

    @override
    async def commit(self) -> None:
        await self._persistence.call(Operation.PUT, self._commit, self._size)

    async def _commit(self, _tries: int) -> None:
        # Counted here: the caller may call commit again, too.
        self._commits += 1
        try:
            await self._writer.commit()
        except ObjectExistsError:
            if self._commits == 1 or not await _holds(
                self._store, self._name, self._size, self._hasher
            ):
                raise

    @override
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        course = self._persistence.begin(Operation.PUT)
        await course.within(self._writer.__aexit__(kind, error, trace))
