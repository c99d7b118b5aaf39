"""Steps that meet the end of the server's task group: none is left half, and nobody waits on."""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from coordinator.catalog import open_catalog
from coordinator.dispatch import Dispatcher
from coordinator.metrics import Metrics
from coordinator.model import Progress, VerifyOrder, VerifyResult
from repository.ids import NodeId

NODE = NodeId(b"n" * 16)


class _StopError(Exception):
    """The server stops."""


def _stop() -> NoReturn:
    raise _StopError


async def _verify(_: VerifyOrder, __: Callable[[Progress], None]) -> VerifyResult:
    raise AssertionError


@asynccontextmanager
async def made(path: Path) -> AsyncIterator[Dispatcher]:
    catalog = await open_catalog(path / "catalog.db", 0)
    yield Dispatcher(catalog, Metrics("0"), clock=lambda: 0, random=bytes)
    await catalog.close()


async def stopped(dispatcher: Dispatcher, begin: Callable[[asyncio.TaskGroup], object]) -> None:
    """A server that stops in the very moment in which what was begun takes its first step."""
    try:
        async with asyncio.TaskGroup() as group:
            dispatcher.begin(group, _verify)
            begin(group)
            await asyncio.sleep(0)
            _stop()
    except* _StopError:
        pass


async def drop(dispatcher: Dispatcher) -> None:
    """A step whose task is canceled before it has begun."""
    await dispatcher.drop(NODE)


async def drop_when_canceled(dispatcher: Dispatcher) -> None:
    """A step that comes when the group takes no task any more."""
    try:
        await asyncio.Event().wait()
    finally:
        await dispatcher.drop(NODE)


@pytest.mark.parametrize("step", [drop, drop_when_canceled])
def test_a_step_that_meets_the_end_of_the_group_is_canceled_with_it(
    step: Callable[[Dispatcher], Awaitable[None]], tmp_path: Path
) -> None:
    ended: list[str] = []

    async def scene() -> None:
        async def caller(dispatcher: Dispatcher) -> None:
            try:
                await step(dispatcher)
            except asyncio.CancelledError:
                ended.append("canceled")
                raise

        async with made(tmp_path) as dispatcher:
            await stopped(
                dispatcher, lambda group: group.create_task(caller(dispatcher), name="caller")
            )

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        asyncio.run(scene())
        gc.collect()

    assert ended == ["canceled"]
    assert [str(each.message) for each in said] == []


def test_a_caller_outside_the_group_does_not_wait_for_a_step_that_never_begins(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        async def caller(dispatcher: Dispatcher) -> None:
            with pytest.raises(asyncio.CancelledError):
                await dispatcher.drop(NODE)

        async with (
            made(tmp_path) as dispatcher,
            asyncio.timeout(2),
            asyncio.TaskGroup() as outside,
        ):
            await stopped(
                dispatcher, lambda _: outside.create_task(caller(dispatcher), name="caller")
            )

    asyncio.run(scene())
