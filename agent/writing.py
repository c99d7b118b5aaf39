"""Writes a restore's target: every call relative to a directory descriptor beneath it.

Whoever else may write in the target cannot lead us out of it: directories are opened confined,
names are single components, nothing is created through a link, and what we created is known by
its inode. Metadata comes after content, of directories after all that is in them.

A name that is taken is never half exchanged. What takes its place is made beside it, under a name
of its own, and renamed over it when it is whole. Only a large file that stands there already is
patched where it lies, block by block: a second copy of it might not fit, and whoever has it open
keeps it. That is why a target is marked. A file that has names which are not restored with it, or
that runs as a program just now, is copied and the copy is patched.
"""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from typing_extensions import override

from agent.attributes import attributes_of
from agent.beneath import HELD
from agent.errors import SourceError, TargetError
from agent.reading import data_ranges
from agent.removing import remove
from agent.replacing import Standing, Way, attribute_edits, has_metadata
from agent.standing import FULL, Block, Ground, name_beside, read_at
from agent.syscalls import begin_writeback, punch_hole, sync_filesystem
from repository.entries import Entry, EntryType
from repository.errors import TidemarkError
from repository.failpoints import failpoint

MARKER: Final = b".tidemark-incomplete"
_MARKER_TEXT: Final = (
    b"A restore by Tidemark into this directory has not been finished, or could not restore\n"
    b"everything. Job %s says what is missing. Restore again with --overwrite to finish it, or\n"
    b"remove this file to keep what is here.\n"
)
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AGAIN: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# A file that cannot be opened to be written may be copied all the same.
_NOT_IN_PLACE: Final = frozenset({errno.ETXTBSY, errno.EACCES, errno.EPERM})
_COPY_BYTES: Final = 1024 * 1024
# Nobody else may look at what has not got its owner yet.
_PRIVATE_FILE: Final = 0o600
_PRIVATE_DIRECTORY: Final = 0o700

Warn = Callable[[bytes, str], None]


class File:
    """Anything but a directory on its way into the target. Several threads may write to it."""

    __slots__ = (
        "at",
        "begun",
        "entry",
        "error",
        "identity",
        "is_shared",
        "key",
        "lock",
        "may_share",
        "remaining",
        "same",
        "standing",
        "takes_name",
    )

    def __init__(self, key: bytes, entry: Entry, standing: Standing | None = None) -> None:
        """`standing` is whatever has the name now."""
        self.key = key
        self.entry = entry
        self.remaining = entry.size
        """Bytes that have not been written, or shown to be there or to be a hole."""
        self.takes_name = standing is not None
        """Whether something has its name now, be it what it may."""
        self.standing = standing if standing is not None and standing.type is entry.type else None
        """What has its name now and is of its type: of a file it may have some of the content."""
        self.is_shared = False
        """Whether that has other names, which must not change."""
        self.may_share = False
        """Whether it may keep them if it is just as it is wanted."""
        self.same: list[bool] | None = None
        """Which of its few extents stand there already, once compared."""
        self.begun = False
        """Whether anything was written."""
        self.at = key
        """Where it is written."""
        self.identity: tuple[int, int] | None = None
        """Device and inode, once known."""
        self.error: TidemarkError | None = None
        self.lock = threading.Lock()

    @property
    def content_bytes(self) -> int:
        """Bytes of content; what is no regular file has none, whatever its size says."""
        return self.entry.size if self.entry.type is EntryType.FILE else 0

    @property
    def is_new(self) -> bool:
        """Whether nothing had its name."""
        return not self.takes_name

    @property
    def is_changed(self) -> bool:
        """Whether it was not there just as it is wanted."""
        return self.begun or self.standing is None or not has_metadata(self.standing, self.entry)

    @property
    def stays(self) -> bool:
        """Whether what stands there may become it, as the one inode that it is."""
        if self.standing is None or not self.is_shared:
            return self.standing is not None
        return self.may_share and has_metadata(self.standing, self.entry)

    def settle(self, count: int) -> bool:
        """Take note that so many bytes are as they should be; True if those were the last."""
        with self.lock:
            self.remaining -= count
            return not self.remaining and self.error is None

    def fail(self, error: TidemarkError) -> bool:
        """Take note that it cannot be restored; True the first time."""
        with self.lock:
            if self.error is not None:
                return False
            self.error = error
            return True


class Target(Ground):
    """The directory that a restore writes. Used from many threads at once."""

    def __init__(
        self,
        descriptor: int,
        path: bytes,
        warn: Warn,
        *,
        marker: bytes = MARKER,
        closed: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        """Take over an open directory; `marker` is the name of the mark in it."""
        super().__init__(descriptor, path, closed)
        self.marker = marker
        self.warn = warn
        self._is_root = os.geteuid() == 0
        # What lies beside its name, and has not taken it yet.
        self._beside: set[bytes] = set()
        # Directories that are not ours to change, and were opened up to write in them.
        self._modes: dict[bytes, int] = {}
        self.may_clear = False
        """Whether a directory that stands in the way may be removed with all that is in it."""

    @override
    def __exit__(self, *_: object) -> None:
        """Remove what has not taken its name, and close."""
        for key in self._beside:
            with contextlib.suppress(OSError), self.tree.parent(key) as (directory, name):
                os.unlink(name, dir_fd=directory)
        for key, mode in reversed(self._modes.items()):
            with contextlib.suppress(OSError), self.tree.directory(key) as directory:
                os.fchmod(directory, mode)
        super().__exit__()

    def mark(self, job_id: str) -> None:
        """Mark the target as unfinished, before anything else is done to it."""
        with self.translated_top():
            mode = stat.S_IMODE(os.fstat(self.tree.root).st_mode)
            if not self._is_root and mode & 0o700 != 0o700:
                os.fchmod(self.tree.root, mode | 0o700)
                self._modes[b""] = mode
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.marker, dir_fd=self.tree.root)
            descriptor = os.open(self.marker, _NEW, 0o644, dir_fd=self.tree.root)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_MARKER_TEXT % job_id.encode())
                file.flush()
                os.fsync(descriptor)
            os.fsync(self.tree.root)

    def unmark(self) -> None:
        """Take the mark away, once everything is on the disk."""
        with self.translated_top():
            sync_filesystem(self.tree.root)
            os.unlink(self.marker, dir_fd=self.tree.root)
            os.fsync(self.tree.root)

    def sync_top(self) -> None:
        """Bring the metadata of the top to the disk."""
        with self.translated_top():
            os.fsync(self.tree.root)

    # Everything but regular files.

    def make_directory(self, key: bytes, way: Way) -> None:
        """Make a directory, private until it gets its metadata."""
        with self.translated(), self.tree.parent(key) as (directory, name):
            if way is Way.CLEAR:
                os.unlink(name, dir_fd=directory)
            os.mkdir(name, _PRIVATE_DIRECTORY, dir_fd=directory)
            failpoint("agent.directory.made")

    def open_up(self, key: bytes, standing: Standing, *, for_good: bool) -> None:
        """Let us work in a directory that stands there, where its mode does not.

        `for_good`: it gets its metadata in the end. Others get their mode back.
        """
        if for_good:
            self._modes.pop(key, None)
        if self._is_root or standing.mode & 0o700 == 0o700:
            return
        # A mode cannot be set by name without following links.
        with self.translated(), self.tree.parent(key) as (directory, name):
            held = os.open(
                name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
            try:
                os.chmod(f"/proc/self/fd/{held}", standing.mode | 0o700)
            finally:
                os.close(held)
        if not for_good:
            self._modes[key] = standing.mode

    def finish_directory(self, key: bytes, entry: Entry) -> None:
        """Give a directory its metadata; to be done once all is in it."""
        with self.translated(), self.tree.directory(key) as descriptor:
            self._set_metadata(descriptor, key, entry, os.fstat(descriptor))

    def make_symlink(self, file: File) -> None:
        """Make a symbolic link, its own owner and times included."""
        target = file.entry.target
        assert target is not None
        with self._made(file.key, takes_name=file.takes_name) as (directory, name):
            os.symlink(target, name, dir_fd=directory)
            file.begun = True
            file.identity = self._set_by_name(directory, name, file.key, file.entry)

    def make_special(self, file: File) -> None:
        """Make a FIFO or a device."""
        entry = file.entry
        kind = {
            EntryType.FIFO: stat.S_IFIFO,
            EntryType.CHARACTER_DEVICE: stat.S_IFCHR,
            EntryType.BLOCK_DEVICE: stat.S_IFBLK,
        }[entry.type]
        with self._made(file.key, takes_name=file.takes_name) as (directory, name):
            device = 0 if entry.type is EntryType.FIFO else entry.device
            os.mknod(name, kind | _PRIVATE_FILE, device, dir_fd=directory)
            file.begun = True
            file.identity = self._set_by_name(directory, name, file.key, entry)

    def make_link(self, key: bytes, first: File, *, takes_name: bool) -> None:
        """Make another name of a file that was restored in this run."""
        with (
            self._made(key, takes_name=takes_name) as (directory, name),
            self.tree.parent(first.key) as (from_directory, from_name),
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
                raise TargetError("the file it is a link to was exchanged during the restore")

    def retouch(self, file: File) -> None:
        """Give a symbolic link, FIFO or device that stands there its metadata."""
        with self.translated(), self.tree.parent(file.key) as (directory, name):
            file.identity = self._set_by_name(directory, name, file.key, file.entry)

    @contextlib.contextmanager
    def _made(self, key: bytes, *, takes_name: bool) -> Iterator[tuple[int, bytes]]:
        """Lend the directory and name to make something at, which then has or takes its name.

        What fails is removed, as far as it was made here.
        """
        with self.translated(), self.tree.parent(key) as (directory, name):
            beside = name_beside() if takes_name else name
            made = False
            try:
                yield directory, beside
                made = True
                if takes_name:
                    self._take_name(key, directory, beside)
            except OSError as error:
                if made or error.errno != errno.EEXIST:
                    _unlink(directory, beside)
                raise
            except BaseException:
                _unlink(directory, beside)
                raise

    def _take_name(self, key: bytes, directory: int, beside: bytes) -> None:
        """Put what was made beside a name in the place of whatever has it."""
        name = key.rpartition(b"\0")[2]
        try:
            os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)
        except IsADirectoryError:
            if self.may_clear:
                remove(self, key, self._cannot_remove)
            else:
                os.rmdir(name, dir_fd=directory)
            os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)

    def _cannot_remove(self, key: bytes, error: TargetError) -> None:
        path = os.fsdecode(key.replace(b"\0", b"/"))
        raise TargetError(f"{path} stands in the way and cannot be removed: {error.message}")

    # Regular files.

    def write_whole(self, file: File, parts: Sequence[memoryview]) -> None:
        """Create a file with all its content and metadata: the quick way of small files."""
        with self._made(file.key, takes_name=file.takes_name) as (directory, name):
            descriptor = os.open(name, _NEW, _PRIVATE_FILE, dir_fd=directory)
            try:
                file.begun = True
                failpoint("agent.file.created")
                for part in parts:
                    _write_all(descriptor, part, None)
                failpoint("agent.file.written")
                self._set_metadata(descriptor, file.key, file.entry)
                failpoint("agent.file.finished")
                if file.entry.links > 1:
                    file.identity = _identity(descriptor)
            finally:
                os.close(descriptor)

    def write_at(self, descriptor: int, file: File, part: memoryview, offset: int) -> bool:
        """Write a part of an opened file; True if it was the last, and the file is done."""
        with self.translated():
            _write_all(descriptor, part, offset)
            failpoint("agent.file.written")
        return self.settle(file, len(part), descriptor)

    def begin_writeback(self, descriptor: int, offset: int, length: int) -> None:
        """Have a part of an opened file be on its way to the disk before all waits for it."""
        with self.translated():
            begin_writeback(descriptor, offset, length)

    def make_holes(self, file: File, holes: Sequence[Block]) -> None:
        """Make these parts of what stood there zeros."""
        with self.opened(file) as descriptor, self.translated():
            for offset, extent in holes:
                end = offset + extent.length
                if not punch_hole(descriptor, offset, extent.length):
                    _write_zeros(descriptor, offset, end)

    def settle(self, file: File, count: int, descriptor: int | None = None) -> bool:
        """Take note that so many bytes are as they should be; True if the file is done."""
        if not file.settle(count):
            return False
        if descriptor is not None:
            self._finish(descriptor, file)
            return True
        standing = file.standing
        untouched = file.stays and not file.begun
        if untouched and standing is not None and standing.size == file.entry.size:
            self._finish_untouched(file, standing)
            return True
        with self.opened(file) as opened:
            self._finish(opened, file)
        return True

    def _finish_untouched(self, file: File, standing: Standing) -> None:
        file.identity = standing.identity
        if has_metadata(standing, file.entry):
            return
        with self.translated():
            descriptor = self.open_standing(file.key, standing, os.O_RDONLY)
            try:
                self._set_metadata(descriptor, file.key, file.entry, os.fstat(descriptor))
            finally:
                os.close(descriptor)

    def _finish(self, descriptor: int, file: File) -> None:
        with self.translated():
            self._set_metadata(descriptor, file.key, file.entry)
            failpoint("agent.file.finished")
            if file.at == file.key:
                return
            with self.tree.parent(file.at) as (directory, beside):
                found = os.stat(beside, dir_fd=directory, follow_symlinks=False)
                if (found.st_dev, found.st_ino) != file.identity:
                    raise TargetError("the file was exchanged during the restore")
                self._take_name(file.key, directory, beside)
            self._beside.discard(file.at)
            file.at = file.key

    @contextlib.contextmanager
    def opened(self, file: File) -> Iterator[int]:
        """Open a file for as long as parts of it are written."""
        descriptor = self.open(file)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open(self, file: File) -> int:
        """Open a file to write parts of it; the first time, make it or what it is made from."""
        with file.lock, self.translated():
            if not file.begun:
                descriptor = self._open_in_place(file)
                if descriptor is None:
                    descriptor = self._create(file)
                file.begun = True
                failpoint("agent.file.created")
                return descriptor
            with self.tree.parent(file.at) as (directory, name):
                descriptor = os.open(name, _AGAIN, dir_fd=directory)
            if _identity(descriptor) != file.identity:
                os.close(descriptor)
                raise TargetError("the file was exchanged during the restore")
            return descriptor

    def _open_in_place(self, file: File) -> int | None:
        """Open the file that stands there to patch it; None where that must not or cannot be."""
        standing = file.standing
        if standing is None or file.is_shared:
            return None
        try:
            descriptor = self.open_standing(file.key, standing, os.O_WRONLY)
        except OSError as error:
            if error.errno in _NOT_IN_PLACE:
                return None
            raise
        try:
            found = os.fstat(descriptor)
            if found.st_nlink != standing.links:
                raise TargetError("the file got other names during the restore")  # noqa: TRY301
            if not has_metadata(standing, file.entry, times=False):
                os.fchmod(descriptor, _PRIVATE_FILE)
            if found.st_size != file.entry.size:
                os.ftruncate(descriptor, file.entry.size)
        except BaseException:
            os.close(descriptor)
            raise
        file.identity = standing.identity
        return descriptor

    def _create(self, file: File) -> int:
        """Create a file with its size: under its own name, or beside what has that."""
        if file.takes_name:
            above, separator, _ = file.key.rpartition(b"\0")
            file.at = above + separator + name_beside()
            self._beside.add(file.at)
        with self.tree.parent(file.at) as (directory, name):
            descriptor = os.open(name, _NEW, _PRIVATE_FILE, dir_fd=directory)
        try:
            file.identity = _identity(descriptor)
            if file.standing is not None:
                self._copy(file, file.standing, descriptor)
            os.ftruncate(descriptor, file.entry.size)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _copy(self, file: File, standing: Standing, to: int) -> None:
        """Copy what stands there, so that only what differs need be written over the copy."""
        try:
            source = self.open_standing(file.key, standing, os.O_RDONLY)
        except PermissionError:
            return  # nothing of it could be compared either, so everything will be written
        try:
            size = min(standing.size, file.entry.size)
            for begin, end in data_ranges(source, 0, size):
                for offset in range(begin, end, _COPY_BYTES):
                    data = read_at(source, offset, min(_COPY_BYTES, end - offset))
                    _write_all(to, memoryview(data), offset)
        finally:
            os.close(source)

    def give_up(self, file: File, error: TidemarkError) -> bool:
        """Remove what was made of a file that cannot be restored; True the first time.

        What stood there stays, patched as far as it was.
        """
        if not file.fail(error):
            return False
        if file.at == file.key and file.takes_name:
            return True
        with contextlib.suppress(OSError), self.tree.parent(file.at) as (directory, name):
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == file.identity:
                os.unlink(name, dir_fd=directory)
                self._beside.discard(file.at)
        return True

    # Metadata. The owner first, since changing it clears set-id bits of the mode.

    def _set_metadata(
        self, descriptor: int, key: bytes, entry: Entry, found: os.stat_result | None = None
    ) -> None:
        """Give an open file or directory its metadata; with `found`, only what differs from it."""
        owned = found is not None and (found.st_uid, found.st_gid) == (entry.uid, entry.gid)
        if not owned:
            try:
                os.fchown(descriptor, entry.uid, entry.gid)
            except PermissionError:
                self._cannot_own(key, entry)
        edited = self._set_attributes(descriptor, key, entry)
        # An ACL that was set has changed the mode, too.
        if found is None or not owned or edited or stat.S_IMODE(found.st_mode) != entry.mode:
            os.fchmod(descriptor, entry.mode)
        if found is None or found.st_mtime_ns != entry.mtime_ns:
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))

    def _set_attributes(
        self, descriptor: int, key: bytes, entry: Entry, *, opened: bool = True
    ) -> bool:
        """Give it its extended attributes and no others; whether that took anything.

        What was just made may have some already: a directory may hand down an ACL.
        """
        try:
            there = attributes_of(descriptor, opened=opened).attributes
        except SourceError as error:
            raise TargetError(error.message, hint=error.hint) from error
        removed, wanted = attribute_edits(there, entry.xattrs)
        what: int | str = descriptor if opened else f"/proc/self/fd/{descriptor}"
        for name in removed:
            with self._attribute(key, name):
                os.removexattr(what, name)
        for name, value in wanted:
            with self._attribute(key, name):
                os.setxattr(what, name, value)
        return bool(removed or wanted)

    @contextlib.contextmanager
    def _attribute(self, key: bytes, name: bytes) -> Iterator[None]:
        """Make what is not allowed, or not to be had here, a warning."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise
            reason = (error.strerror or str(error)).lower()
            self.warn(key, f"cannot set attribute {os.fsdecode(name)}: {reason}")

    def _set_by_name(
        self, directory: int, name: bytes, key: bytes, entry: Entry
    ) -> tuple[int, int]:
        """The same for what cannot be opened, a symbolic link, a FIFO or a device; which it is."""
        try:
            os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        except PermissionError:
            self._cannot_own(key, entry)
        # Mode and attributes cannot be set by name without following links: hold what is there.
        held = os.open(name, HELD, dir_fd=directory)
        try:
            self._set_attributes(held, key, entry, opened=False)
            if not stat.S_ISLNK(os.fstat(held).st_mode):
                os.chmod(f"/proc/self/fd/{held}", entry.mode)
            identity = _identity(held)
        finally:
            os.close(held)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
        return identity

    def _cannot_own(self, key: bytes, entry: Entry) -> None:
        if self._is_root or (entry.uid, entry.gid) != (os.geteuid(), os.getegid()):
            self.warn(key, f"cannot give it to user {entry.uid} and group {entry.gid}")


def _write_all(descriptor: int, part: memoryview, offset: int | None) -> None:
    while part:
        if offset is None:
            count = os.write(descriptor, part)
        else:
            count = os.pwrite(descriptor, part, offset)
            offset += count
        part = part[count:]


def _write_zeros(descriptor: int, offset: int, end: int) -> None:
    zeros = memoryview(bytes(_COPY_BYTES))
    while offset < end:
        _write_all(descriptor, zeros[: end - offset], offset)
        offset += min(_COPY_BYTES, end - offset)


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _unlink(directory: int, name: bytes) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=directory)
