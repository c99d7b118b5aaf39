"""Locks of a store behind a network."""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typing_extensions import override

from repository.errors import ObjectMissingError, StoreUnavailableError
from repository.store.breaking import Breaker, BreakingStore
from repository.store.circuit import Limits
from repository.store.interface import ObjectWriter
from repository.store.locking import GuardedLocking, Lockable
from tests.fakes import virtual_time
from tests.fakes.store import MemoryStore

SEED = 7
WHEN = datetime(2100, 1, 1, tzinfo=UTC)


class Locked(MemoryStore, Lockable):
    """Remembers locks, and is away for some calls."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[str, datetime] = {}
        self.away = 0
        self.calls = 0

    def _ask(self, name: str) -> None:
        self.calls += 1
        if self.away:
            self.away -= 1
            raise StoreUnavailableError("the store is away")
        self._found(name)

    @override
    def writer(self, name: str, *, retain_until: datetime | None = None) -> ObjectWriter:
        if retain_until is not None:
            self.ends[name] = retain_until
        return super().writer(name)

    @override
    async def retain_until(self, name: str, when: datetime) -> None:
        self._ask(name)
        self.ends[name] = max(when, self.ends.get(name, when))

    @override
    async def locked_until(self, name: str) -> datetime | None:
        self._ask(name)
        return self.ends.get(name)


class Site:
    """Such a store and what stands before it."""

    def __init__(self) -> None:
        self.store = Locked()
        self.breaker = Breaker(Limits(failures_max=1))
        self.locking = GuardedLocking(self.store, self.breaker)


def run(scene: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await scene(Site())

    virtual_time.run(main(), SEED)


def test_what_is_written_is_locked_from_its_first_moment() -> None:
    async def scene(site: Site) -> None:
        locked = site.locking.writing_until(WHEN)
        await locked.put("packs/a", b"a")
        async with locked.writer("packs/b") as writer:
            await writer.write(b"bb")
            await writer.commit()

        assert site.store.ends == {"packs/a": WHEN, "packs/b": WHEN}
        assert await locked.get("packs/a") == b"a"
        assert await locked.get_range("packs/b", 1, 1) == b"b"
        assert [info.name async for info in locked.list_objects("")] == ["packs/a", "packs/b"]
        await locked.delete("packs/a")
        with pytest.raises(ObjectMissingError):
            await locked.head("packs/a")

    run(scene)


def test_a_lock_is_asked_for_again_while_the_store_is_away() -> None:
    async def scene(site: Site) -> None:
        await site.store.put("packs/a", b"a")
        site.store.away = 2
        await site.locking.retain_until("packs/a", WHEN)
        await site.locking.retain_until("packs/a", WHEN - timedelta(days=1))

        assert await site.locking.locked_until("packs/a") == WHEN
        assert site.store.calls == 5

    run(scene)


def test_a_lock_of_nothing_is_an_answer() -> None:
    async def scene(site: Site) -> None:
        with pytest.raises(ObjectMissingError):
            await site.locking.retain_until("packs/a", WHEN)
        assert site.store.calls == 1

    run(scene)


def test_a_store_that_is_left_alone_is_asked_for_no_lock() -> None:
    async def scene(site: Site) -> None:
        site.store.is_gone = True
        with pytest.raises(StoreUnavailableError, match="gone"):
            await BreakingStore(site.store, site.breaker).head("packs/a")

        with pytest.raises(StoreUnavailableError, match="it is asked again in"):
            await site.locking.retain_until("packs/a", WHEN)
        assert site.store.calls == 0

    run(scene)
