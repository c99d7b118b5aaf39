"""System calls that the agent needs and Python does not have."""

import ctypes
import errno
import fcntl
import os
import struct
import threading
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
# Wait for what is on its way, write what is dirty, and wait for that.
_SYNC_ALL: Final = 1 | _SYNC_WRITE | 4
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_syncfs = _libc.syncfs
_syncfs.argtypes = (ctypes.c_int,)
# From <linux/fcntl.h>: the descriptor itself, not a name in it.
_EMPTY_PATH: Final = 0x1000
_HANDLE_BYTES_MAX: Final = 128
_name_to_handle_at = _libc.name_to_handle_at
# ext4 answers ENOMEM while somebody creates or frees an inode of that number (iget_locked() finds
# it half made; one call in 6,000 with two writers beside it on Linux 6.18), and ESTALE when that is
# done. Who creates it may wait for the journal meanwhile, so the last of these pauses is 0.8 s.
_HALF_MADE_PAUSES: Final = tuple(0.0001 * 2**doubled for doubled in range(14))
_open_by_handle_at = _libc.open_by_handle_at
# From <linux/magic.h>. Where a range's write-out is known to leave no page that a process can write
# to unnoticed. An overlay takes the same call and does nothing; compressed pages of btrfs may
# still be with the compressor when it returns. There, and elsewhere, fsync does.
_WRITES_RANGES: Final = frozenset({0xEF53, 0x58465342})  # ext4, XFS
_BTRFS: Final = 0x9123683E
# From <linux/fs.h>: FICLONE, FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NOCOW_FL.
_CLONE: Final = 0x40049409
_GET_FLAGS: Final = 0x80086601
_SET_FLAGS: Final = 0x40086602
_NO_COPY_ON_WRITE: Final = 0x00800000
_LONG_BYTES: Final = 8
# Those whose clones are known to be of one moment, and to share blocks that nobody writes to.
_CLONING: Final = frozenset({0x58465342, _BTRFS})  # XFS, btrfs
# tmpfs, ramfs, hugetlbfs: what was never on a disk is never written out.
_IN_MEMORY: Final = frozenset({0x01021994, 0x858458F6, 0x958458F6})
_fstatfs = _libc.fstatfs
# struct statfs of 64-bit machines: the type first, the id after seven numbers.
_STATFS_BYTES: Final = 120
_STATFS_ID_AT: Final = 56
_statx = _libc.statx
# From <linux/stat.h> and <linux/fcntl.h>: type and inode number, as far as they are known here.
_STATX_TYPE_INO: Final = 0x1 | 0x100
_NO_AUTOMOUNT: Final = 0x800
_DONT_SYNC: Final = 0x4000
# stx_mode, stx_ino, stx_dev_major and stx_dev_minor in 256 bytes of struct statx.
_STATX: Final = struct.Struct("=28xH2xQ96xII112x")
# The number of a mount, and since Linux 6.8 one that is never used again.
_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_STATX_MNT_ID_AT: Final = 144
# From <linux/kcmp.h>, and its number in the tables of system calls: the C library has no name for
# it.
_KCMP_FILES: Final = 2
_IS_64_BIT: Final = ctypes.sizeof(ctypes.c_void_p) == 8
_KCMP_NUMBERS: Final = {"x86_64": 312, "aarch64": 272, "riscv64": 272}


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
    for pause in (*_HALF_MADE_PAUSES, None):
        descriptor: int = _open_by_handle_at(mounted, handle, flags)
        if descriptor >= 0:
            return descriptor
        code = ctypes.get_errno()
        if code != errno.ENOMEM or pause is None:
            break
        threading.Event().wait(pause)
    raise OSError(code, os.strerror(code))


def mount_of(descriptor: int) -> Mount:
    """Which mount a descriptor was opened through. Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATX.size)
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


def write_out(descriptor: int) -> bool:
    """Write all that is dirty of an open file, be it open for reading only, and wait for it.

    Each page that was dirty is clean for a moment before this returns. From then on a store through
    a mapping has to fault first, and that moves the file's ctime: it shows. False where it never
    does, on tmpfs and the like. Raises OSError where it cannot be written.
    """
    try:
        kind = filesystem_of(descriptor).magic
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        kind = 0  # a FUSE filesystem that does not say what it is
    if kind in _IN_MEMORY:
        return False
    if kind in _WRITES_RANGES:
        if _sync_file_range(descriptor, 0, 0, _SYNC_ALL) == 0:
            return True
        code = ctypes.get_errno()
        # What could not be written is told once: an fsync of this descriptor would find all well.
        if code not in _NO_HINTS:
            raise OSError(code, os.strerror(code))
    os.fsync(descriptor)
    return True


def can_clone(descriptor: int) -> bool:
    """Tell whether an open file lies where clones may be relied on, if they can be made."""
    try:
        return filesystem_of(descriptor).magic in _CLONING
    except OSError:
        return False  # whatever does not even say what it is


def clone_file(source: int, target: int) -> None:
    """Make an empty file, open for writing, share all blocks of another one, as it is just now.

    What is dirty of it is written out before, and writes that are under way are waited for. Raises
    OSError: EXDEV where they lie on different filesystems, EOPNOTSUPP where there is no such thing.
    """
    if filesystem_of(source).magic == _BTRFS:
        # Blocks without checksums, as a database's often are, go to files without them only.
        flags = _inode_flags(source) & _NO_COPY_ON_WRITE
        if flags:
            fcntl.ioctl(target, _SET_FLAGS, struct.pack("@l", _inode_flags(target) | flags))
    fcntl.ioctl(target, _CLONE, source)


def _inode_flags(descriptor: int) -> int:
    (flags,) = struct.unpack("@l", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(_LONG_BYTES)))
    return int(flags) & 0xFFFFFFFF


class Identity(NamedTuple):
    """What a file is."""

    mode: int
    """Its type alone can be relied on."""
    device: int
    """As st_dev."""
    inode: int


def identity_of(directory: int, name: str) -> Identity:
    """What a name beneath an open directory leads to, links followed; no server is asked for it.

    So a dead network filesystem's file does not block it. Raises OSError.
    """
    found = ctypes.create_string_buffer(_STATX.size)
    flags = _DONT_SYNC | _NO_AUTOMOUNT
    if _statx(directory, os.fsencode(name), flags, _STATX_TYPE_INO, found) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    mode, inode, major, minor = _STATX.unpack(found)
    return Identity(mode, os.makedev(major, minor), inode)


def has_same_descriptors(thread: int, other: int) -> bool:
    """Tell whether two threads, by their numbers here, share one table of descriptors.

    Also false where nobody can tell, or one of them has ended.
    """
    number = _KCMP_NUMBERS.get(os.uname().machine) if _IS_64_BIT else None
    return number is not None and _libc.syscall(number, thread, other, _KCMP_FILES, 0, 0) == 0


def sync_filesystem(descriptor: int) -> None:
    """Write everything of the filesystem that holds an open file to its disk. Raises OSError.

    One call costs less than an fsync of each of many files, and leaves none out.
    """
    if _syncfs(descriptor) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
