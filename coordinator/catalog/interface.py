"""What the rest of the coordinator may ask of the catalog. No SQL beyond this line.

Every method is one transaction: it has happened wholly or not at all, and once a writing method
has returned it survives a power cut. Raises CatalogError where the database fails.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.limits import Limit, Rule, Scope
from coordinator.locking import Held
from coordinator.model import (
    BackupStatistics,
    FrameReference,
    Job,
    JobId,
    JobKind,
    LogLine,
    Node,
    Pack,
    PackOrigin,
    Phase,
    Session,
    Snapshot,
    SnapshotHex,
    Task,
    TaskId,
    Totals,
    Volume,
    VolumeReport,
)
from repository.ids import NodeId, PackNonce, RepositoryId, SessionId, VolumeId


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A node token as the catalog keeps it: never the secret, only its hash."""

    token_id: bytes
    secret_hash: bytes
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class CommitPlan:
    """All that the first step of a commit writes, but for what it assigns."""

    session_id: SessionId
    fencing_token: int
    snapshot_id: SnapshotHex
    # The sequence that the agent built upon; 0 for a volume's first snapshot.
    head_sequence: int
    phase: Phase
    signed_root: bytes
    refs_object: bytes
    references: Sequence[FrameReference]
    statistics: BackupStatistics
    total_files: int
    total_bytes: int
    now: int
    # Whether the references are all that the snapshot needs, whatever was needed before.
    base: bool = False
    # Until when everything that the snapshot needs is locked; None where nothing is.
    locked_until: int | None = None


@dataclass(frozen=True, slots=True)
class PackPlace:
    """Which pack holds the frames of an origin now."""

    origin: PackOrigin
    name: str
    frame_table: bytes


class Fleet(Protocol):
    """Nodes, the tokens by which they join, and the volumes that they report."""

    async def add_token(self, token: TokenRecord) -> None:
        """Keep a token that was given out."""
        ...

    async def enrol(self, node: Node, secret_hash: bytes, now: int) -> bool:
        """Use up a token for this node. False, and nothing kept, if it is not good (any more)."""
        ...

    async def enrolled_before(
        self, signing_public_key: bytes, secret_hash: bytes, now: int
    ) -> Node | None:
        """The node that this token made of this key, if its answer may have got lost.

        That is as long as the token has not expired and the node was never heard of.
        """
        ...

    async def node(self, node_id: NodeId) -> Node | None:
        """One node."""
        ...

    async def nodes(self) -> list[Node]:
        """All nodes, by name."""
        ...

    async def node_seen(self, node_id: NodeId, agent_version: str, now: int) -> None:
        """An agent was heard of."""
        ...

    async def certificate_renewed(self, node_id: NodeId, expires_at: int) -> None:
        """The node has a new certificate; the one before it stays good until it expires."""
        ...

    async def revoke_node(self, node_id: NodeId) -> None:
        """For ever: a revoked node enrols anew under another identity. Its volumes are gone."""
        ...

    async def report_volumes(
        self, node_id: NodeId, reports: Sequence[VolumeReport], now: int
    ) -> set[VolumeId]:
        """The whole truth about a node's volumes; those it no longer names are not present.

        Returns the local ids that are mere claims, of which nothing is kept.
        """
        ...

    async def move_volume(
        self, volume_id: VolumeId, to: NodeId, name: str, *, replacing: bool
    ) -> list[VolumeId]:
        """Make a node the holder of a volume, which is not present until that node names it.

        Returns it and what it replaces; open sessions of theirs are fenced. UsageError as
        coordinator/holding.py says.
        """
        ...

    async def volumes(self) -> list[Volume]:
        """All volumes ever seen, by name."""
        ...

    async def assign_volumes(
        self, volume_ids: Iterable[VolumeId], repository_id: RepositoryId
    ) -> None:
        """The next snapshots of these go to that repository."""
        ...

    async def mark_scheduled(self, volume_ids: Iterable[VolumeId], now: int) -> None:
        """Scheduled backups of these were asked for."""
        ...

    async def get_meta(self, key: str) -> bytes | None:
        """A fact about the coordinator itself."""
        ...

    async def set_meta(self, key: str, value: bytes) -> None:
        """Keep such a fact."""
        ...


class Jobs(Protocol):
    """Jobs, their tasks and their logs."""

    async def add_job(self, job: Job) -> None:
        """Keep a new job with its tasks."""
        ...

    async def save_job(self, job: Job, changed: Sequence[Task]) -> None:
        """Phase and times of a job, and everything about these of its tasks."""
        ...

    async def job(self, job_id: JobId) -> Job | None:
        """One job with its tasks."""
        ...

    async def jobs(self, *, kind: JobKind | None, limit: int) -> list[Job]:
        """The newest jobs first."""
        ...

    async def unfinished_jobs(self) -> list[Job]:
        """Jobs that have not ended, oldest first."""
        ...

    async def last_backup_tasks(self) -> dict[VolumeId, Task]:
        """The newest ended backup task of each volume."""
        ...

    async def count_jobs(self) -> dict[tuple[JobKind, Phase], int]:
        """How many jobs of each kind are in each phase."""
        ...

    async def append_log(self, job_id: JobId, lines: Sequence[LogLine]) -> None:
        """Add to a job's log; only its last 1,000 lines are kept."""
        ...

    async def log(self, job_id: JobId) -> list[LogLine]:
        """A job's log, oldest line first."""
        ...


class Ledger(Protocol):
    """Sessions, packs, references and snapshots: what is stored, and who may add to it."""

    async def attribute(self, repository_id: RepositoryId) -> None:
        """All that was kept before there could be several repositories lies in this one."""
        ...

    async def open_session(self, session: Session) -> Session:
        """Keep a session with the next fencing token; every open one of the volume is fenced.

        FencedError where the node does not hold the volume.
        """
        ...

    async def session(self, session_id: SessionId) -> Session | None:
        """One session."""
        ...

    async def fence_task(self, task_id: TaskId) -> None:
        """End a task's right to write, unless it has committed."""
        ...

    async def fence_all(self) -> None:
        """End every open session."""
        ...

    async def mark_proven(self, session_id: SessionId) -> None:
        """Custody has opened a pack of this session."""
        ...

    async def record_pack(self, pack: Pack, fencing_token: int) -> None:
        """A pack is durable. Twice is once. FencedError if the session may not write any more."""
        ...

    async def pack(self, name: str) -> Pack | None:
        """One pack."""
        ...

    async def begin_commit(self, plan: CommitPlan) -> Snapshot:
        """T1: check, assign sequence and time, pin. The row is not a snapshot yet.

        FencedError if the session may not write or the volume has moved on; RejectedError if a
        reference points at what is not stored or not this node's to name.
        """
        ...

    async def finish_commit(
        self,
        snapshot_id: SnapshotHex,
        root_object: bytes,
        references: Sequence[FrameReference],
        *,
        base: bool,
    ) -> None:
        """T2: the root is durable. Twice is once. A base replaces what was referenced before."""
        ...

    async def abandon_commit(self, snapshot_id: SnapshotHex) -> None:
        """Forget a commit whose root is known not to be in the store. Its sequence stays used."""
        ...

    async def unsettled(self) -> list[tuple[Snapshot, bytes]]:
        """Commits begun and not finished, each with its refs object."""
        ...

    async def snapshot(self, snapshot_id: SnapshotHex) -> Snapshot | None:
        """One settled snapshot."""
        ...

    async def snapshot_of_session(self, session_id: SessionId) -> Snapshot | None:
        """What a session committed, settled or not."""
        ...

    async def snapshot_of_task(self, task_id: TaskId) -> Snapshot | None:
        """The settled snapshot that a task made, whichever of its sessions it was."""
        ...

    async def snapshots(self, *, volume_id: VolumeId | None = None) -> list[Snapshot]:
        """Settled snapshots, oldest first."""
        ...

    async def find_snapshots(self, prefix: str) -> list[SnapshotHex]:
        """Ids of settled snapshots that begin so; at most ten."""
        ...

    async def head(
        self, volume_id: VolumeId, *, repository_id: RepositoryId | None = None
    ) -> Snapshot | None:
        """The newest settled snapshot of a volume, or the newest of those in one repository."""
        ...

    async def heads(self) -> dict[VolumeId, tuple[Snapshot, int | None, int | None]]:
        """Of each volume: its newest snapshot, when last one was Completed, when last proven."""
        ...

    async def references(self, snapshot: Snapshot) -> dict[PackNonce, list[int]]:
        """The frames that a snapshot needs, by origin."""
        ...

    async def packs_since_head(self, session: Session, limit: int) -> list[PackNonce]:
        """Origins in live packs that earlier sessions of its node and volume have recorded.

        Those after the volume's last commit alone, and so many of the newest.
        """
        ...

    async def places(self, nonces: Iterable[PackNonce]) -> dict[PackNonce, PackPlace]:
        """Where the frames of these origins lie; origins in no known pack are left out."""
        ...

    async def snapshots_needing(self, nonces: Iterable[PackNonce]) -> list[Snapshot]:
        """The settled snapshots that need a frame of these origins, oldest first."""
        ...

    async def mark_proof(self, snapshot_ids: Iterable[SnapshotHex], now: int) -> None:
        """These were verified and found whole."""
        ...

    async def writers(self, repository_id: RepositoryId) -> list[NodeId]:
        """The nodes that ever had a session there."""
        ...

    async def totals(self, repository_id: RepositoryId | None = None) -> Totals:
        """Figures of the whole, or of one repository."""
        ...


class Bandwidth(Protocol):
    """Limits of the network."""

    async def limits(self) -> list[Limit]:
        """All that there are."""
        ...

    async def add_rule(self, scope: Scope, subject: bytes, rule: Rule) -> Limit:
        """The rules of a scope after one more was set, as `limits.with_rule` says; UsageError."""
        ...


class Locks(Protocol):
    """Until when objects of the store are known to be locked; 0 for those that are not.

    What is known never becomes less.
    """

    async def lapsing_packs(
        self,
        volume_id: VolumeId,
        references: Sequence[FrameReference],
        *,
        base: bool,
        before: int,
    ) -> list[Held]:
        """Those packs that the volume's next snapshot needs whose locks end before that time.

        `references`: what that one adds and drops; with `base` it needs nothing else.
        """
        ...

    async def packs_locked(self, names: Iterable[str], until: int) -> None:
        """These packs were locked."""
        ...

    async def objects(self, repository_id: RepositoryId, names: Iterable[str]) -> list[Held]:
        """What is known of a repository's objects that are no packs, in their order."""
        ...

    async def objects_locked(
        self, repository_id: RepositoryId, names: Iterable[str], until: int
    ) -> None:
        """These objects of a repository, which are no packs, were locked."""
        ...


class Catalog(Protocol):
    """The database as a whole."""

    @property
    def fleet(self) -> Fleet:
        """Nodes and volumes."""
        ...

    @property
    def jobs(self) -> Jobs:
        """Jobs and tasks."""
        ...

    @property
    def ledger(self) -> Ledger:
        """What is stored."""
        ...

    @property
    def bandwidth(self) -> Bandwidth:
        """How fast."""
        ...

    @property
    def locks(self) -> Locks:
        """What cannot be deleted, and until when."""
        ...

    async def close(self) -> None:
        """Give the files back."""
        ...
