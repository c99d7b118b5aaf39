"""Sessions, packs, references and snapshots in SQL."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from coordinator.catalog import coding
from coordinator.catalog.commit import begin_commit, drop_references, settle_references
from coordinator.catalog.connections import Connections, unbroken
from coordinator.catalog.interface import CommitPlan, Ledger, PackPlace
from coordinator.catalog.tables import (
    pack_origins,
    packs,
    refs,
    sessions,
    snapshots,
)
from coordinator.errors import FencedError
from coordinator.model import (
    FrameReference,
    Pack,
    Phase,
    Session,
    SessionState,
    Snapshot,
    SnapshotHex,
    TaskId,
    Totals,
)
from repository.ids import PackNonce, SessionId, VolumeId

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
    @unbroken
    async def open_session(self, session: Session) -> Session:
        fence = (
            update(sessions)
            .where(sessions.c.volume_id == session.volume_id)
            .where(sessions.c.state == SessionState.OPEN)
            .values(state=SessionState.FENCED)
        )
        token = select(func.coalesce(func.max(sessions.c.fencing_token), 0) + 1).scalar_subquery()
        async with self.connections.write() as connection:
            await connection.execute(fence)
            await connection.execute(
                insert(sessions).values(
                    session_id=session.session_id,
                    task_id=session.task_id,
                    volume_id=session.volume_id,
                    node_id=session.node_id,
                    fencing_token=token,
                    sealed_data_key=session.sealed_data_key,
                    opened_at=session.opened_at,
                    state=SessionState.OPEN,
                )
            )
            found = await connection.execute(
                select(sessions).where(sessions.c.session_id == session.session_id)
            )
            return coding.session(found.one())

    @override
    @unbroken
    async def session(self, session_id: SessionId) -> Session | None:
        async with self.connections.read() as connection:
            found = await connection.execute(
                select(sessions).where(sessions.c.session_id == session_id)
            )
            row = found.one_or_none()
        return None if row is None else coding.session(row)

    @override
    @unbroken
    async def fence_task(self, task_id: TaskId) -> None:
        async with self.connections.write() as connection:
            await connection.execute(
                update(sessions)
                .where(sessions.c.task_id == task_id)
                .where(sessions.c.state == SessionState.OPEN)
                .values(state=SessionState.FENCED)
            )

    @override
    @unbroken
    async def fence_all(self) -> None:
        async with self.connections.write() as connection:
            await connection.execute(
                update(sessions)
                .where(sessions.c.state == SessionState.OPEN)
                .values(state=SessionState.FENCED)
            )

    @override
    @unbroken
    async def mark_proven(self, session_id: SessionId) -> None:
        async with self.connections.write() as connection:
            await connection.execute(
                update(sessions).where(sessions.c.session_id == session_id).values(proven=True)
            )

    @override
    @unbroken
    async def record_pack(self, pack: Pack, fencing_token: int) -> None:
        async with self.connections.write() as connection:
            writing = await connection.scalar(
                select(sessions.c.state)
                .where(sessions.c.session_id == pack.session_id)
                .where(sessions.c.fencing_token == fencing_token)
            )
            if writing != SessionState.OPEN:
                raise FencedError(
                    "this session may not write any more", hint="the next backup begins anew"
                )
            known = await connection.scalar(
                select(packs.c.session_id).where(packs.c.name == pack.name)
            )
            if known is not None:
                return
            await connection.execute(
                insert(packs).values(
                    name=pack.name,
                    kind=pack.kind,
                    size_bytes=pack.size_bytes,
                    blake3=pack.blake3,
                    session_id=pack.session_id,
                    node_id=pack.node_id,
                    volume_id=pack.volume_id,
                    stored_at=pack.stored_at,
                    frame_table=pack.frame_table,
                    state=pack.state,
                )
            )
            await connection.execute(
                insert(pack_origins),
                [coding.origin_row(origin, pack.name) for origin in pack.origins],
            )

    @override
    @unbroken
    async def pack(self, name: str) -> Pack | None:
        async with self.connections.read() as connection:
            found = await connection.execute(select(packs).where(packs.c.name == name))
            row = found.one_or_none()
            if row is None:
                return None
            origins = await connection.execute(
                select(pack_origins).where(pack_origins.c.pack == name)
            )
            return coding.pack(row, tuple(coding.origin(each) for each in origins))

    @override
    @unbroken
    async def begin_commit(self, plan: CommitPlan) -> Snapshot:
        async with self.connections.write() as connection:
            row = await begin_commit(connection, plan)
            return coding.snapshot(row)

    @override
    @unbroken
    async def finish_commit(
        self,
        snapshot_id: SnapshotHex,
        root_object: bytes,
        references: Sequence[FrameReference],
        *,
        base: bool,
    ) -> None:
        async with self.connections.write() as connection:
            found = await connection.execute(
                select(snapshots)
                .where(snapshots.c.snapshot_id == snapshot_id)
                .where(snapshots.c.state == coding.COMMITTING)
            )
            row = found.one_or_none()
            if row is None:
                return
            volume = VolumeId(row.volume_id)
            if base:
                await drop_references(connection, volume, row.sequence)
            await settle_references(connection, volume, row.sequence, references)
            await connection.execute(
                update(snapshots)
                .where(snapshots.c.snapshot_id == snapshot_id)
                # The refs object lies in the store now; here it would only take space.
                .values(state=coding.COMPLETED, root_object=root_object, refs_object=b"")
            )
            await connection.execute(
                update(sessions)
                .where(sessions.c.session_id == row.session_id)
                .values(state=SessionState.COMMITTED)
            )

    @override
    @unbroken
    async def abandon_commit(self, snapshot_id: SnapshotHex) -> None:
        async with self.connections.write() as connection:
            abandoned = (
                delete(snapshots)
                .where(snapshots.c.snapshot_id == snapshot_id)
                .where(snapshots.c.state == coding.COMMITTING)
            )
            await connection.execute(abandoned)

    @override
    @unbroken
    async def unsettled(self) -> list[tuple[Snapshot, bytes]]:
        query = select(snapshots).where(snapshots.c.state == coding.COMMITTING)
        async with self.connections.read() as connection:
            found = await connection.execute(query.order_by(snapshots.c.committed_at))
            return [(coding.snapshot(row), row.refs_object) for row in found]

    @override
    @unbroken
    async def snapshot(self, snapshot_id: SnapshotHex) -> Snapshot | None:
        query = select(snapshots).where(snapshots.c.snapshot_id == snapshot_id).where(_SETTLED)
        async with self.connections.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else coding.snapshot(row)

    @override
    @unbroken
    async def snapshot_of_session(self, session_id: SessionId) -> Snapshot | None:
        query = select(snapshots).where(snapshots.c.session_id == session_id)
        async with self.connections.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else coding.snapshot(row)

    @override
    @unbroken
    async def snapshot_of_task(self, task_id: TaskId) -> Snapshot | None:
        query = (
            select(snapshots)
            .join(sessions, sessions.c.session_id == snapshots.c.session_id)
            .where(sessions.c.task_id == task_id)
            .where(_SETTLED)
            .limit(1)
        )
        async with self.connections.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else coding.snapshot(row)

    @override
    @unbroken
    async def snapshots(self, *, volume_id: VolumeId | None = None) -> list[Snapshot]:
        query = select(snapshots).where(_SETTLED)
        if volume_id is not None:
            query = query.where(snapshots.c.volume_id == volume_id)
        order = (snapshots.c.committed_at, snapshots.c.snapshot_id)
        async with self.connections.read() as connection:
            found = await connection.execute(query.order_by(*order))
            return [coding.snapshot(row) for row in found]

    @override
    @unbroken
    async def find_snapshots(self, prefix: str) -> list[SnapshotHex]:
        query = (
            select(snapshots.c.snapshot_id)
            .where(_SETTLED)
            .where(snapshots.c.snapshot_id.startswith(prefix, autoescape=True))
            .limit(10)
        )
        async with self.connections.read() as connection:
            found = await connection.scalars(query)
            return [SnapshotHex(snapshot_id) for snapshot_id in found]

    @override
    @unbroken
    async def head(self, volume_id: VolumeId) -> Snapshot | None:
        query = (
            select(snapshots)
            .where(_SETTLED)
            .where(snapshots.c.volume_id == volume_id)
            .order_by(snapshots.c.sequence.desc())
            .limit(1)
        )
        async with self.connections.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else coding.snapshot(row)

    @override
    @unbroken
    async def heads(self) -> dict[VolumeId, tuple[Snapshot, int | None, int | None]]:
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
        async with self.connections.read() as connection:
            found = await connection.execute(query)
            return {
                VolumeId(row.volume_id): (coding.snapshot(row), row.completed_at, row.proof_at)
                for row in found
            }

    @override
    @unbroken
    async def references(self, snapshot: Snapshot) -> dict[PackNonce, list[int]]:
        query = (
            select(refs.c.pack_nonce, refs.c.frame)
            .where(refs.c.volume_id == snapshot.volume_id)
            .where(refs.c.from_seq <= snapshot.sequence)
            .where(or_(refs.c.to_seq.is_(None), refs.c.to_seq > snapshot.sequence))
            .order_by(refs.c.pack_nonce, refs.c.frame)
        )
        needed: defaultdict[PackNonce, list[int]] = defaultdict(list)
        async with self.connections.read() as connection:
            for nonce, frame in await connection.execute(query):
                needed[PackNonce(nonce)].append(frame)
        return dict(needed)

    @override
    @unbroken
    async def places(self, nonces: Iterable[PackNonce]) -> dict[PackNonce, PackPlace]:
        query = select(pack_origins, packs.c.name, packs.c.frame_table).join(
            packs, packs.c.name == pack_origins.c.pack
        )
        places: dict[PackNonce, PackPlace] = {}
        async with self.connections.read() as connection:
            for batch in _batches(nonces):
                found = await connection.execute(query.where(pack_origins.c.pack_nonce.in_(batch)))
                for row in found:
                    origin = coding.origin(row)
                    places[origin.pack_nonce] = PackPlace(origin, row.name, row.frame_table)
        return places

    @override
    @unbroken
    async def snapshots_needing(self, nonces: Iterable[PackNonce]) -> list[Snapshot]:
        found: dict[str, Snapshot] = {}
        async with self.connections.read() as connection:
            for batch in _batches(nonces):
                needing = (
                    select(snapshots.c.snapshot_id)
                    .join(refs, _NEEDED)
                    .where(_SETTLED)
                    .where(refs.c.pack_nonce.in_(batch))
                    .distinct()
                )
                query = select(snapshots).where(snapshots.c.snapshot_id.in_(needing))
                for row in await connection.execute(query):
                    found[row.snapshot_id] = coding.snapshot(row)
        return sorted(found.values(), key=lambda snapshot: snapshot.committed_at)

    @override
    @unbroken
    async def mark_proof(self, snapshot_ids: Iterable[SnapshotHex], now: int) -> None:
        async with self.connections.write() as connection:
            for batch in _batches(snapshot_ids):
                await connection.execute(
                    update(snapshots)
                    .where(snapshots.c.snapshot_id.in_(batch))
                    .values(last_proof_at=now)
                )

    @override
    @unbroken
    async def totals(self) -> Totals:
        async with self.connections.read() as connection:
            stored = await connection.execute(
                select(func.count(), func.coalesce(func.sum(packs.c.size_bytes), 0))
            )
            count, size_bytes = stored.one()
            return Totals(
                packs=count,
                stored_bytes=size_bytes,
                snapshots=await _count(connection, snapshots, _SETTLED),
                sessions_open=await _count(
                    connection, sessions, sessions.c.state == SessionState.OPEN
                ),
            )


async def _count(connection: AsyncConnection, table: Any, condition: Any) -> int:
    counted = await connection.scalar(select(func.count()).select_from(table).where(condition))
    return counted or 0


def _batches(keys: Iterable[Any]) -> Iterator[list[Any]]:
    """Keys in lists that fit into one statement."""
    listed = list(keys)
    for start in range(0, len(listed), _BATCH):
        yield listed[start : start + _BATCH]
