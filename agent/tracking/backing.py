"""Files that the kernel itself writes to, and that no process need have open: what backs a disk.

A loop device tells its file by number. What exports a file to another machine, or another port,
tells a path as whoever set it up saw it; so it is looked for in two places, and is whatever is
there: to suspect a file too many costs a look at it.
"""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from agent.syscalls import identity_of

# From <linux/loop.h>: struct loop_info64 of 232 bytes begins with the device and the inode number
# of the file, the device as st_dev has it.
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO_BYTES: Final = 232
_LOOP_FILE: Final = struct.Struct("=QQ")
# What exports files: its module, and where its configuration has their paths.
_EXPORTS: Final = (
    ("target_core_file", "target/core/fileio_*/*/udev_path"),
    ("nvmet", "nvmet/subsystems/*/namespaces/*/device_path"),
    ("usb_f_mass_storage", "usb_gadget/*/functions/mass_storage.*/lun.*/file"),
)
# The same tree of names as whoever set up the host sees it, and as the agent does.
_ROOTS: Final = ("1/root", "self/root")


class Backing(NamedTuple):
    """A file behind a disk, or what stands in the way of knowing it."""

    device: int
    """As st_dev."""
    inode: int
    unseen: str | None = None
    """If so, the rest is zero."""


def backing_files(proc: Path, sys: Path, dev: Path) -> Iterator[Backing]:
    """Yield what the kernel may write to by itself. Raises nothing: what fails is unseen."""
    yield from _loop_files(sys, dev)
    yield from _exported_files(proc, sys)


def _loop_files(sys: Path, dev: Path) -> Iterator[Backing]:
    try:
        names = sorted(name for name in os.listdir(sys / "block") if name.startswith("loop"))
    except OSError:
        yield _unseen("loop devices, since /sys/block is not there")
        return
    for name in names:
        block = sys / "block" / name
        # What is read-only, as a snap's image is, writes nothing.
        if (block / "loop").exists() and _text(block / "ro") != "0":
            continue
        if (block / "loop").exists():
            yield from _loop_file(dev / name, _text(block / "dev"))


def _loop_file(node: Path, number: str | None) -> Iterator[Backing]:
    try:
        descriptor = os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor).st_rdev
            if f"{os.major(found)}:{os.minor(found)}" != number:
                yield _unseen(f"the file of {node}, which is another device")
                return
            told = fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, bytes(_LOOP_INFO_BYTES))
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno != errno.ENXIO:  # it has just been given up
            yield _unseen(f"the file of {node}: {_reason(error)}")
        return
    yield Backing(*_LOOP_FILE.unpack_from(told))


def _exported_files(proc: Path, sys: Path) -> Iterator[Backing]:
    configuration = sys / "kernel" / "config"
    for module, pattern in _EXPORTS:
        if not (sys / "module" / module).exists():
            continue
        if not (configuration / pattern.partition("/")[0]).exists():
            yield _unseen(f"what {module} exports, since its part of {configuration} is not there")
        for place in sorted(configuration.glob(pattern)):
            yield from _exported(proc, place)


def _exported(proc: Path, place: Path) -> Iterator[Backing]:
    path = _text(place)
    if path is None or not path.startswith("/"):
        yield _unseen(f"the file of {place.parent}")
        return
    exists = False
    for root in _ROOTS:
        try:
            mode, device, inode = identity_of(-1, f"{proc}/{root}{path}")
        except OSError:
            continue
        exists = True
        if stat.S_ISREG(mode):
            yield Backing(device, inode)
    if not exists:
        yield _unseen(f"the file {path} of {place.parent}")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="surrogateescape").strip()
    except OSError:
        return None


def _unseen(what: str) -> Backing:
    return Backing(0, 0, what)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
