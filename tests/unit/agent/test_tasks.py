import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from agent.tasks import Order, Report, StoppedError, Tasks
from repository.errors import CanceledError, TidemarkError

pytestmark = pytest.mark.asyncio


class Desk:
    """Where ends of tasks are reported to."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.tasks = Tasks(group)
        self.ends: dict[str, object] = {}
        self.reported = asyncio.Condition()
        self._group = group

    def order(
        self, task_id: str, work: Callable[[], Awaitable[object]], holds: bytes = b""
    ) -> None:
        async def perform() -> Report:
            return self._report(task_id, await work())

        self.tasks.accept(
            Order(
                task_id=task_id,
                job_id="job",
                holds=holds or task_id.encode(),
                perform=perform,
                failed=lambda error: self._report(task_id, error),
            )
        )

    def _report(self, task_id: str, end: object) -> Report:
        def report() -> None:
            self.ends[task_id] = end
            self._group.create_task(self._tell(), name="tell")

        return report

    async def _tell(self) -> None:
        async with self.reported:
            self.reported.notify_all()

    async def until_ended(self, *task_ids: str) -> None:
        async with self.reported:
            await self.reported.wait_for(lambda: set(task_ids) <= set(self.ends))


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        yield Desk(group)


async def done() -> object:
    return "done"


async def test_the_end_of_a_task_is_reported_and_the_task_forgotten() -> None:
    async with desk() as here:
        here.order("1", done)
        await here.until_ended("1")
        assert here.tasks.ids() == ["1"]

        here.tasks.reported("1")

        assert here.tasks.ids() == []
        assert here.ends == {"1": "done"}


async def test_a_second_task_of_a_volume_waits_for_the_first() -> None:
    gate = asyncio.Event()
    async with desk() as here:
        here.order("1", gate.wait, b"volume")
        here.order("2", done, b"volume")
        here.order("3", done, b"other")
        await here.until_ended("3")
        assert here.tasks.count() == {"queued": 1, "running": 1, "canceling": 0, "reporting": 1}

        gate.set()
        await here.until_ended("1", "2")


async def test_a_task_that_is_known_already_is_not_begun_twice() -> None:
    gate = asyncio.Event()
    async with desk() as here:
        here.order("1", gate.wait)
        here.order("1", done)
        gate.set()
        await here.until_ended("1")

        assert here.ends == {"1": True}


async def test_a_canceled_task_ends_as_canceled_whether_it_ran_or_not() -> None:
    async with desk() as here:
        here.order("1", asyncio.Event().wait, b"volume")
        here.order("2", done, b"volume")
        here.tasks.cancel("2")
        here.tasks.cancel("1")
        here.tasks.cancel("unknown")
        await here.until_ended("1", "2")

        assert isinstance(here.ends["1"], CanceledError)
        assert isinstance(here.ends["2"], CanceledError)


@pytest.mark.parametrize(
    ("error", "message"),
    [(TidemarkError("no", hint="x"), "no"), (ZeroDivisionError("oops"), "unexpected error")],
)
async def test_a_task_that_fails_is_reported_with_its_reason(
    error: Exception, message: str
) -> None:
    async def work() -> object:
        raise error

    # The trace goes to the log, which nobody wants to see here.
    with capture_logs():
        async with desk() as here:
            here.order("1", work)
            await here.until_ended("1")

        end = here.ends["1"]
        assert isinstance(end, TidemarkError)
        assert message in end.message


async def test_draining_stops_everything_and_refuses_more() -> None:
    async with desk() as here:
        here.order("1", asyncio.Event().wait, b"volume")
        here.order("2", done, b"volume")

        await here.tasks.drain(5)
        here.order("3", done)

        assert {type(end) for end in here.ends.values()} == {StoppedError}
        assert sorted(here.ends) == ["1", "2", "3"]
