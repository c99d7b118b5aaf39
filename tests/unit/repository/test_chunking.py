"""Chunking: cuts join to what was cut, keep their bounds, and stay where they are."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from repository.chunking import (
    BLOCK_BYTES,
    CHUNK_BYTES_AVERAGE,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    SMALL_BYTES_MAX,
    ContentCutter,
    blocks,
    classify,
)
from repository.entries import ChunkClass

SECRET = b"chunker key of thirty-two bytes."
RANDOM = random.Random(4).randbytes(16 * 1024 * 1024)


def cuts(content: bytes, secret: bytes = SECRET) -> list[int]:
    return list(ContentCutter(secret).cut(memoryview(content), last=True))


def windowed(content: bytes, window_bytes: int) -> Iterator[int]:
    """Cut as a reader does that holds only a window."""
    cutter = ContentCutter(SECRET)
    position, held = 0, window_bytes
    while position < len(content):
        window = memoryview(content)[position : position + held]
        last = position + held >= len(content)
        certain = list(cutter.cut(window, last=last))
        yield from certain
        position += sum(certain)
        held = window_bytes if certain else held + window_bytes


CUTS = cuts(RANDOM)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", bytes(10_000_000), RANDOM, RANDOM[:CHUNK_BYTES_MIN], b"ab" * 3_000_000],
    ids=["empty", "byte", "zeros", "random", "smallest", "pattern"],
)
def test_chunks_join_to_what_was_cut_and_keep_their_bounds(content: bytes) -> None:
    lengths = cuts(content)

    assert sum(lengths) == len(content)
    assert all(CHUNK_BYTES_MIN <= length <= CHUNK_BYTES_MAX for length in lengths[:-1])
    assert all(0 < length <= CHUNK_BYTES_MAX for length in lengths)


def test_chunks_have_the_average_that_was_meant() -> None:
    assert CHUNK_BYTES_AVERAGE / 2 < len(RANDOM) / len(CUTS) < CHUNK_BYTES_AVERAGE * 2


@given(st.integers(1, 9 * 1024 * 1024))
@settings(max_examples=8)
def test_windows_of_any_size_give_the_cuts_of_one_piece(window_bytes: int) -> None:
    assert list(windowed(RANDOM, max(window_bytes, 100_000))) == CUTS


@pytest.mark.parametrize("size", [CHUNK_BYTES_MAX, 3 * CHUNK_BYTES_MAX + 17])
def test_zeros_are_cut_alike_in_windows_and_in_one_piece(size: int) -> None:
    assert list(windowed(bytes(size), CHUNK_BYTES_MAX)) == cuts(bytes(size))


def ends(lengths: list[int]) -> set[int]:
    found, position = set(), 0
    for length in lengths:
        position += length
        found.add(position)
    return found


@given(st.integers(0, len(RANDOM)), st.binary(min_size=1, max_size=30))
@settings(max_examples=6)
@example(len(RANDOM), b"\0")
@example(0, b"\0")
def test_an_insertion_moves_few_boundaries(position: int, inserted: bytes) -> None:
    changed = ends(cuts(RANDOM[:position] + inserted + RANDOM[position:]))
    moved = {end if end <= position else end + len(inserted) for end in ends(CUTS)}

    assert len(moved - changed) <= 8
    # The end of the data is a boundary only while nothing follows it.
    assert {end for end in moved if end <= position and end < len(RANDOM)} <= changed


def test_another_key_cuts_elsewhere() -> None:
    assert not (ends(CUTS) & ends(cuts(RANDOM, b"another" * 5))) - {len(RANDOM)}


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_any_key_makes_a_cutter(secret: bytes) -> None:
    assert sum(cuts(RANDOM[:3_000_000], secret)) == 3_000_000


@given(st.integers(0, 10 * BLOCK_BYTES))
def test_blocks_are_aligned_and_join_to_the_length(length: int) -> None:
    lengths = list(blocks(length))

    assert sum(lengths) == length
    assert all(each == BLOCK_BYTES for each in lengths[:-1])
    assert all(0 < each <= BLOCK_BYTES for each in lengths)


LARGE = SMALL_BYTES_MAX
SMALL, GENERAL, PAGED = ChunkClass.SMALL, ChunkClass.GENERAL, ChunkClass.PAGED
SQLITE = b"SQLite format 3\x00" + bytes(84)


@pytest.mark.parametrize(
    ("path", "size", "beginning", "previous", "expected"),
    [
        (b"notes.txt", LARGE - 1, b"", None, SMALL),
        (b"notes.txt", LARGE, b"", None, GENERAL),
        (b"notes.txt", LARGE, b"", SMALL, GENERAL),
        (b"app.db", LARGE - 1, SQLITE, None, SMALL),
        (b"app.db", LARGE, b"", None, PAGED),
        (b"app.db\n", LARGE, b"", None, GENERAL),
        (b"app.db.gz", LARGE, b"", None, GENERAL),
        (b"state", LARGE, SQLITE, None, PAGED),
        (b"state", LARGE, SQLITE, SMALL, PAGED),
        (b"state", LARGE, SQLITE[:10], None, GENERAL),
        (b"state", LARGE, b"QFI\xfb\x00\x00\x00\x03", None, PAGED),
        (b"state", LARGE, b"KDMV\x01", None, PAGED),
        (b"state", LARGE, bytes(16) + b"\xde\xc0\xef\xbe", None, PAGED),
        (b"state", LARGE, b"", None, GENERAL),
        (b"pg/base/16384/16385", LARGE, b"", None, PAGED),
        (b"base/16384/16385_fsm", LARGE, b"", None, PAGED),
        (b"base/16384/16385.1", LARGE, b"", None, PAGED),
        (b"base/16384/16385_vm.12", LARGE, b"", None, PAGED),
        (b"global/1262", LARGE, b"", None, PAGED),
        (b"pg_tblspc/99/PG_15_2022/5/6", LARGE, b"", None, PAGED),
        (b"mysql/ibdata1", LARGE, b"", None, PAGED),
        (b"mysql/undo_001", LARGE, b"", None, PAGED),
        (b"mysql/shop/orders.ibd", LARGE, b"", None, PAGED),
        (b"images/disk.qcow2", LARGE, b"", None, PAGED),
        (b"database/16384", LARGE, b"", None, GENERAL),
        (b"notibdata1", LARGE, b"", None, GENERAL),
        # What it was stays: another cut would store everything anew.
        (b"notes.txt", 10, b"", PAGED, PAGED),
        (b"notes.txt", LARGE, b"", PAGED, PAGED),
        (b"app.db", LARGE, SQLITE, GENERAL, GENERAL),
        (b"app.db", 10, SQLITE, GENERAL, SMALL),
    ],
)
def test_a_file_is_cut_by_its_kind(
    path: bytes, size: int, beginning: bytes, previous: ChunkClass | None, expected: ChunkClass
) -> None:
    assert classify(path, size, beginning, previous) is expected
