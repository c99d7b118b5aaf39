"""Runs tasks as the table in job.py says: several at once, but one per volume or target.

A task's work goes on whatever happens to the stream; it ends by itself, by a cancellation, or when
the daemon drains. However it ends, there is a report. This is the one place where an error that
nobody foresaw is caught: it is logged with its trace and becomes the end of its task.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agent.job import Effect, Event, State, next_to_start, step
from agent.logs import get_logger, log_context
from repository.errors import CanceledError, TidemarkError

Report = Callable[[], None]
_log = get_logger()


class StoppedError(TidemarkError):
    """The agent was told to stop while a task ran. The same task may succeed later."""

    retryable = True


@dataclass(frozen=True)
class Order:
    """A task as this module sees it."""

    task_id: str
    job_id: str
    holds: bytes
    """What no other task may hold at the same time: its volume or its target."""
    perform: Callable[[], Awaitable[Report]]
    """Do the work; answer how to report its end. May raise; is canceled to be stopped."""
    failed: Callable[[TidemarkError], Report]
    """How to report that the work failed, was canceled or never began."""


class _Live:
    """An order on its way."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.state = State.QUEUED
        self.runner: asyncio.Task[None] | None = None
        self.why_stopped: TidemarkError = CanceledError("canceled on request")
        self.report: Report = lambda: None


_NOT_RUNNING: Final = frozenset({State.QUEUED, State.REPORTING, State.FORGOTTEN})


class Tasks:
    """All tasks of this agent. Belongs to the event loop."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._live: dict[str, _Live] = {}
        self._draining = False

    def ids(self) -> list[str]:
        """Return the tasks that are not forgotten."""
        return list(self._live)

    def count(self) -> dict[str, int]:
        """Return how many tasks stand in each state."""
        counts = {state.value: 0 for state in State if state is not State.FORGOTTEN}
        for live in self._live.values():
            counts[live.state.value] += 1
        return counts

    def accept(self, order: Order) -> None:
        """Take on a task. One that is known already goes on as it does."""
        if order.task_id in self._live:
            return
        live = self._live[order.task_id] = _Live(order)
        if self._draining:
            live.why_stopped = _stopped()
            self._happen(live, Event.CANCEL)
        else:
            self._start_next()

    def cancel(self, task_id: str) -> None:
        """Stop a task; its end is reported as canceled. Nothing, where it is not known."""
        live = self._live.get(task_id)
        if live is not None:
            self._happen(live, Event.CANCEL)

    def reported(self, task_id: str) -> None:
        """Take note that the coordinator was told of a task's end."""
        live = self._live.get(task_id)
        if live is not None:
            self._happen(live, Event.REPORTED)

    async def drain(self, seconds: float) -> None:
        """Stop all tasks and wait for their ends, but not longer than that."""
        self._draining = True
        for live in list(self._live.values()):
            live.why_stopped = _stopped()
            self._happen(live, Event.CANCEL)
        runners = [live.runner for live in self._running() if live.runner is not None]
        if runners:
            await asyncio.wait(runners, timeout=seconds)
        still = [live.order.task_id for live in self._running()]
        if still:
            _log.warning("tasks still run", task_ids=still)

    def _running(self) -> Sequence[_Live]:
        return [live for live in self._live.values() if live.state not in _NOT_RUNNING]

    def _start_next(self) -> None:
        queued = [
            (live.order.task_id, live.order.holds)
            for live in self._live.values()
            if live.state is State.QUEUED
        ]
        chosen = next_to_start(queued, (live.order.holds for live in self._running()))
        for task_id in chosen:
            self._happen(self._live[task_id], Event.START)

    def _happen(self, live: _Live, event: Event) -> None:
        live.state, effects = step(live.state, event)
        for effect in effects:
            match effect:
                case Effect.RUN:
                    name = f"task {live.order.task_id}"
                    live.runner = self._group.create_task(self._run(live), name=name)
                    live.runner.add_done_callback(lambda _: self._never_ran(live))
                case Effect.STOP:
                    assert live.runner is not None
                    live.runner.cancel()
                case Effect.END_UNSTARTED:
                    live.report = live.order.failed(live.why_stopped)
                    self._happen(live, Event.END)
                case Effect.REPORT:
                    live.report()
                case Effect.TAKE_NEXT:
                    if not self._draining:
                        self._start_next()
        if live.state is State.FORGOTTEN:
            self._live.pop(live.order.task_id, None)

    async def _run(self, live: _Live) -> None:
        with log_context(job_id=live.order.job_id, task_id=live.order.task_id):
            try:
                live.report = await live.order.perform()
            except asyncio.CancelledError:
                if live.state is not State.CANCELING:
                    raise  # not a stop of this task, but the end of the daemon
                live.report = live.order.failed(live.why_stopped)
            except TidemarkError as error:
                live.report = live.order.failed(error)
            except Exception as error:  # noqa: BLE001 - the named guard: see above
                _log.exception("a task failed unexpectedly")
                live.report = live.order.failed(_unexpected(error))
            self._happen(live, Event.END)

    def _never_ran(self, live: _Live) -> None:
        """A task canceled before its first step ends without having run at all."""
        if live.state is State.CANCELING:
            live.report = live.order.failed(live.why_stopped)
            self._happen(live, Event.END)


def _stopped() -> StoppedError:
    return StoppedError(
        "the agent was stopped while the task ran", hint="start the agent, and run it again"
    )


def _unexpected(error: Exception) -> TidemarkError:
    return TidemarkError(
        f"an unexpected error in the agent: {type(error).__name__}: {error}",
        hint="please report it with the agent's log",
    )
