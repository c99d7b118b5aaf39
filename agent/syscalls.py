"""System calls that the agent needs and Python does not have."""

import ctypes
import errno
import os
import struct
from typing import Final, NamedTuple

# From <linux/falloc.h>.
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL})

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
# From <linux/fs.h>.
_SYNC_WRITE: Final = 2
_NO_HINTS: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ESPIPE})
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_syncfs = _libc.syncfs
_syncfs.argtypes = (ctypes.c_int,)
# From <linux/fcntl.h>: the descriptor itself, not a name in it.
_EMPTY_PATH: Final = 0x1000
_HANDLE_BYTES_MAX: Final = 128
_name_to_handle_at = _libc.name_to_handle_at
# ext4 answers ENOMEM for an inode that is just being freed (seen once in 45,000 on Linux 6.18), and
# ESTALE when asked again.
_FREEING_ATTEMPTS: Final = 16
_open_by_handle_at = _libc.open_by_handle_at
_fstatfs = _libc.fstatfs
_statx = _libc.statx
# From <linux/stat.h>: the number of a mount, and since Linux 6.8 one that is never used again.
_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_STATX_BYTES: Final = 256
_STATX_MNT_ID_AT: Final = 144
# struct statfs of 64-bit machines: the type first, the id after seven numbers.
_STATFS_BYTES: Final = 120
_STATFS_ID_AT: Final = 56


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("handle", ctypes.c_ubyte * _HANDLE_BYTES_MAX),
    )


# All of a handle but its room: how many bytes, of which type.
_HANDLE_HEAD: Final = 2 * ctypes.sizeof(ctypes.c_uint)


class Mount(NamedTuple):
    """The mount that something is reached through."""

    number: int
    is_unique: bool
    """Whether no other mount ever gets that number until the node starts again."""


class Filesystem(NamedTuple):
    """What statfs says of a filesystem."""

    magic: int
    fsid: bytes
    """Eight bytes that tell it from others, as the kernel's events do; zeros where it has none."""


def file_handle(descriptor: int, name: bytes = b"") -> bytes | None:
    """What the filesystem itself calls the thing that a descriptor (of O_PATH, too) holds.

    With a name, what the name stands for in that directory; no link is followed. It has the
    inode's number in it, and what tells it from others that had that number before. None where
    there is no such name, or the filesystem has no such handles.
    """
    handle, mount = _FileHandle(_HANDLE_BYTES_MAX, 0), ctypes.c_int()
    flags = 0 if name else _EMPTY_PATH
    done = _name_to_handle_at(descriptor, name, ctypes.byref(handle), ctypes.byref(mount), flags)
    if done != 0:
        return None
    return ctypes.string_at(ctypes.byref(handle), _HANDLE_HEAD + handle.handle_bytes)


def open_by_handle(mounted: int, handle: bytes) -> int:
    """Hold (O_PATH) what has that handle, as it is seen through the mount of another descriptor.

    Needs CAP_DAC_READ_SEARCH. Raises OSError: ESTALE where it exists no longer.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    code = 0
    for _ in range(_FREEING_ATTEMPTS):
        descriptor: int = _open_by_handle_at(mounted, handle, flags)
        if descriptor >= 0:
            return descriptor
        code = ctypes.get_errno()
        if code != errno.ENOMEM:
            break
    raise OSError(code, os.strerror(code))


def mount_of(descriptor: int) -> Mount:
    """Which mount a descriptor was opened through. Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    for wanted in (_STATX_MNT_ID_UNIQUE, _STATX_MNT_ID):
        if _statx(descriptor, b"", _EMPTY_PATH, wanted, buffer) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        (told,) = struct.unpack_from("=I", buffer)
        if told & wanted:
            (number,) = struct.unpack_from("=Q", buffer, _STATX_MNT_ID_AT)
            return Mount(number, is_unique=wanted == _STATX_MNT_ID_UNIQUE)
    raise OSError(errno.ENOSYS, "the kernel tells no mount")


def filesystem_of(descriptor: int) -> Filesystem:
    """What kind of filesystem holds an open file, and which. Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _fstatfs(descriptor, buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    (magic,) = struct.unpack_from("@l", buffer)
    return Filesystem(magic & 0xFFFFFFFF, buffer.raw[_STATFS_ID_AT : _STATFS_ID_AT + 8])


def punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Make a range of an open file read as zeros and take no space; its size stays.

    False where the filesystem cannot do that. Raises OSError for anything else.
    """
    if _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code))


def begin_writeback(descriptor: int, offset: int, length: int) -> None:
    """Have a range of an open file be on its way to the disk, and wait for nothing.

    Promises nothing: only a sync does. Raises OSError where it cannot be written.
    """
    if _sync_file_range(descriptor, offset, length, _SYNC_WRITE) != 0:
        code = ctypes.get_errno()
        if code not in _NO_HINTS:
            raise OSError(code, os.strerror(code))


def sync_filesystem(descriptor: int) -> None:
    """Write everything of the filesystem that holds an open file to its disk. Raises OSError.

    One call costs less than an fsync of each of many files, and leaves none out.
    """
    if _syncfs(descriptor) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
