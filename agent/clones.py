"""Clones of large files: each is read in the place of its file, and kept until the next one.

    made ──► read ──► its entry is stored ──► committed: kept ──► compared with the next, replaced
      │        └──────────┴── the backup failed: removed            │
      └── no room, or no such filesystem: the file is read itself   └── lost, touched, or of another
                                                                        content than the entry's

A kept clone vouches for one content: what the entry had that was stored from it, named by its hash.
So whatever became of backups meanwhile, it is of use only where the last manifest has that very
content; there the shared blocks of it and of a fresh clone need no reading. Nobody writes to a
clone; one that is not as it was made is not trusted. Clones lie in directories of the agent's own,
outside every volume, and nothing there is open between backups. Whatever fails here costs a read of
the whole file, and never a backup.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agent.beneath import Tree
from agent.extents import Range, disk_extents, joined, may_differ
from agent.reading import LargeFile
from agent.room import Room, has_room
from agent.state import Clone, State
from agent.syscalls import can_clone, clone_file, filesystem_of
from repository.entries import ChunkClass, Content, Entry

# A smaller file is read in the time that its clone takes to be made, compared and removed.
BYTES_MIN: Final = 64 * 1024 * 1024
# In every directory that is given: nothing beside it is ever touched.
DIRECTORY: Final = "tidemark-clones"
_NAME: Final = re.compile(rb"[0-9a-f]+-[0-9]+-[0-9a-f]{16}")
_RANDOM_BYTES: Final = 8
# A file that is written to all the time has a clone of one moment nonetheless; only its times prove
# nothing then. Each try may write out what is dirty, and a few find a gap if there are any.
_TRIES: Final = 3
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
# On another filesystem, or on one made without: nothing is the matter.
_ELSEWHERE: Final = frozenset({errno.EXDEV, errno.EOPNOTSUPP})
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_encode = msgspec.msgpack.Encoder().encode


class Cloned(msgspec.Struct):
    """A fresh clone of a file, open for reading it."""

    key: bytes
    path: bytes
    descriptor: int
    inode: int
    size: int
    is_stable: bool
    """Whether the file was the same when the clone had been made."""
    cutting: bytes
    """What decides where its content is cut."""
    changed: list[Range] | None
    """Where it may differ from the content that its entry has; None means everywhere."""

    def close(self) -> None:
        """Close it; what has been made stays."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def content_hash(content: Content, cutting: bytes) -> bytes:
    """What names a content: equal ones hold the same bytes, since they name chunks by their ids.

    And they are cut alike: of what was cut by other rules, nothing of use is left.
    """
    return hashlib.blake2b(_encode((content, cutting)), digest_size=32).digest()


class Clones:
    """All clones of this agent. Used from any thread; all methods block."""

    def __init__(
        self,
        state: State,
        directories: Sequence[Path],
        volumes: Callable[[], Iterable[bytes]] = tuple,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`directories`: at most one of a filesystem is of use. `volumes`: their paths, just now.

        Removes clones that the state does not vouch for, and forgets those that are not there.
        """
        self._state = state
        self._places = [os.fsencode(each / DIRECTORY) for each in directories]
        self._volumes = volumes
        self.warn = warn
        self._remove_strangers()

    def of_volume(self, local_id: bytes, tree: Tree) -> "VolumeClones":
        """The clones of one volume, for one backup, whose root is open.

        Removes those whose files are gone, and all that there is no room for any more.
        """
        kept = [each for each in self._state.clones() if each.local_id == local_id]
        self.drop(each for each in kept if not _is_there(tree, each))
        for place in {os.path.dirname(each.path) for each in self._state.clones()}:
            self.relieve(place)
        return VolumeClones(self, local_id)

    def keep_only(self, local_ids: Iterable[bytes]) -> None:
        """Remove the clones of all volumes but these."""
        kept = set(local_ids)
        self.drop(each for each in self._state.clones() if each.local_id not in kept)

    def places(self) -> Iterator[bytes]:
        """Directories where clones may be made: those that lie in no volume."""
        volumes = [os.path.realpath(each).rstrip(b"/") + b"/" for each in self._volumes()]
        for place in self._places:
            real = os.path.realpath(place)
            if not any(real.startswith(volume) for volume in volumes):
                yield place

    def relieve(self, place: bytes) -> bool:
        """Tell whether there is room for clones in a directory; remove all of them if not."""
        here = self._in(place)
        if _has_room(place, (each.changed for each in here)):
            return True
        if here:
            self.warn(f"too little room for clones in {os.fsdecode(place)}")
        self.drop(here)
        return False

    def with_room(self, clones: Iterable[Clone]) -> list[Clone]:
        """Those of the clones that there is room for beside the others."""
        roomy: list[Clone] = []
        places: dict[bytes, dict[tuple[bytes, bytes], int]] = {}
        for clone in clones:
            place = os.path.dirname(clone.path)
            if place not in places:
                places[place] = {each.name: each.changed for each in self._in(place)}
            beside = {**places[place], clone.name: clone.changed}
            if _has_room(place, beside.values()):
                places[place] = beside
                roomy.append(clone)
        return roomy

    def find(self, local_id: bytes, key: bytes) -> Clone | None:
        """The clone that is kept of a file."""
        return next((c for c in self._state.clones() if c.name == (local_id, key)), None)

    def drop(self, clones: Iterable[Clone]) -> None:
        """Forget clones and remove them."""
        self.replace((), clones)

    def replace(self, kept: Sequence[Clone], dropped: Iterable[Clone]) -> None:
        """Keep clones in the place of others, which are removed."""
        gone = list(dropped)
        if kept or gone:
            self._state.change_clones(kept, [each.name for each in gone]).result()
        for each in gone:
            self.remove(each.path)

    def expect_less(self, local_id: bytes) -> None:
        """Take a volume's clones for ones that change less, as a backup does that went past them.

        A file's first clone is thought to cost as much as the file is long: many that never change
        would leave no room for those that do.
        """
        self._state.halve_changes(local_id).result()

    def remove(self, path: bytes) -> None:
        """Remove a clone from the disk, if it is there. If that fails, the next start tries it."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            self.warn(f"cannot remove {os.fsdecode(path)}: {error.strerror}")

    def _in(self, place: bytes) -> list[Clone]:
        return [each for each in self._state.clones() if os.path.dirname(each.path) == place]

    def _remove_strangers(self) -> None:
        known = {each.path: each for each in self._state.clones()}
        self.drop(each for each in known.values() if not os.path.lexists(each.path))
        for place in self._places:
            try:
                names = os.listdir(place)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.warn(f"cannot list {os.fsdecode(place)}: {error.strerror}")
                continue
            for path in (os.path.join(place, name) for name in names):
                if path not in known and _NAME.fullmatch(os.path.basename(path)):
                    self.remove(path)


class VolumeClones:
    """The clones of one volume during one backup. For one thread after the other."""

    def __init__(self, clones: Clones, local_id: bytes) -> None:
        self._clones = clones
        self._local_id = local_id
        self._fresh: dict[bytes, Cloned] = {}
        self._kept: dict[bytes, Clone] = {}
        self._paged: set[bytes] = set()
        """Keys of those that are databases and the like."""

    def clone(
        self, file: LargeFile, key: bytes, old: Entry | None, cutting: bytes
    ) -> Cloned | None:
        """Have a file be read from a fresh clone; None where there can be none.

        `old`: the entry that the last manifest has of it. `cutting`: what decides where contents
        are cut. The pass over the file has begun then.
        Raises VanishedError or SourceError as its reading does.
        """
        self._discard(key)
        for place in self._clones.places() if can_clone(file.descriptor) else ():
            cloned = self._made(place, file, key, cutting)
            if cloned is not None:
                cloned.changed = self._changed(cloned, old)
                file.read_clone(cloned.descriptor)
                return cloned
        self._drop(key)
        return None

    def _made(self, place: bytes, file: LargeFile, key: bytes, cutting: bytes) -> Cloned | None:
        name = f"{self._local_id.hex()}-{file.stat.st_ino}-{secrets.token_hex(_RANDOM_BYTES)}"
        path = os.path.join(place, name.encode())
        try:
            with _opened(place) as directory:
                is_akin = filesystem_of(directory).magic == filesystem_of(file.descriptor).magic
                if not is_akin or not self._clones.relieve(place):
                    return None
                descriptor = os.open(name, _NEW, 0o400, dir_fd=directory)
        except OSError as error:
            self._clones.warn(f"no clones in {os.fsdecode(place)}: {error.strerror}")
            return None
        cloned = Cloned(
            key,
            path,
            descriptor,
            file.stat.st_ino,
            size=0,
            is_stable=False,
            cutting=cutting,
            changed=None,
        )
        self._fresh[key] = cloned
        try:
            _fill(cloned, file)
        except OSError as error:
            if error.errno not in _ELSEWHERE:
                self._clones.warn(f"no clone in {os.fsdecode(place)}: {error.strerror}")
            self._discard(key)
            return None
        return cloned

    def _changed(self, cloned: Cloned, old: Entry | None) -> list[Range] | None:
        """Where a fresh clone may differ from what the old entry has; None if nothing tells."""
        kept = self._clones.find(self._local_id, cloned.key)
        if kept is None or old is None or old.content is None:
            return None
        same = (content_hash(old.content, cloned.cutting), old.size, cloned.inode)
        if (kept.content, kept.size, kept.inode) != same:
            return None
        with contextlib.suppress(OSError):
            return _compared(kept, cloned)
        return None

    def keep(self, cloned: Cloned, content: Content, changed_bytes: int) -> None:
        """Keep a clone once the backup is committed: it holds this content.

        `changed_bytes`: by how much that differs from what was there before.
        """
        try:
            # What the state vouches for must be on the disk first.
            os.fsync(cloned.descriptor)
            own = os.fstat(cloned.descriptor)
        except OSError as error:
            self._clones.warn(f"cannot keep {os.fsdecode(cloned.path)}: {error.strerror}")
            return
        finally:
            cloned.close()
        if content.chunking is ChunkClass.PAGED:
            self._paged.add(cloned.key)
        self._kept[cloned.key] = Clone(
            local_id=self._local_id,
            key=cloned.key,
            path=cloned.path,
            inode=cloned.inode,
            content=content_hash(content, cloned.cutting),
            size=own.st_size,
            own=own.st_ino,
            own_time_ns=own.st_ctime_ns,
            changed=changed_bytes,
        )

    def committed(self) -> None:
        """Keep what was read in this backup in the place of what was kept before."""
        before = [self._clones.find(self._local_id, key) for key in self._fresh]
        # What did not change will cost less than was thought; what did is replaced, and told anew.
        self._clones.expect_less(self._local_id)
        # Databases first: they change at every backup, and of few others is that known.
        kept = self._clones.with_room(
            sorted(self._kept.values(), key=lambda each: each.key not in self._paged)
        )
        self._clones.replace(kept, (each for each in before if each is not None))
        for each in kept:
            del self._fresh[each.key]
        self._kept.clear()
        self._paged.clear()
        self.close()

    def close(self) -> None:
        """Remove what was made and is not kept."""
        for key in list(self._fresh):
            self._discard(key)

    def _drop(self, key: bytes) -> None:
        """Remove what is kept of a file that has outgrown it."""
        kept = self._clones.find(self._local_id, key)
        self._clones.drop(() if kept is None else (kept,))

    def _discard(self, key: bytes) -> None:
        """Remove what was made of a file in this backup."""
        self._kept.pop(key, None)
        cloned = self._fresh.pop(key, None)
        if cloned is not None:
            cloned.close()
            self._clones.remove(cloned.path)


def _fill(cloned: Cloned, file: LargeFile) -> None:
    """Clone the file, best at a moment when it is quiet. OSError where that cannot be done."""
    for _ in range(_TRIES):
        file.begin()
        os.ftruncate(cloned.descriptor, 0)
        clone_file(file.descriptor, cloned.descriptor)
        cloned.is_stable = file.is_unchanged()
        if cloned.is_stable:
            break
    cloned.size = os.fstat(cloned.descriptor).st_size


def _compared(kept: Clone, cloned: Cloned) -> list[Range] | None:
    """Where two clones may differ; None where the kept one is not what was made. OSError."""
    descriptor = os.open(kept.path, _OLD)
    try:
        # Whoever moves blocks meanwhile, to balance a disk, moves them in both lists of this one.
        before, fresh = disk_extents(descriptor), disk_extents(cloned.descriptor)
        again = disk_extents(descriptor)
        own, device = os.fstat(descriptor), os.fstat(cloned.descriptor).st_dev
    finally:
        os.close(descriptor)
    found = (own.st_ino, own.st_ctime_ns, own.st_size, own.st_dev)
    if found != (kept.own, kept.own_time_ns, kept.size, device) or not stat.S_ISREG(own.st_mode):
        return None
    ranges = [*may_differ(before, fresh, cloned.size), *may_differ(again, fresh, cloned.size)]
    return list(joined(ranges))


@contextlib.contextmanager
def _opened(place: bytes) -> Iterator[int]:
    """Open a directory, made if it is not there, that nobody else writes to. OSError."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(place, 0o700)
    descriptor = os.open(place, _DIRECTORY_FLAGS)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & _WRITABLE_BY_OTHERS:
            raise PermissionError(errno.EPERM, "others may write to it")
        yield descriptor
    finally:
        os.close(descriptor)


def _is_there(tree: Tree, clone: Clone) -> bool:
    """Whether the file of a clone still has its name, and is still large."""
    try:
        with tree.held(clone.key) as held:
            found = os.fstat(held)
    except OSError:
        return False
    is_it = stat.S_ISREG(found.st_mode) and found.st_ino == clone.inode
    return is_it and found.st_size >= BYTES_MIN


def _has_room(place: bytes, changed: Iterable[int]) -> bool:
    try:
        found = os.statvfs(place)
    except OSError:
        return False
    room = Room(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
    return has_room(room, changed)
