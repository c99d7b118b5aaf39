"""What a catalog holds of packs and references, and the same as told by a store and a kit."""

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from repository.layout import parse_pack_name
from repository.pack import FrameTable
from repository.rebuilding import Rebuilder, StoredPack, StoredVolume, Unreadable


@dataclass
class Held:
    """Plain rows, to compare. The catalog keeps a pack's whole hash, its name the first half."""

    packs: dict[str, tuple[str, int, bytes, FrameTable]] = field(default_factory=dict)
    origins: dict[bytes, tuple[str, bytes, bytes, bytes]] = field(default_factory=dict)
    refs: set[tuple[bytes, bytes, int, int, int | None, int]] = field(default_factory=set)
    snapshots: dict[tuple[bytes, int], tuple[str, bytes]] = field(default_factory=dict)
    last_sequences: dict[bytes, int] = field(default_factory=dict)


def held_by_catalog(path: Path) -> Held:
    """Of a catalog that nobody has open."""
    held = Held()
    with sqlite3.connect(path) as connection:
        for name, *rest, table in connection.execute(
            "SELECT name, kind, size_bytes, blake3, frame_table FROM packs"
        ):
            kind, size, whole = rest
            held.packs[name] = (kind, size, whole[:16], FrameTable.decode(table))
        for nonce, *origin in connection.execute(
            "SELECT pack_nonce, pack, session_id, node_id, sealed_data_key FROM pack_origins"
        ):
            pack, session, node, sealed = origin
            held.origins[nonce] = (pack, session, node, sealed)
        held.refs = set(
            connection.execute(
                "SELECT volume_id, pack_nonce, frame, from_seq, to_seq, live_bytes FROM refs"
            )
        )
        for volume, sequence, snapshot, root in connection.execute(
            "SELECT volume_id, sequence, snapshot_id, root_object FROM snapshots"
        ):
            held.snapshots[volume, sequence] = (snapshot, root)
        held.last_sequences = dict(
            connection.execute(
                "SELECT volume_id, last_sequence FROM volumes WHERE last_sequence > 0"
            )
        )
    connection.close()
    return held


async def held_by_store(rebuilder: Rebuilder) -> tuple[Held, list[Unreadable]]:
    """All that is told, and what is unreadable."""
    held = Held()
    unreadable = list(rebuilder.unreadable)
    async for pack in rebuilder.packs():
        if isinstance(pack, Unreadable):
            unreadable.append(pack)
        else:
            _add_pack(held, pack)
    async for volume in rebuilder.volumes():
        if isinstance(volume, Unreadable):
            unreadable.append(volume)
        else:
            _add_volume(held, volume)
    return held, unreadable


def _add_pack(held: Held, pack: StoredPack) -> None:
    _, digest = parse_pack_name(pack.name)
    held.packs[pack.name] = (pack.kind.name.lower(), pack.size, digest, pack.index.table())
    for origin in pack.index.origins:
        row = (pack.name, origin.session, origin.node, origin.sealed_data_key)
        held.origins[origin.nonce] = row


def _add_volume(held: Held, volume: StoredVolume) -> None:
    held.last_sequences[volume.volume] = volume.last_sequence
    for sequence, stored in volume.snapshots.items():
        row = (stored.root.id.hex(), stored.encoded)
        held.snapshots[volume.volume, sequence] = row
    for each in volume.log.intervals():
        nonce, frame = each.identity
        held.refs.add((volume.volume, nonce, frame, each.begin, each.end, each.live_bytes))
