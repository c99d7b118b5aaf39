"""What may happen to a volume: a table of small functions, with a weight each.

Each is given the hands of its thread, a step's two paths within the volume, and a number. What
cannot be done raises OSError: another thread may have been there before.
"""

import ctypes
import enum
import fcntl
import mmap
import os
import random
import select
import stat
import subprocess
from collections.abc import Callable
from typing import Final, NamedTuple

from tests.tracking.asynchronous import submit_by_aio, submit_by_uring

PAGE: Final = 4096
# So much of a file is mapped, whether it is so long or not.
_MAPPED: Final = 8 * PAGE
_STORED: Final = 64
_SLOTS: Final = 2
# From <linux/fs.h>, <linux/falloc.h>, <fcntl.h>.
_FICLONE: Final = 0x40049409
_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
# Plain, keep size, punch hole, zero range, collapse range, insert range.
_FALLOCATE_MODES: Final = (0, 1, 2 | 1, 16, 8, 32)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FAILED: Final = (1 << 64) - 1


class Trait(enum.Flag):
    """What an operation is about."""

    DIRECTORIES = enum.auto()
    LINKS = enum.auto()
    """It makes further names."""
    UNTOLD = enum.auto()
    """It writes to a file by a further name that is outside, or soon gone."""


class Held:
    """A file that stays open, or mapped, or both."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.address = 0

    def map(self) -> None:
        """Map its beginning. Python's own mappings would keep another descriptor open."""
        flags = mmap.PROT_READ | mmap.PROT_WRITE
        address = _libc.mmap(None, _MAPPED, flags, mmap.MAP_SHARED, self.descriptor, 0)
        if address == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        self.address = address

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def let_go(self) -> None:
        """End everything."""
        self.close()
        if self.address:
            _libc.munmap(self.address, _MAPPED)


class Hands:
    """One thread of a workload: where it works, and what it holds."""

    def __init__(self, volume: bytes, outside: bytes) -> None:
        self._volume = volume
        self._outside = outside
        self._held: dict[int, Held] = {}
        self._pipe = os.pipe()

    def at(self, path: str) -> bytes:
        """Where a path is, whose directories are made if they are not there."""
        full = self.inside(path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        return full

    def inside(self, path: str) -> bytes:
        """Where a path is."""
        return self._volume + b"/" + os.fsencode(path)

    def out(self, name: str) -> bytes:
        """A path beside the volume, on its filesystem."""
        return self._outside + b"/" + os.fsencode(name)

    def hold(self, number: int, path: bytes) -> None:
        """Keep a file open, in the place of another one."""
        descriptor = _open(path, os.O_RDWR | os.O_CREAT)
        self.let_go(number)
        self._held[number % _SLOTS] = Held(descriptor)

    def held(self, number: int) -> Held:
        """What is held there."""
        held = self._held.get(number % _SLOTS)
        if held is None:
            raise FileNotFoundError
        return held

    def opened(self, number: int) -> int:
        """The descriptor of what is held there."""
        held = self.held(number)
        if held.descriptor < 0:
            raise FileNotFoundError
        return held.descriptor

    def mapped(self, number: int) -> int:
        """The address at which it is mapped."""
        address = self.held(number).address
        if not address:
            raise FileNotFoundError
        return address

    def let_go(self, number: int) -> None:
        """Hold it no longer."""
        held = self._held.pop(number % _SLOTS, None)
        if held is not None:
            held.let_go()

    def let_all_go(self) -> None:
        """Hold nothing."""
        for number in [*self._held]:
            self.let_go(number)

    def store(self, number: int) -> None:
        """Store to a page of a mapping.

        The kernel does it, by the process's own page tables: where the file is too short by now
        this is an error, and not the end of the process.
        """
        at = self.mapped(number) + number % (_MAPPED // _STORED) * _STORED
        os.write(self._pipe[1], _bytes(number, _STORED))
        try:
            os.readv(self._pipe[0], [(ctypes.c_char * _STORED).from_address(at)])
        except OSError:
            os.read(self._pipe[0], _STORED)
            raise


class Operation(NamedTuple):
    """A row of the table."""

    weight: int
    act: Callable[[Hands, str, str, int], None]
    traits: Trait


OPERATIONS: dict[str, Operation] = {}
_Act = Callable[[Hands, str, str, int], None]


_PLAIN: Final = Trait(0)


def _operation(weight: int, traits: Trait = _PLAIN) -> Callable[[_Act], _Act]:
    def add(act: _Act) -> _Act:
        OPERATIONS[act.__name__] = Operation(weight, act, traits)
        return act

    return add


def _bytes(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


def _some(number: int) -> bytes:
    """Mostly little; now and then more than is read at once."""
    size = 300_000 if number % 40 == 0 else number % 10_000
    return _bytes(number, size)


def _open(path: bytes, flags: int) -> int:
    """Open a file; what is none, and would have one wait, raises OSError or does no harm."""
    return os.open(path, os.O_NONBLOCK | os.O_NOFOLLOW | flags, 0o644)


def _write(path: bytes, flags: int, data: bytes, at: int | None = None) -> None:
    descriptor = _open(path, os.O_WRONLY | flags)
    try:
        if at is None:
            os.write(descriptor, data)
        else:
            os.pwrite(descriptor, data, at)
    finally:
        os.close(descriptor)


# Contents.


@_operation(9)
def create(hands: Hands, path: str, _: str, number: int) -> None:
    _write(hands.at(path), os.O_CREAT | os.O_EXCL, _some(number))


@_operation(7)
def write(hands: Hands, path: str, _: str, number: int) -> None:
    _write(hands.inside(path), os.O_TRUNC, _some(number))


@_operation(5)
def append(hands: Hands, path: str, _: str, number: int) -> None:
    _write(hands.inside(path), os.O_APPEND, _bytes(number, number % 100))


@_operation(5)
def pwrite(hands: Hands, path: str, _: str, number: int) -> None:
    _write(hands.inside(path), 0, _bytes(number, 100), number % 9000)


@_operation(4)
def truncate(hands: Hands, path: str, _: str, number: int) -> None:
    os.truncate(hands.inside(path), number % 12_000)


@_operation(3)
def direct(hands: Hands, path: str, _: str, number: int) -> None:
    with mmap.mmap(-1, PAGE) as page:
        page.write(_bytes(number, PAGE))
        descriptor = _open(hands.inside(path), os.O_WRONLY | os.O_DIRECT)
        try:
            os.pwrite(descriptor, page, number % 3 * PAGE)
        finally:
            os.close(descriptor)


@_operation(4)
def allocate(hands: Hands, path: str, _: str, number: int) -> None:
    descriptor = _open(hands.inside(path), os.O_RDWR)
    try:
        mode = _FALLOCATE_MODES[number % len(_FALLOCATE_MODES)]
        if _libc.fallocate(descriptor, mode, number % 2 * PAGE, PAGE) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")
    finally:
        os.close(descriptor)


@_operation(3)
def clone(hands: Hands, path: str, other: str, _: int) -> None:
    source = _open(hands.inside(path), os.O_RDONLY)
    try:
        target = _open(hands.at(other), os.O_WRONLY | os.O_CREAT)
        try:
            fcntl.ioctl(target, _FICLONE, source)
        finally:
            os.close(target)
    finally:
        os.close(source)


@_operation(3)
def copy_range(hands: Hands, path: str, other: str, number: int) -> None:
    source = _open(hands.inside(path), os.O_RDONLY)
    try:
        target = _open(hands.inside(other), os.O_WRONLY)
        try:
            os.copy_file_range(source, target, 5000, 0, number % 3000)
        finally:
            os.close(target)
    finally:
        os.close(source)


@_operation(2)
def write_and_back(hands: Hands, path: str, _: str, number: int) -> None:
    where = hands.inside(path)
    found = os.stat(where)
    descriptor = _open(where, os.O_RDWR)
    try:
        before = os.pread(descriptor, 50, 0)
        os.pwrite(descriptor, _bytes(number, len(before)), 0)
        os.pwrite(descriptor, before, 0)
    finally:
        os.close(descriptor)
    os.utime(where, ns=(found.st_atime_ns, found.st_mtime_ns))


# Files that stay open, over several backups.


@_operation(5)
def hold(hands: Hands, path: str, _: str, number: int) -> None:
    hands.hold(number, hands.at(path))


@_operation(4)
def hold_mapped(hands: Hands, path: str, _: str, number: int) -> None:
    hands.hold(number, hands.at(path))
    descriptor = hands.opened(number)
    os.truncate(descriptor, max(os.fstat(descriptor).st_size, _MAPPED))
    hands.held(number).map()
    hands.store(number)
    if number % 8 >= 4:
        hands.held(number).close()


@_operation(7)
def write_held(hands: Hands, _: str, __: str, number: int) -> None:
    os.pwrite(hands.opened(number), _bytes(number, 200), number % 20_000)


@_operation(4)
def write_by_aio(hands: Hands, _: str, __: str, number: int) -> None:
    submit_by_aio(hands.opened(number), _bytes(number, 300), number % 20_000)


@_operation(4)
def write_by_uring(hands: Hands, _: str, __: str, number: int) -> None:
    submit_by_uring(hands.opened(number), _bytes(number, 300), number % 20_000)


@_operation(9)
def store(hands: Hands, _: str, __: str, number: int) -> None:
    hands.store(number)


@_operation(3)
def store_and_protect(hands: Hands, _: str, __: str, number: int) -> None:
    hands.store(number)
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if number % 16 >= 8 else 0)
    if _libc.mprotect(hands.mapped(number), _MAPPED, protection) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


@_operation(3)
def store_and_let_go(hands: Hands, _: str, __: str, number: int) -> None:
    hands.store(number)
    hands.let_go(number)


@_operation(3)
def let_go(hands: Hands, _: str, __: str, number: int) -> None:
    hands.held(number)
    hands.let_go(number)


# Names.


@_operation(6)
def rename(hands: Hands, path: str, other: str, _: int) -> None:
    os.rename(hands.inside(path), hands.at(other))


@_operation(4, Trait.DIRECTORIES)
def rename_directory(hands: Hands, path: str, other: str, _: int) -> None:
    os.rename(hands.inside(path), hands.inside(other))


def _exchange(one: bytes, other: bytes) -> None:
    if _libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


@_operation(3)
def exchange(hands: Hands, path: str, other: str, _: int) -> None:
    _exchange(hands.inside(path), hands.inside(other))


@_operation(3, Trait.DIRECTORIES)
def exchange_directories(hands: Hands, path: str, other: str, _: int) -> None:
    _exchange(hands.inside(path), hands.inside(other))


@_operation(5)
def unlink(hands: Hands, path: str, _: str, __: int) -> None:
    os.unlink(hands.inside(path))


@_operation(6, Trait.LINKS)
def link(hands: Hands, path: str, other: str, _: int) -> None:
    os.link(hands.inside(path), hands.at(other), follow_symlinks=False)


@_operation(3, Trait.LINKS)
def link_and_write(hands: Hands, path: str, other: str, number: int) -> None:
    os.link(hands.inside(path), hands.at(other), follow_symlinks=False)
    _write(hands.inside(other), 0, _bytes(number, 60), 5)


@_operation(3, Trait.UNTOLD)
def write_by_a_link_that_goes(hands: Hands, path: str, other: str, number: int) -> None:
    os.link(hands.inside(path), hands.at(other), follow_symlinks=False)
    _write(hands.inside(other), 0, _bytes(number, 60), 5)
    os.unlink(hands.inside(other))


@_operation(3)
def write_after_unlink(hands: Hands, path: str, _: str, number: int) -> None:
    where = hands.inside(path)
    descriptor = _open(where, os.O_WRONLY)
    try:
        os.unlink(where)
        os.pwrite(descriptor, _bytes(number, 60), 5)
    finally:
        os.close(descriptor)


@_operation(2)
def write_after_naming(hands: Hands, path: str, _: str, number: int) -> None:
    """A file that had no name when it was opened."""
    where = hands.at(path)
    descriptor = os.open(os.path.dirname(where), os.O_WRONLY | os.O_TMPFILE, 0o600)
    try:
        # Only with a directory, which this path needs not, Python follows a link.
        os.link(f"/proc/self/fd/{descriptor}", where, src_dir_fd=descriptor)
        os.pwrite(descriptor, _bytes(number, 60), 5)
    finally:
        os.close(descriptor)


@_operation(3)
def symlink(hands: Hands, path: str, other: str, _: int) -> None:
    os.symlink(os.fsencode(other), hands.at(path))


@_operation(1)
def make_special(hands: Hands, path: str, _: str, number: int) -> None:
    kind = stat.S_IFIFO if number % 2 else stat.S_IFCHR
    os.mknod(hands.at(path), kind | 0o600, 0 if number % 2 else os.makedev(1, 3))


# Directories.


@_operation(2, Trait.DIRECTORIES)
def make_tree(hands: Hands, path: str, _: str, number: int) -> None:
    """Deeper and faster than watches can follow."""
    where = hands.inside(path)
    for level in range(6):
        where += b"/t%d" % (number % 4 + level)
        os.makedirs(where, exist_ok=True)
        _write(where + b"/in", os.O_CREAT, _bytes(number, level))


@_operation(2, Trait.DIRECTORIES)
def copy_old(hands: Hands, path: str, _: str, number: int) -> None:
    """Its times are long ago."""
    target = hands.at(path) + b"/old%d" % (number % 3)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    subprocess.run(["cp", "-a", hands.out("old"), target], check=True, stderr=subprocess.DEVNULL)


def _remove(path: bytes) -> None:
    """By rm: Python's own way would wait for ever at a FIFO that came in the directory's place."""
    os.lstat(path)
    subprocess.run(["rm", "-rf", path], check=True, stderr=subprocess.DEVNULL)


@_operation(2, Trait.DIRECTORIES)
def make_again(hands: Hands, path: str, _: str, number: int) -> None:
    _remove(hands.inside(path))
    os.mkdir(hands.inside(path))
    _write(hands.inside(path) + b"/g.db", os.O_CREAT, _some(number))


@_operation(1, Trait.DIRECTORIES)
def remove_tree(hands: Hands, path: str, _: str, __: int) -> None:
    _remove(hands.inside(path))


@_operation(3, Trait.DIRECTORIES)
def move_in(hands: Hands, path: str, _: str, number: int) -> None:
    source = hands.out(f"in{number}")
    os.makedirs(source + b"/a/b")
    for name in (b"/f", b"/a/f", b"/a/b/g.db"):
        _write(source + name, os.O_CREAT, _some(number))
    os.utime(source + b"/a/f", (1, 1))
    try:
        os.rename(source, hands.at(path))
    except OSError:
        _remove(source)
        raise


@_operation(2, Trait.DIRECTORIES)
def move_out(hands: Hands, path: str, _: str, number: int) -> None:
    os.rename(hands.inside(path), hands.out(f"out{number}"))


@_operation(2, Trait.UNTOLD)
def link_out(hands: Hands, path: str, _: str, number: int) -> None:
    os.link(hands.inside(path), hands.out(f"link{number % 4}"), follow_symlinks=False)


@_operation(4, Trait.UNTOLD)
def write_out_there(hands: Hands, _: str, __: str, number: int) -> None:
    _write(hands.out(f"link{number % 4}"), 0, _bytes(number, 60), 5)


# What is said of names.


@_operation(4)
def chmod(hands: Hands, path: str, _: str, number: int) -> None:
    os.chmod(hands.inside(path), (0o600, 0o644, 0o4755, 0o640)[number % 4])


@_operation(3)
def chown(hands: Hands, path: str, _: str, number: int) -> None:
    os.chown(hands.inside(path), number % 5, number % 7, follow_symlinks=False)


@_operation(3)
def set_past(hands: Hands, path: str, _: str, number: int) -> None:
    os.utime(hands.inside(path), ns=(number, number * 3), follow_symlinks=False)


@_operation(3)
def set_attribute(hands: Hands, path: str, _: str, number: int) -> None:
    long = 2500 if number % 8 == 0 else number % 50
    os.setxattr(hands.inside(path), f"user.{number % 3}", _bytes(number, long))


@_operation(2)
def remove_attribute(hands: Hands, path: str, _: str, number: int) -> None:
    os.removexattr(hands.inside(path), f"user.{number % 3}")


@_operation(2, Trait.DIRECTORIES)
def dress_directory(hands: Hands, path: str, _: str, number: int) -> None:
    where = hands.inside(path)
    match number % 4:
        case 0:
            os.chmod(where, 0o700 + number % 8)
        case 1:
            os.chown(where, number % 5, number % 7)
        case 2:
            os.utime(where, ns=(number, number * 3))
        case _:
            os.setxattr(where, "user.d", _bytes(number, 9))


@_operation(1)
def dress_root(hands: Hands, _: str, __: str, number: int) -> None:
    os.chmod(hands.inside(""), 0o700 + number % 8)
    os.setxattr(hands.inside(""), "user.r", _bytes(number, 9))


@_operation(12)
def wait(_: Hands, __: str, ___: str, number: int) -> None:
    """So that a burst lasts as long as some backups do."""
    select.select([], [], [], number % 16 / 1000)
