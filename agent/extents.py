"""Where a file's bytes lie on the disk, and what follows from it for two clones of one file.

A block that two clones share is never written to: whoever changes the file gets another block. So
where a clone that nobody has written to and a later one name the same shared block, the bytes are
the same, unread. That holds for XFS and btrfs, and only for extents that say no more than where
they are: what is compressed, inline or not yet placed may differ, whatever its address. Of what
btrfs compressed FIEMAP tells where the packed extent begins, and not which part of what it unpacks
to is meant: once another part is shared to the same place, other bytes have the same answer.
"""

import fcntl
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

# _IOWR('f', 11, struct fiemap), whose head has start, length, flags, mapped, room, reserved.
_FIEMAP: Final = 0xC020660B
_HEAD: Final = struct.Struct("=QQLLLL")
_MAPPED_AT: Final = 20
# Logical, physical, length, reserved twice, flags, reserved thrice.
_EXTENT: Final = struct.Struct("=QQQ16xL12x")
_SYNC: Final = 0x1
_EVERYTHING: Final = (1 << 64) - 1
# Extents asked for at once: 28 KiB, and the kernel lets go of the file in between.
_BATCH: Final = 512

# From <linux/fiemap.h>.
LAST: Final = 0x1
ENCODED: Final = 0x8
UNWRITTEN: Final = 0x800
MERGED: Final = 0x1000
SHARED: Final = 0x2000
# Neither says anything of the bytes: the last one of its file, and several told as one.
_HARMLESS: Final = LAST | MERGED
# Room that was never written to, shared or not: it reads as a hole does.
_ZEROS: Final = frozenset({UNWRITTEN, UNWRITTEN | SHARED})


class DiskExtent(NamedTuple):
    """A stretch of a file and where it lies; all in bytes."""

    logical: int
    physical: int
    length: int
    flags: int

    @property
    def end(self) -> int:
        """Where the stretch ends in the file."""
        return self.logical + self.length


Range = tuple[int, int]
"""[begin, end) in a file."""


def disk_extents(descriptor: int) -> list[DiskExtent]:
    """Where an open file lies; between the extents are holes. OSError where nobody can tell."""
    found: list[DiskExtent] = []
    start = 0
    buffer = bytearray(_HEAD.size + _BATCH * _EXTENT.size)
    while True:
        _HEAD.pack_into(buffer, 0, start, _EVERYTHING - start, _SYNC, 0, _BATCH, 0)
        fcntl.ioctl(descriptor, _FIEMAP, buffer)
        (mapped,) = struct.unpack_from("=L", buffer, _MAPPED_AT)
        end = _HEAD.size + mapped * _EXTENT.size
        found += map(DiskExtent._make, _EXTENT.iter_unpack(buffer[_HEAD.size : end]))
        if not mapped or found[-1].flags & LAST:
            return found
        start = found[-1].end


def may_differ(
    kept: Sequence[DiskExtent], fresh: Sequence[DiskExtent], size: int
) -> Iterator[Range]:
    """Yield where two clones may differ, in order and with gaps between; below `size`. Pure.

    Everything but what is zeros in both, and the same shared extents in both.
    """
    begin: int | None = None
    for start, same in _stretches(kept, fresh, size):
        if same and begin is not None:
            yield begin, start
            begin = None
        elif not same and begin is None:
            begin = start
    if begin is not None:
        yield begin, size


def _stretches(
    kept: Sequence[DiskExtent], fresh: Sequence[DiskExtent], size: int
) -> Iterator[tuple[int, bool]]:
    """(where it begins, whether it is the same) for stretches within which neither changes."""
    bounds = {0}
    for extents in (kept, fresh):
        bounds.update(each.logical for each in extents)
        bounds.update(each.end for each in extents)
    lefts, rights = _Cursor(kept), _Cursor(fresh)
    for start in sorted(each for each in bounds if each < size):
        yield start, _is_same(lefts.at(start), rights.at(start))


class _Cursor:
    """Finds the extent of one offset after the other."""

    def __init__(self, extents: Iterable[DiskExtent]) -> None:
        self._rest = iter(extents)
        self._current = next(self._rest, None)

    def at(self, offset: int) -> DiskExtent | None:
        """The extent at an offset, which is not below the last one; None for a hole."""
        while self._current is not None and self._current.end <= offset:
            self._current = next(self._rest, None)
        if self._current is None or offset < self._current.logical:
            return None
        return self._current


def _is_same(left: DiskExtent | None, right: DiskExtent | None) -> bool:
    """Whether the bytes at an offset are proven to be the same."""
    if _is_zeros(left) or _is_zeros(right):
        return _is_zeros(left) and _is_zeros(right)
    assert left is not None
    assert right is not None
    if {left.flags & ~_HARMLESS, right.flags & ~_HARMLESS} != {SHARED}:
        return False
    return left.physical - left.logical == right.physical - right.logical


def _is_zeros(extent: DiskExtent | None) -> bool:
    return extent is None or extent.flags & ~_HARMLESS in _ZEROS


def joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Yield ranges, given in any order, as few as possible and in order. Pure."""
    held: Range | None = None
    for begin, end in sorted(ranges):
        if held is not None and begin <= held[1]:
            held = held[0], max(held[1], end)
            continue
        if held is not None:
            yield held
        held = begin, end
    if held is not None:
        yield held
