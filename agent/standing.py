"""What stands in a restore's target, looked at and never written: for restores and rehearsals.

Everything is relative to directory descriptors, as in writing.py. Contents are compared by the ids
of chunks: what has the id that the snapshot names need not be fetched.
"""

import contextlib
import errno
import itertools
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Self

from agent.attributes import attributes_of
from agent.beneath import Tree
from agent.errors import SourceError, TargetError
from agent.reading import data_ranges
from agent.replacing import Standing
from agent.sweep import entry_type
from repository.entries import Attributes, EntryType, Extent
from repository.frames import RAW_BYTES_MAX
from repository.ids import IdKeys, ObjectType

# What says that a filesystem, or what one may have of it, is used up.
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# Of what is made beside the name that it will take. Short, so that it fits beside any name.
_BESIDE: Final = b".tidemark-"
_BESIDE_HEX: Final = re.compile(rb"[0-9a-f]{16}")
_EXCHANGED: Final = "the file was exchanged during the restore"
_NOTHING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def name_beside() -> bytes:
    """A name that nobody has, for what is made and takes its own name later."""
    return _BESIDE + secrets.token_hex(8).encode()


def is_beside(name: bytes) -> bool:
    """Whether a name is one of those; a restore that is killed leaves what it was making."""
    return name.startswith(_BESIDE) and bool(_BESIDE_HEX.fullmatch(name, len(_BESIDE)))


class TargetFullError(TargetError):
    """The target takes no more, so nothing more can be restored there."""


class Block(NamedTuple):
    """An extent and its offset in the file."""

    offset: int
    extent: Extent


def blocks_of(extents: Sequence[Extent], offset: int = 0) -> list[Block]:
    """Extents that follow each other from an offset on."""
    offsets = itertools.accumulate((extent.length for extent in extents), initial=offset)
    return [Block(*block) for block in zip(offsets, extents, strict=False)]


class Ground:
    """The directory that a restore works in. Used from many threads at once."""

    def __init__(
        self, descriptor: int, path: bytes, closed: frozenset[tuple[int, int]] = frozenset()
    ) -> None:
        """Take over an open directory. `closed` are (device, inode) that are left alone."""
        self.tree = Tree(descriptor, same_filesystem=True)
        self.path = path
        self.closed = closed

    def __enter__(self) -> Self:
        """Return itself; leaving closes."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.tree.close()

    def is_empty(self) -> bool:
        """Whether nothing is in it."""
        return self.is_empty_directory(b"")

    def is_empty_directory(self, key: bytes) -> bool:
        """Whether nothing is in a directory of it."""
        with (
            self.translated(),
            self.tree.directory(key) as directory,
            os.scandir(directory) as names,
        ):
            return next(names, None) is None

    def look(self, key: bytes) -> Standing | None:
        """What stands at a name; None if nothing does, or what should hold it is no directory."""
        try:
            with self.tree.held(key) as held:
                found = os.fstat(held)
                target = os.readlink(b"", dir_fd=held) if stat.S_ISLNK(found.st_mode) else None
                try:
                    attributes = attributes_of(held, opened=False).attributes
                except SourceError:
                    attributes = None  # more than any snapshot has: all is set anew
                return _standing(found, target, attributes)
        except OSError as error:
            if error.errno in _NOTHING:
                return None
            raise self.meaning(error) from error

    def can_enter(self, key: bytes) -> bool:
        """Whether a directory is ours to work in: no mount point, and none of the closed ones."""
        try:
            with self.tree.directory(key) as directory:
                found = os.fstat(directory)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise self.meaning(error) from error
        return (found.st_dev, found.st_ino) not in self.closed

    def same_blocks(
        self, key: bytes, standing: Standing, blocks: Sequence[Block], ids: IdKeys
    ) -> list[bool]:
        """For each block whether a regular file has it already; False wherever that is unknown.

        A hole is had where no data lies. A slice of a chunk has no id of its own.
        """
        try:
            descriptor = self.open_standing(key, standing, os.O_RDONLY)
        except (OSError, TargetError):
            return [False] * len(blocks)
        try:
            return [_is_same(descriptor, standing, block, ids) for block in blocks]
        except OSError:
            return [False] * len(blocks)
        finally:
            os.close(descriptor)

    def open_standing(self, key: bytes, standing: Standing, flags: int) -> int:
        """Open the regular file that was looked at. Raises OSError, TargetError for another one."""
        if flags == os.O_RDONLY:
            descriptor, found = self.tree.open_regular(key)
            if (found.st_dev, found.st_ino) != standing.identity:
                os.close(descriptor)
                raise TargetError(_EXCHANGED)
            return descriptor
        # To open a device for writing may do things to it: see first that it is none.
        with self.tree.held(key) as held:
            found = os.fstat(held)
            if (found.st_dev, found.st_ino) != standing.identity:
                raise TargetError(_EXCHANGED)
            return os.open(f"/proc/self/fd/{held}", flags | os.O_NONBLOCK | os.O_CLOEXEC)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn an OSError into what it means for the target."""
        try:
            yield
        except OSError as error:
            raise self.meaning(error) from error

    @contextlib.contextmanager
    def translated_top(self) -> Iterator[None]:
        """The same where no path of it is meant but all of it: the message says so."""
        try:
            with self.translated():
                yield
        except TargetFullError:
            raise
        except TargetError as error:
            raise TargetError(
                f"{os.fsdecode(self.path)} {error.message}",
                hint="check the disk that it lies on, then restore again over it, or elsewhere",
            ) from error

    def meaning(self, error: OSError) -> TargetError:
        """What an OSError means for the target."""
        reason = (error.strerror or str(error)).lower()
        if error.errno in FULL:
            return TargetFullError(
                f"no space left in {os.fsdecode(self.path)}",
                hint="make room and restore again with --overwrite, or choose another disk",
            )
        if error.errno == errno.EROFS:
            return TargetFullError(
                f"{os.fsdecode(self.path)} is on a read-only filesystem",
                hint="choose another target",
            )
        if error.errno == errno.EXDEV:
            return TargetError("another filesystem is mounted there, and restores enter none")
        return TargetError(f"cannot be written: {reason}")


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """So many bytes from there, or fewer at the file's end."""
    data = os.pread(descriptor, length, offset)
    while 0 < len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _standing(
    found: os.stat_result, target: bytes | None, attributes: Attributes | None
) -> Standing:
    kind = entry_type(found.st_mode)
    is_device = kind in {EntryType.CHARACTER_DEVICE, EntryType.BLOCK_DEVICE}
    return Standing(
        type=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        size=found.st_size,
        identity=(found.st_dev, found.st_ino),
        links=found.st_nlink,
        device=found.st_rdev if is_device else 0,
        target=target,
        attributes=attributes,
    )


def _is_same(descriptor: int, standing: Standing, block: Block, ids: IdKeys) -> bool:
    offset, extent = block
    end = offset + extent.length
    if extent.is_hole:
        return next(data_ranges(descriptor, offset, min(end, standing.size)), None) is None
    if extent.skip or extent.length > RAW_BYTES_MAX or end > standing.size:
        return False
    data = read_at(descriptor, offset, extent.length)
    return len(data) == extent.length and ids.chunk_id(ObjectType.DATA, data) == extent.id
