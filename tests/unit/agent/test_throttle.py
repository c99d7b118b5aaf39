"""The throttle by itself, on virtual time."""

import asyncio
import math
from collections.abc import Callable, Coroutine

import pytest

from agent.throttle import PIECE_BYTES, Demand, Grant, Throttle, Throttles
from tests.fakes.virtual import VirtualClock, busiest_second, run_virtually

RATE = 20_000_000
FLOOR = 1_000_000
LEASE = 1.5


def throttled(scene: Callable[[Throttle, list[str]], Coroutine[None, None, None]]) -> None:
    """Play a scene with a throttle, and with what it asked for."""

    async def play() -> None:
        asked: list[str] = []
        throttle = Throttle(VirtualClock(), lambda: asked.append("wanting"))
        await scene(throttle, asked)

    run_virtually(play())


async def flow(throttle: Throttle, seconds: float) -> list[tuple[float, int]]:
    """Send as much as may go in so long; when how much went."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    sent: list[tuple[float, int]] = []
    while loop.time() < end:
        piece = throttle.piece_bytes
        try:
            async with asyncio.timeout_at(end):
                await throttle.take(piece)
        except TimeoutError:
            break
        sent.append((loop.time(), piece))
    return sent


def total(sent: list[tuple[float, int]]) -> int:
    return sum(size for _, size in sent)


def test_without_a_limit_nothing_waits_and_nobody_is_asked() -> None:
    async def scene(throttle: Throttle, asked: list[str]) -> None:
        waited = [await throttle.take(PIECE_BYTES) for _ in range(1000)]

        assert sum(waited) == 0
        assert (throttle.piece_bytes, throttle.rate) == (PIECE_BYTES, math.inf)
        assert not asked

    throttled(scene)


def test_a_granted_rate_is_used_and_not_exceeded() -> None:
    async def scene(throttle: Throttle, asked: list[str]) -> None:
        throttle.grant(RATE, FLOOR, 100.0)
        sent = await flow(throttle, 5.0)

        assert total(sent) >= 5 * RATE * 0.98
        assert busiest_second(sent) <= RATE * 1.02
        assert asked == ["wanting"]

    throttled(scene)


def test_a_lease_that_runs_out_falls_to_the_floor_and_never_to_the_sky() -> None:
    async def scene(throttle: Throttle, _: list[str]) -> None:
        throttle.grant(RATE, FLOOR, LEASE)
        await flow(throttle, LEASE)
        sent = await flow(throttle, 10.0)

        assert throttle.rate == FLOOR
        assert 10 * FLOOR * 0.95 <= total(sent) <= 10 * FLOOR * 1.02 + RATE * 0.02
        assert throttle.is_limited

    throttled(scene)


def test_the_floor_of_one_who_was_granted_nothing_is_the_floor() -> None:
    async def scene(throttle: Throttle, asked: list[str]) -> None:
        throttle.grant(0, FLOOR, LEASE)
        await asyncio.sleep(60)
        began = asyncio.get_running_loop().time()
        await throttle.take(100)
        waited = asyncio.get_running_loop().time() - began

        # It asks, and waits for the answer as long as for any renewal.
        assert asked == ["wanting"]
        assert LEASE <= waited <= LEASE + 0.1

    throttled(scene)


def test_a_new_rate_counts_for_who_waits_already() -> None:
    async def scene(throttle: Throttle, _: list[str]) -> None:
        throttle.grant(1000, 100, 100.0)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(throttle.take(100_000), name="waiting")
            await asyncio.sleep(1)
            throttle.grant(RATE, FLOOR, 100.0)
            await asyncio.sleep(0.1)
            assert waiting.done()
            assert (await waiting) == pytest.approx(1.0, abs=0.1)

    throttled(scene)


def test_a_limit_that_is_lifted_lets_go_who_waits() -> None:
    async def scene(throttle: Throttle, _: list[str]) -> None:
        throttle.grant(0, 0, 1000.0)
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(throttle.take(1000), name=f"{n}") for n in range(3)]
            await asyncio.sleep(1)
            throttle.lift()
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            assert all(each.done() for each in waiting)

    throttled(scene)


def test_two_takers_take_turns() -> None:
    async def scene(throttle: Throttle, _: list[str]) -> None:
        throttle.grant(RATE, FLOOR, 100.0)
        async with asyncio.TaskGroup() as group:
            flows = [group.create_task(flow(throttle, 3.0), name=f"{n}") for n in range(2)]
        one, other = (total(each.result()) for each in flows)

        assert one == pytest.approx(other, rel=0.05)

    throttled(scene)


def test_a_taker_that_is_canceled_leaves_the_turn_to_the_next() -> None:
    async def scene(throttle: Throttle, _: list[str]) -> None:
        throttle.grant(100_000, 100, 100.0)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(throttle.take(10_000_000), name="first")
            second = group.create_task(throttle.take(1000), name="second")
            await asyncio.sleep(0.5)
            first.cancel()
            await asyncio.sleep(0.5)
            assert second.done()

    throttled(scene)


def test_what_is_told_is_what_was_used_and_what_was_waited() -> None:
    async def play() -> None:
        throttles = Throttles(VirtualClock())
        told: list[Demand | None] = []
        throttles.tell_with(lambda: told.append(throttles.demand()))
        assert throttles.demand() is None

        throttles.on_grant(Grant(5, 1_000_000, 500_000, 1000, 100.0))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(throttles.run(), name="run")
            await flow(throttles.upload, 2.0)
            demand = throttles.demand()
            assert demand is not None
            assert (demand.number, demand.upload.wants, demand.restore.wants) == (5, True, False)
            assert demand.upload.used_bytes == pytest.approx(2_000_000, rel=0.05)
            assert demand.upload.blocked_seconds == pytest.approx(2.0, rel=0.1)
            told.clear()
            await asyncio.sleep(1)
            running.cancel()

        # A flow that has ended is told without anybody asking.
        [ended] = told
        assert ended is not None
        assert not ended.upload.wants
        throttles.on_grant(None)
        assert throttles.demand() is None

    run_virtually(play())


def test_a_flow_that_says_its_end_is_told_at_once() -> None:
    async def scene(throttle: Throttle, asked: list[str]) -> None:
        throttle.grant(RATE, FLOOR, 100.0)
        flow = throttle.begin_flow()
        await throttle.take(1000)
        await asyncio.sleep(60)
        still = throttle.wants(asyncio.get_running_loop().time())
        flow.end()
        flow.end()

        assert still
        assert not throttle.wants(asyncio.get_running_loop().time())
        assert asked == ["wanting", "wanting"]

    throttled(scene)


def test_small_rates_have_small_pieces() -> None:
    async def scene(throttle: Throttle, _: list[str]) -> None:
        sizes = []
        for rate in (10**12, RATE, 100_000, 1000):
            throttle.grant(rate, 0, 100.0)
            sizes.append(throttle.piece_bytes)

        assert sizes == [PIECE_BYTES, RATE // 50, 2000, 64]

    throttled(scene)
