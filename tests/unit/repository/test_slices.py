"""Slices: parts of chunks that lie over older, larger ones; any such content reads back."""

import asyncio
import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from repository.content import ContentWriter, read_extents
from repository.entries import (
    ChunkClass,
    Content,
    Entry,
    EntryType,
    Extent,
    Pointer,
    decode_entry,
    encode_entry,
)
from repository.errors import FormatError
from repository.ids import IdKeys, ObjectType, PackNonce, RepositoryId
from repository.layout import ReaderKeys
from repository.needs import drive
from repository.reader import Chunks, SnapshotReader
from tests.fakes.frames import MemoryFrames

REPOSITORY = RepositoryId(b"R" * 16)
IDS = IdKeys(b"d" * 32, b"n" * 32, b"l" * 32)
FILE = Entry(EntryType.FILE, 0o644, 0, 0, 0, 0, 0, 0, 1, 0, 0, None, None, None, None)


async def run(work: Callable[[], list[Chunks]]) -> list[Chunks]:
    return work()


def overlaid(extents: list[Extent], offset: int, new: Extent) -> list[Extent]:
    """Extents with this one over whatever lay there; what stands out at either side is sliced."""
    before: list[Extent] = []
    after: list[Extent] = []
    position = 0
    for extent in extents:
        end = position + extent.length
        if position < offset:
            before.append(_part(extent, 0, min(end, offset) - position))
        if end > offset + new.length:
            begin = max(position, offset + new.length)
            after.append(_part(extent, begin - position, end - begin))
        position = end
    return [*before, new, *after]


def _part(extent: Extent, skip: int, length: int) -> Extent:
    if extent.is_hole:
        return Extent.hole(length)
    return msgspec.structs.replace(extent, skip=extent.skip + skip, length=length)


class Stored:
    """Chunks in frames, lists, and a reader of them."""

    def __init__(self) -> None:
        self.frames = MemoryFrames(REPOSITORY, IDS, PackNonce(b"p" * 16))
        self._reader = SnapshotReader(self.frames, ReaderKeys(REPOSITORY, IDS), run)

    def put_list(self, encoded: bytes) -> Pointer:
        ((chunk_id, place),) = self.frames.add(ObjectType.LIST, encoded)
        return Pointer.at(chunk_id, place)

    def file(self, extents: list[Extent], size: int) -> Entry:
        """An entry, once it was written and read as any is."""
        writer = ContentWriter(ChunkClass.GENERAL, self.put_list)
        for extent in extents:
            writer.add(extent)
        return decode_entry(
            encode_entry(msgspec.structs.replace(FILE, size=size, content=writer.finish()))
        )

    def read(self, entry: Entry) -> bytes:
        async def pieces() -> bytes:
            return b"".join([bytes(piece) async for piece in self._reader.content(entry)])

        return asyncio.run(pieces())


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 32), st.integers(0, 60))
@example(1, 0)
def test_a_file_that_was_written_over_in_part_again_and_again_reads_back(
    seed: int, writes: int
) -> None:
    draw, stored = random.Random(seed), Stored()
    content = bytearray(draw.randbytes(draw.randrange(1, 3000)))
    places = stored.frames.add(ObjectType.DATA, b"in front of it", bytes(content))
    extents = [Extent.at(*places[1])]
    for _ in range(writes):
        offset = draw.randrange(len(content))
        length = draw.randrange(1, min(200, len(content) - offset) + 1)
        written = draw.randbytes(length)
        if draw.random() < 0.2:
            new, written = Extent.hole(length), bytes(length)
        else:
            # Itself a slice, out of the middle of its chunk.
            head, end = draw.randbytes(draw.randrange(3)), draw.randbytes(draw.randrange(3))
            (place,) = stored.frames.add(ObjectType.DATA, head + written + end)
            new = _part(Extent.at(*place), len(head), length)
        content[offset : offset + length] = written
        extents = overlaid(extents, offset, new)

    entry = stored.file(extents, len(content))

    assert stored.read(entry) == bytes(content)
    assert sum(extent.length for extent in extents) == len(content)


LENGTH = 1000


@given(st.integers(0, (1 << 32) - 1), st.integers(1, (1 << 64) - 1))
@example(0, LENGTH)
@example(LENGTH - 1, 1)
@example(LENGTH - 1, 2)
@example(0, LENGTH + 1)
@example(LENGTH, 1)
@example((1 << 32) - 1, 1)
@example((1 << 32) - 1, (1 << 64) - (1 << 32) + 1)
@example(1, (1 << 64) - 1)
@settings(deadline=None)
def test_a_slice_is_read_exactly_if_it_lies_in_its_chunk(skip: int, length: int) -> None:
    stored = Stored()
    content = bytes(number % 251 for number in range(LENGTH))
    ((chunk_id, place),) = stored.frames.add(ObjectType.DATA, content)
    extent = Extent(place.nonce, place.frame, place.chunk, skip, length, chunk_id)

    if skip + length <= LENGTH:
        assert stored.read(stored.file([extent], length)) == content[skip : skip + length]
        return
    with pytest.raises(FormatError, match="longer than its chunk"):
        stored.read(stored.file([extent], length))


@pytest.mark.parametrize(
    ("skip", "length"), [(0, 0), (5, 0), (-1, 1), (0, -1), (1 << 32, 1), (1 << 63, 1)]
)
@pytest.mark.parametrize("in_list", [False, True])
def test_a_slice_that_can_be_none_does_not_decode(skip: int, length: int, in_list: bool) -> None:
    stored = Stored()
    ((chunk_id, place),) = stored.frames.add(ObjectType.DATA, bytes(LENGTH))
    extent = Extent(place.nonce, place.frame, place.chunk, skip, length, chunk_id)
    if in_list:
        node = msgspec.msgpack.encode((0, [extent]))
        content = Content(ChunkClass.GENERAL, [], stored.put_list(node))
        with pytest.raises(FormatError, match="extent"):
            list(drive(read_extents(content), lambda _: node))
        return
    content = Content(ChunkClass.GENERAL, [extent], None)
    with pytest.raises(FormatError, match="entry does not decode"):
        decode_entry(encode_entry(msgspec.structs.replace(FILE, content=content)))


@pytest.mark.parametrize("part", ["skip", "length"])
def test_a_hole_has_no_place_and_some_length(part: str) -> None:
    hole = msgspec.structs.replace(Extent.hole(5), **{part: 0 if part == "length" else 1})
    content = Content(ChunkClass.GENERAL, [hole], None)

    with pytest.raises(FormatError):
        decode_entry(encode_entry(msgspec.structs.replace(FILE, content=content)))
