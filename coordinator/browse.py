"""Looking into snapshots: list, find, print, compare. Reads; changes nothing.

Everything needs custody, since manifests are sealed as contents are.
"""

import fnmatch
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from coordinator.catalog import Catalog
from coordinator.custody import Custody
from coordinator.errors import LockedError, NotFoundError, UsageError
from coordinator.model import Snapshot, SnapshotHex
from coordinator.reading import Workers, snapshot_reader
from coordinator.repositories import Repositories
from repository.entries import (
    SEPARATOR,
    Entry,
    EntryType,
    Pointer,
    key_of,
    path_of,
)
from repository.needs import drive_async
from repository.reader import SnapshotReader
from repository.snapshot import peek_signed_root
from repository.walking import diff


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry and its path."""

    path: bytes
    entry: Entry


class ChangeKind(StrEnum):
    """How a path differs between two snapshots."""

    ADDED = "added"
    REMOVED = "removed"
    MODIFIED = "modified"


@dataclass(frozen=True, slots=True)
class Change:
    """A path that differs."""

    path: bytes
    kind: ChangeKind


class Browser:
    """Reads manifests and contents for people."""

    def __init__(
        self, catalog: Catalog, repositories: Repositories, custody: Custody, workers: Workers
    ) -> None:
        self._catalog = catalog
        self._repositories = repositories
        self._custody = custody
        self._workers = workers

    def _reader(self, snapshot: Snapshot) -> SnapshotReader:
        if not self._custody.unlocked:
            raise LockedError(
                "custody of the recovery secret is locked, and reading a snapshot needs it",
                hint="start the coordinator with the right --passphrase-file",
            )
        repository = self._repositories.of(snapshot.repository_id).repository
        # People wait for what is read here, and are told soon that the store is away.
        return snapshot_reader(
            self._catalog,
            repository,
            self._custody,
            self._workers,
            repository.place.impatient,
        )

    async def entries(
        self, snapshot: Snapshot, path: bytes, *, recursive: bool
    ) -> AsyncIterator[list[Listed]]:
        """A directory's entries (or all beneath it), or the one entry of another path."""
        reader = self._reader(snapshot)
        manifest = manifest_of(snapshot)
        top = key_of(path)
        found = None if manifest is None else await reader.entry(manifest, path)
        if manifest is None or found is None:
            if top:
                raise _no_path(snapshot, path)
            return
        if found.type is not EntryType.DIRECTORY:
            yield [Listed(path_of(top), found)]
            return
        depth = _depth(top) + 1
        async for batch in reader.entries(manifest, path):
            listed = [
                Listed(path_of(key), entry)
                for key, entry in batch
                if key != top and (recursive or _depth(key) == depth)
            ]
            if listed:
                yield listed

    async def find(
        self, snapshots: Iterable[Snapshot], patterns: Sequence[str]
    ) -> AsyncIterator[tuple[SnapshotHex, list[Listed]]]:
        """Entries that match any of the shell patterns."""
        matches = _matcher(patterns)
        for snapshot in snapshots:
            manifest = manifest_of(snapshot)
            if manifest is None:
                continue
            reader = self._reader(snapshot)
            async for batch in reader.entries(manifest):
                found = [
                    Listed(path, entry)
                    for key, entry in batch
                    if key and matches(path := path_of(key))
                ]
                if found:
                    yield snapshot.snapshot_id, found

    async def content(self, snapshot: Snapshot, path: bytes) -> AsyncIterator[bytes]:
        """A file's bytes."""
        reader = self._reader(snapshot)
        manifest = manifest_of(snapshot)
        entry = None if manifest is None else await reader.entry(manifest, path)
        if entry is None:
            raise _no_path(snapshot, path)
        if entry.type is not EntryType.FILE:
            raise UsageError(
                f"{_shown(path)} is a {entry.type.name.lower().replace('_', ' ')}, not a file",
                hint="see tidemark snapshot ls",
            )
        async for piece in reader.content(entry):
            yield bytes(piece)

    async def differences(self, before: Snapshot, after: Snapshot) -> AsyncIterator[list[Change]]:
        """What differs from one snapshot to the other; UsageError where they lie apart."""
        if before.repository_id != after.repository_id:
            raise UsageError(
                "the two snapshots lie in different repositories, and contents have other ids in "
                "each",
                hint="compare snapshots of one repository; tidemark snapshot list -o json names it",
            )
        reader = self._reader(after)
        reading = diff(manifest_of(before), manifest_of(after))
        async for batch in drive_async(reading, reader.nodes):
            changes = []
            for key, old, new in batch:
                if not key:
                    continue
                if old is None:
                    changes.append(Change(path_of(key), ChangeKind.ADDED))
                elif new is None:
                    changes.append(Change(path_of(key), ChangeKind.REMOVED))
                elif _visible(old) != _visible(new):
                    changes.append(Change(path_of(key), ChangeKind.MODIFIED))
            if changes:
                yield changes


def manifest_of(snapshot: Snapshot) -> Pointer | None:
    """Where a snapshot's manifest begins; None for a volume that was empty of everything."""
    return peek_signed_root(snapshot.signed_root).manifest


def _visible(entry: Entry) -> tuple[object, ...]:
    """What a restore would bring back: not where it lay, nor how often it was linked."""
    content = None
    if entry.content is not None:
        extents = [(extent.id, extent.skip, extent.length) for extent in entry.content.extents]
        content = (extents, None if entry.content.list is None else entry.content.list.id)
    long_xattrs = None if entry.long_xattrs is None else entry.long_xattrs.id
    directory = entry.type is EntryType.DIRECTORY
    return (
        entry.type,
        entry.mode,
        entry.uid,
        entry.gid,
        # A directory's time and size change with what is in it, which is listed by itself.
        None if directory else entry.mtime_ns,
        None if directory else entry.size,
        entry.device,
        entry.target,
        entry.xattrs,
        long_xattrs,
        content,
    )


def _matcher(patterns: Sequence[str]) -> Callable[[bytes], bool]:
    if not patterns:
        raise UsageError("nothing to find", hint="give a pattern such as '*.conf'")
    compiled = [
        (
            re.compile(fnmatch.translate(pattern).encode("utf-8", "surrogateescape"), re.DOTALL),
            "/" in pattern,
        )
        for pattern in patterns
    ]

    def matches(path: bytes) -> bool:
        name = path.rpartition(b"/")[2]
        return any(regex.match(path if whole else name) for regex, whole in compiled)

    return matches


def _depth(key: bytes) -> int:
    return key.count(SEPARATOR) + 1 if key else 0


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _no_path(snapshot: Snapshot, path: bytes) -> NotFoundError:
    return NotFoundError(
        f"snapshot {snapshot.snapshot_id[:8]} has no {_shown(path)}",
        hint="see tidemark snapshot ls",
    )
