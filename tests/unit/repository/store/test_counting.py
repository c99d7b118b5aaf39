"""What is counted, and for whom."""

import asyncio

import pytest

from repository.errors import ObjectMissingError, StoreUnavailableError
from repository.store.counting import CountingStore, Requests, Tally, charge, charged
from repository.store.interface import Operation
from repository.store.retrying import RetryingStore
from tests.fakes.clock import WaitedClock
from tests.fakes.faulty import FaultyStore, Plan
from tests.fakes.store import MemoryStore

pytestmark = pytest.mark.asyncio


async def test_each_kind_of_request_is_counted_with_its_bytes() -> None:
    store = CountingStore(MemoryStore())

    await store.put("packs/a", b"abc")
    async with store.writer("packs/b") as writer:
        await writer.write(b"de", memoryview(b"fgh"))
        await writer.commit()
    await store.get("packs/a")
    await store.get_range("packs/b", 1, 2)
    await store.head("packs/a")
    assert len([info async for info in store.list_objects("packs/")]) == 2
    await store.delete("packs/a")

    expected = Requests(put=2, get=2, head=1, list=1, delete=1, bytes_in=8, bytes_out=5)
    assert store.total.snapshot() == expected


@pytest.mark.parametrize(("names", "pages"), [(0, 1), (1, 1), (1000, 1), (1001, 2), (2500, 3)])
async def test_a_listing_is_as_many_requests_as_it_has_pages(names: int, pages: int) -> None:
    memory = MemoryStore()
    memory.objects = {f"packs/{number:05d}": b"" for number in range(names)}
    store = CountingStore(memory)

    assert len([info async for info in store.list_objects("")]) == names
    assert store.total.snapshot() == Requests(list=pages)


async def test_a_writer_that_is_left_has_sent_nothing() -> None:
    store = CountingStore(MemoryStore())

    async with store.writer("packs/b") as writer:
        await writer.write(b"content")

    assert store.total.snapshot() == Requests()


async def test_what_fails_is_counted_too_and_so_is_each_try() -> None:
    clock, faulty = WaitedClock(), FaultyStore(MemoryStore())
    counting = CountingStore(faulty)
    store = RetryingStore(counting, clock=clock, sleep=clock.sleep)
    with pytest.raises(ObjectMissingError):
        await store.get("packs/a")
    faulty.plan = Plan(first=1, last=2, error=StoreUnavailableError, after_effect=False)

    await store.put("packs/a", b"abc")

    assert counting.total.snapshot() == Requests(get=1, put=3, bytes_in=9)


async def test_jobs_that_run_at_once_are_each_charged_with_their_own() -> None:
    store = CountingStore(MemoryStore())

    async def job(tally: Tally, number: int) -> None:
        with charged(tally):
            async with asyncio.TaskGroup() as group:
                for each in range(number):
                    put = store.put(f"packs/{number}-{each}", bytes(number))
                    group.create_task(put, name=f"put {each}")
            await asyncio.sleep(0)
            await store.head(f"packs/{number}-0")

    tallies = [Tally() for _ in range(5)]
    async with asyncio.TaskGroup() as group:
        for number, tally in enumerate(tallies, start=1):
            group.create_task(job(tally, number), name=f"job {number}")
    await store.get("packs/5-4")

    for number, tally in enumerate(tallies, start=1):
        assert tally.snapshot() == Requests(put=number, head=1, bytes_in=number**2)
    assert store.total.snapshot() == Requests(put=15, head=5, get=1, bytes_in=55, bytes_out=5)


async def test_what_is_inside_another_is_charged_to_both() -> None:
    store, outer, inner = CountingStore(MemoryStore()), Tally(), Tally()

    with charged(outer):
        await store.put("packs/a", b"a")
        with charged(inner):
            await store.get("packs/a")
        await store.head("packs/a")

    assert outer.snapshot() == Requests(put=1, get=1, head=1, bytes_in=1, bytes_out=1)
    assert inner.snapshot() == Requests(get=1, bytes_out=1)


async def test_what_was_added_between_two_looks_can_be_told() -> None:
    total = Tally()
    charge(total, Operation.LIST, 7)
    before = total.snapshot()

    charge(total, Operation.GET, bytes_out=4096)
    charge(total, Operation.LIST, 2)

    added = total.snapshot().since(before)
    assert added == Requests(get=1, list=2, bytes_out=4096)
    assert before.plus(added) == total.snapshot()
