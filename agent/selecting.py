"""Which entries of a snapshot a restore is of: all, or those at and beneath some paths."""

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from msgspec import structs

from repository.entries import ROOT_KEY, SEPARATOR, Entry, Pointer, key_of, path_of
from repository.errors import UsageError
from repository.reader import SnapshotReader


@dataclass(frozen=True)
class Selection:
    """The keys asked for, none inside another; none at all stands for everything."""

    keys: Sequence[bytes] = ()
    above: frozenset[bytes] = frozenset()
    """Keys of directories that only lead to them."""

    def __bool__(self) -> bool:
        """Whether it is less than everything."""
        return bool(self.keys)


async def select(
    reader: SnapshotReader, manifest: Pointer | None, paths: Sequence[bytes]
) -> Selection:
    """What these paths name; nothing named is everything. UsageError for one that is not there."""
    keys = sorted({key_of(_plain(path)) for path in paths})
    for key in keys:
        if key and (manifest is None or await reader.entry(manifest, path_of(key)) is None):
            raise UsageError(
                f"the snapshot has no {os.fsdecode(path_of(key))}",
                hint="see what it has with `tidemark snapshot ls`",
            )
    if ROOT_KEY in keys:
        return Selection()
    outer: list[bytes] = []
    for key in keys:
        if not outer or not key.startswith(outer[-1] + SEPARATOR):
            outer.append(key)
    above = {above for key in outer for above in _ancestors(key)}
    return Selection(outer, frozenset(above | {ROOT_KEY}) if outer else frozenset())


async def selected_entries(
    reader: SnapshotReader, manifest: Pointer, selection: Selection
) -> AsyncIterator[list[tuple[bytes, Entry]]]:
    """Everything in order of keys, or what was selected with the directories that lead there.

    Long attributes stand in their entries.
    """
    async for batch in _selected(reader, manifest, selection):
        for number, (key, entry) in enumerate(batch):
            if entry.long_xattrs is not None:
                batch[number] = (key, await with_attributes(reader, entry))
        yield batch


async def with_attributes(reader: SnapshotReader, entry: Entry) -> Entry:
    """The entry with its attributes in it, however long."""
    if entry.long_xattrs is None:
        return entry
    return structs.replace(entry, xattrs=await reader.attributes(entry), long_xattrs=None)


async def _selected(
    reader: SnapshotReader, manifest: Pointer, selection: Selection
) -> AsyncIterator[list[tuple[bytes, Entry]]]:
    if not selection:
        async for batch in reader.entries(manifest):
            yield batch
        return
    made: set[bytes] = set()
    for key in selection.keys:
        for above in _ancestors(key):
            if above not in made:
                made.add(above)
                entry = await reader.entry(manifest, path_of(above))
                if entry is not None:
                    yield [(above, entry)]
        async for batch in reader.entries(manifest, path_of(key)):
            yield batch


def _plain(path: bytes) -> bytes:
    parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
    if b".." in parts or b"\0" in path:
        raise UsageError(f"{os.fsdecode(path)!r} is not a path within a snapshot")
    return b"/".join(parts)


def _ancestors(key: bytes) -> list[bytes]:
    parts = key.split(SEPARATOR)
    return [SEPARATOR.join(parts[:depth]) for depth in range(1, len(parts))]
