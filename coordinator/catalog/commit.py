"""The two transactions of a commit: what they check and what they write.

A snapshot that is called Completed rests on what is checked here: the session may still write, the
volume stands where the agent thinks it stands, and every frame that the snapshot adds lies in a
pack that was confirmed in the store. Nothing is believed because an agent says so.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, bindparam, func, insert, select, update
from sqlalchemy.engine import Connection

from coordinator.catalog import coding
from coordinator.catalog.interface import CommitPlan
from coordinator.catalog.tables import (
    nodes,
    pack_origins,
    packs,
    refs,
    sessions,
    snapshots,
    tasks,
    volumes,
)
from coordinator.errors import FencedError, FormatError, RejectedError
from coordinator.model import FrameReference, PackState, SessionState
from repository.frames import FrameIdentity
from repository.ids import PackNonce, VolumeId
from repository.pack import FrameTable

_BATCH: Final = 500
_LOST_HINT: Final = "the next backup begins anew; nothing that was committed is lost"


def begin_commit(connection: Connection, plan: CommitPlan) -> Row[Any]:
    """T1, inside a writing transaction: the new row."""
    session = _writing_session(connection, plan)
    volume = connection.execute(
        select(volumes).where(volumes.c.volume_id == session.volume_id)
    ).one()
    _check_head(connection, plan, session)
    _check_references(connection, plan, session)
    sequence = volume.last_sequence + 1
    connection.execute(
        update(volumes)
        .where(volumes.c.volume_id == volume.volume_id)
        .values(last_sequence=sequence)
    )
    latest = connection.scalar(
        select(func.max(snapshots.c.committed_at)).where(snapshots.c.volume_id == volume.volume_id)
    )
    node = connection.scalar(select(nodes.c.name).where(nodes.c.node_id == session.node_id))
    started = connection.scalar(
        select(tasks.c.started_at).where(tasks.c.task_id == session.task_id)
    )
    connection.execute(
        insert(snapshots).values(
            snapshot_id=plan.snapshot_id,
            session_id=plan.session_id,
            volume_id=volume.volume_id,
            node_id=session.node_id,
            repository_id=session.repository_id,
            volume=volume.name,
            node=node,
            sequence=sequence,
            # A clock that was set back must not reorder a volume's history.
            committed_at=max(plan.now, (latest or 0) + 1),
            phase=plan.phase,
            state=coding.COMMITTING,
            signed_root=plan.signed_root,
            root_object=b"",
            refs_object=plan.refs_object,
            statistics=coding.encode(plan.statistics),
            total_files=plan.total_files,
            total_bytes=plan.total_bytes,
            started_at=started or session.opened_at,
            locked_until=plan.locked_until,
        )
    )
    return connection.execute(
        select(snapshots).where(snapshots.c.snapshot_id == plan.snapshot_id)
    ).one()


def _writing_session(connection: Connection, plan: CommitPlan) -> Row[Any]:
    found = connection.execute(select(sessions).where(sessions.c.session_id == plan.session_id))
    session = found.one_or_none()
    if (
        session is None
        or session.state != SessionState.OPEN
        or session.fencing_token != plan.fencing_token
    ):
        raise FencedError("this session may not commit any more", hint=_LOST_HINT)
    return session


def _check_head(connection: Connection, plan: CommitPlan, session: Row[Any]) -> None:
    """The agent must have built upon the newest snapshot there, and none may be half committed.

    Where that is not the volume's newest one, since others lie in another repository, what it needs
    cannot be told by what has changed since then: it must name everything.
    """
    of_volume = (
        select(snapshots.c.sequence, snapshots.c.state)
        .where(snapshots.c.volume_id == session.volume_id)
        .order_by(snapshots.c.sequence.desc())
        .limit(1)
    )
    newest = connection.execute(of_volume).one_or_none()
    if newest is not None and newest.state == coding.COMMITTING:
        raise FencedError("an earlier commit of this volume is not settled yet", hint=_LOST_HINT)
    there = of_volume.where(snapshots.c.repository_id == session.repository_id)
    head = connection.execute(there).one_or_none()
    if (0 if head is None else head.sequence) != plan.head_sequence:
        raise FencedError("the volume has a newer snapshot than this one knows", hint=_LOST_HINT)
    if newest is not None and newest.sequence != plan.head_sequence and not plan.base:
        raise RejectedError(
            "the snapshot does not name all that it needs, and the one before it lies in another "
            "repository"
        )


def _check_references(connection: Connection, plan: CommitPlan, session: Row[Any]) -> None:
    """Every frame in use must lie in a live pack of this node, or be the volume's own already."""
    wanted: defaultdict[PackNonce, list[int]] = defaultdict(list)
    for reference in plan.references:
        if reference.live_bytes > 0:
            wanted[reference.pack_nonce].append(reference.frame)
    nonces = list(wanted)
    known: set[PackNonce] = set()
    for start in range(0, len(nonces), _BATCH):
        found = connection.execute(
            select(
                pack_origins.c.pack_nonce,
                pack_origins.c.node_id,
                packs.c.name,
                packs.c.state,
                packs.c.frame_table,
                packs.c.repository_id,
            )
            .join(packs, packs.c.name == pack_origins.c.pack)
            .where(pack_origins.c.pack_nonce.in_(nonces[start : start + _BATCH]))
        )
        for row in found:
            nonce = PackNonce(row.pack_nonce)
            if row.repository_id != session.repository_id:
                raise RejectedError(
                    f"the snapshot needs pack {row.name}, which lies in another repository"
                )
            _check_pack(row, nonce, wanted[nonce])
            if row.node_id != session.node_id:
                _check_held(connection, VolumeId(session.volume_id), nonce, wanted[nonce])
            known.add(nonce)
    if missing := set(nonces) - known:
        raise RejectedError(
            f"the snapshot needs {len(missing)} pack(s) that are not stored",
            hint="back the volume up again; if it repeats, look into the agent's log",
        )


def _check_pack(row: Any, nonce: PackNonce, frames: Sequence[int]) -> None:
    if row.state != PackState.LIVE:
        raise RejectedError(f"the snapshot needs pack {row.name}, which is {row.state}")
    try:
        table = FrameTable.decode(row.frame_table)
    except FormatError as error:
        raise RejectedError(f"the frame table of pack {row.name} does not decode") from error
    if any(table.find(FrameIdentity(nonce, frame)) is None for frame in frames):
        raise RejectedError(f"the snapshot needs frames that pack {row.name} does not hold")


def _check_held(
    connection: Connection, volume_id: VolumeId, nonce: PackNonce, frames: Sequence[int]
) -> None:
    """Another node's frames may be named only by a volume that has held them before."""
    found = connection.scalars(
        select(refs.c.frame).where(refs.c.volume_id == volume_id).where(refs.c.pack_nonce == nonce)
    )
    if not set(frames) <= set(found):
        raise RejectedError("the snapshot names frames of another node that are not its own")


def drop_references(connection: Connection, volume_id: VolumeId, sequence: int) -> None:
    """A base names everything that the snapshot needs: whatever was needed before, ends."""
    connection.execute(
        update(refs)
        .where(refs.c.volume_id == volume_id)
        .where(refs.c.to_seq.is_(None))
        .values(to_seq=sequence)
    )


def settle_references(
    connection: Connection,
    volume_id: VolumeId,
    sequence: int,
    references: Sequence[FrameReference],
) -> None:
    """T2's part: intervals of frames that this sequence changed end, and new ones begin."""
    # One statement for all of them, compiled once.
    ended = (
        update(refs)
        .where(refs.c.volume_id == volume_id)
        .where(refs.c.pack_nonce == bindparam("changed_nonce"))
        .where(refs.c.frame == bindparam("changed_frame"))
        .where(refs.c.to_seq.is_(None))
        .values(to_seq=sequence)
    )
    changed = [
        {"changed_nonce": reference.pack_nonce, "changed_frame": reference.frame}
        for reference in references
    ]
    begun = [
        {
            "volume_id": volume_id,
            "pack_nonce": reference.pack_nonce,
            "frame": reference.frame,
            "from_seq": sequence,
            "live_bytes": reference.live_bytes,
        }
        for reference in references
        if reference.live_bytes > 0
    ]
    if changed:
        connection.execute(ended, changed)
    if begun:
        connection.execute(insert(refs), begun)
