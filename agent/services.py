"""What a task is given to work with: types only, so that backup and restore know no gRPC.

upload.py fulfils `CoordinatorClient`, download.py `RestoreClient`; daemon.py puts the bundle
together. Nothing here does anything.
"""

import enum
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import msgspec

from agent.beneath import Tree
from agent.clones import Clones
from agent.disk import DiskThrottle
from agent.gate import Gate
from agent.packing import FinishedPack
from agent.state import State
from agent.tracking.tracker import Done, Mode, Since, Taken
from repository.errors import TidemarkError
from repository.frames import Location
from repository.ids import ChunkId
from repository.keys import SigningKey
from repository.snapshot import BYTES_MAX, Detection
from repository.store.counting import Requests, Tally
from repository.store.interface import Checksum


class Phase(enum.IntEnum):
    """How a task ended, in the protocol's numbers."""

    COMPLETED = 3
    PARTIALLY_FAILED = 4
    FAILED = 5
    CANCELED = 6


class Verdict(enum.StrEnum):
    """What becomes of a mount; each has exactly one."""

    PROTECTED = "protected"
    EXCLUDED = "excluded"
    """By a rule, which the reason names."""
    UNSUPPORTED = "unsupported"
    UNPROTECTED = "unprotected"
    """It ought to be backed up, and is not."""


# The source of volumes that were named by hand.
BY_HAND: Final = "path"


class Volume(msgspec.Struct, frozen=True):
    """A directory tree or a file on this node, and whether it is backed up."""

    volume_id: bytes
    """What this node calls it; in a task, the volume's id for ever. They differ after a move."""
    name: str
    path: bytes
    """Empty where there is nothing to read, as for a tmpfs."""
    source: str = BY_HAND
    verdict: Verdict = Verdict.PROTECTED
    reason: str = "named in the agent's own configuration"
    containers: tuple[str, ...] = ()
    """Names of those that mount it."""
    project: str = ""
    """The compose project that it belongs to."""
    labels: tuple[tuple[str, str], ...] = ()
    skip: tuple[bytes, ...] = ()
    """Directories in it that are never read as its data."""
    tracked: Mode | None = None
    """What tells of its changes; None while nobody has looked."""


class Engine(msgspec.Struct, frozen=True):
    """A container engine that the agent asks for volumes, and how it stands with it."""

    name: str
    address: str
    answers: bool = False
    version: str = ""
    message: str = "was not asked yet"
    """Why it does not answer; empty if it does."""


class PathChange(msgspec.Struct, frozen=True):
    """One path, relative to the target, and what becomes of it: added, modified or removed."""

    path: bytes
    change: str


class PathProblem(msgspec.Struct, frozen=True):
    """One path, relative to the volume or target, and what is the matter with it."""

    path: bytes
    message: str
    hint: str = ""


@dataclass(frozen=True)
class BackupTask:
    """One backup of one volume."""

    task_id: str
    job_id: str
    volume: Volume
    repository_id: bytes
    recovery_public_key: bytes
    """What the session's data key is sealed to; 32 bytes."""
    excludes: frozenset[tuple[int, int]] = frozenset()
    """Device and inode of directories that are never read as volume data."""
    local_id: bytes = b""
    """What this node calls the volume; the volume's id if empty."""
    audit: bool = False
    """Whether to sweep beside the events, and say what they missed."""


@dataclass(frozen=True)
class RestoreTask:
    """One restore of one snapshot to one target."""

    task_id: str
    job_id: str
    snapshot_id: str
    target: bytes
    """Absolute, to be opened beneath one of the agent's restore roots."""
    paths: Sequence[bytes] = ()
    """What to restore of the snapshot; nothing named means everything."""
    in_place: bool = False
    """Whether to the place of the volume itself, wherever this agent has that; no target then."""
    overwrite: bool = False
    """Whether to replace what exists in the target; in place always does."""
    delete_extra: bool = False
    """Whether to remove what the snapshot does not have."""
    dry_run: bool = False
    """Whether to write nothing and say what would be done."""
    local_id: bytes = b""
    """What this node calls the volume, in place; the volume's id if empty."""


@dataclass(frozen=True)
class RestorePlaces:
    """Where this agent's restores may write."""

    roots: Sequence[bytes]
    """Directories beneath which a target must lie."""
    volume_path: Callable[[bytes], bytes | None] = lambda _: None
    """The path of a volume by its id, None for what is no volume of this node."""
    closed: frozenset[tuple[int, int]] = frozenset()
    """Device and inode of directories that restores never enter."""


def added_up(*counts: int) -> int:
    """The sum of counts of bytes, or the most that is told of."""
    return min(sum(counts), BYTES_MAX)


@dataclass(frozen=True)
class AuditOutcome:
    """What a sweep beside the events says of them."""

    audited: bool
    reason: str = ""
    """Why it says nothing; empty where it was audited."""
    places: int = 0
    """How many places events had told of."""
    candidates: int = 0
    """How many names the sweep found new, changed or removed."""
    missed: int = 0
    """How many of them events had not told of."""
    missed_paths: Sequence[bytes] = ()
    """The first of them; of what came or went as a whole, the top."""


@dataclass
class BackupStatistics:
    """What a backup did, in the words of the command line; it is filled while the backup runs.

    Times, phase and identities are the coordinator's to say.
    """

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
    detection: Detection = Detection.SWEEP
    proof: str = ""
    """What told of the changes, and why not something better; in words for a person."""
    audit: AuditOutcome | None = None
    """None where there was none, and none was asked for."""
    altered_files: int = 0
    """Whose content is another one though nothing else of them is; they were stored anew."""
    altered_paths: list[bytes] = field(default_factory=list)
    """The first of them."""
    warnings: list[PathProblem] = field(default_factory=list)
    errors: list[PathProblem] = field(default_factory=list)
    errors_total: int = 0
    store_requests: Requests = field(default_factory=Requests)
    """What this agent itself asked of the store."""


@dataclass
class RestoreStatistics:
    """What a restore did; it is filled while the restore runs."""

    dry_run: bool = False
    """Whether all this would be done, and nothing was."""
    files_restored: int = 0
    """Files that are as the snapshot says, whatever that took."""
    bytes_restored: int = 0
    files_unchanged: int = 0
    """Those of them that were so before."""
    files_removed: int = 0
    bytes_written: int = 0
    """Content that was written; what is copied within the target is not counted."""
    bytes_fetched: int = 0
    warnings: list[PathProblem] = field(default_factory=list)
    errors: list[PathProblem] = field(default_factory=list)
    errors_total: int = 0
    changes: list[PathChange] = field(default_factory=list)
    """Of a dry run: the first of what would become different."""
    changes_total: int = 0
    store_requests: Requests = field(default_factory=Requests)
    """What this agent itself asked of the store."""


class SignedUploads(NamedTuple):
    """How packs may be sent to the store itself."""

    endpoint: str
    """What every signed URL begins with."""
    checksum: Checksum
    """What the store compares of a pack."""


@dataclass(frozen=True)
class Session:
    """The right to write one snapshot of one volume."""

    session_id: bytes
    fencing_token: int
    writer_keys: bytes
    """repository.layout.WriterKeys, encoded."""
    head_root: bytes
    """The volume's last committed root object; empty before the first."""
    head_sequence: int
    lease_seconds: int
    signed_uploads: SignedUploads | None = None
    """None where packs go through the coordinator."""
    packs_since_head: Sequence[bytes] = ()
    """Nonces of packs that earlier sessions have stored, whether that was heard of here or not."""


class StoredChunks(NamedTuple):
    """Chunks that are stored, and where they lie."""

    chunks: list[tuple[ChunkId, Location]]
    borrowed: bool
    """Whether another node stored them: then only the volume that held them may name them."""


@dataclass(frozen=True)
class Committed:
    """The coordinator's answer to a commit."""

    snapshot_id: str
    sequence: int
    phase: Phase
    root: bytes
    """The countersigned root object."""


@dataclass(frozen=True)
class BackupOutcome:
    """How a backup ended. Without `committed` there is no snapshot, and `error` says why."""

    statistics: BackupStatistics
    committed: Committed | None = None
    error: TidemarkError | None = None


@dataclass(frozen=True)
class RestoreOutcome:
    """How a restore ended."""

    statistics: RestoreStatistics
    phase: Phase
    error: TidemarkError | None = None


@dataclass(frozen=True)
class Progress:
    """How far a task has come. Totals are None while unknown."""

    activity: str
    files_done: int = 0
    files_total: int | None = None
    bytes_done: int = 0
    bytes_total: int | None = None


class Clock(Protocol):
    """Time, as an argument."""

    def now_ns(self) -> int:
        """Return wall-clock nanoseconds since 1970: a label, never compared."""
        ...

    def monotonic(self) -> float:
        """Return seconds that only ever grow."""
        ...


@dataclass(frozen=True)
class GrantedPack:
    """A pack that the restored volume wrote: its key opens all its frames."""

    pack_nonce: bytes
    name: str
    wrapped_pack_key: bytes
    frame_table: bytes
    """repository.pack.FrameTable, encoded."""


@dataclass(frozen=True)
class GrantedFrame:
    """A single frame of a pack that another volume wrote."""

    pack_nonce: bytes
    frame: int
    name: str
    wrapped_frame_key: bytes
    offset: int
    length: int


@dataclass(frozen=True)
class Grant:
    """What a restore may read, and the keys for it, wrapped by the grant key."""

    root: bytes
    """The countersigned root object."""
    sealed_grant_key: bytes
    """Sealed to the one-time key that the restore asked with."""
    wrapped_reader_keys: bytes
    packs: Sequence[GrantedPack]
    frames: Sequence[GrantedFrame]
    endpoint: str = ""
    """What every signed read begins with; empty where packs come through the coordinator."""


class RestoreClient(Protocol):
    """What a restore asks of the coordinator; errors and patience as in CoordinatorClient."""

    async def open_restore(self, task_id: str, public_key: bytes) -> Grant:
        """Ask for the grant of a restore task, with a one-time X25519 key."""
        ...

    async def read_pack(
        self, task_id: str, name: str, ranges: Sequence[tuple[int, int]], endpoint: str = ""
    ) -> list[memoryview]:
        """Return (offset, length) ranges of a pack that the grant covers, in this order.

        `endpoint`: the grant's.
        """
        ...


class CoordinatorClient(Protocol):
    """What a task asks of the coordinator.

    Every call has a deadline and is cancellable. Errors: CoordinatorError where the coordinator
    refused, UnreachableError (retryable) where it could not be asked. Calls are tried again
    inside, for as long as the session's lease may live, so a lost connection need not end a task.
    """

    async def open_session(self, task_id: str, sealed_data_key: bytes) -> Session:
        """Begin the right to write. Asked twice for a task, the first session is fenced."""
        ...

    def read_base(
        self, session: Session, since_head: Sequence[bytes] = ()
    ) -> AsyncIterator[StoredChunks]:
        """Yield the chunks of the volume's last snapshot; or those of these packs since, if any.

        Pack by pack, in pieces.
        """
        ...

    async def upload_pack(self, session: Session, pack: FinishedPack) -> None:
        """Store a pack. Returns once it is durable and checked.

        Idempotent: the same name with the same content may be sent again. At most three are in
        flight at once, over all tasks; more callers wait. Its buffers must not change meanwhile.
        """
        ...

    async def commit(
        self,
        session: Session,
        signed_root: bytes,
        refs: Iterable[bytes],
        statistics: BackupStatistics,
    ) -> Committed:
        """Make the snapshot. Idempotent for a session; `refs` is iterated once per attempt."""
        ...


class Tracking(Protocol):
    """What tells a backup where to look. All methods block."""

    def begin(
        self, volume_id: bytes, path: bytes, tree: Tree, head: bytes, *, audit: bool = False
    ) -> Taken:
        """Decide what the backup looks at of a volume that this node calls so."""
        ...

    def since(self, taken: Taken, tree: Tree) -> Since:
        """Tell what came since then, or since this was called last; nothing of it is forgotten."""
        ...

    def audited(self, taken: Taken, missed: int, now_ns: int) -> None:
        """Take note of how many changes events did not tell of. May raise StateError."""
        ...

    def altered(self, taken: Taken, missed: int) -> None:
        """Take note of how many files changed without any sign of it."""
        ...

    def committed(self, taken: Taken, done: Done) -> None:
        """Forget what a committed backup has looked at, but for what comes again."""
        ...


def _nothing() -> None:
    """A thread that is as any other."""


@dataclass(frozen=True)
class Services:
    """All that a task may use."""

    node_id: bytes
    signing_key: SigningKey
    state: State
    coordinator: CoordinatorClient
    workers: Executor
    """Small thread pool for batches of hashing, compressing, sealing, reading, writing."""
    clock: Clock
    progress: Callable[[Progress], None]
    """Cheap; may be called often and from any thread. Only the newest is sent, now and then."""
    tracking: Tracking
    log: Callable[[str, str], None]
    """(level, message) for the job's own log: "info", "warning" or "error". From any thread."""
    clones: Clones | None = None
    """Of large files, from one backup to the next."""
    disk: DiskThrottle | None = None
    """How fast volumes may be read, if that is limited."""
    groups: Gate | None = None
    """Groups of chunks that a backup has in hand at once: fewer while the node has it hard."""
    begin_thread: Callable[[], None] = _nothing
    """Called first in each thread of a backup."""
    tally: Tally = field(default_factory=Tally)
    """What the task asks of the store by itself is counted on this."""
