"""Steps that meet the end of the server's task group: none is left half, and nobody waits on."""

import asyncio
import gc
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from typing_extensions import override

from coordinator.catalog import open_catalog
from coordinator.catalog.connections import Connections
from coordinator.catalog.jobs import SqlJobs
from coordinator.catalog.sql import SqlCatalog
from coordinator.dispatch import Dispatcher
from coordinator.metrics import Metrics
from coordinator.model import (
    Job,
    Origin,
    Phase,
    Progress,
    Task,
    VerifyDepth,
    VerifyOrder,
    VerifyResult,
    Volume,
)
from repository.ids import NodeId, VolumeId

NODE = NodeId(b"n" * 16)


class _StopError(Exception):
    """The server stops."""


def _stop() -> NoReturn:
    raise _StopError


async def _verify(_: VerifyOrder, __: Callable[[Progress], None]) -> VerifyResult:
    raise AssertionError


@asynccontextmanager
async def made(path: Path, metrics: Metrics | None = None) -> AsyncIterator[Dispatcher]:
    catalog = await open_catalog(path / "catalog.db", 0)
    yield Dispatcher(catalog, metrics or Metrics("0"), clock=lambda: 0, random=os.urandom)
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


class Gated(SqlJobs):
    """Keeps a job's later states only when it is let."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections)
        self.gates = [asyncio.Event(), asyncio.Event()]
        self.arrived = 0

    @override
    async def save_job(self, job: Job, changed: Sequence[Task]) -> None:
        number, self.arrived = self.arrived, self.arrived + 1
        if number < len(self.gates):
            await self.gates[number].wait()
        else:
            await super().save_job(job, changed)


async def arrived(jobs: Gated, number: int) -> None:
    for _ in range(1_000_000):
        if jobs.arrived >= number:
            return
        await asyncio.sleep(0)
    raise AssertionError


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_verification_that_is_canceled_while_its_beginning_is_kept_ends(
    order: Sequence[int], tmp_path: Path
) -> None:
    """Its worker has not begun, or there is none yet."""

    async def verify(_: VerifyOrder, __: Callable[[Progress], None]) -> VerifyResult:
        await asyncio.Event().wait()
        raise AssertionError

    async def canceled(dispatcher: Dispatcher, group: asyncio.TaskGroup, jobs: Gated) -> Phase:
        wanted = VerifyOrder(VerifyDepth.DATA, ())
        group.create_task(dispatcher.create_verify(wanted, ()), name="ask")
        await arrived(jobs, 1)
        [job] = dispatcher.running()
        group.create_task(dispatcher.cancel(job.job_id), name="cancel")
        await arrived(jobs, 2)
        for each in order:
            jobs.gates[each].set()
            await asyncio.sleep(0 if order[0] == 0 else 0.05)
        async for seen in dispatcher.watch(job.job_id, pause_seconds=0, silence_seconds=0.01):
            job = seen
        return job.phase

    async def scene() -> Phase | None:
        catalog = await open_catalog(tmp_path / "catalog.db", 0)
        assert isinstance(catalog, SqlCatalog)
        assert isinstance(catalog.jobs, SqlJobs)
        jobs = catalog.jobs = Gated(catalog.jobs.connections)
        dispatcher = Dispatcher(catalog, Metrics("0"), clock=lambda: 0, random=os.urandom)
        phase: Phase | None = None
        try:
            async with asyncio.timeout(5), asyncio.TaskGroup() as group:
                dispatcher.begin(group, verify)
                phase = await canceled(dispatcher, group, jobs)
                _stop()
        except* _StopError:
            pass
        await catalog.close()
        return phase

    assert asyncio.run(scene()) is Phase.CANCELED


def test_tasks_that_end_in_one_moment_close_their_job_once(tmp_path: Path) -> None:
    nodes = [NodeId(bytes([number]) * 16) for number in range(5)]

    async def scene() -> Job:
        metrics = Metrics("0")
        async with made(tmp_path, metrics) as dispatcher:
            try:
                async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                    dispatcher.begin(group, _verify)
                    volumes = [
                        Volume(VolumeId(node), node, "v", "path", b"/v", "protected", "", 0)
                        for node in nodes
                    ]
                    await dispatcher.create_backup(volumes, Origin.MANUAL)
                    async with asyncio.TaskGroup() as dropping:
                        for node in nodes:
                            dropping.create_task(dispatcher.drop(node), name="drop")
                    assert dispatcher.running() == []
                    _stop()
            except* _StopError:
                pass
            [job] = await dispatcher.jobs(kind=None, limit=2)
            ended = metrics.render().decode().splitlines()
        assert 'tidemark_jobs_ended_total{kind="backup",phase="Failed"} 1.0' in ended
        return job

    job = asyncio.run(scene())
    assert [task.phase for task in job.tasks] == [Phase.FAILED] * 5
