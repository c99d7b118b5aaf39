"""Who does what, when: jobs queue here, tasks go to agents, and their ends come back.

All state of running work is in memory and mirrored to the catalog at each transition; the tables
of coordinator/life.py say which transitions there are. One task at a time backs a volume up or
restores it in place: the next one waits its turn and is never refused. What a task did is believed
from the catalog, not from the agent that says so.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from coordinator import life
from coordinator.catalog import Catalog
from coordinator.custody import Random
from coordinator.errors import CatalogError, NotFoundError, TidemarkError
from coordinator.life import Effect, Event, State
from coordinator.links import AgentLink, CancelTask, RunTask
from coordinator.logs import get_logger
from coordinator.metrics import Metrics
from coordinator.model import (
    NANOSECONDS,
    BackupOrder,
    BackupStatistics,
    Failure,
    Job,
    JobId,
    JobKind,
    LogLine,
    Node,
    Order,
    Origin,
    Phase,
    Progress,
    RestoreOrder,
    Result,
    Snapshot,
    Task,
    TaskId,
    VerifyOrder,
    VerifyResult,
    Volume,
)
from coordinator.running import Limits, LiveJob, LiveTask, interrupted, may_start
from repository.failpoints import failpoint
from repository.ids import NodeId, RepositoryId, VolumeId
from repository.store.counting import Tally, charged

log = get_logger()

T = TypeVar("T")
Clock = Callable[[], int]
# Does a verification; tells its progress.
LocalWorker = Callable[[VerifyOrder, Callable[[Progress], None]], Awaitable[VerifyResult]]

_LOG_BUFFER_LINES: Final = 100
# Room on the catalog's disk is looked for so often.
_INSIST_SECONDS: Final = 1.0


class Dispatcher:
    """The coordinator's memory of running work. Used from one event loop only."""

    def __init__(
        self,
        catalog: Catalog,
        metrics: Metrics,
        *,
        clock: Clock,
        random: Random,
        limits: Limits | None = None,
    ) -> None:
        self._catalog = catalog
        self._metrics = metrics
        self._clock = clock
        self._random = random
        self.limits = limits or Limits()
        self._group: asyncio.TaskGroup | None = None
        self._ending = False
        self._verify: LocalWorker | None = None
        self._jobs: dict[JobId, LiveJob] = {}
        self._links: dict[NodeId, AgentLink] = {}
        # In the order in which they were asked for.
        self._live: dict[TaskId, LiveTask] = {}

    def end(self) -> None:
        """Hand nothing out any more and let nothing fire: the server stops."""
        self._ending = True
        for live in self._live.values():
            live.stop_timer()
            if live.worker is not None:
                live.worker.cancel()
        for link in list(self._links.values()):
            link.close()

    def begin(self, group: asyncio.TaskGroup, verify: LocalWorker) -> None:
        """Take part in the server's task group, and take the worker for verifications."""
        self._group = group
        self._verify = verify

    async def recover(self) -> None:
        """After a start: what was running is not any more, but for what was committed."""
        await self._catalog.ledger.fence_all()
        failpoint("coordinator.start.sessions_fenced", CatalogError)
        now = self._clock()
        lost = Failure(
            "the coordinator was restarted while this ran", hint="start it again", exit_code=1
        )
        for job in await self._catalog.jobs.unfinished_jobs():
            tasks = []
            for task in job.tasks:
                if task.phase.ended:
                    tasks.append(task)
                    continue
                snapshot = await self._committed(task)
                tasks.append(interrupted(task, snapshot, lost, now))
            phase = life.job_phase(task.phase for task in tasks)
            ended = replace(job, phase=phase, finished_at=now, tasks=tuple(tasks))
            await self._catalog.jobs.save_job(ended, tasks)
            failpoint("coordinator.start.job_ended", CatalogError)
            await self._catalog.jobs.append_log(job.job_id, [LogLine(now, "error", lost.message)])

    # ---- asking for jobs ------------------------------------------------------------------------

    async def create_backup(
        self, volumes: Sequence[Volume], origin: Origin, *, audit: bool = False
    ) -> Job:
        """One task for each volume."""
        orders: list[tuple[Order, NodeId | None]] = [
            (
                BackupOrder(volume.volume_id, volume.local_id, audit, volume.repository_id),
                volume.node_id,
            )
            for volume in volumes
        ]
        subjects = tuple(volume.name for volume in volumes)
        return await self._create(JobKind.BACKUP, origin, subjects, orders)

    async def create_restore(self, order: RestoreOrder, node: Node) -> Job:
        """One task, on one node."""
        return await self._create(
            JobKind.RESTORE, Origin.MANUAL, (order.snapshot_id,), [(order, node.node_id)]
        )

    async def create_verify(self, order: VerifyOrder, subjects: tuple[str, ...]) -> Job:
        """One task, here."""
        return await self._create(JobKind.VERIFY, Origin.MANUAL, subjects, [(order, None)])

    async def _create(
        self,
        kind: JobKind,
        origin: Origin,
        subjects: tuple[str, ...],
        orders: Sequence[tuple[Order, NodeId | None]],
    ) -> Job:
        job_id = JobId(self._random(8).hex())
        tasks = tuple(
            Task(TaskId(self._random(16).hex()), job_id, order, node) for order, node in orders
        )
        job = Job(job_id, kind, origin, self._clock(), subjects, tasks)
        return await self._whole(partial(self._begin_job, job), f"begin {job_id}")

    async def _begin_job(self, job: Job) -> Job:
        job_id, kind, subjects, tasks = job.job_id, job.kind, job.subjects, job.tasks
        failpoint("coordinator.job.asked", CatalogError)
        await self._catalog.jobs.add_job(job)
        failpoint("coordinator.job.created", CatalogError)
        live = LiveJob(job, {task.task_id: LiveTask(task) for task in tasks})
        self._jobs[job_id] = live
        self._live.update(live.tasks)
        log.info("job created", job_id=job_id, kind=kind, subjects=len(subjects))
        for node_id in {task.node_id for task in tasks}:
            await self._pump(node_id)
        return live.current()

    def busy_volumes(self) -> set[VolumeId]:
        """Volumes that are being backed up or wait for it."""
        return {
            live.task.order.volume_id
            for live in self._live.values()
            if isinstance(live.task.order, BackupOrder)
        }

    def repositories(self, node_id: NodeId) -> set[RepositoryId | None]:
        """Those that a node works with now; None stands for the first."""
        return {
            live.task.order.repository_id
            for live in self._of_node(node_id)
            if live.state is not State.QUEUED
            and isinstance(live.task.order, BackupOrder | RestoreOrder)
        }

    # ---- watching jobs --------------------------------------------------------------------------

    async def job(self, job_id: JobId) -> Job:
        """The job as it is now; NotFoundError."""
        if (live := self._jobs.get(job_id)) is not None:
            return live.current()
        job = await self._catalog.jobs.job(job_id)
        if job is None:
            raise NotFoundError(f"there is no job {job_id}", hint="see tidemark job list")
        return job

    async def jobs(self, *, kind: JobKind | None, limit: int) -> list[Job]:
        """The newest first, running ones with their progress."""
        kept = await self._catalog.jobs.jobs(kind=kind, limit=limit)
        return [
            live.current() if (live := self._jobs.get(job.job_id)) is not None else job
            for job in kept
        ]

    def running(self) -> list[Job]:
        """Jobs that have not ended."""
        return [live.current() for live in self._jobs.values()]

    async def watch(
        self, job_id: JobId, *, pause_seconds: float, silence_seconds: float
    ) -> AsyncIterator[Job]:
        """The job now and after its changes, no more often than the pause, until it has ended."""
        while True:
            live = self._jobs.get(job_id)
            changed = None if live is None else live.changed
            job = await self.job(job_id)
            yield job
            if job.phase.ended or live is None or changed is None:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(silence_seconds):
                    await changed.wait()
            # Progress comes in bursts; the end is told at once.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await live.ended.wait()

    async def log_lines(self, job_id: JobId) -> list[LogLine]:
        """The job's log so far; NotFoundError."""
        await self.job(job_id)
        if (live := self._jobs.get(job_id)) is not None:
            await self._flush_log(live)
        return await self._catalog.jobs.log(job_id)

    def queued(self) -> int:
        """How many tasks wait."""
        return sum(live.state is State.QUEUED for live in self._live.values())

    def connected(self) -> set[NodeId]:
        """Nodes whose agents are connected."""
        return set(self._links)

    # ---- agents come and go ---------------------------------------------------------------------

    def connect(self, node: Node) -> AgentLink:
        """An agent said hello. Whoever gets the link must disconnect it."""
        if (older := self._links.get(node.node_id)) is not None:
            older.close()
        link = AgentLink(node)
        self._links[node.node_id] = link
        log.info("agent connected", node=node.name)
        return link

    async def compare(self, link: AgentLink, running: Iterable[TaskId]) -> list[TaskId]:
        """What the agent says it works on, against what it should: those that it must stop."""
        node = link.node
        told = set(running)
        mine = [live for live in self._of_node(node.node_id) if live.state is not State.QUEUED]
        known = {live.task.task_id for live in mine}
        for live in mine:
            if live.task.task_id not in told:
                await self._not_at_work(live)
            elif live.state is State.ORPHANED:
                await self._happen(live, Event.AGENT_BACK)
        for live in self._of_node(node.node_id):
            if live.state is State.QUEUED:
                live.stop_timer()
        return sorted(told - known)

    async def _not_at_work(self, live: LiveTask) -> None:
        """An agent does not know of a task that it was given."""
        if live.has_arrived or not life.can(live.state, Event.NEVER_ARRIVED):
            await self._lost(live, _RESTARTED)
            return
        # A connection may end, as with a certificate, just as a task is handed over.
        live.has_arrived = True
        await self._happen(live, Event.NEVER_ARRIVED)

    async def welcomed(self, link: AgentLink) -> None:
        """The agent was answered; it may be given work."""
        await self._whole(partial(self._pump, link.node.node_id), f"pump {link.node.name}")

    async def disconnect(self, link: AgentLink) -> None:
        """An agent's connection has ended; nothing, if it has a newer one."""
        await self._whole(partial(self._disconnect, link), f"disconnect {link.node.name}")

    async def _disconnect(self, link: AgentLink) -> None:
        node_id = link.node.node_id
        if self._links.get(node_id) is not link:
            return
        del self._links[node_id]
        log.info("agent disconnected", node=link.node.name)
        for live in self._of_node(node_id):
            if life.can(live.state, Event.AGENT_GONE):
                await self._happen(live, Event.AGENT_GONE)
            elif live.state is State.QUEUED:
                await self._await_agent(live)

    async def drop(self, node_id: NodeId) -> None:
        """Cut a node off, since it was revoked: its stream ends, its tasks fail, at once."""
        if (link := self._links.pop(node_id, None)) is not None:
            link.close()
        await self._whole(partial(self._drop_tasks, node_id), f"drop {node_id.hex()}")

    async def _drop_tasks(self, node_id: NodeId) -> None:
        for live in self._of_node(node_id):
            if live.state is State.QUEUED:
                await self._happen(live, Event.NOBODY_CAME, failure=_REVOKED)
            else:
                await self._lost(live, _REVOKED)

    async def release(self, volume_ids: Iterable[VolumeId]) -> None:
        """End the backups of volumes that have moved: their sessions are fenced already."""
        moved = set(volume_ids)
        of_moved = [
            live
            for live in self._live.values()
            if isinstance(live.task.order, BackupOrder) and live.task.order.volume_id in moved
        ]
        await self._whole(partial(self._release_tasks, of_moved), "release")

    async def _release_tasks(self, of_moved: Sequence[LiveTask]) -> None:
        for live in of_moved:
            if live.state is State.QUEUED:
                await self._happen(live, Event.WENT_WRONG, failure=_MOVED)
            else:
                self._send_cancel(live)
                await self._lost(live, _MOVED)

    # ---- what agents report ---------------------------------------------------------------------

    def running_task(self, task_id: TaskId, node_id: NodeId) -> Task:
        """A task that this node may work on now; NotFoundError."""
        live = self._live.get(task_id)
        working = {State.RUNNING, State.ORPHANED, State.STOPPING}
        if live is None or live.task.node_id != node_id or live.state not in working:
            raise NotFoundError(
                f"task {task_id} is not running on this node",
                hint="it was canceled, or the coordinator was restarted",
            )
        live.has_arrived = True
        return live.task

    def tally(self, task_id: TaskId) -> Tally:
        """What the store is asked for a task is counted on this; once it has ended, in vain."""
        live = self._live.get(task_id)
        return Tally() if live is None else live.tally

    def progress(self, task_id: TaskId, node_id: NodeId, progress: Progress) -> None:
        """How far a task is; of an unknown one, nothing."""
        live = self._live.get(task_id)
        if live is not None and live.task.node_id == node_id:
            live.has_arrived = True
            live.task = replace(live.task, progress=progress)
            self._jobs[live.task.job_id].notify()

    async def add_log(self, task_id: TaskId, node_id: NodeId, line: LogLine) -> None:
        """A line for the job's log."""
        live = self._live.get(task_id)
        if live is not None and live.task.node_id == node_id:
            await self._log(live, line.level, line.message)

    async def committed(self, task_id: TaskId, snapshot: Snapshot) -> None:
        """A task's snapshot is settled; the task ends when its agent says so, or is lost."""
        live = self._live.get(task_id)
        if live is not None:
            live.task = replace(
                live.task, snapshot_id=snapshot.snapshot_id, result=snapshot.statistics
            )

    async def finished(
        self,
        task_id: TaskId,
        node_id: NodeId,
        *,
        failure: Failure | None,
        canceled: bool,
        result: Result | None,
    ) -> None:
        """An agent says that a task has ended. The catalog is believed about snapshots."""
        live = self._live.get(task_id)
        if live is None or live.task.node_id != node_id:
            return
        if live.state is State.QUEUED:
            return
        if isinstance(live.task.order, BackupOrder):
            await self._finish_backup(live, failure=failure, canceled=canceled, result=result)
        else:
            await self._finish(live, failure=failure, canceled=canceled, result=result)

    async def _finish_backup(
        self, live: LiveTask, *, failure: Failure | None, canceled: bool, result: Result | None
    ) -> None:
        snapshot = await self._committed(live.task)
        if live.task.task_id not in self._live:
            return
        if snapshot is not None:
            event = Event.DONE if snapshot.phase is Phase.COMPLETED else Event.DONE_PARTLY
            # The agent's last word counts files that it met after the commit: none. Warnings too.
            statistics = snapshot.statistics
            if result is not None and result.store_requests is not None:
                statistics = replace(statistics, store_requests=result.store_requests)
            await self._happen(live, event, snapshot=snapshot, result=statistics, failure=None)
            return
        missing = Failure("the agent ended the backup without a snapshot", hint="see job logs")
        await self._finish(
            live,
            failure=None if canceled else failure or missing,
            canceled=canceled,
            result=result,
        )

    async def _finish(
        self, live: LiveTask, *, failure: Failure | None, canceled: bool, result: Result | None
    ) -> None:
        if canceled:
            await self._happen(live, Event.STOPPED, result=result, failure=_CANCELED)
        elif failure is not None:
            await self._happen(live, Event.WENT_WRONG, result=result, failure=failure)
        elif _has_errors(result):
            await self._happen(live, Event.DONE_PARTLY, result=result)
        else:
            await self._happen(live, Event.DONE, result=result)

    async def cancel(self, job_id: JobId) -> Job:
        """Ask everything in a job to stop; what has ended stays as it ended."""
        live_job = self._jobs.get(job_id)
        if live_job is not None:
            for live in list(live_job.tasks.values()):
                if life.can(live.state, Event.CANCEL_ASKED):
                    await self._happen(live, Event.CANCEL_ASKED, failure=_CANCELED)
        return await self.job(job_id)

    # ---- transitions ----------------------------------------------------------------------------

    async def _happen(
        self,
        live: LiveTask,
        event: Event,
        *,
        failure: Failure | None = None,
        result: Result | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        """One step of a task's life, done wholly even if whoever caused it goes away."""
        transition = partial(
            self._transition, live, event, failure=failure, result=result, snapshot=snapshot
        )
        await self._whole(transition, f"{event} {live.task.task_id}")

    async def _whole(self, work: Callable[[], Coroutine[None, None, T]], name: str) -> T:
        """Run this in the server's task group: a caller that is canceled leaves no half step.

        A failure is the caller's; it must not end the server, whose group this is. When that group
        ends, a step that has not begun never does, and its caller is canceled with it.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                result = await work()
            except TidemarkError as error:
                if done.done():
                    log.error("a step failed", step=name, reason=error.message)  # noqa: TRY400
                else:
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)

        running = self._start(run(), name)
        if running is None:
            raise asyncio.CancelledError
        # Canceled before its first step, it would say nothing.
        running.add_done_callback(lambda _: done.cancel())
        return await done

    def _start(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None] | None:
        """A task of the server's group; None where that is ending, and takes none any more."""
        assert self._group is not None
        try:
            return self._group.create_task(work, name=name)
        except RuntimeError:
            work.close()
            return None

    async def _transition(
        self,
        live: LiveTask,
        event: Event,
        *,
        failure: Failure | None,
        result: Result | None,
        snapshot: Snapshot | None,
    ) -> None:
        """State first, then the catalog, then the effects."""
        if self._ending or not life.can(live.state, event):
            return
        # Looked at again in one go with the step: another task may have begun in between.
        if event is Event.HANDED_OVER and not self._may_start(live):
            return
        now = self._clock()
        effects = live.step(event, now, failure=failure, result=result, snapshot=snapshot)
        job = self._jobs[live.task.job_id]
        job.update(now)

        async def save() -> None:
            await self._catalog.jobs.save_job(job.job, [live.task])
            failpoint("coordinator.job.saved", CatalogError)

        await self._insist(save)
        for effect in effects:
            await self._carry_out(live, effect)
        job.notify()

    async def _insist(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write to the catalog as soon as that is possible, since a step half told never ends.

        Memory is ahead meanwhile. CatalogError only when the server stops; a start settles it.
        """
        while True:
            try:
                return await write()
            except CatalogError as error:
                if self._ending:
                    raise
                log.error("cannot write", reason=error.message, hint=error.hint)  # noqa: TRY400
            await asyncio.sleep(_INSIST_SECONDS)

    async def _carry_out(self, live: LiveTask, effect: Effect) -> None:
        match effect:
            case Effect.SEND_TASK:
                await self._send_task(live)
            case Effect.SEND_CANCEL:
                self._send_cancel(live)
            case Effect.BEGIN_GRACE:
                await self._log(live, "warning", "the connection to the agent is lost")
                self._set_timer(live, self.limits.grace_seconds, self._grace_over)
            case Effect.END_GRACE:
                live.stop_timer()
                await self._log(live, "info", "the agent is connected again")
            case Effect.CONCLUDE:
                await self._conclude(live)

    async def _send_task(self, live: LiveTask) -> None:
        if live.task.node_id is None:
            await self._begin_work(live)
            return
        await self._log(live, "info", "handed to the agent")
        if (link := self._links.get(live.task.node_id)) is not None:
            link.send(RunTask(live.task))
            failpoint("coordinator.task.sent", CatalogError)
        else:
            await self._happen(live, Event.AGENT_GONE)

    def _send_cancel(self, live: LiveTask) -> None:
        if live.worker is not None:
            live.worker.cancel()
        elif live.task.node_id is not None and live.task.node_id in self._links:
            self._links[live.task.node_id].send(CancelTask(live.task.task_id))

    async def _conclude(self, live: LiveTask) -> None:
        live.stop_timer()
        task = live.task
        self._live.pop(task.task_id, None)

        async def fence() -> None:
            failpoint("coordinator.task.concluding", CatalogError)
            await self._catalog.ledger.fence_task(task.task_id)
            failpoint("coordinator.task.fenced", CatalogError)

        await self._insist(fence)
        if isinstance(task.result, BackupStatistics):
            self._metrics.source_read(task.result.bytes_read)
        level = "info" if task.phase is Phase.COMPLETED else "error"
        detail = "" if task.failure is None else f": {task.failure.message}"
        await self._log(live, level, f"{task.phase}{detail}")
        job = self._jobs[task.job_id]
        job.concluded.add(task.task_id)
        # Several may have ended in one moment: whoever is through with that last, closes.
        if job.concluded == job.tasks.keys():
            await self._close_job(job)
        await self._pump(task.node_id)

    async def _close_job(self, live: LiveJob) -> None:
        await self._insist(partial(self._flush_log, live))
        failpoint("coordinator.job.closed")
        job = live.job
        begun = job.started_at or job.created_at
        seconds = ((job.finished_at or begun) - begun) / NANOSECONDS
        self._metrics.job_ended(job.kind, job.phase, seconds)
        log.info("job ended", job_id=job.job_id, kind=job.kind, phase=job.phase, seconds=seconds)
        self._jobs.pop(job.job_id, None)
        live.ended.set()
        live.notify()

    # ---- handing out ----------------------------------------------------------------------------

    async def _pump(self, node_id: NodeId | None) -> None:
        """Hand out what may start on a node (or here), oldest first, restores before backups."""
        waiting = [live for live in self._of_node(node_id) if live.state is State.QUEUED]
        waiting.sort(key=lambda live: isinstance(live.task.order, BackupOrder))
        for live in waiting:
            if node_id is not None and node_id not in self._links:
                await self._await_agent(live)
            elif live.state is State.QUEUED and self._may_start(live):
                await self._happen(live, Event.HANDED_OVER)

    def _may_start(self, live: LiveTask) -> bool:
        at_work = [
            other.task.order
            for other in self._of_node(live.task.node_id)
            if other.state is not State.QUEUED
        ]
        return may_start(live.task.order, at_work, self.limits)

    def _of_node(self, node_id: NodeId | None) -> list[LiveTask]:
        return [live for live in self._live.values() if live.task.node_id == node_id]

    async def _await_agent(self, live: LiveTask) -> None:
        if live.timer is None:
            revoked = await self._is_revoked(live.task.node_id)
            seconds = 0 if revoked else self.limits.agent_wait_seconds
            self._set_timer(live, seconds, self._nobody_came)

    async def _is_revoked(self, node_id: NodeId | None) -> bool:
        """Whether waiting for this node's agent is in vain."""
        node = None if node_id is None else await self._catalog.fleet.node(node_id)
        return node is not None and node.revoked

    def _set_timer(
        self, live: LiveTask, seconds: float, then: Callable[[LiveTask], Awaitable[None]]
    ) -> None:
        live.stop_timer()
        if self._ending:
            return

        async def run() -> None:
            try:
                await then(live)
            except TidemarkError as error:
                log.error("a timer failed", reason=error.message)  # noqa: TRY400

        def fire() -> None:
            live.timer = None
            if self._ending:
                return
            self._start(run(), f"timer of {live.task.task_id}")

        live.timer = asyncio.get_running_loop().call_later(seconds, fire)

    async def _nobody_came(self, live: LiveTask) -> None:
        if live.state is State.QUEUED and live.task.node_id not in self._links:
            waited = round(self.limits.agent_wait_seconds)
            failure = Failure(
                f"the node's agent is not connected (waited {waited} s)",
                hint="see tidemark node list; start tidemark-agent on that node",
            )
            if await self._is_revoked(live.task.node_id):
                failure = _REVOKED
            await self._happen(live, Event.NOBODY_CAME, failure=failure)

    async def _grace_over(self, live: LiveTask) -> None:
        await self._lost(live, _AWAY)

    async def _lost(self, live: LiveTask, failure: Failure) -> None:
        """A task's agent no longer works on it: what it committed counts, the rest failed."""
        snapshot = await self._committed(live.task)
        if snapshot is not None:
            event = Event.DONE if snapshot.phase is Phase.COMPLETED else Event.DONE_PARTLY
            await self._happen(live, event, snapshot=snapshot, result=snapshot.statistics)
        elif live.state is State.STOPPING:
            await self._happen(live, Event.STOPPED, failure=_CANCELED)
        else:
            await self._happen(live, Event.WENT_WRONG, failure=failure)

    async def _committed(self, task: Task) -> Snapshot | None:
        """The settled snapshot that a task made."""
        if not isinstance(task.order, BackupOrder):
            return None
        return await self._catalog.ledger.snapshot_of_task(task.task_id)

    # ---- verifications, which run here ----------------------------------------------------------

    async def _begin_work(self, live: LiveTask) -> None:
        if live.state is State.STOPPING:  # it was canceled while its beginning was being kept
            await self._happen(live, Event.STOPPED, failure=_CANCELED)
            return
        live.worker = self._start(self._work(live), f"verify {live.task.task_id}")
        if live.worker is not None:
            live.worker.add_done_callback(partial(self._never_began, live))

    def _never_began(self, live: LiveTask, worker: asyncio.Task[None]) -> None:
        """A worker that is canceled before its first step tells nobody; others end by a step."""
        if worker.cancelled() and live.state is State.STOPPING and not self._ending:
            stopped = self._happen(live, Event.STOPPED, failure=_CANCELED)
            self._start(stopped, f"stopped {live.task.task_id}")

    async def _work(self, live: LiveTask) -> None:
        order = live.task.order
        assert isinstance(order, VerifyOrder)
        assert self._verify is not None

        def tell(progress: Progress) -> None:
            live.task = replace(live.task, progress=progress)
            self._jobs[live.task.job_id].notify()

        try:
            # Not around what follows: the next verification would be charged to this one, too.
            with charged(live.tally):
                result = await self._verify(order, tell)
        except TidemarkError as error:
            failure = Failure.of(error)
            await self._happen(live, Event.WENT_WRONG, failure=failure)
        except asyncio.CancelledError:
            if live.state is not State.STOPPING:
                raise
            await self._happen(live, Event.STOPPED, failure=_CANCELED)
        except Exception as error:
            log.exception("verification failed unexpectedly", job_id=live.task.job_id)
            failure = Failure(
                f"verification failed unexpectedly: {error!r}", hint="see the coordinator's log"
            )
            await self._happen(live, Event.WENT_WRONG, failure=failure)
        else:
            failure_or_none = _unsound(result)
            event = Event.DONE if failure_or_none is None else Event.WENT_WRONG
            await self._happen(live, event, result=result, failure=failure_or_none)

    # ---- logs -----------------------------------------------------------------------------------

    async def _log(self, live: LiveTask, level: str, message: str) -> None:
        job = self._jobs.get(live.task.job_id)
        if job is None:
            return
        job.lines.append(LogLine(self._clock(), level, message))
        if len(job.lines) >= _LOG_BUFFER_LINES:
            with suppress(CatalogError):  # kept for the next time
                await self._flush_log(job)

    async def _flush_log(self, live: LiveJob) -> None:
        lines, live.lines = live.lines, []
        if lines:
            try:
                await self._catalog.jobs.append_log(live.job.job_id, lines)
            except CatalogError:
                live.lines[:0] = lines
                raise


_SEE_AGENT: Final = "see the agent's own log, then start it again"
_RESTARTED: Final = Failure("its agent was restarted while this ran", hint=_SEE_AGENT)
_AWAY: Final = Failure(
    "the connection to the agent was lost and it did not come back", hint=_SEE_AGENT
)
_REVOKED: Final = Failure(
    "the node was revoked",
    hint="join it anew with a token, or restore its snapshots on another node",
)
_MOVED: Final = Failure("the volume was moved meanwhile", hint="back it up again, where it is now")
_CANCELED: Final = Failure("canceled on request", exit_code=130)


def _unsound(result: VerifyResult) -> Failure | None:
    """What a verification found wrong, and what it could not look at."""
    found = list(result.unproven)
    if result.damaged_total:
        damaged = f"{result.damaged_total} pack(s) are damaged"
        found.insert(0, Failure(damaged, hint="see the list of damaged packs"))
    if not found:
        return None
    return replace(found[0], message="; ".join(each.message for each in found))


def _has_errors(result: Result | None) -> bool:
    return getattr(result, "errors_total", 0) > 0
