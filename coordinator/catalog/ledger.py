"""Sessions, packs, references and snapshots in SQL."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import and_, delete, desc, exists, func, insert, or_, select, update
from sqlalchemy.engine import Connection
from typing_extensions import override

from coordinator.catalog import coding
from coordinator.catalog.commit import begin_commit, drop_references, settle_references
from coordinator.catalog.connections import Connections, reading, writing
from coordinator.catalog.interface import CommitPlan, Ledger, PackPlace
from coordinator.catalog.tables import (
    nodes,
    pack_origins,
    packs,
    refs,
    sessions,
    snapshots,
    volumes,
)
from coordinator.errors import CatalogError, FencedError
from coordinator.model import (
    FrameReference,
    Pack,
    PackState,
    Phase,
    Session,
    SessionState,
    Snapshot,
    SnapshotHex,
    TaskId,
    Totals,
)
from repository.failpoints import failpoint
from repository.ids import NodeId, PackNonce, RepositoryId, SessionId, VolumeId

# Well below SQLite's limit of variables, and the batch that measured best.
_BATCH: Final = 500

_SETTLED = snapshots.c.state == coding.COMPLETED
# Joins snapshots to the references that they need.
_NEEDED = and_(
    refs.c.volume_id == snapshots.c.volume_id,
    refs.c.from_seq <= snapshots.c.sequence,
    or_(refs.c.to_seq.is_(None), refs.c.to_seq > snapshots.c.sequence),
)


class SqlLedger(Ledger):
    """Ledger on SQLite."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections

    @override
    @writing
    def attribute(self, connection: Connection, repository_id: RepositoryId) -> None:
        # Each pack and snapshot is of a session, and known with it: a start looks at one index.
        unknown = select(sessions.c.session_id).where(sessions.c.repository_id.is_(None)).limit(1)
        if connection.scalar(unknown) is None:
            return
        for table in (sessions, packs, snapshots):
            connection.execute(
                update(table)
                .where(table.c.repository_id.is_(None))
                .values(repository_id=repository_id)
            )

    @override
    @writing
    def open_session(self, connection: Connection, session: Session) -> Session:
        holder = connection.scalar(
            select(volumes.c.node_id).where(volumes.c.volume_id == session.volume_id)
        )
        if holder != session.node_id:
            raise FencedError("another node holds this volume now", hint="see tidemark volume list")
        fence = (
            update(sessions)
            .where(sessions.c.volume_id == session.volume_id)
            .where(sessions.c.state == SessionState.OPEN)
            .values(state=SessionState.FENCED)
        )
        token = select(func.coalesce(func.max(sessions.c.fencing_token), 0) + 1).scalar_subquery()
        connection.execute(fence)
        connection.execute(
            insert(sessions).values(
                session_id=session.session_id,
                task_id=session.task_id,
                volume_id=session.volume_id,
                node_id=session.node_id,
                repository_id=session.repository_id,
                fencing_token=token,
                sealed_data_key=session.sealed_data_key,
                opened_at=session.opened_at,
                state=SessionState.OPEN,
            )
        )
        found = connection.execute(
            select(sessions).where(sessions.c.session_id == session.session_id)
        )
        failpoint("coordinator.session.written", CatalogError)
        return coding.session(found.one())

    @override
    @reading
    def session(self, connection: Connection, session_id: SessionId) -> Session | None:
        found = connection.execute(select(sessions).where(sessions.c.session_id == session_id))
        row = found.one_or_none()
        return None if row is None else coding.session(row)

    @override
    @writing
    def fence_task(self, connection: Connection, task_id: TaskId) -> None:
        connection.execute(
            update(sessions)
            .where(sessions.c.task_id == task_id)
            .where(sessions.c.state == SessionState.OPEN)
            .values(state=SessionState.FENCED)
        )

    @override
    @writing
    def fence_all(self, connection: Connection) -> None:
        connection.execute(
            update(sessions)
            .where(sessions.c.state == SessionState.OPEN)
            .values(state=SessionState.FENCED)
        )

    @override
    @writing
    def mark_proven(self, connection: Connection, session_id: SessionId) -> None:
        connection.execute(
            update(sessions).where(sessions.c.session_id == session_id).values(proven=True)
        )

    @override
    @writing
    def record_pack(self, connection: Connection, pack: Pack, fencing_token: int) -> None:
        state = connection.scalar(
            select(sessions.c.state)
            .where(sessions.c.session_id == pack.session_id)
            .where(sessions.c.fencing_token == fencing_token)
        )
        if state != SessionState.OPEN:
            raise FencedError(
                "this session may not write any more", hint="the next backup begins anew"
            )
        known = connection.scalar(select(packs.c.session_id).where(packs.c.name == pack.name))
        if known is not None:
            return
        connection.execute(
            insert(packs).values(
                name=pack.name,
                kind=pack.kind,
                size_bytes=pack.size_bytes,
                blake3=pack.blake3,
                session_id=pack.session_id,
                node_id=pack.node_id,
                volume_id=pack.volume_id,
                repository_id=pack.repository_id,
                stored_at=pack.stored_at,
                frame_table=pack.frame_table,
                state=pack.state,
                locked_until=pack.locked_until,
            )
        )
        connection.execute(
            insert(pack_origins),
            [coding.origin_row(origin, pack.name) for origin in pack.origins],
        )
        failpoint("coordinator.pack.written", CatalogError)

    @override
    @reading
    def pack(self, connection: Connection, name: str) -> Pack | None:
        found = connection.execute(select(packs).where(packs.c.name == name))
        row = found.one_or_none()
        if row is None:
            return None
        origins = connection.execute(select(pack_origins).where(pack_origins.c.pack == name))
        return coding.pack(row, tuple(coding.origin(each) for each in origins))

    @override
    @writing
    def begin_commit(self, connection: Connection, plan: CommitPlan) -> Snapshot:
        row = begin_commit(connection, plan)
        failpoint("coordinator.commit.begin_written", CatalogError)
        return coding.snapshot(row)

    @override
    @writing
    def finish_commit(
        self,
        connection: Connection,
        snapshot_id: SnapshotHex,
        root_object: bytes,
        references: Sequence[FrameReference],
        *,
        base: bool,
    ) -> None:
        found = connection.execute(
            select(snapshots)
            .where(snapshots.c.snapshot_id == snapshot_id)
            .where(snapshots.c.state == coding.COMMITTING)
        )
        row = found.one_or_none()
        if row is None:
            return
        volume = VolumeId(row.volume_id)
        if base:
            drop_references(connection, volume, row.sequence)
        settle_references(connection, volume, row.sequence, references)
        connection.execute(
            update(snapshots)
            .where(snapshots.c.snapshot_id == snapshot_id)
            # The refs object lies in the store now; here it would only take space.
            .values(state=coding.COMPLETED, root_object=root_object, refs_object=b"")
        )
        connection.execute(
            update(sessions)
            .where(sessions.c.session_id == row.session_id)
            .values(state=SessionState.COMMITTED)
        )
        failpoint("coordinator.commit.finish_written", CatalogError)

    @override
    @writing
    def abandon_commit(self, connection: Connection, snapshot_id: SnapshotHex) -> None:
        abandoned = (
            delete(snapshots)
            .where(snapshots.c.snapshot_id == snapshot_id)
            .where(snapshots.c.state == coding.COMMITTING)
        )
        connection.execute(abandoned)

    @override
    @reading
    def unsettled(self, connection: Connection) -> list[tuple[Snapshot, bytes]]:
        query = select(snapshots).where(snapshots.c.state == coding.COMMITTING)
        found = connection.execute(query.order_by(snapshots.c.committed_at))
        return [(coding.snapshot(row), row.refs_object) for row in found]

    @override
    @reading
    def snapshot(self, connection: Connection, snapshot_id: SnapshotHex) -> Snapshot | None:
        query = select(snapshots).where(snapshots.c.snapshot_id == snapshot_id).where(_SETTLED)
        row = connection.execute(query).one_or_none()
        return None if row is None else coding.snapshot(row)

    @override
    @reading
    def snapshot_of_session(self, connection: Connection, session_id: SessionId) -> Snapshot | None:
        query = select(snapshots).where(snapshots.c.session_id == session_id)
        row = connection.execute(query).one_or_none()
        return None if row is None else coding.snapshot(row)

    @override
    @reading
    def snapshot_of_task(self, connection: Connection, task_id: TaskId) -> Snapshot | None:
        query = (
            select(snapshots)
            .join(sessions, sessions.c.session_id == snapshots.c.session_id)
            .where(sessions.c.task_id == task_id)
            .where(_SETTLED)
            .limit(1)
        )
        row = connection.execute(query).one_or_none()
        return None if row is None else coding.snapshot(row)

    @override
    @reading
    def snapshots(
        self, connection: Connection, *, volume_id: VolumeId | None = None
    ) -> list[Snapshot]:
        query = select(snapshots).where(_SETTLED)
        if volume_id is not None:
            query = query.where(snapshots.c.volume_id == volume_id)
        order = (snapshots.c.committed_at, snapshots.c.snapshot_id)
        found = connection.execute(query.order_by(*order))
        return [coding.snapshot(row) for row in found]

    @override
    @reading
    def find_snapshots(self, connection: Connection, prefix: str) -> list[SnapshotHex]:
        query = (
            select(snapshots.c.snapshot_id)
            .where(_SETTLED)
            .where(snapshots.c.snapshot_id.startswith(prefix, autoescape=True))
            .limit(10)
        )
        found = connection.scalars(query)
        return [SnapshotHex(snapshot_id) for snapshot_id in found]

    @override
    @reading
    def head(
        self,
        connection: Connection,
        volume_id: VolumeId,
        *,
        repository_id: RepositoryId | None = None,
    ) -> Snapshot | None:
        query = (
            select(snapshots)
            .where(_SETTLED)
            .where(snapshots.c.volume_id == volume_id)
            .order_by(snapshots.c.sequence.desc())
            .limit(1)
        )
        if repository_id is not None:
            query = query.where(snapshots.c.repository_id == repository_id)
        row = connection.execute(query).one_or_none()
        return None if row is None else coding.snapshot(row)

    @override
    @reading
    def heads(
        self, connection: Connection
    ) -> dict[VolumeId, tuple[Snapshot, int | None, int | None]]:
        newest = (
            select(
                snapshots.c.volume_id,
                func.max(snapshots.c.sequence).label("sequence"),
                func.max(snapshots.c.committed_at)
                .filter(snapshots.c.phase == Phase.COMPLETED)
                .label("completed_at"),
                func.max(snapshots.c.last_proof_at).label("proof_at"),
            )
            .where(_SETTLED)
            .group_by(snapshots.c.volume_id)
            .subquery()
        )
        query = select(snapshots, newest.c.completed_at, newest.c.proof_at).join(
            newest,
            (newest.c.volume_id == snapshots.c.volume_id)
            & (newest.c.sequence == snapshots.c.sequence),
        )
        found = connection.execute(query)
        return {
            VolumeId(row.volume_id): (coding.snapshot(row), row.completed_at, row.proof_at)
            for row in found
        }

    @override
    @reading
    def references(self, connection: Connection, snapshot: Snapshot) -> dict[PackNonce, list[int]]:
        query = (
            select(refs.c.pack_nonce, refs.c.frame)
            .where(refs.c.volume_id == snapshot.volume_id)
            .where(refs.c.from_seq <= snapshot.sequence)
            .where(or_(refs.c.to_seq.is_(None), refs.c.to_seq > snapshot.sequence))
            .order_by(refs.c.pack_nonce, refs.c.frame)
        )
        needed: defaultdict[PackNonce, list[int]] = defaultdict(list)
        for nonce, frame in connection.execute(query):
            needed[PackNonce(nonce)].append(frame)
        return dict(needed)

    @override
    @reading
    def packs_since_head(
        self, connection: Connection, session: Session, limit: int
    ) -> list[PackNonce]:
        mine = (
            select(sessions)
            .where(sessions.c.volume_id == session.volume_id)
            .where(sessions.c.repository_id == session.repository_id)
            .subquery()
        )
        committed = select(func.coalesce(func.max(mine.c.fencing_token), 0)).where(
            mine.c.state == SessionState.COMMITTED
        )
        earlier = (
            select(mine.c.session_id)
            .where(mine.c.node_id == session.node_id)
            .where(mine.c.state == SessionState.FENCED)
            .where(mine.c.fencing_token < session.fencing_token)
            .where(mine.c.fencing_token > committed.scalar_subquery())
        )
        # Mostly there is none. Where there is, all origins are looked at: 10 TiB in 70 ms.
        if connection.scalar(earlier.limit(1)) is None:
            return []
        stored_at = (
            select(packs.c.stored_at)
            .where(packs.c.name == pack_origins.c.pack)
            .where(packs.c.state == PackState.LIVE)
            .scalar_subquery()
        )
        found = connection.execute(
            select(pack_origins.c.pack_nonce, stored_at.label("stored_at"))
            .where(pack_origins.c.session_id.in_(earlier))
            .order_by(desc("stored_at"))
            .limit(limit)
        )
        # What is not live has no time, and stands last.
        return [PackNonce(row.pack_nonce) for row in found if row.stored_at is not None]

    @override
    @reading
    def places(
        self, connection: Connection, nonces: Iterable[PackNonce]
    ) -> dict[PackNonce, PackPlace]:
        query = select(pack_origins, packs.c.name, packs.c.frame_table).join(
            packs, packs.c.name == pack_origins.c.pack
        )
        places: dict[PackNonce, PackPlace] = {}
        for batch in _batches(nonces):
            found = connection.execute(query.where(pack_origins.c.pack_nonce.in_(batch)))
            for row in found:
                origin = coding.origin(row)
                places[origin.pack_nonce] = PackPlace(origin, row.name, row.frame_table)
        return places

    @override
    @reading
    def snapshots_needing(
        self, connection: Connection, nonces: Iterable[PackNonce]
    ) -> list[Snapshot]:
        found: dict[str, Snapshot] = {}
        for batch in _batches(nonces):
            needing = (
                select(snapshots.c.snapshot_id)
                .join(refs, _NEEDED)
                .where(_SETTLED)
                .where(refs.c.pack_nonce.in_(batch))
                .distinct()
            )
            query = select(snapshots).where(snapshots.c.snapshot_id.in_(needing))
            for row in connection.execute(query):
                found[row.snapshot_id] = coding.snapshot(row)
        return sorted(found.values(), key=lambda snapshot: snapshot.committed_at)

    @override
    @writing
    def mark_proof(
        self, connection: Connection, snapshot_ids: Iterable[SnapshotHex], now: int
    ) -> None:
        for batch in _batches(snapshot_ids):
            connection.execute(
                update(snapshots)
                .where(snapshots.c.snapshot_id.in_(batch))
                .values(last_proof_at=now)
            )

    @override
    @reading
    def writers(self, connection: Connection, repository_id: RepositoryId) -> list[NodeId]:
        # A look for each node: there are far fewer of them than sessions.
        wrote = (
            exists()
            .where(sessions.c.repository_id == repository_id)
            .where(sessions.c.node_id == nodes.c.node_id)
        )
        query = select(nodes.c.node_id).where(wrote)
        return [NodeId(node_id) for node_id in connection.scalars(query)]

    @override
    @reading
    def totals(self, connection: Connection, repository_id: RepositoryId | None = None) -> Totals:
        stored = select(func.count(), func.coalesce(func.sum(packs.c.size_bytes), 0))
        settled = select(func.count()).select_from(snapshots).where(_SETTLED)
        writing_now = (
            select(func.count()).select_from(sessions).where(sessions.c.state == SessionState.OPEN)
        )
        if repository_id is not None:
            stored = stored.where(packs.c.repository_id == repository_id)
            settled = settled.where(snapshots.c.repository_id == repository_id)
            writing_now = writing_now.where(sessions.c.repository_id == repository_id)
        count, size_bytes = connection.execute(stored).one()
        return Totals(
            packs=count,
            stored_bytes=size_bytes,
            snapshots=connection.scalar(settled) or 0,
            sessions_open=connection.scalar(writing_now) or 0,
        )


def _batches(keys: Iterable[Any]) -> Iterator[list[Any]]:
    """Keys in lists that fit into one statement."""
    listed = list(keys)
    for start in range(0, len(listed), _BATCH):
        yield listed[start : start + _BATCH]
