"""What is asked again, what is not, and what then counts as done."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
from typing_extensions import override

from repository.errors import (
    DamagedError,
    KeyMaterialError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreForbiddenError,
    StoreFullError,
    StoreUnavailableError,
    TidemarkError,
    UsageError,
)
from repository.store.around import SigningAround
from repository.store.breaking import Breaker, BreakingSigning
from repository.store.circuit import Limits
from repository.store.interface import ObjectInfo, Store, StoredObject
from repository.store.patience import Patience
from repository.store.retrying import RetryingSigning, RetryingStore
from tests.fakes import virtual_time
from tests.fakes.faulty import FaultyStore, Plan
from tests.fakes.misbehaving import FOREVER_SECONDS
from tests.fakes.store import MemoryStore

SEED = 3
HALF = 0.5


class Site:
    """A store in memory, one before it that fails on demand, and one that asks that one again."""

    def __init__(self) -> None:
        self.memory = MemoryStore()
        self.faulty = FaultyStore(self.memory)
        self.waits: list[float] = []
        clock = asyncio.get_running_loop().time
        self.store = RetryingStore(self.faulty, clock=clock, sleep=self._sleep, draw=lambda: HALF)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(seconds)

    def fail(
        self,
        times: int,
        error: type[TidemarkError] = StoreUnavailableError,
        *,
        done: bool = False,
        after: int = 0,
    ) -> Plan:
        self.faulty.plan = Plan(first=after + 1, last=after + times, error=error, after_effect=done)
        return self.faulty.plan


def run(scene: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await scene(Site())

    virtual_time.run(main(), SEED)


async def names(store: Store, prefix: str = "") -> list[str]:
    return [info.name async for info in store.list_objects(prefix)]


CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "put": lambda store: store.put("packs/b", b"b"),
    "get": lambda store: store.get("packs/a"),
    "get_range": lambda store: store.get_range("packs/a", 0, 1),
    "head": lambda store: store.head("packs/a"),
    "list": names,
    "delete": lambda store: store.delete("packs/a"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("done", [False, True])
def test_a_store_that_is_away_for_a_while_is_asked_again(
    call: Callable[[Store], Awaitable[object]], done: bool
) -> None:
    async def scene(site: Site) -> None:
        await site.memory.put("packs/a", b"a")
        plan = site.fail(3, done=done)

        await call(site.store)

        # A second delete finds nothing any more, and need not be repeated.
        times = 1 if done and call is CALLS["delete"] else 3
        assert plan.calls > times
        assert site.waits == [HALF * each for each in (0.1, 0.2, 0.4)][:times]

    run(scene)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_store_that_stays_away_is_given_up_in_time_with_what_it_said(
    call: Callable[[Store], Awaitable[object]],
) -> None:
    async def scene(site: Site) -> None:
        await site.memory.put("packs/a", b"a")
        site.fail(1 << 30)

        with pytest.raises(StoreUnavailableError, match=r"of the store fails \(tried \d+ times"):
            await call(site.store)

        assert 100 < asyncio.get_running_loop().time() <= 120 + 30
        assert max(site.waits) == HALF * Patience().wait_seconds_max

    run(scene)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "error", [StoreFullError, DamagedError, KeyMaterialError, UsageError, TidemarkError]
)
def test_every_other_error_is_told_at_once(
    call: Callable[[Store], Awaitable[object]], error: type[TidemarkError]
) -> None:
    async def scene(site: Site) -> None:
        await site.memory.put("packs/a", b"a")
        plan = site.fail(1 << 30, error)

        with pytest.raises(error):
            await call(site.store)

        assert plan.calls == 1
        assert site.waits == []

    run(scene)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_refusal_of_the_key_is_doubted_a_few_times(
    call: Callable[[Store], Awaitable[object]],
) -> None:
    async def scene(site: Site) -> None:
        await site.memory.put("packs/a", b"a")
        site.fail(3, StoreForbiddenError)

        await call(site.store)

        assert len(site.waits) == 3

    run(scene)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_refusal_of_the_key_that_stays_is_told_soon(
    call: Callable[[Store], Awaitable[object]],
) -> None:
    async def scene(site: Site) -> None:
        plan = site.fail(1 << 30, StoreForbiddenError)

        with pytest.raises(StoreForbiddenError):
            await call(site.store)

        assert plan.calls == 4
        assert sum(site.waits) < 1

    run(scene)


class Forgetful(SigningAround):
    """Says what there is at the third time."""

    def __init__(self) -> None:
        self.asked = 0

    @override
    async def stored(self, name: str, offset: int, length: int) -> StoredObject:
        self.asked += 1
        if self.asked < 3:
            raise StoreUnavailableError("it does not know just now")
        return StoredObject(1, None)


def test_what_was_sent_by_others_is_asked_for_again() -> None:
    async def scene(_: Site) -> None:
        clock = asyncio.get_running_loop().time
        forgetful = Forgetful()
        breaker = Breaker(Limits(failures_max=1), clock=clock)
        signing = BreakingSigning(RetryingSigning(forgetful, clock=clock), breaker)

        assert await signing.stored("packs/a", 0, 1) == StoredObject(1, None)

        forgetful.asked = -(1 << 30)
        with pytest.raises(StoreUnavailableError, match="tried"):
            await signing.stored("packs/a", 0, 1)
        asked = forgetful.asked
        with pytest.raises(StoreUnavailableError, match="it is asked again in"):
            await signing.stored("packs/a", 0, 1)
        assert forgetful.asked == asked

    run(scene)


class Hanging(FaultyStore):
    """Answers nothing, so many times."""

    def __init__(self, inner: Store, times: int) -> None:
        super().__init__(inner)
        self.times = times

    @override
    async def head(self, name: str) -> ObjectInfo:
        self.times -= 1
        if self.times >= 0:
            await asyncio.sleep(FOREVER_SECONDS)
        return await self.inner.head(name)


def test_an_answer_that_never_comes_costs_one_try() -> None:
    async def main() -> None:
        memory, loop = MemoryStore(), asyncio.get_running_loop()
        await memory.put("packs/a", b"a")
        store = RetryingStore(Hanging(memory, 2), clock=loop.time, draw=lambda: 0.0)

        assert (await store.head("packs/a")).size == 1
        assert loop.time() == 2 * 10

        store = RetryingStore(Hanging(memory, 1 << 30), clock=loop.time, draw=lambda: 0.0)
        with pytest.raises(StoreUnavailableError, match="did not answer a head within"):
            await store.head("packs/a")
        assert loop.time() == pytest.approx(20 + 130)

    virtual_time.run(main(), SEED)


def test_a_cancellation_is_not_tried_again() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        store = RetryingStore(Hanging(MemoryStore(), 1 << 30), clock=loop.time)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await store.head("packs/a")
        assert loop.time() == 3

    virtual_time.run(main(), SEED)


def test_a_name_that_is_taken_is_told_at_once_even_with_our_own_bytes() -> None:
    async def scene(site: Site) -> None:
        await site.memory.put("packs/a", b"content")

        with pytest.raises(ObjectExistsError):
            await site.store.put("packs/a", b"content")
        async with site.store.writer("packs/a") as writer:
            await writer.write(b"content")
            with pytest.raises(ObjectExistsError):
                await writer.commit()

    run(scene)


@pytest.mark.parametrize("other", [b"c0ntent", b"longer content", b""])
def test_a_name_that_turns_out_taken_is_only_ours_with_our_bytes(other: bytes) -> None:
    async def scene(site: Site) -> None:
        site.memory.objects["packs/a"] = other

        site.fail(1)
        with pytest.raises(ObjectExistsError):
            await site.store.put("packs/a", b"content")
        site.fail(1, after=2)  # the third call is the commit
        async with site.store.writer("packs/a") as writer:
            await writer.write(b"content")
            with pytest.raises(ObjectExistsError):
                await writer.commit()

        assert site.memory.objects == {"packs/a": other}

    run(scene)


@pytest.mark.parametrize("size", [0, 7, 5_000_000])
def test_a_commit_that_was_done_without_an_answer_is_a_success(size: int) -> None:
    async def scene(site: Site) -> None:
        content = bytes(range(250)) * (size // 250) + bytes(size % 250)
        site.fail(1, done=True, after=2)

        async with site.store.writer("packs/a") as writer:
            await writer.write(content[:3], memoryview(content)[3:])
            await writer.commit()

        assert site.memory.objects == {"packs/a": content}
        assert len(site.waits) == 1

    run(scene)


def test_a_commit_that_was_given_up_may_be_called_again_and_knows_what_it_did() -> None:
    async def scene(site: Site) -> None:
        async with site.store.writer("packs/a") as writer:
            await writer.write(b"content")
            site.fail(1 << 30, done=True)
            with pytest.raises(StoreUnavailableError):
                await writer.commit()
            site.fail(0)
            await writer.commit()

        assert site.memory.objects == {"packs/a": b"content"}

    run(scene)


def test_a_piece_that_could_not_be_written_is_not_written_twice() -> None:
    async def scene(site: Site) -> None:
        plan = site.fail(1, after=1, done=True)

        async with site.store.writer("packs/a") as writer:
            with pytest.raises(StoreUnavailableError):
                await writer.write(b"piece")

        assert plan.calls == 3
        assert site.memory.objects == {}

    run(scene)


def test_what_is_not_there_is_missing_unless_an_earlier_try_may_have_removed_it() -> None:
    async def scene(site: Site) -> None:
        with pytest.raises(ObjectMissingError):
            await site.store.delete("packs/a")
        await site.memory.put("packs/a", b"")
        site.fail(1, done=True)
        await site.store.delete("packs/a")

        assert site.memory.objects == {}

    run(scene)


class Listing(MemoryStore):
    """Lists what it is told to, one list after the other; None breaks it off."""

    def __init__(self, *lists: list[str | None]) -> None:
        super().__init__()
        self.lists = iter(lists)

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for name in next(self.lists):
            await asyncio.sleep(0)
            if name is None:
                raise StoreUnavailableError("the page did not come")
            yield ObjectInfo(name, 0)


def listed(*lists: list[str | None], there: str = "") -> list[str]:
    """What becomes of these lists; the store has `there`."""

    async def main() -> list[str]:
        listing = Listing(*lists)
        listing.objects = dict.fromkeys(there, b"")
        clock = asyncio.get_running_loop().time
        return await names(RetryingStore(listing, clock=clock))

    return virtual_time.run(main(), SEED)


@pytest.mark.parametrize(
    "lists",
    [
        [["a", "b", None], ["a", "b", "c"]],
        [[None], [None], ["a", "b", "c"]],
        [["a", None], ["a", None], ["a", "b", None], ["a", "b", "c"]],
    ],
)
def test_a_listing_that_broke_off_is_begun_anew_and_gives_each_name_once(
    lists: list[list[str | None]],
) -> None:
    assert listed(*lists) == ["a", "b", "c"]


@pytest.mark.parametrize("names", [["a", "b", "b"], ["a", "c", "b"], ["b", "a"]])
def test_a_listing_out_of_order_is_an_error_for_good(names: list[str | None]) -> None:
    with pytest.raises(StoreError, match="out of order") as caught:
        listed(names, ["a", "b", "c"])

    assert not caught.value.retryable


def test_a_listing_that_lacks_what_it_gave_before_falls_short_unless_it_is_gone() -> None:
    assert listed(["a", "b", None], ["c"], ["a", "b", "c"], there="abc") == ["a", "b", "c"]
    assert listed(["a", "b", None], [], ["a", "b", "c"], there="abc") == ["a", "b", "c"]
    assert listed(["a", "b", None], ["a", "c"], there="ac") == ["a", "b", "c"]
    assert listed(["a", "b", None], [], there="") == ["a", "b"]


def test_a_listing_that_the_caller_leaves_ends_all_below_it() -> None:
    async def main() -> None:
        store = RetryingStore(Listing(["a", "b"]), clock=asyncio.get_running_loop().time)
        async for info in store.list_objects(""):
            assert info.name == "a"
            break

    virtual_time.run(main(), SEED)


def test_a_slow_caller_does_not_use_up_the_time_of_a_listing() -> None:
    async def main() -> None:
        store = RetryingStore(
            Listing(["a", "b", None], ["a", "b", None], ["a", "b", "c"]),
            clock=asyncio.get_running_loop().time,
        )
        found = []
        async for info in store.list_objects(""):
            found.append(info.name)
            await asyncio.sleep(10_000)
        assert found == ["a", "b", "c"]

    virtual_time.run(main(), SEED)
