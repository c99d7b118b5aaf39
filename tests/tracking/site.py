"""A node with one volume on a disk: the real tracker with one source, real backups and restores.

Only the coordinator is in memory. A snapshot is held against the volume as a walk of its own sees
it, which knows nothing of the product's.
"""

import asyncio
import os
import shutil
import stat
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from agent.backup import run_backup
from agent.restore import run_restore
from agent.services import (
    BackupOutcome,
    BackupTask,
    Phase,
    RestorePlaces,
    RestoreTask,
    Services,
    Tracking,
    Volume,
)
from agent.state import State
from agent.tracking.fanotify import FanotifySource
from agent.tracking.inotify import InotifySource
from agent.tracking.suspects import SuspectScanner, scan
from agent.tracking.tracker import Tracker
from repository.entries import Entry, EntryType
from repository.snapshot import Detection
from tests.fakes.coordinator import NODE, REPOSITORY, MemoryCoordinator
from tests.fakes.grants import MemoryGrants

SOURCES: Final = ("fanotify", "inotify", "sweep")
FILESYSTEMS: Final = ("ext4", "xfs", "btrfs")
# As agent/tracking/opening.py has it.
_VOUCHED_FOR: Final = frozenset({1})
_SHOWN: Final = 8


class Clock:
    """The machine's, or one that is set otherwise."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def now_ns(self) -> int:
        return time.time_ns() + self.ahead_ns

    def monotonic(self) -> float:
        return time.monotonic()


class Looks(NamedTuple):
    """All that can be said of a name, but where its inode is."""

    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    device: int
    target: bytes | None
    attributes: tuple[tuple[bytes, bytes], ...]
    content: bytes
    first: bytes
    """The first name of those that are one inode."""


class Identity(NamedTuple):
    """What tells a later backup whether a name is unchanged."""

    inode: int
    ctime_ns: int
    links: int


class Site:
    """One volume; what is backed up of it, and what of that comes back."""

    def __init__(
        self,
        base: Path,
        tracking: Tracking,
        workers: ThreadPoolExecutor,
        state: State,
        clock: Clock,
    ) -> None:
        self.volume = base / "volume"
        self.outside = base / "outside"
        self.restores = base / "restores"
        self.tracking = tracking
        self.clock = clock
        self.coordinator = MemoryCoordinator()
        self.ways: Counter[Detection] = Counter()
        self.volume_id = os.urandom(16)
        self._services = Services(
            node_id=NODE,
            signing_key=self.coordinator.node,
            state=state,
            coordinator=self.coordinator,
            workers=workers,
            clock=clock,
            tracking=tracking,
            progress=lambda _: None,
            log=lambda *_: None,
        )

    def try_backup(self) -> BackupOutcome:
        """One more backup, whatever becomes of it."""
        volume = Volume(self.volume_id, "volume", os.fsencode(self.volume))
        public = self.coordinator.recovery.public
        task = BackupTask("task", "job", volume, REPOSITORY, public)
        return asyncio.run(run_backup(task, self._services))

    def backup(self) -> BackupOutcome:
        """One more backup, which is committed."""
        outcome = self.try_backup()
        assert outcome.error is None, outcome.error
        self.ways[self.detection] += 1
        return outcome

    @property
    def detection(self) -> Detection:
        """How the last snapshot's changes were found."""
        return self.coordinator.body().detection

    # What is in a snapshot.

    def tree(self) -> dict[bytes, tuple[Entry, bytes]]:
        """Entries and contents of the last one."""
        return asyncio.run(self.coordinator.tree())

    def check(self) -> None:
        """The last snapshot is the volume as it is now, and whole. The volume must be quiet."""
        found = self.tree()
        attributes = asyncio.run(self.coordinator.attributes())
        assert not {key: entry.flags for key, (entry, _) in found.items() if entry.flags}
        first = _firsts(
            (key, None if entry.links < 2 else (entry.inode, entry.generation))
            for key, (entry, _) in sorted(found.items())
        )
        told = {
            key: _looks_of(entry, content, attributes.get(key, []), first[key])
            for key, (entry, content) in found.items()
        }
        _compare(looks(self.volume), told)
        identities = {key: _identity_of(entry) for key, (entry, _) in found.items()}
        _compare(_identities(self.volume, identities), identities)
        assert self.coordinator.live == self.coordinator.used()

    def check_restore(self) -> None:
        """What comes back of the last snapshot is the volume as it is now."""
        target = self.restores / "target"
        task = RestoreTask("task", "job", "snapshot", os.fsencode(target), (), in_place=False)
        places = RestorePlaces([os.fsencode(self.restores)], lambda _: None)
        grants = MemoryGrants(self.coordinator)
        outcome = asyncio.run(run_restore(task, self._services, grants, places))
        assert outcome.error is None, outcome.error
        assert outcome.phase is Phase.COMPLETED
        _compare(looks(self.volume), looks(target))
        shutil.rmtree(target)


@contextmanager
def site(tracking: Tracking, disk: Path, state: Path, clock: Clock | None = None) -> Iterator[Site]:
    """A new volume, of which nothing is left afterwards."""
    base = disk / os.urandom(8).hex()
    for name in ("volume", "outside", "restores"):
        (base / name).mkdir(parents=True)
    database = state / f"{base.name}.db"
    try:
        with State(database) as opened, ThreadPoolExecutor(2) as workers:
            yield Site(base, tracking, workers, opened, clock or Clock())
    finally:
        shutil.rmtree(base)
        for path in state.glob(f"{database.name}*"):
            path.unlink()


def track(source: str, state: Path, clock: Clock) -> Tracker:
    """A tracker that has that source alone, or none for sweeps; `state` is the agent's own."""
    state.mkdir(exist_ok=True)
    kinds = {"fanotify": FanotifySource, "inotify": InotifySource}
    sources = [lambda: kinds[source](state)] if source in kinds else []
    look = partial(scan, vouched_for=_VOUCHED_FOR, now_ns=clock.now_ns)
    return Tracker(sources, SuspectScanner(look))


# What a tree looks like.


def looks(root: Path) -> dict[bytes, Looks]:
    """Everything beneath a directory by key, and the directory itself."""
    found = {key: os.lstat(path) for key, path in _walk(root)}
    first = _firsts(
        (key, None if stat.S_ISDIR(each.st_mode) or each.st_nlink < 2 else (each.st_ino, 0))
        for key, each in sorted(found.items())
    )
    return {key: _look_at(path, found[key], first[key]) for key, path in _walk(root)}


def _walk(root: Path) -> Iterator[tuple[bytes, bytes]]:
    """Each key with its path."""
    top = os.fsencode(root)
    yield b"", top
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(directory, name)
            yield path[len(top) + 1 :].replace(b"/", b"\0"), path


def _firsts(names: Iterator[tuple[bytes, tuple[int, int] | None]]) -> dict[bytes, bytes]:
    """For each key the first one that is the same inode."""
    groups: dict[tuple[int, int], bytes] = {}
    return {key: key if inode is None else groups.setdefault(inode, key) for key, inode in names}


def _look_at(path: bytes, found: os.stat_result, first: bytes) -> Looks:
    kind = stat.S_IFMT(found.st_mode)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return Looks(
        mode=found.st_mode,
        owner=(found.st_uid, found.st_gid),
        mtime_ns=found.st_mtime_ns,
        device=found.st_rdev,
        target=os.readlink(path) if kind == stat.S_IFLNK else None,
        attributes=tuple(
            (os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names
        ),
        content=Path(os.fsdecode(path)).read_bytes() if kind == stat.S_IFREG else b"",
        first=first,
    )


_FORMATS: Final = {
    EntryType.FILE: stat.S_IFREG,
    EntryType.DIRECTORY: stat.S_IFDIR,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.FIFO: stat.S_IFIFO,
    EntryType.CHARACTER_DEVICE: stat.S_IFCHR,
}


def _looks_of(
    entry: Entry, content: bytes, attributes: list[tuple[bytes, bytes]], first: bytes
) -> Looks:
    return Looks(
        mode=_FORMATS[entry.type] | entry.mode,
        owner=(entry.uid, entry.gid),
        mtime_ns=entry.mtime_ns,
        device=entry.device,
        target=entry.target,
        attributes=tuple(sorted(attributes)),
        content=content,
        first=first,
    )


def _identity_of(entry: Entry) -> Identity:
    links = 1 if entry.type is EntryType.DIRECTORY else entry.links
    return Identity(entry.inode, entry.ctime_ns, links)


def _identities(root: Path, told: dict[bytes, Identity]) -> dict[bytes, Identity]:
    """What is there; where no time of change is told the next backup looks anyhow."""
    found = {}
    for key, path in _walk(root):
        now = os.lstat(path)
        ctime_ns = now.st_ctime_ns if key in told and told[key].ctime_ns else 0
        links = 1 if stat.S_ISDIR(now.st_mode) else now.st_nlink
        found[key] = Identity(now.st_ino, ctime_ns, links)
    return found


_Said = TypeVar("_Said", Looks, Identity)


def _compare(expected: dict[bytes, _Said], found: dict[bytes, _Said]) -> None:
    """Fail with the first few differences, or none of hundreds could be read."""
    differing = [
        f"{key!r}: {_difference(expected.get(key), found.get(key))}"
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key)
    ]
    assert not differing, f"{len(differing)} differ:\n" + "\n".join(differing[:_SHOWN])


def _difference(expected: Looks | Identity | None, found: Looks | Identity | None) -> str:
    if expected is None or found is None:
        return "is not in the volume" if expected is None else "is not in the snapshot"
    return "; ".join(
        f"{field} is {_short(one)}, not {_short(other)}"
        for field, one, other in zip(expected._fields, found, expected, strict=True)
        if one != other
    )


def _short(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes {value[:20]!r} of {zlib.crc32(value):08x}"
    return repr(value)
