"""Nouns to messages and back. Pure."""

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from coordinator import life
from coordinator.browse import Change, ChangeKind, Listed
from coordinator.catalog.coding import kind_of
from coordinator.errors import TidemarkError
from coordinator.model import (
    NANOSECONDS,
    AuditResult,
    BackupOrder,
    BackupStatistics,
    ChangeDetection,
    Engine,
    Failure,
    Job,
    JobKind,
    LogLine,
    Node,
    PathChange,
    PathError,
    Phase,
    Progress,
    RestoreOrder,
    RestoreResult,
    Snapshot,
    Task,
    Tracking,
    VerifyDepth,
    VerifyResult,
    Volume,
    VolumeReport,
    Workload,
)
from proto.tidemark.v1 import admin_pb2, agent_pb2, common_pb2
from repository.entries import EntryType
from repository.ids import NodeId, VolumeId
from repository.layout import RepositoryConfig
from repository.snapshot import BYTES_MAX
from repository.store.counting import Requests

PHASES: Final = {
    Phase.NEW: common_pb2.PHASE_NEW,
    Phase.IN_PROGRESS: common_pb2.PHASE_IN_PROGRESS,
    Phase.COMPLETED: common_pb2.PHASE_COMPLETED,
    Phase.PARTIALLY_FAILED: common_pb2.PHASE_PARTIALLY_FAILED,
    Phase.FAILED: common_pb2.PHASE_FAILED,
    Phase.CANCELED: common_pb2.PHASE_CANCELED,
}
KINDS: Final = {
    JobKind.BACKUP: admin_pb2.JOB_KIND_BACKUP,
    JobKind.RESTORE: admin_pb2.JOB_KIND_RESTORE,
    JobKind.VERIFY: admin_pb2.JOB_KIND_VERIFY,
}
KINDS_BACK: Final = {message: kind for kind, message in KINDS.items()}
DEPTHS_BACK: Final = {
    admin_pb2.VERIFY_DEPTH_UNSPECIFIED: VerifyDepth.PRESENT,
    admin_pb2.VERIFY_DEPTH_PRESENT: VerifyDepth.PRESENT,
    admin_pb2.VERIFY_DEPTH_DATA: VerifyDepth.DATA,
}
DETECTIONS: Final = {
    ChangeDetection.EVENTS: common_pb2.CHANGE_DETECTION_EVENTS,
    ChangeDetection.SWEEP: common_pb2.CHANGE_DETECTION_SWEEP,
}
_CHANGES: Final = {
    ChangeKind.ADDED: admin_pb2.CHANGE_KIND_ADDED,
    ChangeKind.REMOVED: admin_pb2.CHANGE_KIND_REMOVED,
    ChangeKind.MODIFIED: admin_pb2.CHANGE_KIND_MODIFIED,
}
# Lists of errors carry so many; their total counts all.
ERRORS_MAX: Final = 100
CHANGES_MAX: Final = 1000


def timestamp(nanoseconds: int | None) -> Timestamp | None:
    """A time; nothing for None."""
    if nanoseconds is None:
        return None
    return Timestamp(seconds=nanoseconds // NANOSECONDS, nanos=nanoseconds % NANOSECONDS)


# ---- from agents --------------------------------------------------------------------------------


def volume_report(message: agent_pb2.VolumeReport) -> VolumeReport:
    """A volume as an agent describes it."""
    return VolumeReport(
        local_id=VolumeId(message.local_id),
        name=message.name,
        source=message.source,
        path=message.path,
        verdict=message.verdict,
        reason=message.reason,
        workload=Workload(
            containers=tuple(message.containers),
            project=message.project,
            labels=dict(message.labels),
        ),
        tracking=Tracking(message.tracked_by, message.tracking_reason),
    )


def engine(message: common_pb2.Engine) -> Engine:
    """A container engine as an agent describes it."""
    return Engine(
        name=message.name,
        address=message.address,
        answers=message.answers,
        version=message.version,
        message=message.message,
    )


def progress_back(message: common_pb2.Progress) -> Progress:
    """How far an agent is."""
    return Progress(
        files_done=message.files_done,
        files_total=message.files_total if message.HasField("files_total") else None,
        bytes_done=message.bytes_done,
        bytes_total=message.bytes_total if message.HasField("bytes_total") else None,
        activity=message.activity,
    )


def failure_back(message: common_pb2.ErrorDetail) -> Failure:
    """Why an agent failed."""
    return Failure(message.message, message.hint, message.exit_code or 1)


def statistics_back(message: common_pb2.BackupResult) -> BackupStatistics:
    """What an agent counted."""
    events = message.change_detection == common_pb2.CHANGE_DETECTION_EVENTS
    return BackupStatistics(
        change_detection=ChangeDetection.EVENTS if events else ChangeDetection.SWEEP,
        files_new=message.files_new,
        files_changed=message.files_changed,
        files_removed=message.files_removed,
        files_unmodified=message.files_unmodified,
        total_files_processed=message.total_files_processed,
        total_bytes_processed=message.total_bytes_processed,
        bytes_read=message.bytes_read,
        data_added=message.data_added,
        data_added_packed=message.data_added_packed,
        fuzzy_files=message.fuzzy_files,
        warnings=tuple(map(_path_error_back, message.warnings[:ERRORS_MAX])),
        errors=tuple(map(_path_error_back, message.errors[:ERRORS_MAX])),
        errors_total=max(message.errors_total, len(message.errors)),
        proof=message.proof,
        audit=_audit_back(message.audit) if message.HasField("audit") else None,
        store_requests=_requests_back(message),
    )


def _requests_back(
    message: common_pb2.BackupResult | common_pb2.RestoreResult,
) -> Requests | None:
    if not message.HasField("store_requests"):
        return None
    told = message.store_requests
    return Requests(*(min(getattr(told, field), BYTES_MAX) for field in Requests._fields))


def _audit_back(message: common_pb2.AuditResult) -> AuditResult:
    return AuditResult(
        audited=message.audited,
        reason=message.reason,
        places_told=message.places_told,
        candidates=message.candidates,
        missed=message.missed,
        missed_paths=tuple(message.missed_paths[:ERRORS_MAX]),
    )


def restore_back(message: common_pb2.RestoreResult) -> RestoreResult:
    """What a restoring agent counted."""
    return RestoreResult(
        files_restored=message.files_restored,
        bytes_restored=message.bytes_restored,
        bytes_written=message.bytes_written,
        bytes_fetched=message.bytes_fetched,
        warnings=tuple(map(_path_error_back, message.warnings[:ERRORS_MAX])),
        errors=tuple(map(_path_error_back, message.errors[:ERRORS_MAX])),
        errors_total=max(message.errors_total, len(message.errors)),
        duration_seconds=message.duration_seconds,
        files_unchanged=message.files_unchanged,
        files_removed=message.files_removed,
        dry_run=message.dry_run,
        changes=tuple(PathChange(each.path, each.change) for each in message.changes[:CHANGES_MAX]),
        changes_total=max(message.changes_total, len(message.changes)),
        store_requests=_requests_back(message),
    )


def _path_error_back(message: common_pb2.PathError) -> PathError:
    return PathError(message.path, message.message, message.hint)


# ---- to agents ----------------------------------------------------------------------------------


def run_task(task: Task, config: RepositoryConfig) -> agent_pb2.ConnectResponse:
    """The message that hands a task to an agent; the config is that of its repository."""
    order = task.order
    if isinstance(order, BackupOrder):
        backup = agent_pb2.RunBackup(
            task_id=task.task_id,
            job_id=task.job_id,
            volume_id=order.volume_id,
            recovery_public_key=config.recovery_public,
            repository_id=config.repository,
            local_id=order.local_id or b"",
            audit=order.audit,
        )
        return agent_pb2.ConnectResponse(run_backup=backup)
    assert isinstance(order, RestoreOrder)
    restore = agent_pb2.RunRestore(
        task_id=task.task_id,
        job_id=task.job_id,
        snapshot_id=order.snapshot_id,
        target=order.target,
        paths=order.paths,
        in_place=order.in_place,
        overwrite=order.overwrite,
        delete_extra=order.delete_extra,
        dry_run=order.dry_run,
        local_id=order.local_id or b"",
    )
    return agent_pb2.ConnectResponse(run_restore=restore)


# ---- to people ----------------------------------------------------------------------------------


class Names:
    """Names of nodes and volumes, which jobs and snapshots know by id."""

    def __init__(self, nodes: list[Node], volumes: list[Volume]) -> None:
        self._nodes = {node.node_id: node.name for node in nodes}
        self._volumes = {volume.volume_id: volume.name for volume in volumes}

    def node(self, node_id: NodeId | None) -> str:
        """A node's name."""
        return "" if node_id is None else self._nodes.get(node_id, node_id.hex())

    def volume(self, volume_id: VolumeId) -> str:
        """A volume's name."""
        return self._volumes.get(volume_id, volume_id.hex())


def progress(value: Progress) -> common_pb2.Progress:
    """How far something is."""
    return common_pb2.Progress(
        files_done=value.files_done,
        files_total=value.files_total,
        bytes_done=value.bytes_done,
        bytes_total=value.bytes_total,
        activity=value.activity,
    )


def job(value: Job, names: Names) -> admin_pb2.Job:
    """A job."""
    failure = life.job_failure(value.phase, value.tasks)
    message = admin_pb2.Job(
        job_id=value.job_id,
        kind=KINDS[value.kind],
        phase=PHASES[value.phase],
        created_at=timestamp(value.created_at),
        started_at=timestamp(value.started_at),
        finished_at=timestamp(value.finished_at),
        progress=progress(_sum(value.tasks)),
        subjects=value.subjects,
        message="" if failure is None else failure.message,
        hint="" if failure is None else failure.hint,
        exit_code=life.exit_code(value.phase, value.tasks) if value.phase.ended else 0,
        origin=value.origin,
        store_requests=_requests(_sum_of_requests(value.tasks)),
    )
    for task in value.tasks:
        match kind_of(task.order):
            case JobKind.BACKUP:
                message.snapshots.append(_backup_of_task(value, task, names))
            case JobKind.RESTORE if isinstance(task.result, RestoreResult) or task.phase.ended:
                message.restore.CopyFrom(_restore(value, task))
            case JobKind.VERIFY if isinstance(task.result, VerifyResult) or task.phase.ended:
                message.verify.CopyFrom(_verify(task))
            case _:
                pass
    return message


def _sum(tasks: tuple[Task, ...]) -> Progress:
    """One progress of many tasks; a total is known only if all of them know theirs."""
    parts = [task.progress for task in tasks]
    files = [part.files_total for part in parts]
    sizes = [part.bytes_total for part in parts]
    active = [part.activity for part in parts if part.activity]
    return Progress(
        files_done=sum(part.files_done for part in parts),
        files_total=None if None in files else sum(each or 0 for each in files),
        bytes_done=min(BYTES_MAX, sum(part.bytes_done for part in parts)),
        bytes_total=None if None in sizes else min(BYTES_MAX, sum(each or 0 for each in sizes)),
        activity=active[-1] if active else "",
    )


def _sum_of_requests(tasks: tuple[Task, ...]) -> Requests | None:
    """What all of them asked of the store; None while it is known of none."""
    results = [task.result for task in tasks if task.result is not None and task.phase.ended]
    counted = [each.store_requests for each in results if each.store_requests is not None]
    return reduce(Requests.plus, counted) if counted else None


def _requests(value: Requests | None) -> common_pb2.StoreRequests | None:
    if value is None:
        return None
    counts = {field: min(BYTES_MAX, count) for field, count in value._asdict().items()}
    return common_pb2.StoreRequests(**counts)


def _backup_of_task(owner: Job, task: Task, names: Names) -> common_pb2.BackupResult:
    order = task.order
    assert isinstance(order, BackupOrder)
    statistics = task.result if isinstance(task.result, BackupStatistics) else BackupStatistics()
    message = backup_result(statistics)
    if task.snapshot_id is not None:
        message.snapshot_id = task.snapshot_id
    message.volume = names.volume(order.volume_id)
    message.volume_id = order.volume_id.hex()
    message.node = names.node(task.node_id)
    message.phase = PHASES[task.phase]
    if task.failure is not None and task.phase is not Phase.CANCELED:
        # A failed backup says why where scripts look for what went wrong.
        reason = common_pb2.PathError(message=task.failure.message, hint=task.failure.hint)
        message.errors.insert(0, reason)
        del message.errors[ERRORS_MAX:]
        message.errors_total += 1
    begun = owner.started_at if task.started_at is None else task.started_at
    _set_times(message, begun, task.finished_at)
    return message


def _set_times(message: common_pb2.BackupResult, begun: int | None, ended: int | None) -> None:
    if (at := timestamp(begun)) is not None:
        message.started_at.CopyFrom(at)
    if (at := timestamp(ended)) is not None:
        message.finished_at.CopyFrom(at)
    if begun is not None and ended is not None:
        message.duration_seconds = max(0, ended - begun) / NANOSECONDS


def backup_result(statistics: BackupStatistics) -> common_pb2.BackupResult:
    """What an agent counted, without whose it is and how it ended."""
    return common_pb2.BackupResult(
        change_detection=DETECTIONS[statistics.change_detection],
        files_new=statistics.files_new,
        files_changed=statistics.files_changed,
        files_removed=statistics.files_removed,
        files_unmodified=statistics.files_unmodified,
        total_files_processed=statistics.total_files_processed,
        total_bytes_processed=statistics.total_bytes_processed,
        bytes_read=statistics.bytes_read,
        data_added=statistics.data_added,
        data_added_packed=statistics.data_added_packed,
        fuzzy_files=statistics.fuzzy_files,
        warnings=map(_path_error, statistics.warnings),
        errors=map(_path_error, statistics.errors),
        errors_total=statistics.errors_total,
        proof=statistics.proof,
        audit=None if statistics.audit is None else _audit(statistics.audit),
        store_requests=_requests(statistics.store_requests),
    )


def _audit(value: AuditResult) -> common_pb2.AuditResult:
    return common_pb2.AuditResult(
        audited=value.audited,
        reason=value.reason,
        places_told=value.places_told,
        candidates=value.candidates,
        missed=value.missed,
        missed_paths=value.missed_paths,
    )


def _path_error(value: PathError) -> common_pb2.PathError:
    return common_pb2.PathError(path=value.path, message=value.message, hint=value.hint)


def _restore(owner: Job, task: Task) -> common_pb2.RestoreResult:
    result = task.result if isinstance(task.result, RestoreResult) else RestoreResult()
    errors = list(map(_path_error, result.errors))
    total = result.errors_total
    if task.failure is not None and not errors and task.phase is Phase.FAILED:
        errors = [common_pb2.PathError(message=task.failure.message, hint=task.failure.hint)]
        total += 1
    begun, ended = owner.started_at, task.finished_at
    seconds = result.duration_seconds
    if begun is not None and ended is not None:
        seconds = (ended - begun) / NANOSECONDS
    return common_pb2.RestoreResult(
        files_restored=result.files_restored,
        bytes_restored=result.bytes_restored,
        bytes_written=result.bytes_written,
        bytes_fetched=result.bytes_fetched,
        warnings=map(_path_error, result.warnings),
        errors=errors,
        errors_total=total,
        duration_seconds=seconds,
        files_unchanged=result.files_unchanged,
        files_removed=result.files_removed,
        dry_run=result.dry_run,
        changes=[
            common_pb2.PathChange(path=each.path, change=each.change) for each in result.changes
        ],
        changes_total=result.changes_total,
        store_requests=_requests(result.store_requests),
    )


def _verify(task: Task) -> common_pb2.VerifyResult:
    result = task.result if isinstance(task.result, VerifyResult) else VerifyResult()
    return common_pb2.VerifyResult(
        snapshots_checked=result.snapshots_checked,
        packs_checked=result.packs_checked,
        chunks_checked=result.chunks_checked,
        bytes_read=result.bytes_read,
        damaged=[
            common_pb2.DamagedPack(pack=each.pack, snapshots=each.snapshots, paths=each.paths)
            for each in result.damaged
        ],
        damaged_total=result.damaged_total,
        store_requests=_requests(result.store_requests),
    )


def node(
    value: Node,
    *,
    connected: bool,
    volumes: int,
    engines: Iterable[Engine] = (),
    protocol_version: int = 0,
    refusal: TidemarkError | None = None,
) -> admin_pb2.Node:
    """A node."""
    refused = None if value.revoked or connected else refusal
    state = "disconnected" if refused is None else "incompatible"
    if value.revoked or connected:
        state = "revoked" if value.revoked else "connected"
    return admin_pb2.Node(
        node_id=value.node_id.hex(),
        name=value.name,
        state=state,
        agent_version=value.agent_version,
        enrolled_at=timestamp(value.enrolled_at),
        last_seen_at=timestamp(value.last_seen_at),
        certificate_expires_at=timestamp(value.certificate_expires_at),
        volumes=volumes,
        engines=[
            common_pb2.Engine(
                name=each.name,
                address=each.address,
                answers=each.answers,
                version=each.version,
                message=each.message,
            )
            for each in engines
        ],
        protocol_version=protocol_version,
        message="" if refused is None else refused.message,
        hint="" if refused is None else refused.hint,
    )


def snapshot(value: Snapshot, repository: str) -> admin_pb2.Snapshot:
    """A snapshot, and the name of the repository that it lies in."""
    return admin_pb2.Snapshot(
        snapshot_id=value.snapshot_id,
        volume=value.volume,
        volume_id=value.volume_id.hex(),
        node=value.node,
        sequence=value.sequence,
        committed_at=timestamp(value.committed_at),
        phase=PHASES[value.phase],
        change_detection=DETECTIONS[value.statistics.change_detection],
        total_files=value.total_files,
        total_bytes=value.total_bytes,
        data_added_packed=value.statistics.data_added_packed,
        errors_total=value.statistics.errors_total,
        last_proof_at=timestamp(value.last_proof_at),
        locked_until=timestamp(value.locked_until),
        repository=repository,
    )


def result_of(value: Snapshot) -> common_pb2.BackupResult:
    """What the backup that made a snapshot reported, without requests: its job knows them all."""
    message = backup_result(replace(value.statistics, store_requests=None))
    message.snapshot_id = value.snapshot_id
    message.volume = value.volume
    message.volume_id = value.volume_id.hex()
    message.node = value.node
    message.phase = PHASES[value.phase]
    _set_times(message, value.started_at, value.committed_at)
    return message


def entry(listed: Listed) -> admin_pb2.Entry:
    """One entry of a manifest."""
    value = listed.entry
    return admin_pb2.Entry(
        path=listed.path,
        type=value.type.name.lower(),
        mode=value.mode,
        uid=value.uid,
        gid=value.gid,
        size=value.size if value.type is EntryType.FILE else 0,
        modified_at=timestamp(value.mtime_ns),
        target=value.target,
    )


def change(value: Change) -> admin_pb2.Change:
    """A path that differs."""
    return admin_pb2.Change(path=value.path, change=_CHANGES[value.kind])


def log_line(value: LogLine) -> admin_pb2.JobLogLine:
    """A line of a job's log."""
    return admin_pb2.JobLogLine(at=timestamp(value.at), level=value.level, message=value.message)
