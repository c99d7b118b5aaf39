"""The coordinator's nouns. Pure: values only, no clock, no I/O.

Times are nanoseconds since 1970 UTC on the coordinator's clock; an agent's clock is never used
for anything but a label. Identities of jobs, tasks and snapshots are lower-case hex as people see
them; those of nodes, volumes and sessions are the 16 raw bytes that the format holds.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, NewType, Self

from coordinator.errors import TidemarkError
from repository.ids import NodeId, PackNonce, RepositoryId, SessionId, VolumeId
from repository.store.counting import Requests

JobId = NewType("JobId", str)
TaskId = NewType("TaskId", str)
SnapshotHex = NewType("SnapshotHex", str)

NANOSECONDS = 1_000_000_000


class Phase(StrEnum):
    """How far a job, a task or a snapshot is, in Velero's words."""

    NEW = "New"
    IN_PROGRESS = "InProgress"
    COMPLETED = "Completed"
    PARTIALLY_FAILED = "PartiallyFailed"
    FAILED = "Failed"
    CANCELED = "Canceled"

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self not in {Phase.NEW, Phase.IN_PROGRESS}


class JobKind(StrEnum):
    """What a job does."""

    BACKUP = "backup"
    RESTORE = "restore"
    VERIFY = "verify"


class Origin(StrEnum):
    """Who asked for a job."""

    MANUAL = "manual"
    SCHEDULE = "schedule"


class ChangeDetection(StrEnum):
    """How a backup learned what had changed."""

    EVENTS = "events"
    SWEEP = "sweep"


class VerifyDepth(StrEnum):
    """How much a verification reads."""

    PRESENT = "present"
    DATA = "data"


class PackState(StrEnum):
    """The life of a pack; only LIVE exists before there is collection."""

    LIVE = "LIVE"


class SessionState(StrEnum):
    """A session writes while it is open. Committed and fenced are for ever."""

    OPEN = "open"
    COMMITTED = "committed"
    FENCED = "fenced"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something failed, and what comes next."""

    message: str
    hint: str = ""
    exit_code: int = 1

    @classmethod
    def of(cls, error: TidemarkError) -> Self:
        """What an error says."""
        return cls(error.message, error.hint, error.exit_code)


@dataclass(frozen=True, slots=True)
class PathError:
    """One thing that could not be read, written or proven; its path is relative."""

    path: bytes
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task or job has come. A total is None while unknown."""

    files_done: int = 0
    files_total: int | None = None
    bytes_done: int = 0
    bytes_total: int | None = None
    activity: str = ""


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What a sweep beside the events says of them, as the volume's agent counted."""

    audited: bool
    # Why it says nothing; empty where it was audited.
    reason: str = ""
    places_told: int = 0
    candidates: int = 0
    missed: int = 0
    # At most 100; missed counts all.
    missed_paths: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class BackupStatistics:
    """What a backup of one volume did, as its agent counted."""

    change_detection: ChangeDetection = ChangeDetection.SWEEP
    files_new: int = 0
    files_changed: int = 0
    files_removed: int = 0
    files_unmodified: int = 0
    total_files_processed: int = 0
    total_bytes_processed: int = 0
    bytes_read: int = 0
    data_added: int = 0
    data_added_packed: int = 0
    fuzzy_files: int = 0
    # At most 100 each; errors_total counts all.
    warnings: tuple[PathError, ...] = ()
    errors: tuple[PathError, ...] = ()
    errors_total: int = 0
    # What told of the changes, in words for a person.
    proof: str = ""
    audit: AuditResult | None = None
    # What the store was asked for it; None where that is not known. An agent tells its own part,
    # and what was asked here is added when the task ends.
    store_requests: Requests | None = None


@dataclass(frozen=True, slots=True)
class PathChange:
    """What becomes of one path of a restore's target: added, modified or removed."""

    path: bytes
    change: str


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore did, or would do, as its agent counted."""

    files_restored: int = 0
    bytes_restored: int = 0
    bytes_written: int = 0
    bytes_fetched: int = 0
    warnings: tuple[PathError, ...] = ()
    errors: tuple[PathError, ...] = ()
    errors_total: int = 0
    duration_seconds: float = 0.0
    files_unchanged: int = 0
    files_removed: int = 0
    dry_run: bool = False
    # At most 1,000; changes_total counts all.
    changes: tuple[PathChange, ...] = ()
    changes_total: int = 0
    store_requests: Requests | None = None


@dataclass(frozen=True, slots=True)
class DamagedPack:
    """A pack that is not what was stored, and who needs it."""

    pack: str
    snapshots: tuple[SnapshotHex, ...]
    paths: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What a verification looked at and found."""

    snapshots_checked: int = 0
    packs_checked: int = 0
    chunks_checked: int = 0
    bytes_read: int = 0
    # At most 100; damaged_total counts all.
    damaged: tuple[DamagedPack, ...] = ()
    damaged_total: int = 0
    store_requests: Requests | None = None
    # One for each repository of several that was not there, or went away.
    unproven: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that runs containers. It signs what it writes with its own key."""

    node_id: NodeId
    name: str
    enrolled_at: int
    certificate_expires_at: int
    signing_public_key: bytes
    signing_certificate: bytes
    agent_version: str = ""
    last_seen_at: int | None = None
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine that an agent asks for volumes, and whether it answers."""

    name: str
    address: str
    answers: bool
    version: str
    message: str


@dataclass(frozen=True, slots=True)
class Workload:
    """Who uses a volume: containers by name, their compose project; and the volume's labels."""

    containers: tuple[str, ...] = ()
    project: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class Tracking(NamedTuple):
    """What tells an agent of a volume's changes, in its own words."""

    source: str = ""
    """Empty while it has not looked."""
    reason: str = ""
    """Why nothing better does; empty where nothing is better."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory tree or file on a node, and whether it is backed up."""

    volume_id: VolumeId
    node_id: NodeId
    name: str
    source: str
    path: bytes
    verdict: str
    reason: str
    first_seen_at: int
    # When a scheduled backup was last asked for; the schedule counts from there.
    scheduled_at: int | None = None
    # Whether its agent still names it.
    present: bool = True
    workload: Workload = field(default_factory=Workload)
    # What its node calls it, and the name that is waited for after a move: coordinator/holding.py.
    local_id: VolumeId | None = None
    awaits: str | None = None
    tracking: Tracking = field(default_factory=Tracking)
    # Where its snapshots go; None where nobody has said, which means the first repository.
    repository_id: RepositoryId | None = None


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """A volume as its agent describes it, which knows it by a local id."""

    local_id: VolumeId
    name: str
    source: str
    path: bytes
    verdict: str
    reason: str
    workload: Workload = field(default_factory=Workload)
    tracking: Tracking = field(default_factory=Tracking)


@dataclass(frozen=True, slots=True)
class BackupOrder:
    """Back up one volume, which the node knows by its local id."""

    volume_id: VolumeId
    local_id: VolumeId | None = None
    # Whether to sweep beside the events, and say what they missed.
    audit: bool = False
    # Where to; None for the first repository.
    repository_id: RepositoryId | None = None


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """Restore one snapshot to one place on one node."""

    snapshot_id: SnapshotHex
    target: bytes = b""
    paths: tuple[bytes, ...] = ()
    in_place: bool = False
    overwrite: bool = False
    delete_extra: bool = False
    dry_run: bool = False
    # What the node calls the volume; only in place.
    local_id: VolumeId | None = None
    # The volume whose files it changes; None for a restore elsewhere, and for a dry run.
    volume_id: VolumeId | None = None
    # Where the snapshot lies; None in orders from before there could be several.
    repository_id: RepositoryId | None = None


@dataclass(frozen=True, slots=True)
class VerifyOrder:
    """Prove some snapshots."""

    depth: VerifyDepth
    snapshot_ids: tuple[SnapshotHex, ...]


Order = BackupOrder | RestoreOrder | VerifyOrder
Result = BackupStatistics | RestoreResult | VerifyResult


@dataclass(frozen=True, slots=True)
class Task:
    """The part of a job that one worker does: one volume of a backup, or all of a restore."""

    task_id: TaskId
    job_id: JobId
    order: Order
    # The node whose agent does it; None for what the coordinator does itself.
    node_id: NodeId | None
    phase: Phase = Phase.NEW
    started_at: int | None = None
    finished_at: int | None = None
    failure: Failure | None = None
    snapshot_id: SnapshotHex | None = None
    result: Result | None = None
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True, slots=True)
class Job:
    """One run of backup, restore or verify, with its tasks."""

    job_id: JobId
    kind: JobKind
    origin: Origin
    created_at: int
    subjects: tuple[str, ...]
    tasks: tuple[Task, ...]
    phase: Phase = Phase.NEW
    started_at: int | None = None
    finished_at: int | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log."""

    at: int
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class Session:
    """One backup's right to write. The fencing token grows; only the newest of a volume counts."""

    session_id: SessionId
    task_id: TaskId
    volume_id: VolumeId
    node_id: NodeId
    repository_id: RepositoryId
    fencing_token: int
    sealed_data_key: bytes
    opened_at: int
    state: SessionState = SessionState.OPEN
    # Whether custody has opened a pack of it and found the chunks that it claims.
    proven: bool = False


@dataclass(frozen=True, slots=True)
class PackOrigin:
    """Who first wrote the frames of one pack nonce, and the sealed key that opens them."""

    pack_nonce: PackNonce
    session_id: SessionId
    node_id: NodeId
    volume_id: VolumeId
    sealed_data_key: bytes


@dataclass(frozen=True, slots=True)
class Pack:
    """One object of the store, as it was when it was stored."""

    name: str
    kind: str
    size_bytes: int
    blake3: bytes
    session_id: SessionId
    node_id: NodeId
    volume_id: VolumeId
    repository_id: RepositoryId
    stored_at: int
    # As repository/pack.py encodes it: where each frame lies.
    frame_table: bytes
    origins: tuple[PackOrigin, ...]
    state: PackState = PackState.LIVE
    # 0 where nothing keeps it from being deleted.
    locked_until: int = 0


@dataclass(frozen=True, slots=True)
class FrameReference:
    """A frame that a volume's snapshots need, and how many of its plain bytes they use."""

    pack_nonce: PackNonce
    frame: int
    live_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The restore point of one volume at one moment; committed by the coordinator."""

    snapshot_id: SnapshotHex
    session_id: SessionId
    volume_id: VolumeId
    node_id: NodeId
    repository_id: RepositoryId
    volume: str
    node: str
    sequence: int
    committed_at: int
    phase: Phase
    # While False, the row pins its packs and recovery reads the store to settle it.
    settled: bool
    signed_root: bytes
    root_object: bytes
    statistics: BackupStatistics
    total_files: int
    total_bytes: int
    started_at: int
    last_proof_at: int | None = None
    # Until when nobody can delete anything that it needs; None where it was made without a lock.
    locked_until: int | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """Figures of the whole catalog, or of one repository."""

    packs: int
    stored_bytes: int
    snapshots: int
    sessions_open: int
