"""Jobs, tasks and logs in SQL."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Select, delete, func, insert, select, update
from sqlalchemy.engine import Connection
from typing_extensions import override

from coordinator.catalog import coding
from coordinator.catalog.connections import Connections, reading, writing
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
    @writing
    def add_job(self, connection: Connection, job: Job) -> None:
        number = select(func.coalesce(func.max(jobs.c.number), 0) + 1).scalar_subquery()
        connection.execute(insert(jobs).values(**coding.job_row(job), number=number))
        rows = [coding.task_row(task, index) for index, task in enumerate(job.tasks)]
        connection.execute(insert(tasks), rows)

    @override
    @writing
    def save_job(self, connection: Connection, job: Job, changed: Sequence[Task]) -> None:
        connection.execute(
            update(jobs).where(jobs.c.job_id == job.job_id).values(**coding.job_state(job))
        )
        for task in changed:
            connection.execute(
                update(tasks)
                .where(tasks.c.task_id == task.task_id)
                .values(**coding.task_state(task))
            )

    @override
    @reading
    def job(self, connection: Connection, job_id: JobId) -> Job | None:
        found = _jobs(connection, select(jobs).where(jobs.c.job_id == job_id))
        return found[0] if found else None

    @override
    @reading
    def jobs(self, connection: Connection, *, kind: JobKind | None, limit: int) -> list[Job]:
        query = select(jobs).order_by(jobs.c.number.desc()).limit(limit)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        return _jobs(connection, query)

    @override
    @reading
    def unfinished_jobs(self, connection: Connection) -> list[Job]:
        query = select(jobs).where(jobs.c.phase.in_(_UNFINISHED)).order_by(jobs.c.number)
        return _jobs(connection, query)

    @override
    @reading
    def last_backup_tasks(self, connection: Connection) -> dict[VolumeId, Task]:
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
        found = connection.execute(query)
        return {VolumeId(row.volume_id): coding.task(row) for row in found}

    @override
    @reading
    def count_jobs(self, connection: Connection) -> dict[tuple[JobKind, Phase], int]:
        query = select(jobs.c.kind, jobs.c.phase, func.count()).group_by(jobs.c.kind, jobs.c.phase)
        found = connection.execute(query)
        return {(JobKind(kind), Phase(phase)): count for kind, phase, count in found}

    @override
    @writing
    def append_log(self, connection: Connection, job_id: JobId, lines: Sequence[LogLine]) -> None:
        if not lines:
            return
        last = select(func.coalesce(func.max(job_logs.c.line), 0)).where(
            job_logs.c.job_id == job_id
        )
        number = connection.scalar(last) or 0
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
        connection.execute(insert(job_logs), rows)
        connection.execute(
            delete(job_logs)
            .where(job_logs.c.job_id == job_id)
            .where(job_logs.c.line <= number + len(kept) - LOG_LINES_MAX)
        )

    @override
    @reading
    def log(self, connection: Connection, job_id: JobId) -> list[LogLine]:
        query = select(job_logs).where(job_logs.c.job_id == job_id).order_by(job_logs.c.line)
        found = connection.execute(query)
        return [LogLine(row.at, row.level, row.message) for row in found]


def _jobs(connection: Connection, query: Select[Any]) -> list[Job]:
    rows = connection.execute(query).all()
    wanted = [row.job_id for row in rows]
    found = connection.execute(
        select(tasks).where(tasks.c.job_id.in_(wanted)).order_by(tasks.c.job_id, tasks.c.position)
    )
    by_job: defaultdict[str, list[Task]] = defaultdict(list)
    for row in found:
        by_job[row.job_id].append(coding.task(row))
    return [coding.job(row, tuple(by_job[row.job_id])) for row in rows]
