"""A store that is left alone: who is refused, who waits, and who comes when."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
from typing_extensions import override

from repository.errors import ObjectMissingError, StoreFullError, StoreUnavailableError
from repository.store.breaking import Breaker, BreakingStore
from repository.store.circuit import Limits, Phase
from repository.store.interface import ObjectInfo, Store
from tests.fakes import virtual_time
from tests.fakes.store import MemoryStore

SEED = 5
LIMITS = Limits(failures_max=3, open_seconds_first=5.0, open_seconds_max=20.0)
RELEASED = 2


class Slow(MemoryStore):
    """Takes a second for whatever it does, and tells how many are in it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.inside = 0
        self.inside_most = 0

    async def _pass(self, name: str) -> None:
        self.calls.append(name)
        self.inside += 1
        self.inside_most = max(self.inside_most, self.inside)
        try:
            await asyncio.sleep(1)
        finally:
            self.inside -= 1

    @override
    async def put(self, name: str, data: bytes) -> None:
        await self._pass(name)
        await super().put(name, data)

    @override
    async def head(self, name: str) -> ObjectInfo:
        await self._pass(name)
        return await super().head(name)


class Site:
    """Such a store and what stands before it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.slow = Slow()
        self.breaker = Breaker(LIMITS, clock=self.loop.time, released_max=RELEASED)
        self.store = BreakingStore(self.slow, self.breaker)

    async def open(self) -> None:
        """Let it fail until it is left alone, which takes three seconds."""
        self.slow.is_gone = True
        for _ in range(LIMITS.failures_max):
            with pytest.raises(StoreUnavailableError, match="gone"):
                await self.store.head("packs/a")
        assert self.breaker.state().phase is Phase.OPEN
        self.slow.calls.clear()


def run(scene: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await scene(Site())

    virtual_time.run(main(), SEED)


async def names(store: Store) -> list[str]:
    return [info.name async for info in store.list_objects("")]


async def write(store: Store) -> None:
    async with store.writer("packs/b") as writer:
        await writer.commit()


CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "put": lambda store: store.put("packs/b", b"b"),
    "get": lambda store: store.get("packs/a"),
    "get_range": lambda store: store.get_range("packs/a", 0, 1),
    "head": lambda store: store.head("packs/a"),
    "list": names,
    "delete": lambda store: store.delete("packs/a"),
    "writer": write,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_call_that_fails_counts_and_then_every_call_is_refused_at_once(
    call: Callable[[Store], Awaitable[object]],
) -> None:
    async def scene(site: Site) -> None:
        site.slow.is_gone = True
        for _ in range(LIMITS.failures_max):
            with pytest.raises(StoreUnavailableError, match="gone"):
                await call(site.store)
        asked, now = len(site.slow.calls), site.loop.time()
        words = r"the store has failed for \d s; it is asked again in 5 s"

        for each in CALLS.values():
            with pytest.raises(StoreUnavailableError, match=words):
                await each(site.store)

        assert (len(site.slow.calls), site.loop.time()) == (asked, now)
        state = site.breaker.state()
        assert (state.phase, state.failures, state.retry_in_seconds) == (Phase.OPEN, 3, 5.0)
        assert (state.openings, state.parked) == (1, 0)

    run(scene)


def test_what_a_store_answers_is_no_failure() -> None:
    async def scene(site: Site) -> None:
        site.slow.capacity = 1
        for _ in range(5):
            with pytest.raises(ObjectMissingError):
                await site.store.head("packs/a")
            with pytest.raises(StoreFullError):
                await site.store.put("packs/a", b"too much")

        assert site.breaker.state().failures == 0

    run(scene)


def test_once_its_time_is_over_one_call_tries_and_the_others_are_refused() -> None:
    async def scene(site: Site) -> None:
        await site.open()
        site.slow.is_gone = False
        await asyncio.sleep(5)
        async with asyncio.TaskGroup() as group:
            probe = group.create_task(site.store.put("packs/a", b"a"), name="probe")
            await asyncio.sleep(0.5)
            assert site.breaker.state().phase is Phase.HALF_OPEN
            with pytest.raises(StoreUnavailableError):
                await site.store.head("packs/a")
            await probe

        assert site.breaker.state().phase is Phase.CLOSED
        assert site.breaker.state().failing_seconds == 0
        await site.store.head("packs/a")

    run(scene)


def test_what_waits_runs_once_in_its_order_and_a_few_at_a_time() -> None:
    async def scene(site: Site) -> None:
        await site.open()
        site.slow.is_gone = False
        patient = site.store.patient(100)
        async with asyncio.TaskGroup() as group:
            for number in range(9):
                group.create_task(patient.put(f"packs/{number}", b""), name=f"put {number}")
                await asyncio.sleep(0.01)
            assert site.breaker.state().parked == 9
            assert site.slow.calls == []

        # In which order two that are let through together begin is left to the loop.
        places = [int(name.removeprefix("packs/")) for name in site.slow.calls]
        assert sorted(places) == list(range(9))
        assert all(abs(place - number) < RELEASED for number, place in enumerate(places))
        assert site.slow.inside_most == RELEASED
        assert site.breaker.state().parked == 0
        # Three to fail, five alone, one for the probe, and four for eight, two by two.
        assert site.loop.time() == pytest.approx(3 + 5 + 1 + 4)

    run(scene)


def test_what_waits_goes_on_waiting_when_the_probe_fails_until_its_own_deadline() -> None:
    async def scene(site: Site) -> None:
        await site.open()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_caught(site.store.patient(seconds).head("packs/a")), name="head")
                for seconds in (12, 30, 100)
            ]
            await asyncio.sleep(60)
            site.slow.is_gone = False
            site.slow.objects["packs/a"] = b"a"
        results = [task.result() for task in tasks]

        # One was the probe, and told what the store says; one of the others waited in vain.
        assert sum(isinstance(each, ObjectInfo) for each in results) <= 1
        assert sum("gone" in str(each) for each in results) >= 1
        assert all(isinstance(each, StoreUnavailableError | ObjectInfo) for each in results)
        assert site.slow.inside_most == 1

    run(scene)


async def _caught(call: Awaitable[ObjectInfo]) -> ObjectInfo | StoreUnavailableError:
    try:
        return await call
    except StoreUnavailableError as error:
        return error


def test_who_waits_for_too_short_a_time_is_refused_in_the_end() -> None:
    async def scene(site: Site) -> None:
        await site.open()

        with pytest.raises(StoreUnavailableError, match="it is asked again in 2 s"):
            await site.store.patient(3).head("packs/a")

        assert site.loop.time() == pytest.approx(6)
        assert site.breaker.state().parked == 0

    run(scene)


def test_who_is_canceled_while_it_waits_or_tries_leaves_its_turn_to_the_next() -> None:
    async def scene(site: Site) -> None:
        await site.open()
        site.slow.is_gone = False
        site.slow.objects["packs/a"] = b"a"
        patient = site.store.patient(100)
        async with asyncio.TaskGroup() as group:
            tasks = []
            for number in range(4):
                tasks.append(group.create_task(patient.head("packs/a"), name=f"head {number}"))
                await asyncio.sleep(0.01)
            tasks[1].cancel()
            await asyncio.sleep(5.2)
            assert site.breaker.state().phase is Phase.HALF_OPEN
            tasks[0].cancel()
        assert [task.cancelled() for task in tasks] == [True, True, False, False]

        assert site.breaker.state().phase is Phase.CLOSED
        assert site.breaker.state().parked == 0
        assert site.breaker._released == 0

    run(scene)


@pytest.mark.parametrize("seed", range(60))
def test_whoever_is_canceled_whenever_nothing_is_stuck(seed: int) -> None:
    async def main() -> None:
        site = Site()
        await site.open()
        site.slow.objects["packs/a"] = b"a"
        patient = site.store.patient(200)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_caught(patient.head("packs/a")), name=f"head {number}")
                for number in range(12)
            ]
            for number, task in enumerate(tasks[::2]):
                # Among them the very moments of probe and release.
                site.loop.call_later(4 + (seed + number) % 7 / 2, task.cancel)
            site.loop.call_later(seed % 10, setattr, site.slow, "is_gone", False)
        assert sum(task.cancelled() for task in tasks) <= 6
        assert site.breaker._released == 0
        assert site.breaker.state().parked == 0
        assert site.slow.inside_most <= LIMITS.failures_max

        await site.store.patient(200).head("packs/a")
        assert site.breaker.state().phase is Phase.CLOSED

    virtual_time.run(main(), seed)


def test_a_writer_is_opened_only_when_it_could_commit_and_only_its_commit_proves_anything() -> None:
    async def scene(site: Site) -> None:
        await site.open()
        site.slow.is_gone = False
        with pytest.raises(StoreUnavailableError):
            await write(site.store)
        await asyncio.sleep(5)

        async with site.store.writer("packs/b") as writer:
            assert site.breaker.state().phase is Phase.OPEN
            await writer.write(b"content")
            assert site.breaker.state().phase is Phase.OPEN
            await writer.commit()
            assert site.breaker.state().phase is Phase.CLOSED
        await site.store.put("packs/c", b"")

        assert sorted(site.slow.objects) == ["packs/b", "packs/c"]

    run(scene)


class Unlisted(MemoryStore):
    """Breaks each listing off."""

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        yield ObjectInfo("packs/a", 1)
        raise StoreUnavailableError("the page did not come")


def test_a_listing_that_breaks_off_has_failed_and_one_that_is_left_says_nothing() -> None:
    async def main() -> None:
        breaker = Breaker(LIMITS, clock=asyncio.get_running_loop().time)
        store = BreakingStore(Unlisted(), breaker)
        with pytest.raises(StoreUnavailableError):
            await names(store)
        assert breaker.state().failures == 1
        async for _ in store.list_objects(""):
            break
        await asyncio.sleep(1)
        assert breaker.state().failures == 1

    virtual_time.run(main(), SEED)
