"""Jobs, tasks and logs in SQL."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Select, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from coordinator.catalog import coding
from coordinator.catalog.connections import Connections, unbroken
from coordinator.catalog.interface import Jobs
from coordinator.catalog.tables import job_logs, jobs, tasks
from coordinator.model import Job, JobId, JobKind, LogLine, Phase, Task
from repository.ids import VolumeId

# Enough to see how a job went wrong; a job that complains of each of a million files needs a cap.
LOG_LINES_MAX: Final = 1000

_UNFINISHED: Final = (Phase.NEW, Phase.IN_PROGRESS)


class SqlJobs(Jobs):
    """Jobs on SQLite."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections

    @override
    @unbroken
    async def add_job(self, job: Job) -> None:
        number = select(func.coalesce(func.max(jobs.c.number), 0) + 1).scalar_subquery()
        async with self.connections.write() as connection:
            await connection.execute(insert(jobs).values(**coding.job_row(job), number=number))
            rows = [coding.task_row(task, index) for index, task in enumerate(job.tasks)]
            await connection.execute(insert(tasks), rows)

    @override
    @unbroken
    async def save_job(self, job: Job, changed: Sequence[Task]) -> None:
        async with self.connections.write() as connection:
            await connection.execute(
                update(jobs).where(jobs.c.job_id == job.job_id).values(**coding.job_state(job))
            )
            for task in changed:
                await connection.execute(
                    update(tasks)
                    .where(tasks.c.task_id == task.task_id)
                    .values(**coding.task_state(task))
                )

    @override
    @unbroken
    async def job(self, job_id: JobId) -> Job | None:
        async with self.connections.read() as connection:
            found = await _jobs(connection, select(jobs).where(jobs.c.job_id == job_id))
        return found[0] if found else None

    @override
    @unbroken
    async def jobs(self, *, kind: JobKind | None, limit: int) -> list[Job]:
        query = select(jobs).order_by(jobs.c.number.desc()).limit(limit)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        async with self.connections.read() as connection:
            return await _jobs(connection, query)

    @override
    @unbroken
    async def unfinished_jobs(self) -> list[Job]:
        query = select(jobs).where(jobs.c.phase.in_(_UNFINISHED)).order_by(jobs.c.number)
        async with self.connections.read() as connection:
            return await _jobs(connection, query)

    @override
    @unbroken
    async def last_backup_tasks(self) -> dict[VolumeId, Task]:
        latest = (
            select(tasks.c.volume_id, func.max(jobs.c.number).label("number"))
            .join(jobs, jobs.c.job_id == tasks.c.job_id)
            .where(tasks.c.volume_id.is_not(None))
            .where(tasks.c.phase.not_in(_UNFINISHED))
            .group_by(tasks.c.volume_id)
            .subquery()
        )
        query = (
            select(tasks)
            .join(jobs, jobs.c.job_id == tasks.c.job_id)
            .join(
                latest,
                (latest.c.number == jobs.c.number) & (latest.c.volume_id == tasks.c.volume_id),
            )
        )
        async with self.connections.read() as connection:
            found = await connection.execute(query)
            return {VolumeId(row.volume_id): coding.task(row) for row in found}

    @override
    @unbroken
    async def count_jobs(self) -> dict[tuple[JobKind, Phase], int]:
        query = select(jobs.c.kind, jobs.c.phase, func.count()).group_by(jobs.c.kind, jobs.c.phase)
        async with self.connections.read() as connection:
            found = await connection.execute(query)
            return {(JobKind(kind), Phase(phase)): count for kind, phase, count in found}

    @override
    @unbroken
    async def append_log(self, job_id: JobId, lines: Sequence[LogLine]) -> None:
        if not lines:
            return
        last = select(func.coalesce(func.max(job_logs.c.line), 0)).where(
            job_logs.c.job_id == job_id
        )
        async with self.connections.write() as connection:
            number = await connection.scalar(last) or 0
            kept = lines[-LOG_LINES_MAX:]
            rows = [
                {
                    "job_id": job_id,
                    "line": number + index,
                    "at": line.at,
                    "level": line.level,
                    "message": line.message,
                }
                for index, line in enumerate(kept, start=1)
            ]
            await connection.execute(insert(job_logs), rows)
            await connection.execute(
                delete(job_logs)
                .where(job_logs.c.job_id == job_id)
                .where(job_logs.c.line <= number + len(kept) - LOG_LINES_MAX)
            )

    @override
    @unbroken
    async def log(self, job_id: JobId) -> list[LogLine]:
        query = select(job_logs).where(job_logs.c.job_id == job_id).order_by(job_logs.c.line)
        async with self.connections.read() as connection:
            found = await connection.execute(query)
            return [LogLine(row.at, row.level, row.message) for row in found]


async def _jobs(connection: AsyncConnection, query: Select[Any]) -> list[Job]:
    rows = (await connection.execute(query)).all()
    wanted = [row.job_id for row in rows]
    found = await connection.execute(
        select(tasks).where(tasks.c.job_id.in_(wanted)).order_by(tasks.c.job_id, tasks.c.position)
    )
    by_job: defaultdict[str, list[Task]] = defaultdict(list)
    for row in found:
        by_job[row.job_id].append(coding.task(row))
    return [coding.job(row, tuple(by_job[row.job_id])) for row in rows]
