"""The event loop of tests whose time costs nothing."""

import asyncio
import time

import pytest

from tests.fakes import virtual_time


async def _order(count: int) -> list[int]:
    done: list[int] = []

    async def one(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number), name=f"one {number}")
    return done


def test_years_pass_in_no_time_and_in_their_order() -> None:
    async def main() -> list[float]:
        loop, times = asyncio.get_running_loop(), []

        async def wait(seconds: float) -> None:
            await asyncio.sleep(seconds)
            times.append(loop.time())

        async with asyncio.TaskGroup() as group:
            for seconds in (3e8, 1.0, 2e7, 0.0):
                group.create_task(wait(seconds), name="wait")
        return times

    began = time.monotonic()
    assert virtual_time.run(main(), 1) == [0.0, 1.0, 2e7, 3e8]
    assert time.monotonic() - began < 5


def test_the_same_seed_is_the_same_order_and_another_one_another() -> None:
    orders = [virtual_time.run(_order(20), seed) for seed in range(10)]

    assert orders == [virtual_time.run(_order(20), seed) for seed in range(10)]
    assert len({tuple(order) for order in orders}) == 10


def test_a_deadline_is_kept_to_the_moment() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7.5):
                await asyncio.sleep(8)
        return asyncio.get_running_loop().time()

    assert virtual_time.run(main(), 1) == 7.5


def test_what_waits_for_nothing_hangs_and_is_told() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(virtual_time.HangError, match="nothing will come"):
        virtual_time.run(main(), 1)


def test_what_belongs_to_a_thread_is_done_at_once() -> None:
    async def main() -> int:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return await asyncio.to_thread(sum, [1, 2, 3])

    assert virtual_time.run(main(), 1) == 6
