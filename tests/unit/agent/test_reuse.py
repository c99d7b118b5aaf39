"""What is read and what is taken over make the content that reading everything makes."""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from agent import cutting
from agent.cutting import FileCutter, Hole, Kept
from agent.extents import Range, joined
from agent.reading import LargeFile
from agent.reuse import Changes, Lengths, OldContent
from repository.chunking import BLOCK_BYTES, CHUNK_BYTES_MAX, ContentCutter
from repository.entries import ChunkClass, Extent
from repository.ids import ChunkId, PackNonce

SECRET: Final = b"chunker key of thirty-two bytes."
MIB: Final = 1024 * 1024
# For files of a few bytes: as everything else, but a thousandth of a millionth of the size.
BLOCK: Final = 4
LENGTHS: Final = Lengths(2, 6, beyond=1)


class TinyCutter(ContentCutter):
    """Cuts behind a byte 1 that another one follows, within bounds; certain once that is seen."""

    @override
    def cut(self, window: memoryview, *, last: bool) -> Iterator[int]:
        position = 0
        while position < len(window):
            length = self._length(window[position : position + LENGTHS.most])
            at_end = position + length == len(window)
            if at_end and not last and length < LENGTHS.most:
                return
            yield length
            position += length

    def _length(self, data: memoryview) -> int:
        for length in range(LENGTHS.least, len(data)):
            if data[length - 1] == 1:
                return length
        return len(data)


class File(NamedTuple):
    """A file's bytes, and which blocks of it are holes."""

    data: bytes
    holes: frozenset[int] = frozenset()


class MemoryFile(LargeFile):
    """A file that nobody changes, in memory."""

    def __init__(self, file: File) -> None:
        self._file = file
        self.length = len(file.data)
        self.allocated = 0 if file.holes else self.length
        self.bytes_read = self.size = 0

    @override
    def read_into(self, buffer: memoryview, offset: int) -> int:
        assert buffer, "whoever reads nothing does so for ever"
        data = self._file.data[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self.bytes_read += len(data)
        return len(data)

    @override
    def data_ranges(self, begin: int, end: int) -> Iterator[Range]:
        starts = range(0, self.length, BLOCK)
        data = (at for at in starts if at // BLOCK not in self._file.holes)
        yield from joined((at, min(self.length, at + BLOCK)) for at in data)


def extent(content: bytes) -> Extent:
    return Extent(PackNonce(b"n" * 16), 1, 1, 0, len(content), ChunkId(content))


class Cut(NamedTuple):
    """A file as it was cut."""

    extents: list[Extent]
    bytes_read: int
    cut: list[Extent]
    """Those that were not taken over."""


def cut(
    cutter: FileCutter,
    file: File,
    chunking: ChunkClass,
    old: Sequence[Extent] = (),
    changed: Iterable[Range] = (),
) -> Cut:
    memory = MemoryFile(file)
    source = OldContent(old)
    extents: list[Extent] = []
    anew: list[Extent] = []
    for piece in cutter.pieces(memory, chunking, old, changed):
        if isinstance(piece, Kept):
            extents += source.within(piece.begin, piece.end)
        elif isinstance(piece, Hole):
            extents.append(Extent.hole(piece.length))
        else:
            extents.append(extent(bytes(piece)))
            anew.append(extent(bytes(piece)))
    assert memory.size == len(file.data)
    return Cut(extents, memory.bytes_read, anew)


def differing(old: File, new: File) -> Iterator[Range]:
    for at, (one, other) in enumerate(itertools.zip_longest(old.data, new.data)):
        if one != other and at < len(new.data):
            yield at, at + 1


def standing(old: Sequence[Extent], new: Sequence[Extent], changed: Sequence[Range]) -> set[Range]:
    """The chunks of a content that are certainly none of the reader's business."""

    def chunks(extents: Sequence[Extent]) -> Iterator[tuple[Range, bool]]:
        ends = [0, *itertools.accumulate(each.length for each in extents)]
        for number, each in enumerate(extents):
            last = number + 1 == len(extents) or extents[number + 1].is_hole
            if not each.is_hole:
                yield (ends[number], ends[number + 1]), last

    news = dict(chunks(new))
    return {
        each
        for each, last in chunks(old)
        if each in news
        and (not last or news[each])
        and not any(begin < each[1] and each[0] < end for begin, end in changed)
    }


@contextmanager
def tiny() -> Iterator[FileCutter]:
    """A cutter of files of a few bytes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cutting, "_WINDOW_BYTES", 2 * LENGTHS.most)
        patched.setattr(cutting, "_GENERAL", LENGTHS)
        patched.setattr(cutting, "_PAGED", Lengths(BLOCK, BLOCK, beyond=0))
        patched.setattr(cutting, "BLOCK_BYTES", BLOCK)
        patched.setattr(cutting, "_HOLE_BYTES_MIN", BLOCK)
        patched.setattr(cutting, "blocks", tiny_blocks)
        patched.setattr(cutting, "ContentCutter", TinyCutter)
        yield FileCutter(SECRET)


def tiny_blocks(length: int) -> Iterator[int]:
    yield from itertools.repeat(BLOCK, length // BLOCK)
    if length % BLOCK:
        yield length % BLOCK


def check(
    cutter: FileCutter, old: File, new: File, chunking: ChunkClass, more: Iterable[Range] = ()
) -> None:
    """The content is what cutting everything makes, and what stands was not cut anew."""
    changed = list(joined([*differing(old, new), *more]))
    before = cut(cutter, old, chunking).extents
    whole = cut(cutter, new, chunking)

    found = cut(cutter, new, chunking, before, changed)

    assert found.extents == whole.extents
    kept = standing(before, whole.extents, changed)
    lengths = sum(each.length for each in whole.extents if not each.is_hole)
    assert sum(each.length for each in found.cut) == lengths - sum(b - a for a, b in kept)


files = [bytes(each) for size in range(7) for each in itertools.product((0, 1), repeat=size)]


@pytest.mark.parametrize("chunking", [ChunkClass.GENERAL, ChunkClass.PAGED])
def test_every_change_of_every_small_file_makes_what_reading_everything_makes(
    chunking: ChunkClass,
) -> None:
    with tiny() as cutter:
        for old, new in itertools.product(files, files[::3]):
            check(cutter, File(old), File(new), chunking)


changes = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda each: (each[0], sum(each))),
    max_size=4,
)


@st.composite
def versions(draw: st.DrawFn) -> tuple[File, File]:
    """A file and what became of it: written to, punched, filled, shrunk, grown."""
    old = draw(st.binary(max_size=60).map(lambda each: bytes(one % 2 for one in each)))
    new = bytearray(old)
    for begin, end in draw(changes):
        new[begin:end] = draw(st.lists(st.integers(0, 1), min_size=end - begin, max_size=60))
    new = new[: draw(st.integers(0, 70))]
    return with_holes(draw, old), with_holes(draw, bytes(new))


def with_holes(draw: st.DrawFn, data: bytes) -> File:
    holes = draw(st.frozensets(st.integers(0, len(data) // BLOCK), max_size=6))
    punched = bytearray(data)
    for each in holes:
        length = len(punched[each * BLOCK : (each + 1) * BLOCK])
        punched[each * BLOCK : (each + 1) * BLOCK] = bytes(length)
    return File(bytes(punched), holes)


@settings(max_examples=300)
@given(versions(), changes, st.sampled_from((ChunkClass.GENERAL, ChunkClass.PAGED)))
@example((File(b""), File(bytes(9))), [], ChunkClass.GENERAL)
@example((File(bytes(8)), File(bytes(8), frozenset({1}))), [], ChunkClass.GENERAL)
@example((File(bytes(8), frozenset({1})), File(bytes(8))), [], ChunkClass.GENERAL)
def test_the_content_is_what_reading_everything_makes(
    pair: tuple[File, File], more: list[Range], chunking: ChunkClass
) -> None:
    with tiny() as cutter:
        check(cutter, *pair, chunking, more)


REAL: Final = FileCutter(SECRET)
TEXT: Final = random.Random(6).randbytes(20 * MIB)


def overwritten(*places: int) -> bytes:
    data = bytearray(TEXT)
    for place in places:
        data[place : place + 100] = random.Random(place).randbytes(100)
    return bytes(data)


@pytest.mark.parametrize(
    ("new", "changed", "most"),
    [
        (TEXT, [], 0),
        (overwritten(5 * MIB, 13 * MIB), [(5 * MIB, 5 * MIB + 100), (13 * MIB, 13 * MIB + 100)], 6),
        (TEXT + TEXT[:1000], [(20 * MIB, 20 * MIB + 1000)], 4),
        (TEXT[: 12 * MIB + 5], [], 4),
        (TEXT[: 5 * MIB] + TEXT[6 * MIB :], [(5 * MIB, 19 * MIB)], 17),
        (TEXT[: 7 * MIB] + bytes(9 * MIB) + TEXT[16 * MIB :], [(7 * MIB, 16 * MIB)], 14),
    ],
    ids=["same", "overwritten", "grown", "shrunk", "collapsed", "zeroed"],
)
def test_large_contents_are_cut_anew_until_the_bounds_meet_again(
    new: bytes, changed: list[Range], most: int
) -> None:
    old = cut(REAL, File(TEXT), ChunkClass.GENERAL).extents

    found = cut(REAL, File(new), ChunkClass.GENERAL, old, changed)

    assert found.extents == cut(REAL, File(new), ChunkClass.GENERAL).extents
    assert found.bytes_read <= most * MIB
    assert found.bytes_read <= sum(each.length for each in found.cut) + 4096 * (len(changed) + 1)


def test_no_more_is_read_than_the_blocks_that_changed() -> None:
    old = cut(REAL, File(TEXT), ChunkClass.PAGED).extents
    changed = [(3 * BLOCK_BYTES + 5, 3 * BLOCK_BYTES + 6), (9 * BLOCK_BYTES, 11 * BLOCK_BYTES)]

    found = cut(REAL, File(TEXT), ChunkClass.PAGED, old, changed)

    assert found.bytes_read == 3 * BLOCK_BYTES
    assert found.extents == old


@pytest.mark.parametrize("chunking", [ChunkClass.GENERAL, ChunkClass.PAGED])
def test_what_no_cutting_makes_is_read(chunking: ChunkClass) -> None:
    """Slices, chunks out of bounds, and a content that is shorter than its file."""
    data = TEXT[: 8 * MIB]
    slice_ = Extent(PackNonce(b"n" * 16), 1, 1, 7, MIB, ChunkId(b"slice"))
    odd = [slice_, extent(b"short"), extent(TEXT[: CHUNK_BYTES_MAX + 1])]

    found = cut(REAL, File(data), chunking, odd)

    assert found == cut(REAL, File(data), chunking)


# A file as the numbers of its blocks' contents, 0 a hole, and by how much its last one is short.
blocked = st.tuples(st.lists(st.integers(0, 3), max_size=12), st.sampled_from((0, 1, 5000)))


def block_of(content: int, length: int) -> Extent:
    if not content:
        return Extent.hole(length)
    return Extent(PackNonce(b"n" * 16), 1, content, 0, length, ChunkId(bytes([content]) * 32))


def size_of(file: tuple[list[int], int]) -> int:
    blocks, short = file
    return max(0, len(blocks) * BLOCK_BYTES - short)


def read(file: tuple[list[int], int]) -> Iterator[Extent]:
    for position in range(0, size_of(file), BLOCK_BYTES):
        content = file[0][position // BLOCK_BYTES]
        yield block_of(content, min(BLOCK_BYTES, size_of(file) - position))


def whole(file: tuple[list[int], int]) -> Iterator[Extent]:
    """With neighbouring holes as one."""
    for is_hole, group in itertools.groupby(read(file), lambda each: each.is_hole):
        run = list(group)
        yield from [Extent.hole(sum(each.length for each in run))] if is_hole else run


@given(blocked, blocked)
def test_changes_are_counted_block_by_block(
    old: tuple[list[int], int], new: tuple[list[int], int]
) -> None:
    changes = Changes(whole(old))

    for each in read(new):
        changes.add(each)

    before = list(read(old))
    expected = 0
    for number, each in enumerate(read(new)):
        same = number < len(before) and each.id == before[number].id
        if not same or (each.is_hole and each.length > before[number].length):
            expected += each.length
    assert changes.bytes == expected
