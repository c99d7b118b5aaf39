"""Rows to nouns and back. Pure."""

from typing import Any, Final

import msgspec
from sqlalchemy import Row

from coordinator.holding import Holding
from coordinator.limits import Limit, Rule, Scope
from coordinator.model import (
    BackupOrder,
    BackupStatistics,
    Failure,
    Job,
    JobId,
    JobKind,
    Node,
    Order,
    Origin,
    Pack,
    PackOrigin,
    PackState,
    Phase,
    RestoreOrder,
    RestoreResult,
    Result,
    Session,
    SessionState,
    Snapshot,
    SnapshotHex,
    Task,
    TaskId,
    Tracking,
    VerifyOrder,
    VerifyResult,
    Volume,
    VolumeReport,
    Workload,
)
from repository.ids import NodeId, PackNonce, RepositoryId, SessionId, VolumeId

encode: Final = msgspec.msgpack.encode

# What the large column of a task holds is told by the kind beside it.
_ORDERS: Final[dict[JobKind, Any]] = {
    JobKind.BACKUP: msgspec.msgpack.Decoder(BackupOrder),
    JobKind.RESTORE: msgspec.msgpack.Decoder(RestoreOrder),
    JobKind.VERIFY: msgspec.msgpack.Decoder(VerifyOrder),
}
_RESULTS: Final[dict[JobKind, Any]] = {
    JobKind.BACKUP: msgspec.msgpack.Decoder(BackupStatistics),
    JobKind.RESTORE: msgspec.msgpack.Decoder(RestoreResult),
    JobKind.VERIFY: msgspec.msgpack.Decoder(VerifyResult),
}
_failures: Final = msgspec.msgpack.Decoder(Failure)
_statistics: Final = msgspec.msgpack.Decoder(BackupStatistics)
_workload: Final = msgspec.msgpack.Decoder(Workload)
_rules: Final = msgspec.msgpack.Decoder(tuple[Rule, ...])
_subjects: Final = msgspec.msgpack.Decoder(tuple[str, ...])


def node(row: Row[Any]) -> Node:
    """A node."""
    return Node(
        node_id=NodeId(row.node_id),
        name=row.name,
        enrolled_at=row.enrolled_at,
        certificate_expires_at=row.certificate_expires_at,
        signing_public_key=row.signing_public_key,
        signing_certificate=row.signing_certificate,
        agent_version=row.agent_version,
        last_seen_at=row.last_seen_at,
        revoked=row.revoked,
    )


def volume(row: Row[Any]) -> Volume:
    """A volume."""
    return Volume(
        volume_id=VolumeId(row.volume_id),
        node_id=NodeId(row.node_id),
        name=row.name,
        source=row.source,
        path=row.path,
        verdict=row.verdict,
        reason=row.reason,
        first_seen_at=row.first_seen_at,
        scheduled_at=row.scheduled_at,
        present=row.present,
        workload=_workload.decode(row.workload) if row.workload else Workload(),
        local_id=None if row.local_id is None else VolumeId(row.local_id),
        awaits=row.awaits,
        tracking=Tracking(row.tracked_by, row.tracking_reason),
        repository_id=None if row.repository_id is None else RepositoryId(row.repository_id),
    )


def holding(row: Row[Any]) -> Holding:
    """Who holds a volume; the row says besides whether it has snapshots."""
    return Holding(
        volume_id=VolumeId(row.volume_id),
        node_id=NodeId(row.node_id),
        name=row.name,
        local_id=None if row.local_id is None else VolumeId(row.local_id),
        awaits=row.awaits,
        has_snapshots=row.has_snapshots,
    )


def report_row(report: VolumeReport) -> dict[str, Any]:
    """What an agent tells of a volume that it holds, as a part of its row."""
    return {
        "local_id": report.local_id,
        "awaits": None,
        "name": report.name,
        "source": report.source,
        "path": report.path,
        "verdict": report.verdict,
        "reason": report.reason,
        "present": True,
        "workload": encode(report.workload),
        "tracked_by": report.tracking.source,
        "tracking_reason": report.tracking.reason,
    }


def kind_of(order: Order) -> JobKind:
    """The kind of a task with this order."""
    match order:
        case BackupOrder():
            return JobKind.BACKUP
        case RestoreOrder():
            return JobKind.RESTORE
        case VerifyOrder():
            return JobKind.VERIFY


def task_row(task: Task, position: int) -> dict[str, Any]:
    """A task as a row."""
    order = task.order
    return {
        "task_id": task.task_id,
        "job_id": task.job_id,
        "position": position,
        "kind": kind_of(order),
        "volume_id": order.volume_id if isinstance(order, BackupOrder) else None,
        "node_id": task.node_id,
        "order": encode(order),
        **task_state(task),
    }


def task_state(task: Task) -> dict[str, Any]:
    """The part of a task's row that changes."""
    return {
        "phase": task.phase,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "failure": None if task.failure is None else encode(task.failure),
        "snapshot_id": task.snapshot_id,
        "result": None if task.result is None else encode(task.result),
    }


def task(row: Row[Any]) -> Task:
    """A task; progress is never kept."""
    kind = JobKind(row.kind)
    order: Order = _ORDERS[kind].decode(row.order)
    result: Result | None = None if row.result is None else _RESULTS[kind].decode(row.result)
    return Task(
        task_id=TaskId(row.task_id),
        job_id=JobId(row.job_id),
        order=order,
        node_id=None if row.node_id is None else NodeId(row.node_id),
        phase=Phase(row.phase),
        started_at=row.started_at,
        finished_at=row.finished_at,
        failure=None if row.failure is None else _failures.decode(row.failure),
        snapshot_id=None if row.snapshot_id is None else SnapshotHex(row.snapshot_id),
        result=result,
    )


def job_row(job: Job) -> dict[str, Any]:
    """A job as a row, but for its number."""
    return {
        "job_id": job.job_id,
        "kind": job.kind,
        "origin": job.origin,
        "subjects": encode(job.subjects),
        "created_at": job.created_at,
        **job_state(job),
    }


def job_state(job: Job) -> dict[str, Any]:
    """The part of a job's row that changes."""
    return {"phase": job.phase, "started_at": job.started_at, "finished_at": job.finished_at}


def job(row: Row[Any], tasks: tuple[Task, ...]) -> Job:
    """A job."""
    return Job(
        job_id=JobId(row.job_id),
        kind=JobKind(row.kind),
        origin=Origin(row.origin),
        created_at=row.created_at,
        subjects=_subjects.decode(row.subjects),
        tasks=tasks,
        phase=Phase(row.phase),
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def session(row: Row[Any]) -> Session:
    """A session."""
    return Session(
        session_id=SessionId(row.session_id),
        task_id=TaskId(row.task_id),
        volume_id=VolumeId(row.volume_id),
        node_id=NodeId(row.node_id),
        repository_id=RepositoryId(row.repository_id),
        fencing_token=row.fencing_token,
        sealed_data_key=row.sealed_data_key,
        opened_at=row.opened_at,
        state=SessionState(row.state),
        proven=row.proven,
    )


def pack(row: Row[Any], origins: tuple[PackOrigin, ...]) -> Pack:
    """A pack."""
    return Pack(
        name=row.name,
        kind=row.kind,
        size_bytes=row.size_bytes,
        blake3=row.blake3,
        session_id=SessionId(row.session_id),
        node_id=NodeId(row.node_id),
        volume_id=VolumeId(row.volume_id),
        repository_id=RepositoryId(row.repository_id),
        stored_at=row.stored_at,
        frame_table=row.frame_table,
        origins=origins,
        state=PackState(row.state),
        locked_until=row.locked_until,
    )


def origin_row(origin: PackOrigin, pack_name: str) -> dict[str, Any]:
    """An origin as a row."""
    return {
        "pack_nonce": origin.pack_nonce,
        "pack": pack_name,
        "session_id": origin.session_id,
        "node_id": origin.node_id,
        "volume_id": origin.volume_id,
        "sealed_data_key": origin.sealed_data_key,
    }


def origin(row: Row[Any]) -> PackOrigin:
    """An origin."""
    return PackOrigin(
        pack_nonce=PackNonce(row.pack_nonce),
        session_id=SessionId(row.session_id),
        node_id=NodeId(row.node_id),
        volume_id=VolumeId(row.volume_id),
        sealed_data_key=row.sealed_data_key,
    )


# The states of a snapshot's row.
COMMITTING: Final = "COMMITTING"
COMPLETED: Final = "COMPLETED"


def snapshot(row: Row[Any]) -> Snapshot:
    """A snapshot."""
    return Snapshot(
        snapshot_id=SnapshotHex(row.snapshot_id),
        session_id=SessionId(row.session_id),
        volume_id=VolumeId(row.volume_id),
        node_id=NodeId(row.node_id),
        repository_id=RepositoryId(row.repository_id),
        volume=row.volume,
        node=row.node,
        sequence=row.sequence,
        committed_at=row.committed_at,
        phase=Phase(row.phase),
        settled=row.state == COMPLETED,
        signed_root=row.signed_root,
        root_object=row.root_object,
        statistics=_statistics.decode(row.statistics),
        total_files=row.total_files,
        total_bytes=row.total_bytes,
        started_at=row.started_at,
        last_proof_at=row.last_proof_at,
        locked_until=row.locked_until,
    )


def limit(row: Row[Any]) -> Limit:
    """The limits of a scope."""
    return Limit(Scope(row.scope), row.subject, _rules.decode(row.rules))
