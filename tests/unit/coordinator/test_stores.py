"""A store for people who wait for its answer: how long, and what they are told."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import pytest
from typing_extensions import override

from coordinator.errors import StoreUnavailableError
from coordinator.stores import impatient
from repository.store.interface import Store
from tests.fakes import virtual_time
from tests.fakes.faulty import FaultyStore, Plan
from tests.fakes.misbehaving import FOREVER_SECONDS
from tests.fakes.store import MemoryStore

WHERE: Final = "s3://bucket/prefix"
# What a walk of a manifest reads at once, and the most that is read of a pack.
SMALL, LARGE = 64 * 1024, 8 * 1024 * 1024


class Silent(FaultyStore):
    """Answers nothing."""

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        await asyncio.sleep(FOREVER_SECONDS)
        raise AssertionError


def failing(times: int) -> FaultyStore:
    """A store with one large object, which fails so many times."""
    memory = MemoryStore()
    memory.objects["packs/a"] = bytes(LARGE)
    store = FaultyStore(memory)
    store.plan = Plan(first=1, last=times, error=StoreUnavailableError)
    return store


def watched(make: Callable[[], Store], ask: Callable[[Store], Awaitable[bytes]]) -> float:
    """Ask, and return the seconds that it took to be told that nothing came."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(StoreUnavailableError, match=f"^{WHERE} cannot be read just now: "):
            await ask(impatient(make(), WHERE, monotonic=loop.time))
        return loop.time()

    return virtual_time.run(main(), seed=1)


@pytest.mark.parametrize("length", [SMALL, LARGE])
def test_a_store_that_fails_is_told_of_within_seconds(length: int) -> None:
    took = watched(lambda: failing(1 << 30), lambda store: store.get_range("packs/a", 0, length))

    assert 3 < took < 10


def test_a_store_that_says_nothing_is_told_of_within_seconds() -> None:
    took = watched(lambda: Silent(MemoryStore()), lambda store: store.get_range("a", 0, SMALL))

    assert took == pytest.approx(9, abs=1)


def test_a_small_object_that_fails_is_told_of_within_seconds() -> None:
    assert watched(lambda: failing(1 << 30), lambda store: store.get("packs/a")) < 10


def test_a_failure_that_passes_is_not_noticed() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        store = impatient(failing(3), WHERE, monotonic=loop.time)

        assert await store.get_range("packs/a", 0, SMALL) == bytes(SMALL)
        assert loop.time() < 4

    virtual_time.run(main(), seed=1)
