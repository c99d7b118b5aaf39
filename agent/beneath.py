"""Confined opens: nothing above or beside a given directory can be reached through what is in it.

A pod may exchange a directory for a symlink at any moment while the agent, as root, walks its
volume; and a restore writes where somebody hostile may do the same. So no path is ever resolved by
the kernel's ordinary rules below such a directory: `openat2` walks it beneath, without symlinks
and magic links, and where a kernel or a seccomp profile lacks that call, every component is
opened by itself without following links. A single component, opened relative to a directory that
is already open, can lead nowhere else and needs neither.

Keys are path components joined by a zero byte; b"" is the root itself.
"""

import contextlib
import ctypes
import errno
import functools
import itertools
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Self

from agent.errors import VolumeError

# From <linux/openat2.h>.
NO_XDEV = 0x01
_NO_MAGICLINKS = 0x02
_NO_SYMLINKS = 0x04
_BENEATH = 0x08
_CONFINED = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS
_SYS_OPENAT2 = 437  # the same on every architecture that Linux got after 2018, and on x86-64
_ATTEMPTS = 8  # openat2 answers EAGAIN when a rename elsewhere made it unsure

# Holds whatever has a name, and opens nothing.
HELD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_REGULAR = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# PATH_MAX less some: a longer path is opened in pieces.
_PIECE_BYTES = 4000
# Open directories per tree. With a few trees and their files it stays far below the usual 1,024.
_OPEN_DIRECTORIES = 64


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _openat2(directory: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    how = _OpenHow(flags, mode, resolve)
    for _ in range(_ATTEMPTS):
        descriptor: int = _syscall(
            _SYS_OPENAT2, directory, path, ctypes.byref(how), ctypes.sizeof(how)
        )
        if descriptor >= 0:
            return descriptor
        code = ctypes.get_errno()
        if code not in {errno.EAGAIN, errno.EINTR}:
            raise OSError(code, os.strerror(code), path)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


@functools.cache
def has_openat2() -> bool:
    """Tell whether the kernel has openat2, and whether we are let use it."""
    try:
        os.close(_openat2(-100, b".", os.O_PATH | os.O_CLOEXEC, 0, 0))  # -100 is AT_FDCWD
    except OSError:
        return False
    return True


def open_beneath(
    directory: int, path: bytes, flags: int, *, mode: int = 0, same_filesystem: bool = False
) -> int:
    """Open a relative path below an open directory, through no link whatever.

    Raises OSError: ELOOP or ENOTDIR for a link, EXDEV for a mount point if `same_filesystem`.
    """
    components = path.split(b"/")
    if not path or any(part in {b"", b".", b".."} for part in components):
        raise OSError(errno.EINVAL, "not a plain relative path", path)
    pieces = _pieces(components)
    opened = directory
    try:
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            step_flags, step_mode = (flags, mode) if last else (_DIRECTORY, 0)
            step = _open_piece(opened, piece, step_flags, step_mode, same_filesystem)
            if opened != directory:
                os.close(opened)
            opened = step
    except OSError:
        if opened != directory:
            os.close(opened)
        raise
    return opened


def _pieces(components: list[bytes]) -> list[list[bytes]]:
    pieces: list[list[bytes]] = [[]]
    size = 0
    for component in components:
        if size + len(component) > _PIECE_BYTES and pieces[-1]:
            pieces.append([])
            size = 0
        pieces[-1].append(component)
        size += len(component) + 1
    return pieces


def _open_piece(
    directory: int,
    components: list[bytes],
    flags: int,
    mode: int,
    same_filesystem: bool,  # noqa: FBT001 - passed through
) -> int:
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if has_openat2():
        resolve = _CONFINED | (NO_XDEV if same_filesystem else 0)
        return _openat2(directory, b"/".join(components), flags, mode, resolve)
    return _open_stepwise(directory, components, flags, mode, same_filesystem)


def _open_stepwise(
    directory: int,
    components: list[bytes],
    flags: int,
    mode: int,
    same_filesystem: bool,  # noqa: FBT001 - passed through
) -> int:
    """Do what openat2 does, one component at a time."""
    mount = _mount_of(directory) if same_filesystem else ""
    opened = directory
    for number, component in enumerate(components):
        last = number == len(components) - 1
        try:
            step = os.open(component, flags if last else _DIRECTORY, mode, dir_fd=opened)
        finally:
            if opened != directory:
                os.close(opened)
        opened = step
        if same_filesystem and _mount_of(opened) != mount:
            os.close(opened)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), component)
    return opened


def _mount_of(descriptor: int) -> str:
    """The mount that a descriptor lies in. A device would not tell: overlays have several."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
        return next(line for line in lines if line.startswith("mnt_id:"))


def open_directory(directory: int, name: bytes, *, same_filesystem: bool = False) -> int:
    """Open a directory beneath an open one, to list it or to work relative to it."""
    return open_beneath(directory, name, _DIRECTORY, same_filesystem=same_filesystem)


def open_regular(directory: int, name: bytes) -> tuple[int, os.stat_result]:
    """Open a regular file by its name in an open directory, for reading; return its stat, too.

    Nothing else is ever opened, not even for a moment: to open a device can rewind a tape, to
    open a FIFO wakes its writer. So the name is first held by a descriptor that opens nothing.
    Raises OSError; EINVAL for what is not a regular file.
    """
    held = os.open(name, HELD, dir_fd=directory)
    try:
        found = os.fstat(held)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        return _reopen(held), found
    finally:
        os.close(held)


def _reopen(held: int) -> int:
    path = f"/proc/self/fd/{held}"
    try:
        # A backup should leave no trace in the access times; only owners and root may ask for it.
        return os.open(path, _REGULAR | os.O_NOATIME)
    except PermissionError:
        return os.open(path, _REGULAR)


def _open_absolute(path: bytes) -> int:
    """Open a directory by its real path; ELOOP where there is a link in it after all."""
    root = os.open(b"/", _DIRECTORY)
    below = path.strip(b"/")
    if not below:
        return root
    try:
        return open_directory(root, below)
    finally:
        os.close(root)


class _Open:
    """A directory descriptor that is in use `users` times."""

    __slots__ = ("descriptor", "users")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0


class Tree:
    """A directory tree, entered only beneath its root; used from many threads at once.

    It keeps the directories last used open, at most a fixed number of them, and opens the others
    anew by their path. A volume that is a single file is a tree of which only b"" exists.
    """

    def __init__(
        self, root: int, *, file_name: bytes | None = None, same_filesystem: bool = False
    ) -> None:
        """Take over an open directory. With `file_name`, b"" means that name in it.

        With `same_filesystem`, what is mounted beneath cannot be entered: EXDEV.
        """
        self.root = root
        self._same_filesystem = same_filesystem
        self._file_name = file_name
        self._open: OrderedDict[bytes, _Open] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of_volume(cls, path: bytes, *, through_links: bool = True) -> Self:
        """Open a volume's root. The path to it is the administrator's, and may hold links.

        A path that was discovered may lead through what containers write: it is real already, and
        is opened without following any link. Raises VolumeError where it is absent, unreadable, or
        neither directory nor regular file.
        """
        try:
            real = os.path.realpath(path, strict=True) if through_links else path
            mode = os.lstat(real).st_mode
            if stat.S_ISDIR(mode):
                return cls(_open_absolute(real))
            if stat.S_ISREG(mode):
                parent, name = os.path.split(real)
                return cls(_open_absolute(parent), file_name=name)
        except FileNotFoundError as error:
            raise VolumeError(
                f"{os.fsdecode(path)} is not there",
                hint="bring it back or stop protecting it; earlier snapshots still restore",
            ) from error
        except OSError as error:
            raise VolumeError(
                f"cannot read {os.fsdecode(path)}: {error.strerror}",
                hint="let the agent's user read it, or mount what should be there",
            ) from error
        raise VolumeError(
            f"{os.fsdecode(path)} is neither a directory nor a regular file",
            hint="protect the directory that holds it",
        )

    @property
    def is_file(self) -> bool:
        """Whether the volume is a single file."""
        return self._file_name is not None

    def __enter__(self) -> Self:
        """Return itself; leaving closes."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close all descriptors. Nobody may use one of them any more."""
        with self._lock:
            for opened in self._open.values():
                os.close(opened.descriptor)
            self._open.clear()
            if self.root >= 0:
                os.close(self.root)
                self.root = -1

    def stat_root(self) -> os.stat_result:
        """Stat the root, be it a directory or a file."""
        if self._file_name is None:
            return os.fstat(self.root)
        return os.stat(self._file_name, dir_fd=self.root, follow_symlinks=False)

    @contextlib.contextmanager
    def directory(self, key: bytes) -> Iterator[int]:
        """Lend a descriptor of the directory; it must not be kept or closed. Raises OSError."""
        if not key:
            yield self.root
            return
        opened = self._borrow(key)
        try:
            yield opened.descriptor
        finally:
            with self._lock:
                opened.users -= 1

    @contextlib.contextmanager
    def parent(self, key: bytes) -> Iterator[tuple[int, bytes]]:
        """Lend the directory that holds `key`, and give its name in there. Raises OSError."""
        if not key:
            yield self.root, b"." if self._file_name is None else self._file_name
            return
        parent, _, name = key.rpartition(b"\0")
        with self.directory(parent) as descriptor:
            yield descriptor, name

    def _borrow(self, key: bytes) -> _Open:
        with self._lock:
            opened = self._open.get(key)
            if opened is not None:
                self._open.move_to_end(key)
                opened.users += 1
                return opened
        path = key.replace(b"\0", b"/")
        fresh = _Open(open_directory(self.root, path, same_filesystem=self._same_filesystem))
        with self._lock:
            opened = self._open.setdefault(key, fresh)
            opened.users += 1
            if opened is not fresh:  # another thread was faster
                os.close(fresh.descriptor)
            self._shrink()
            return opened

    def _shrink(self) -> None:
        """Close the directories longest unused, down to the bound, but none that is lent."""
        surplus = len(self._open) - _OPEN_DIRECTORIES
        if surplus <= 0:
            return
        idle = (key for key, opened in self._open.items() if not opened.users)
        for key in list(itertools.islice(idle, surplus)):
            os.close(self._open.pop(key).descriptor)

    def open_regular(self, key: bytes) -> tuple[int, os.stat_result]:
        """Open a regular file for reading; see the function of that name. Raises OSError."""
        with self.parent(key) as (directory, name):
            return open_regular(directory, name)

    @contextlib.contextmanager
    def held(self, key: bytes) -> Iterator[int]:
        """Lend a descriptor (O_PATH) of whatever the name stands for. Raises OSError."""
        with self.parent(key) as (directory, name):
            descriptor = os.open(name, HELD, dir_fd=directory)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def forget(self, key: bytes) -> None:
        """Close a directory that will not be used again, if nobody uses it now."""
        with self._lock:
            opened = self._open.get(key)
            if opened is not None and not opened.users:
                os.close(self._open.pop(key).descriptor)


class TreeCursor:
    """A tree as one thread goes through it in order: the directory last used stays lent."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lent = contextlib.ExitStack()
        self._directory = b""
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Return itself; leaving gives the directory back."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the directory back."""
        self._give_back()

    def open_regular(self, key: bytes) -> tuple[int, os.stat_result]:
        """Open a regular file for reading; see the function of that name. Raises OSError."""
        directory, separator, name = key.rpartition(b"\0")
        if not separator:
            return self._tree.open_regular(key)
        if directory != self._directory or self._descriptor < 0:
            self._give_back()
            self._descriptor = self._lent.enter_context(self._tree.directory(directory))
            self._directory = directory
        return open_regular(self._descriptor, name)

    def _give_back(self) -> None:
        self._descriptor = -1
        self._lent.close()
