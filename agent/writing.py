"""Writes a restore's target: every call relative to a directory descriptor beneath it.

Whoever else may write in the target cannot lead us out of it: directories are opened confined,
names are single components, nothing is created through a link, and what we created is known by
its inode. Metadata comes after content, of directories after all that is in them.
"""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Self

from agent.beneath import Tree, open_directory
from agent.errors import TargetError
from repository.entries import Entry, EntryType

MARKER: Final = b".tidemark-incomplete"
_MARKER_TEXT: Final = (
    b"A restore by Tidemark into this directory has not been finished, or could not restore\n"
    b"everything. Job %s says what is missing. Remove this file to keep what is here.\n"
)
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AGAIN: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# Nobody else may look at what has not got its owner yet.
_PRIVATE_FILE: Final = 0o600
_PRIVATE_DIRECTORY: Final = 0o700

Warn = Callable[[bytes, str], None]


class TargetFullError(TargetError):
    """The target's disk is full: nothing more can be restored there."""


class File:
    """A regular file on its way into the target. Several threads may write to it."""

    __slots__ = ("entry", "error", "identity", "key", "lock", "remaining")

    def __init__(self, key: bytes, entry: Entry) -> None:
        self.key = key
        self.entry = entry
        self.remaining = entry.size
        """Bytes that have not been written, or shown to be a hole."""
        self.identity: tuple[int, int] | None = None
        """Device and inode, once created."""
        self.error: Exception | None = None
        self.lock = threading.Lock()


class Target:
    """The directory that a restore writes. Used from many threads at once."""

    def __init__(self, descriptor: int, path: bytes, warn: Warn) -> None:
        self._tree = Tree(descriptor)
        self._path = path
        self._warn = warn
        self._is_root = os.geteuid() == 0

    def __enter__(self) -> Self:
        """Return itself; leaving closes."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self._tree.close()

    def is_empty(self) -> bool:
        """Whether nothing is in it."""
        with os.scandir(self._tree.root) as names:
            return next(names, None) is None

    def has(self, name: bytes) -> bool:
        """Whether a name is taken in it."""
        try:
            os.stat(name, dir_fd=self._tree.root, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def mark(self, job_id: str) -> None:
        """Mark the target as unfinished."""
        with self._translated(MARKER):
            descriptor = os.open(MARKER, _NEW, 0o644, dir_fd=self._tree.root)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_MARKER_TEXT % job_id.encode())

    def unmark(self) -> None:
        """Take the mark away."""
        with self._translated(MARKER):
            os.unlink(MARKER, dir_fd=self._tree.root)

    # Everything but regular files.

    def make_directory(self, key: bytes) -> None:
        """Make a directory, private until it gets its metadata."""
        with self._translated(key), self._tree.parent(key) as (directory, name):
            os.mkdir(name, _PRIVATE_DIRECTORY, dir_fd=directory)

    def finish_directory(self, key: bytes, entry: Entry) -> None:
        """Give a directory its metadata; to be done once all is in it."""
        with self._translated(key), self._tree.directory(key) as descriptor:
            self._set_metadata(descriptor, key, entry)

    def make_symlink(self, key: bytes, entry: Entry) -> None:
        """Make a symbolic link, its own owner and times included."""
        assert entry.target is not None
        with self._translated(key), self._tree.parent(key) as (directory, name):
            os.symlink(entry.target, name, dir_fd=directory)
            self._set_by_name(directory, name, key, entry)

    def make_special(self, key: bytes, entry: Entry) -> None:
        """Make a FIFO or a device."""
        kind = {
            EntryType.FIFO: stat.S_IFIFO,
            EntryType.CHARACTER_DEVICE: stat.S_IFCHR,
            EntryType.BLOCK_DEVICE: stat.S_IFBLK,
        }[entry.type]
        with self._translated(key), self._tree.parent(key) as (directory, name):
            os.mknod(name, kind | _PRIVATE_FILE, entry.device, dir_fd=directory)
            self._set_by_name(directory, name, key, entry)
            # A mode cannot be set by name without following links: hold what we just made.
            held = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                if stat.S_IFMT(os.fstat(held).st_mode) == kind:
                    os.chmod(f"/proc/self/fd/{held}", entry.mode)
            finally:
                os.close(held)

    def make_link(self, key: bytes, first: File) -> None:
        """Make another name of a file that was restored in this run."""
        if first.error is not None:
            raise TargetError("the file that it is another name of could not be restored")
        with (
            self._translated(key),
            self._tree.parent(first.key) as (from_directory, from_name),
            self._tree.parent(key) as (directory, name),
        ):
            os.link(
                from_name,
                name,
                src_dir_fd=from_directory,
                dst_dir_fd=directory,
                follow_symlinks=False,
            )
            made = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if (made.st_dev, made.st_ino) != first.identity:
                os.unlink(name, dir_fd=directory)
                raise TargetError("the file it is a link to was exchanged during the restore")

    # Regular files.

    def write_whole(self, file: File, parts: Sequence[memoryview]) -> None:
        """Create a file with all its content and metadata: the quick way of small files."""
        with self._translated(file.key), self._tree.parent(file.key) as (directory, name):
            descriptor = os.open(name, _NEW, _PRIVATE_FILE, dir_fd=directory)
            try:
                for part in parts:
                    _write_all(descriptor, part, None)
                self._finish(descriptor, file)
            except BaseException:
                os.unlink(name, dir_fd=directory)
                raise
            finally:
                os.close(descriptor)

    def write_at(self, descriptor: int, file: File, part: memoryview, offset: int) -> bool:
        """Write a part of an opened file; True if it was the last, and the file is done."""
        with self._translated(file.key):
            _write_all(descriptor, part, offset)
        return self.settle(file, len(part), descriptor)

    def settle(self, file: File, count: int, descriptor: int | None = None) -> bool:
        """Take note that so many bytes are as they should be; True if the file is done."""
        with file.lock:
            file.remaining -= count
            if file.remaining or file.error is not None:
                return False
        if descriptor is None:
            with self.opened(file) as opened, self._translated(file.key):
                self._finish(opened, file)
        else:
            with self._translated(file.key):
                self._finish(descriptor, file)
        return True

    @contextlib.contextmanager
    def opened(self, file: File) -> Iterator[int]:
        """Open a file for as long as parts of it are written."""
        descriptor = self.open(file)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open(self, file: File) -> int:
        """Open a file to write parts of it; create it the first time, with its size."""
        with (
            file.lock,
            self._translated(file.key),
            self._tree.parent(file.key) as (directory, name),
        ):
            if file.identity is None:
                descriptor = os.open(name, _NEW, _PRIVATE_FILE, dir_fd=directory)
                found = os.fstat(descriptor)
                file.identity = (found.st_dev, found.st_ino)
                os.ftruncate(descriptor, file.entry.size)
                return descriptor
            descriptor = os.open(name, _AGAIN, dir_fd=directory)
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) != file.identity:
                os.close(descriptor)
                raise TargetError("the file was exchanged during the restore")
            return descriptor

    def move(self, file: File, key: bytes) -> None:
        """Give a finished file its final name, which must be free."""
        with (
            self._translated(key),
            self._tree.parent(file.key) as (from_directory, from_name),
            self._tree.parent(key) as (directory, name),
        ):
            os.link(
                from_name,
                name,
                src_dir_fd=from_directory,
                dst_dir_fd=directory,
                follow_symlinks=False,
            )
            os.unlink(from_name, dir_fd=from_directory)

    def give_up(self, file: File, error: Exception) -> bool:
        """Remove what there is of a file that cannot be restored; True the first time."""
        with file.lock:
            if file.error is not None:
                return False
            file.error = error
        with contextlib.suppress(OSError), self._tree.parent(file.key) as (directory, name):
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == file.identity:
                os.unlink(name, dir_fd=directory)
        return True

    def _finish(self, descriptor: int, file: File) -> None:
        self._set_metadata(descriptor, file.key, file.entry)
        if file.entry.links > 1 and file.identity is None:
            found = os.fstat(descriptor)
            file.identity = (found.st_dev, found.st_ino)

    # Metadata. The owner first, since changing it clears set-id bits of the mode.

    def _set_metadata(self, descriptor: int, key: bytes, entry: Entry) -> None:
        try:
            os.fchown(descriptor, entry.uid, entry.gid)
        except PermissionError:
            self._cannot_own(key, entry)
        for name, value in entry.xattrs or ():
            try:
                os.setxattr(descriptor, name, value)
            except OSError as error:
                if error.errno in _FULL:
                    raise
                reason = (error.strerror or str(error)).lower()
                self._warn(key, f"cannot set attribute {os.fsdecode(name)}: {reason}")
        os.fchmod(descriptor, entry.mode)
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))

    def _set_by_name(self, directory: int, name: bytes, key: bytes, entry: Entry) -> None:
        try:
            os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        except PermissionError:
            self._cannot_own(key, entry)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)

    def _cannot_own(self, key: bytes, entry: Entry) -> None:
        if self._is_root or (entry.uid, entry.gid) != (os.geteuid(), os.getegid()):
            self._warn(key, f"cannot give it to user {entry.uid} and group {entry.gid}")

    @contextlib.contextmanager
    def _translated(self, key: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._meaning(error) from error

    def _meaning(self, error: OSError) -> TargetError:
        reason = (error.strerror or str(error)).lower()
        if error.errno in _FULL:
            return TargetFullError(
                f"no space left in {os.fsdecode(self._path)}",
                hint="make room or choose another disk, empty the target, and restore again",
            )
        if error.errno == errno.EROFS:
            return TargetFullError(
                f"{os.fsdecode(self._path)} is on a read-only filesystem",
                hint="choose another target",
            )
        return TargetError(f"cannot be written: {reason}")


def _write_all(descriptor: int, part: memoryview, offset: int | None) -> None:
    while part:
        if offset is None:
            count = os.write(descriptor, part)
        else:
            count = os.pwrite(descriptor, part, offset)
            offset += count
        part = part[count:]


def open_target(path: bytes, roots: Sequence[bytes], warn: Warn) -> Target:
    """Open the directory at an absolute path beneath one of the roots; make it if need be."""
    parts = [part for part in path.split(b"/") if part]
    if not path.startswith(b"/") or b".." in parts or b"." in parts:
        raise TargetError(
            f"{os.fsdecode(path)} is not a plain absolute path", hint="name the target in full"
        )
    root, below = _root_of(parts, roots, path)
    try:
        descriptor = _open_root(root)
        for name in below:
            descriptor = _descend(descriptor, name)
    except OSError as error:
        raise _unusable(path, error) from error
    return Target(descriptor, path, warn)


def _root_of(parts: list[bytes], roots: Sequence[bytes], path: bytes) -> tuple[bytes, list[bytes]]:
    for root in roots:
        above = [part for part in root.split(b"/") if part]
        if parts[: len(above)] == above:
            return b"/" + b"/".join(above), parts[len(above) :]
    allowed = ", ".join(os.fsdecode(root) for root in roots)
    raise TargetError(
        f"this node does not restore to {os.fsdecode(path)}",
        hint=f"choose a directory beneath {allowed}, or set restore_root on the agent",
    )


def _open_root(root: bytes) -> int:
    os.makedirs(root, _PRIVATE_DIRECTORY, exist_ok=True)
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _descend(directory: int, name: bytes) -> int:
    """Open a directory in an open one, making it if need be; closes the one above."""
    try:
        try:
            return open_directory(directory, name)
        except FileNotFoundError:
            os.mkdir(name, _PRIVATE_DIRECTORY, dir_fd=directory)
            return open_directory(directory, name)
    finally:
        os.close(directory)


def _unusable(path: bytes, error: OSError) -> TargetError:
    shown = os.fsdecode(path)
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        real = os.fsdecode(os.path.realpath(path))
        return TargetError(
            f"{shown} leads through a symbolic link, or through what is no directory",
            hint=f"name the directory itself: {real}",
        )
    if error.errno in _FULL:
        return TargetFullError(f"no space left for {shown}", hint="choose another disk")
    reason = (error.strerror or str(error)).lower()
    return TargetError(f"cannot use {shown} as a target: {reason}", hint="choose another one")
