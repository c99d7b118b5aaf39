"""A connection that is replaced under work."""

import asyncio

import pytest

from agent.line import Line

pytestmark = pytest.mark.asyncio


class Connection:
    """Notes that it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


async def test_new_work_takes_the_new_connection_and_old_work_ends_on_the_old() -> None:
    old, new = Connection(), Connection()
    line = Line(old)
    async with line.use() as first:
        async with line.use() as second:
            await line.replace(new)
            async with line.use() as third:
                assert (first, second, third) == (old, old, new)
        assert not old.closed
    assert (old.closed, new.closed) == (1, 0)


async def test_a_connection_that_nobody_uses_closes_when_it_is_replaced() -> None:
    old, newer, newest = Connection(), Connection(), Connection()
    line = Line(old)
    async with line.use():
        pass
    await line.replace(newer)
    await line.replace(newest)
    assert (old.closed, newer.closed, newest.closed) == (1, 1, 0)


async def test_work_that_fails_or_is_canceled_holds_nothing_open() -> None:
    old = Connection()
    line = Line(old)

    async def work() -> None:
        async with line.use():
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        canceled = group.create_task(work())
        await asyncio.sleep(0)
        await line.replace(Connection())
        open_before = not old.closed
        canceled.cancel()
    assert (open_before, old.closed) == (True, 1)


async def test_closing_closes_what_is_still_in_use() -> None:
    old, new = Connection(), Connection()
    line = Line(old)
    async with line.use():
        await line.replace(new)
        await line.close()
        assert old.closed
        assert new.closed
