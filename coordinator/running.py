"""What runs, and the decisions about it: a task's step, a job's sum, who may start beside whom.

No I/O here and no waiting: the dispatcher carries out what these say.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from coordinator import life
from coordinator.life import Effect, Event, State
from coordinator.model import (
    BackupOrder,
    BackupStatistics,
    Failure,
    Job,
    LogLine,
    Order,
    Phase,
    RestoreOrder,
    RestoreResult,
    Result,
    Snapshot,
    Task,
    TaskId,
    VerifyOrder,
    VerifyResult,
)
from repository.ids import VolumeId
from repository.store.counting import Requests, Tally


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the dispatcher waits, in seconds, and how much runs at once."""

    # An agent that restarts or loses its network is back by then.
    agent_wait_seconds: float = 60.0
    # A task whose agent went away may go on for so long; also the lease of its session.
    grace_seconds: float = 30.0
    # A backup fills two processors and the memory that an agent may have.
    backups_per_node: int = 1
    restores_per_node: int = 2


@dataclass(slots=True)
class LiveTask:
    """A task that has not ended: where it stands, and what waits or works for it."""

    task: Task
    state: State = State.QUEUED
    timer: asyncio.TimerHandle | None = None
    worker: asyncio.Task[None] | None = None
    has_arrived: bool = False
    """Whether its agent has been heard of at it, or was told of it twice."""
    tally: Tally = field(default_factory=Tally)
    """What is asked of the store for it here."""

    def step(
        self,
        event: Event,
        now: int,
        *,
        failure: Failure | None,
        result: Result | None,
        snapshot: Snapshot | None,
    ) -> tuple[Effect, ...]:
        """Take this step of the task's life; what must be done because of it."""
        self.state, effects = life.step(self.state, event)
        phase = life.PHASES[self.state]
        changed = replace(
            self.task,
            phase=phase,
            started_at=self.task.started_at or (now if event is Event.HANDED_OVER else None),
            result=result if result is not None else self.task.result,
        )
        if snapshot is not None:
            changed = replace(changed, snapshot_id=snapshot.snapshot_id)
        if phase.ended:
            finished = now if snapshot is None else snapshot.committed_at
            counted = with_requests(changed, self.tally.snapshot())
            changed = replace(changed, finished_at=finished, failure=failure, result=counted)
        self.task = changed
        return effects

    def stop_timer(self) -> None:
        """Let nothing fire any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True)
class LiveJob:
    """A job that has not ended, with its tasks and the log lines not yet kept."""

    job: Job
    tasks: dict[TaskId, LiveTask]
    lines: list[LogLine] = field(default_factory=list)
    # Tasks that have ended, and of which all is told.
    concluded: set[TaskId] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def current(self) -> Job:
        """The job with its tasks as they are now."""
        return replace(self.job, tasks=tuple(live.task for live in self.tasks.values()))

    def update(self, now: int) -> None:
        """Make the job what its tasks say."""
        phase = life.job_phase(each.task.phase for each in self.tasks.values())
        self.job = replace(
            self.job,
            phase=phase,
            started_at=self.job.started_at or (None if phase is Phase.NEW else now),
            finished_at=now if phase.ended else None,
        )

    def notify(self) -> None:
        """Wake whoever watches."""
        self.changed.set()
        self.changed = asyncio.Event()


def volume_of(order: Order) -> VolumeId | None:
    """The volume that an order must have for itself; None if any other may run beside it.

    A backup reads its volume, and a restore in place changes it: what one of them would make of
    the other's half-done work is nobody's wish.
    """
    return None if isinstance(order, VerifyOrder) else order.volume_id


def may_start(order: Order, at_work: Sequence[Order], limits: Limits) -> bool:
    """Whether this may begin beside what is at work in the same place."""
    volume_id = volume_of(order)
    if volume_id is not None and volume_id in map(volume_of, at_work):
        return False
    match order:
        case BackupOrder():
            backups = sum(isinstance(other, BackupOrder) for other in at_work)
            return backups < limits.backups_per_node
        case RestoreOrder():
            restores = sum(isinstance(other, RestoreOrder) for other in at_work)
            return restores < limits.restores_per_node
        case VerifyOrder():
            # One at a time: it reads as fast as the store gives.
            return not at_work


def with_requests(task: Task, asked: Requests) -> Result | None:
    """The task's result with what the store was asked for it: as its agent told, and here."""
    result = task.result
    if result is None and not any(asked):
        return None
    result = result or _nothing_done(task.order)
    told = result.store_requests or Requests()
    return replace(result, store_requests=told.plus(asked))


def _nothing_done(order: Order) -> Result:
    match order:
        case BackupOrder():
            return BackupStatistics()
        case RestoreOrder():
            return RestoreResult()
        case VerifyOrder():
            return VerifyResult()


def interrupted(task: Task, snapshot: Snapshot | None, lost: Failure, now: int) -> Task:
    """A task that ran when the coordinator stopped: done if it had committed, else lost.

    What the store was asked for it here was counted in memory: nobody knows it any more.
    """
    if snapshot is None:
        return replace(task, phase=Phase.FAILED, finished_at=now, failure=lost)
    return replace(
        task,
        phase=snapshot.phase,
        finished_at=snapshot.committed_at,
        snapshot_id=snapshot.snapshot_id,
        result=replace(snapshot.statistics, store_requests=None),
    )
