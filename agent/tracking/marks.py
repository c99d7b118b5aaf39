"""fanotify as the kernel has it: a group with its queue, marks, and the events' bytes.

What the numbers are stands in <linux/fanotify.h>. An event is 24 bytes of metadata and records
that say which filesystem, directory, name and inode it is about. A name is given relative to its
directory's handle; what happens to a directory itself comes with its own handle and the name ".".
"""

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

_CLOEXEC: Final = 0x01
_NONBLOCK: Final = 0x02
_UNLIMITED_QUEUE: Final = 0x10
_DFID_NAME: Final = 0x200 | 0x400 | 0x800
_TARGET_FID: Final = 0x1000

_ADD: Final = 0x01
_REMOVE: Final = 0x02
_ONLY_DIRECTORY: Final = 0x08
_FILESYSTEM: Final = 0x100

_MODIFY: Final = 0x02
_ATTRIB: Final = 0x04
_CLOSE_WRITE: Final = 0x08
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
_DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
FS_ERROR: Final = 0x8000
RENAME: Final = 0x10000000
ONDIR: Final = 0x40000000
_ALWAYS: Final = (
    _MODIFY | _ATTRIB | _CLOSE_WRITE | CREATE | DELETE | _DELETE_SELF | MOVE_SELF | ONDIR
)
# Best first. RENAME needs Linux 5.17, FS_ERROR 5.16.
_MASKS: Final = (
    _ALWAYS | RENAME | FS_ERROR,
    _ALWAYS | MOVED_FROM | MOVED_TO | FS_ERROR,
    _ALWAYS | MOVED_FROM | MOVED_TO,
)
# The list of names in the directory has changed.
LISTED: Final = CREATE | DELETE | MOVED_FROM | MOVED_TO | RENAME

# struct fanotify_event_metadata, of which the last eight bytes, a descriptor and a process, tell
# nothing here.
_METADATA_BYTES: Final = 24
_METADATA_VERSION: Final = 3
_HEAD: Final = struct.Struct("=IBBHQ")
_RECORD: Final = struct.Struct("=BBH")
_U32: Final = struct.Struct("=I")
_FID: Final = 1
_NAMED: Final = frozenset({2, 10, 12})  # DFID_NAME, OLD_DFID_NAME, NEW_DFID_NAME
_NEW_NAME: Final = 12
_DFID: Final = 3
# A read takes some thousand events; less would cost a call for each few under load.
_READ_BYTES: Final = 256 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_fanotify_init = _libc.fanotify_init
_fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
_fanotify_mark = _libc.fanotify_mark
_fanotify_mark.argtypes = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_char_p,
)


class Group:
    """A fanotify group: one queue for everything that is marked in it."""

    def __init__(self, *, unlimited: bool = True) -> None:
        """Begin one. Without `unlimited` its queue overflows after 16,384 events.

        Raises OSError: EPERM without CAP_SYS_ADMIN, EINVAL before Linux 5.9.
        """
        flags = _CLOEXEC | _NONBLOCK | (_UNLIMITED_QUEUE if unlimited else 0) | _DFID_NAME
        try:
            self.descriptor = _init(flags | _TARGET_FID)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.descriptor = _init(flags)

    def mark_filesystem(self, descriptor: int) -> None:
        """Tell of everything in the filesystem that holds an open directory.

        Raises OSError: EXDEV in a btrfs subvolume, EOPNOTSUPP or ENODEV where inodes have no
        handles.
        """
        for mask in _MASKS:
            try:
                _mark(self.descriptor, _ADD | _FILESYSTEM, mask, descriptor)
            except OSError as error:
                if error.errno != errno.EINVAL or mask == _MASKS[-1]:
                    raise
            else:
                return

    def mark_directory(self, descriptor: int) -> None:
        """Tell of names made and removed in an open directory. Raises OSError."""
        _mark(self.descriptor, _ADD | _ONLY_DIRECTORY, CREATE | DELETE, descriptor)

    def unmark_filesystem(self, descriptor: int) -> None:
        """Take back what mark_filesystem did; nothing if it is gone already. Raises OSError."""
        for mask in _MASKS:
            try:
                _mark(self.descriptor, _REMOVE | _FILESYSTEM, mask, descriptor)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                if error.errno != errno.EINVAL:
                    raise

    def read(self) -> bytes:
        """Take events from the queue; b"" if there are none. Raises OSError."""
        try:
            return os.read(self.descriptor, _READ_BYTES)
        except BlockingIOError:
            return b""

    def marked(self) -> set[int]:
        """Devices of the filesystems whose mark lives. It goes with a filesystem, silently."""
        lines = Path(f"/proc/self/fdinfo/{self.descriptor}").read_text("ascii").splitlines()
        found = (line.split() for line in lines if line.startswith("fanotify sdev:"))
        return {int(fields[1].removeprefix("sdev:"), 16) for fields in found}

    def close(self) -> None:
        """End it, and all its marks."""
        os.close(self.descriptor)


def _init(flags: int) -> int:
    descriptor: int = _fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def _mark(group: int, flags: int, mask: int, descriptor: int) -> None:
    if _fanotify_mark(group, flags, mask, descriptor, None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def gather(events: bytes, into: dict[bytes, int]) -> bool:
    """Add what a read returned to a dictionary: the records of an event, and all its masks.

    Two events that say the same of the same are one, however often a file is written. Returns
    whether the queue was full, and events were dropped: such a word has no records. Raises OSError
    for bytes of another version.
    """
    at, end, unpack, size = 0, len(events), _HEAD.unpack_from, _METADATA_BYTES
    while at < end:
        length, version, _, _, mask = unpack(events, at)
        if version != _METADATA_VERSION:
            raise OSError(f"fanotify speaks version {version}")
        records = events[at + size : at + length]
        into[records] = into.get(records, 0) | mask
        at += length
    return into.pop(b"", None) is not None


class Named(NamedTuple):
    """A name in a directory."""

    directory: bytes
    """Its handle, as file_handle() gives it."""
    name: bytes
    is_new: bool
    """Whether it is what the other name of a rename became."""


class Records(NamedTuple):
    """What the records of an event say."""

    fsid: bytes
    names: list[Named]
    inode: bytes | None
    """The handle of what it happened to."""


def parse(records: bytes) -> Records:
    """Read the records of one event."""
    fsid, names, inode, at = b"", [], None, 0
    while at < len(records):
        kind, _, length = _RECORD.unpack_from(records, at)
        if kind in _NAMED or kind in {_FID, _DFID}:
            fsid = records[at + 4 : at + 12]
            (size,) = _U32.unpack_from(records, at + 12)
            handle = records[at + 12 : at + 20 + size]
            if kind == _FID:
                inode = handle
            else:
                name = records[at + 20 + size : at + length].partition(b"\0")[0] or b"."
                names.append(Named(handle, name, is_new=kind == _NEW_NAME))
        at += length
    return Records(fsid, names, inode)
