"""Until when objects are locked, in SQL."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from sqlalchemy import func, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Connection
from typing_extensions import override

from coordinator.catalog.connections import Connections, reading, writing
from coordinator.catalog.interface import Locks
from coordinator.catalog.tables import locked_objects, pack_origins, packs, refs
from coordinator.locking import UNLOCKED, Held
from coordinator.model import FrameReference
from repository.ids import PackNonce, RepositoryId, VolumeId

_BATCH: Final = 500

_ORIGINS = select(pack_origins.c.pack_nonce, packs.c.name, packs.c.locked_until).join(
    packs, packs.c.name == pack_origins.c.pack
)


class SqlLocks(Locks):
    """Locks on SQLite."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections

    @override
    @reading
    def lapsing_packs(
        self,
        connection: Connection,
        volume_id: VolumeId,
        references: Sequence[FrameReference],
        *,
        base: bool,
        before: int,
    ) -> list[Held]:
        added = {each.pack_nonce for each in references if each.live_bytes > 0}
        found = dict(_lapsing(connection, added, before))
        if not base:
            found.update(_still_needed(connection, volume_id, references, before))
        return [Held(name, until) for name, until in sorted(found.items())]

    @override
    @writing
    def packs_locked(self, connection: Connection, names: Iterable[str], until: int) -> None:
        for batch in _batches(names):
            connection.execute(
                update(packs)
                .where(packs.c.name.in_(batch))
                .where(packs.c.locked_until < until)
                .values(locked_until=until)
            )

    @override
    @reading
    def objects(
        self, connection: Connection, repository_id: RepositoryId, names: Iterable[str]
    ) -> list[Held]:
        listed = list(names)
        known: dict[str, int] = {}
        ours = select(locked_objects).where(locked_objects.c.repository_id == repository_id)
        for batch in _batches(listed):
            query = ours.where(locked_objects.c.name.in_(batch))
            known.update((row.name, row.locked_until) for row in connection.execute(query))
        return [Held(name, known.get(name, UNLOCKED)) for name in listed]

    @override
    @writing
    def objects_locked(
        self,
        connection: Connection,
        repository_id: RepositoryId,
        names: Iterable[str],
        until: int,
    ) -> None:
        rows = [
            {"repository_id": repository_id, "name": name, "locked_until": until} for name in names
        ]
        if rows:
            added = insert(locked_objects)
            later = func.max(locked_objects.c.locked_until, added.excluded.locked_until)
            connection.execute(
                added.on_conflict_do_update(
                    index_elements=[locked_objects.c.repository_id, locked_objects.c.name],
                    set_={"locked_until": later},
                ),
                rows,
            )


def _lapsing(
    connection: Connection, nonces: Iterable[PackNonce], before: int
) -> Iterator[tuple[str, int]]:
    """Of the packs of these origins."""
    query = _ORIGINS.where(packs.c.locked_until < before)
    for batch in _batches(nonces):
        found = connection.execute(query.where(pack_origins.c.pack_nonce.in_(batch)))
        for row in found:
            yield row.name, row.locked_until


def _still_needed(
    connection: Connection,
    volume_id: VolumeId,
    references: Sequence[FrameReference],
    before: int,
) -> Iterator[tuple[str, int]]:
    """Of the packs with a frame that the volume has needed so far, and that is not dropped."""
    dropped: defaultdict[PackNonce, set[int]] = defaultdict(set)
    for reference in references:
        if not reference.live_bytes:
            dropped[reference.pack_nonce].add(reference.frame)
    needed = (refs.c.volume_id == volume_id) & refs.c.to_seq.is_(None)
    # From the few packs whose locks end soon to their frames: a volume may have a million frames.
    has_frames = (
        select(1).where(needed).where(refs.c.pack_nonce == pack_origins.c.pack_nonce).exists()
    )
    query = _ORIGINS.where(packs.c.locked_until < before).where(has_frames)
    for row in connection.execute(query).all():
        nonce = PackNonce(row.pack_nonce)
        if gone := dropped.get(nonce):
            frames = connection.scalars(
                select(refs.c.frame).where(needed).where(refs.c.pack_nonce == nonce)
            )
            if set(frames) <= gone:
                continue
        yield row.name, row.locked_until


def _batches(keys: Iterable[Any]) -> Iterator[list[Any]]:
    """Keys in lists that fit into one statement."""
    rest = iter(keys)
    while batch := list(islice(rest, _BATCH)):
        yield batch
