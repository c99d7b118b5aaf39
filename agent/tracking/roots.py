"""The root of a watched volume: which one it is, and whether events can tell of it at all."""

import os
import re
from typing import Final, NamedTuple

from agent.beneath import HELD, Tree
from agent.errors import UntrackableError
from agent.syscalls import Mount, file_handle, filesystem_of, mount_of

# From <linux/magic.h>, and for AFS and Lustre from their own sources. Others write there too, and
# no event of this node tells of it.
_SHARED: Final = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x0BD00BD0: "Lustre",
}
_UNSURE: Final = {
    0x65735546: "a FUSE filesystem may change without an event",
    0x794C7630: "an overlay's layers may change without an event",
    0xF15F: "what lies under ecryptfs may change without an event",
    0x01021994: "a store through a mapping leaves no trace in tmpfs",
    0x858458F6: "a store through a mapping leaves no trace in ramfs",
}
_SWEEP: Final = "nothing needs to be done: its backups sweep it"
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


class Root(NamedTuple):
    """What a volume's root is; equal only as long as it is the same one in the same mount."""

    path: bytes
    """As the kernel names it now, without links; of the directory, if the volume is a file."""
    file_name: bytes | None
    """Of the volume that is a single file."""
    device: int
    inode: int
    handle: bytes | None
    fsid: bytes
    mount: Mount

    def is_same(self, other: "Root") -> bool:
        """Whether it is that one still, wherever its path has moved to."""
        return self._replace(path=b"") == other._replace(path=b"")


def look_at(tree: Tree) -> Root:
    """Tell which root a tree has. Raises OSError."""
    found = os.fstat(tree.root)
    with tree.parent(b"") as (_, name):
        file_name = name if tree.is_file else None
    return Root(
        path=path_of(tree.root),
        file_name=file_name,
        device=found.st_dev,
        inode=found.st_ino,
        handle=file_handle(tree.root),
        fsid=filesystem_of(tree.root).fsid,
        mount=mount_of(tree.root),
    )


def path_of(descriptor: int) -> bytes:
    """The path of what a descriptor holds, as its mount shows it now. Raises OSError."""
    return os.readlink(b"/proc/self/fd/%d" % descriptor)


def check_trackable(tree: Tree) -> None:
    """Raise UntrackableError where no event tells of every change, whatever asks for events."""
    try:
        magic = filesystem_of(tree.root).magic
    except OSError as error:
        raise UntrackableError(
            f"its filesystem does not say what it is: {(error.strerror or '').lower()}", hint=_SWEEP
        ) from error
    if magic in _SHARED:
        raise UntrackableError(
            f"others may write to {_SHARED[magic]}, and no event tells of it", hint=_SWEEP
        )
    if magic in _UNSURE:
        raise UntrackableError(_UNSURE[magic], hint=_SWEEP)
    if tree.is_file and _is_mount(tree):
        raise UntrackableError("the volume's file is a mount of its own", hint=_SWEEP)


def _is_mount(tree: Tree) -> bool:
    """Whether the file that a volume is was mounted over its name."""
    with tree.parent(b"") as (directory, name):
        held = os.open(name, HELD, dir_fd=directory)
        try:
            return mount_of(held) != mount_of(directory)
        finally:
            os.close(held)


class MountLine(NamedTuple):
    """A line of /proc/self/mountinfo, as far as it is needed."""

    number: int
    device: int
    """Of the filesystem, in the kernel's own way to write it: btrfs has others for its inodes."""
    point: bytes


def mounts() -> list[MountLine]:
    """What is mounted, as this process sees it. Raises OSError."""
    with open("/proc/self/mountinfo", "rb") as lines:
        return [_parse(line.split(b" ", 5)) for line in lines]


def _parse(fields: list[bytes]) -> MountLine:
    major, _, minor = fields[2].partition(b":")
    point = _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), fields[4])
    return MountLine(int(fields[0]), int(major) << 20 | int(minor), point)


def mounted_beneath(root: Root, lines: list[MountLine]) -> frozenset[bytes]:
    """Keys of the places in a volume where something is mounted: what is under it cannot be seen.

    So one that appears or vanishes changes what a sweep finds there, and no event tells.
    """
    prefix = root.path.rstrip(b"/") + b"/"
    if root.file_name is not None:
        return frozenset()
    points = (line.point for line in lines if line.point.startswith(prefix))
    return frozenset(point[len(prefix) :].replace(b"/", b"\0") for point in points) - {b""}


def device_of(descriptor: int) -> int:
    """The filesystem's own device number, as MountLine has it. Raises OSError."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as fields:
        number = next(int(line.split()[1]) for line in fields if line.startswith("mnt_id:"))
    for line in mounts():
        if line.number == number:
            return line.device
    raise OSError(f"mount {number} is not in /proc/self/mountinfo")
