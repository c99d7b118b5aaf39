"""System calls that the agent needs and Python does not have."""

import ctypes
import errno
import os
from typing import Final

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


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("handle", ctypes.c_ubyte * _HANDLE_BYTES_MAX),
    )


def file_handle(descriptor: int) -> bytes | None:
    """What the filesystem itself calls the thing that a descriptor (of O_PATH, too) holds.

    It has the inode's number in it, and what tells it from others that had that number before.
    None where the filesystem has no such name.
    """
    handle, mount = _FileHandle(_HANDLE_BYTES_MAX, 0), ctypes.c_int()
    done = _name_to_handle_at(
        descriptor, b"", ctypes.byref(handle), ctypes.byref(mount), _EMPTY_PATH
    )
    if done != 0:
        return None
    # All of it but the room: how many bytes, of which type, and the bytes.
    return bytes(handle)[: 2 * ctypes.sizeof(ctypes.c_uint) + handle.handle_bytes]


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
