r"""The sweep: a volume's directories merged with the last manifest, both in the order of keys.

The walk visits sorted names and goes into a directory right after its name. That is the byte order
of keys: no name holds a zero byte, and zero is the least byte, so that comparing joined components
is comparing component after component, a directory before what is in it. (`a`, `a\0x`, `a-b`: the
zero sorts `x` in `a` before `a-b`.) So one pass over both finds what is new, changed and gone.

A name counts as unchanged only if everything that stat says of it equals the manifest, never
because it is not newer. What cannot be read is an error, and what the manifest held there is kept:
only a directory that was listed can show that a name is gone. The walk enters nothing that is
mounted, follows no link, and holds few descriptors however deep the volume is.
"""

import errno
import itertools
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from agent.beneath import HELD, Tree, open_beneath, open_directory
from agent.errors import SourceError, VolumeError
from agent.listing import sorted_names
from agent.reading import source_error
from repository.entries import KEY_BYTES_MAX, ROOT_KEY, Entry, EntryStat, EntryType
from repository.walking import Leaf

# A batch is handed on when it has found so much, or looked at so many names.
_FOUND_PER_BATCH = 512
_SEEN_PER_BATCH = 16_384
# Directories whose descriptor the walk keeps; the ones further up are opened anew on the way back.
_OPEN_LEVELS = 48
_END: Final = (None, None)
_RACES = 4  # tries at a name that somebody exchanges while we look

_GONE = frozenset({errno.ENOENT, errno.ESTALE})
_EXCHANGED = frozenset({errno.ENOTDIR, errno.ELOOP})
_TYPES: Final = {
    stat.S_IFDIR: EntryType.DIRECTORY,
    stat.S_IFREG: EntryType.FILE,
    stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFIFO: EntryType.FIFO,
    stat.S_IFSOCK: EntryType.SOCKET,
    stat.S_IFCHR: EntryType.CHARACTER_DEVICE,
    stat.S_IFBLK: EntryType.BLOCK_DEVICE,
}
# Bare numbers, as in EntryStat.
_DIRECTORY: Final = EntryType.DIRECTORY.value
_FILE: Final = EntryType.FILE.value
# The type bits of st_mode by EntryType.
_BITS: Final = [0, *_TYPES]


class Found(msgspec.Struct, frozen=True, gc=False):
    """A name that is new (`old` is None) or not what the manifest says."""

    key: bytes
    stat: os.stat_result
    old: Entry | None
    moved: Entry | None = None
    """What the manifest has of the same file at another key, where it is no more."""
    reread: bool = False
    """Whether all of it is to be read, whatever is proved of it."""


class Removed(msgspec.Struct, frozen=True, gc=False):
    """A name that the manifest has and the volume has no longer."""

    key: bytes
    old: Entry


class Problem(NamedTuple):
    """A place that could not be read; what the manifest had there is kept."""

    key: bytes
    error: SourceError


class Batch:
    """What a stretch of the walk has found, each list in key order."""

    __slots__ = (
        "errors",
        "found",
        "kept_bytes",
        "kept_directories",
        "kept_files",
        "removed",
        "unchanged_bytes",
        "unchanged_directories",
        "unchanged_files",
        "warnings",
    )

    def __init__(self) -> None:
        self.found: list[Found] = []
        self.removed: list[Removed] = []
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        self.unchanged_files = 0
        """Of anything but directories; so with the bytes."""
        self.unchanged_bytes = 0
        self.unchanged_directories = 0
        self.kept_files = 0
        """Of what could not be looked at, and stays in the manifest as it was."""
        self.kept_bytes = 0
        self.kept_directories = 0

    def is_full(self) -> bool:
        """Whether it has found enough to be handed on."""
        return (
            len(self.found) + len(self.removed) >= _FOUND_PER_BATCH
            or self.unchanged_files >= _SEEN_PER_BATCH
        )


def entry_type(mode: int) -> EntryType:
    """Return the type of thing that st_mode says."""
    return _TYPES[mode & 0o170000]  # S_IFMT: a call would cost


def is_unchanged(found: os.stat_result, old: EntryStat | Entry) -> bool:
    """Tell whether a name is still what the manifest says.

    What was fuzzy or stale never is: it has to be read again.
    """
    return (
        found.st_ctime_ns == old.ctime_ns
        and found.st_ino == old.inode
        and found.st_mtime_ns == old.mtime_ns
        and found.st_mode == _BITS[old.type] | old.mode
        and found.st_nlink == old.links
        and found.st_uid == old.uid
        and found.st_gid == old.gid
        # How large a directory is says nothing that its times don't.
        and (found.st_size == old.size or old.type == _DIRECTORY)
        and not old.flags
    )


def sweep(
    tree: Tree,
    old: Iterable[Leaf],
    *,
    excludes: frozenset[tuple[int, int]] = frozenset(),
    is_canceled: Callable[[], bool] = lambda: False,
    scratch: str | None = None,
) -> Generator[Batch, None, None]:
    """Walk the tree and yield what differs from `old`, which must come in key order.

    Blocks; meant for a worker thread. `excludes` are (device, inode) of directories that are
    recorded and never listed; `scratch` is a directory for sorting very large ones. The rest is as
    for `Walk.batches`.
    """
    return Walk(tree, old, excludes, scratch).batches(is_canceled)


class Level:
    """A directory that the walk is in."""

    __slots__ = ("descriptor", "ended", "identity", "is_partial", "key", "names", "prefix")

    def __init__(self, key: bytes, descriptor: int, found: os.stat_result) -> None:
        self.key = key
        self.prefix = key + b"\0" if key else b""
        self.descriptor = descriptor
        self.identity = (found.st_dev, found.st_ino)
        self.names: Iterator[bytes] = iter(())
        self.ended = False
        self.is_partial = False
        """Whether only some of its names are looked at; some of those need not be there."""


class Walk:
    """The state of a sweep between two batches.

    A walk that looks at some names only is one that gives directories other `_names`, and learns
    by `_reach` what the manifest has there.
    """

    def __init__(
        self,
        tree: Tree,
        old: Iterable[Leaf],
        excludes: frozenset[tuple[int, int]],
        scratch: str | None,
    ) -> None:
        self._tree = tree
        self._leaf: Leaf | None = None
        stats = self._stats_of(old)
        self._old: Iterator[tuple[bytes, EntryStat]] = itertools.chain.from_iterable(stats)
        self._excludes = excludes
        self._scratch = scratch
        self._device = 0
        self._batch = Batch()
        self._old_key: bytes | None = None
        self._old_stat: EntryStat | None = None
        self._advance()
        self._levels: list[Level] = []

    def batches(self, is_canceled: Callable[[], bool]) -> Generator[Batch, None, None]:
        """Walk, once. Ends early if canceled; raises VolumeError if the root cannot be read.

        Whoever does not come to the end must close it: a directory may be open.
        """
        try:
            self._reach(ROOT_KEY)
            if self._tree.is_file:
                self._begin_file()
            else:
                self._begin()
            while self._levels:
                self._go_on()
                if is_canceled():
                    return
                yield self._take_batch()
            while not self._remove_before(None):
                yield self._take_batch()
            yield self._take_batch()
        finally:
            self._close()

    # What a walk looks at.

    def _reach(self, key: bytes) -> None:
        """Come to a name that need not be there. A sweep has all of the manifest at hand."""

    def _names(self, level: Level, upper: Level | None) -> Iterator[bytes]:
        """The names to look at in a directory that was entered, sorted. Raises OSError."""
        return sorted_names(level.descriptor, self._scratch)

    # The walk.

    def _take_batch(self) -> Batch:
        batch, self._batch = self._batch, Batch()
        return batch

    def _begin_file(self) -> None:
        """Look at a volume that is one file."""
        try:
            found = self._tree.stat_root()
        except OSError as error:
            raise VolumeError(
                f"the volume's file cannot be read: {(error.strerror or str(error)).lower()}",
                hint="bring it back; earlier snapshots still restore",
            ) from error
        self._compare(b"", found)

    def _begin(self) -> None:
        """Look at the root and list it."""
        try:
            found = self._tree.stat_root()
            descriptor = os.dup(self._tree.root)
        except OSError as error:
            raise _unreadable(error) from error
        self._device = found.st_dev
        level = Level(b"", descriptor, found)
        try:
            level.names = self._names(level, None)
        except OSError as error:
            os.close(descriptor)
            raise _unreadable(error) from error
        self._levels.append(level)
        self._compare(b"", found)

    def _close(self) -> None:
        """Let go of all directories."""
        for level in self._levels:
            if level.descriptor >= 0:
                os.close(level.descriptor)
        self._levels.clear()

    def _go_on(self) -> None:
        """Walk until a batch is full or the walk has ended."""
        while self._levels:
            level = self._levels[-1]
            if level.descriptor < 0 and not self._return_to(level):
                continue
            name = self._pass_unchanged(level)
            if name is None:
                if not level.ended:
                    return
                os.close(level.descriptor)
                self._levels.pop()
                continue
            key = level.prefix + name
            if self._old_key is not None and self._old_key < key and not self._remove_before(key):
                level.names = itertools.chain((name,), level.names)
                return
            if level.is_partial:
                self._reach(key)
            if len(key) > KEY_BYTES_MAX:
                if not level.is_partial or _is_there(level, name):
                    problem = SourceError("its path is too long", hint="nest directories less")
                    self._keep(key, problem)
            elif not self._visit(level, name, key) and self._batch.is_full():
                return

    def _pass_unchanged(self, level: Level) -> bytes | None:
        """Count files that have not changed, up to the first name that needs a closer look.

        None at the directory's end, which it notes, or where it is time for a batch. This is the
        usual case of nearly all names, so it takes as few steps as can be.
        """
        prefix, descriptor, device = level.prefix, level.descriptor, self._device
        key, old, rest, stat_of = self._old_key, self._old_stat, self._old, os.stat
        room = _SEEN_PER_BATCH - self._batch.unchanged_files % _SEEN_PER_BATCH
        files = size = 0
        try:
            for name in itertools.islice(level.names, room):
                if old is None or key != prefix + name or old.type == _DIRECTORY:
                    return name
                try:
                    found = stat_of(name, dir_fd=descriptor, follow_symlinks=False)
                    mounted = found.st_dev != device and _is_mounted(descriptor, name)
                except OSError:
                    return name  # `_visit` says what that means
                if mounted or not is_unchanged(found, old):
                    return name
                files += 1
                if old.type == _FILE:
                    size += old.size
                key, old = next(rest, _END)
        finally:
            self._old_key, self._old_stat = key, old
            self._batch.unchanged_files += files
            self._batch.unchanged_bytes += size
        level.ended = files < room
        return None

    def _visit(self, level: Level, name: bytes, key: bytes) -> bool:
        """Look at one name; True if the walk has gone down into it."""
        for _ in range(_RACES):
            try:
                found = os.stat(name, dir_fd=level.descriptor, follow_symlinks=False)
            except OSError as error:
                # What nobody listed may be a name that cannot be.
                impossible = level.is_partial and error.errno == errno.ENAMETOOLONG
                if error.errno not in _GONE and not impossible:
                    self._keep(key, source_error(error))
                return False
            try:
                return self._settle(level, name, key, found)
            except OSError as error:
                if error.errno in _GONE:
                    return False
                if error.errno not in _EXCHANGED:
                    self._compare(key, found)
                    self._keep_beneath(key, source_error(error))
                    return False
        self._keep(key, SourceError("it is exchanged again and again while we look"))
        return False

    def _settle(self, level: Level, name: bytes, key: bytes, found: os.stat_result) -> bool:
        """Record what a name is, and go down into a directory unless it is not ours to read."""
        if found.st_dev != self._device and _is_mounted(level.descriptor, name):
            self._pass_mounted(key, found)
            return False
        if (found.st_mode & 0o170000) != 0o040000:  # S_IFMT, S_IFDIR: a call would cost
            self._compare(key, found)
            return False
        if (found.st_dev, found.st_ino) in self._excludes:
            self._compare(key, found)
            return False
        if found.st_dev != self._device:
            self._compare(key, found)
            self._warn(key, "this is a subvolume of its own; it is not read")
            return False
        return self._enter(level, name, key, found)

    def _enter(self, level: Level, name: bytes, key: bytes, found: os.stat_result) -> bool:
        """Record a directory and go down into it, unless it is a mount point after all."""
        try:
            descriptor = open_directory(level.descriptor, name, same_filesystem=True)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._pass_mounted(key, found)
            return False
        try:
            opened = os.fstat(descriptor)
            if (opened.st_dev, opened.st_ino) != (found.st_dev, found.st_ino):
                raise OSError(errno.ENOTDIR, "exchanged")  # noqa: TRY301 - as if open had seen it
            lower = Level(key, descriptor, found)
            lower.names = self._names(lower, level)
        except OSError:
            os.close(descriptor)
            raise
        self._levels.append(lower)
        self._compare(key, found)
        if len(self._levels) > _OPEN_LEVELS:
            upper = self._levels[-_OPEN_LEVELS]
            if upper.descriptor >= 0:
                os.close(upper.descriptor)
                upper.descriptor = -1
        return True

    def _pass_mounted(self, key: bytes, found: os.stat_result) -> None:
        """Go past a mount point. Of a directory there is what it is; of a file there is nothing."""
        if stat.S_ISDIR(found.st_mode):
            self._compare(key, found)
        self._warn(key, "another filesystem is mounted here; it is not read")

    def _return_to(self, level: Level) -> bool:
        """Open a directory again whose descriptor was given up on the way down."""
        try:
            path = level.key.replace(b"\0", b"/")
            if path:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
                descriptor = open_beneath(self._tree.root, path, flags, same_filesystem=True)
            else:
                descriptor = os.dup(self._tree.root)
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) == level.identity:
                level.descriptor = descriptor
                return True
            os.close(descriptor)
            problem = SourceError("moved while it was read", hint="the next backup reads it again")
        except OSError as error:
            problem = source_error(error)
        self._levels.pop()
        self._keep_beneath(level.key, problem)
        return False

    # The merge. The old entry at hand is the first that is not yet settled.

    def _compare(self, key: bytes, found: os.stat_result) -> None:
        old = self._old_stat
        if old is None or self._old_key != key:
            self._batch.found.append(Found(key, found, None))
            return
        if not is_unchanged(found, old):
            self._batch.found.append(Found(key, found, self._old_entry(key)))
        elif old.type == _DIRECTORY:
            self._batch.unchanged_directories += 1
        else:
            self._batch.unchanged_files += 1
            self._batch.unchanged_bytes += old.size if old.type == _FILE else 0
        self._advance()

    def _stats_of(self, leaves: Iterable[Leaf]) -> Iterator[list[tuple[bytes, EntryStat]]]:
        """What is compared, leaf by leaf; what is at hand always lies in the last one given."""
        for leaf in leaves:
            self._leaf = leaf
            yield leaf.stats

    def _advance(self) -> None:
        self._old_key, self._old_stat = next(self._old, _END)

    def _old_entry(self, key: bytes) -> Entry:
        """The whole of the old entry at hand, which has this key."""
        assert self._leaf is not None
        return self._leaf.entry(key)

    def _remove_before(self, key: bytes | None) -> bool:
        """Remove what the manifest has before that key; False if the batch is full before."""
        while self._old_key is not None:
            if key is not None and self._old_key >= key:
                break
            if self._batch.is_full():
                return False
            self._batch.removed.append(Removed(self._old_key, self._old_entry(self._old_key)))
            self._advance()
        return True

    def _warn(self, key: bytes, message: str) -> None:
        self._batch.warnings.append(Problem(key, SourceError(message)))

    def _keep(self, key: bytes, error: SourceError) -> None:
        """Keep what the manifest has at a name that cannot be looked at, and beneath it."""
        if self._old_key == key:
            self._keep_one()
        self._keep_beneath(key, error)

    def _keep_beneath(self, key: bytes, error: SourceError) -> None:
        """Keep what the manifest still has beneath a directory that cannot be read further."""
        self._batch.errors.append(Problem(key, error))
        prefix = key + b"\0" if key else b""
        while self._old_key is not None and self._old_key.startswith(prefix):
            self._keep_one()

    def _keep_one(self) -> None:
        if self._old_stat is None:
            return
        if self._old_stat.type == _DIRECTORY:
            self._batch.kept_directories += 1
        else:
            self._batch.kept_files += 1
            self._batch.kept_bytes += self._old_stat.size if self._old_stat.type == _FILE else 0
        self._advance()


def _is_there(level: Level, name: bytes) -> bool:
    """Whether a directory has a name that was not listed."""
    try:
        os.stat(name, dir_fd=level.descriptor, follow_symlinks=False)
    except OSError:
        return False
    return True


def _is_mounted(directory: int, name: bytes) -> bool:
    """Whether a name that has another st_dev than its directory is a mount point; OSError.

    It need not be: a file in an overlay has that of its layer, where the layers lie on several
    filesystems, and a subvolume of btrfs has its own.
    """
    try:
        os.close(open_beneath(directory, name, HELD, same_filesystem=True))
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return True
    return False


def _unreadable(error: OSError) -> VolumeError:
    return VolumeError(
        f"the volume's directory cannot be read: {(error.strerror or str(error)).lower()}",
        hint="let the agent's user read it; earlier snapshots still restore",
    )
