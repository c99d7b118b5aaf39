"""What is read and what is taken over make the content that reading everything makes."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from agent.blocks import Changes, OldContent, holes_joined, stretches
from repository.chunking import BLOCK_BYTES
from repository.entries import Extent
from repository.ids import ChunkId, PackNonce

# A file as the numbers of its blocks' contents, 0 a hole, and by how much its last one is short.
files = st.tuples(st.lists(st.integers(0, 3), max_size=12), st.sampled_from((0, 1, 5000)))


def extent(content: int, length: int) -> Extent:
    if not content:
        return Extent.hole(length)
    return Extent(PackNonce(b"n" * 16), 1, content, 0, length, ChunkId(bytes([content]) * 32))


def size_of(file: tuple[list[int], int]) -> int:
    blocks, short = file
    return max(0, len(blocks) * BLOCK_BYTES - short)


def read(file: tuple[list[int], int], begin: int, end: int) -> Iterator[Extent]:
    """What reading makes of a range on bounds of blocks."""
    for position in range(begin, end, BLOCK_BYTES):
        yield extent(file[0][position // BLOCK_BYTES], min(BLOCK_BYTES, end - position))


def whole(file: tuple[list[int], int]) -> list[Extent]:
    return list(holes_joined(read(file, 0, size_of(file))))


@given(files, files, st.lists(st.tuples(st.integers(0, 12), st.integers(1, 70_000)), max_size=2))
def test_the_content_is_what_reading_everything_makes(
    old: tuple[list[int], int], new: tuple[list[int], int], more: list[tuple[int, int]]
) -> None:
    size, old_size = size_of(new), size_of(old)
    changed = [(at * BLOCK_BYTES, at * BLOCK_BYTES + length) for at, length in more]
    for number, content in enumerate(new[0]):
        if number < len(old[0]) and content != old[0][number]:
            changed.append((number * BLOCK_BYTES + 100, number * BLOCK_BYTES + 101))
    before = whole(old)

    wanted = list(stretches(changed, before, old_size, size))

    assert [each.begin for each in wanted] == [0, *(each.end for each in wanted)][: len(wanted)]
    assert not wanted or wanted[-1].end == size
    source = OldContent(before)
    made = [
        each
        for stretch in wanted
        for each in (
            source.within(stretch.begin, stretch.end)
            if stretch.is_kept
            else read(new, stretch.begin, stretch.end)
        )
    ]
    assert list(holes_joined(made)) == whole(new)


def test_no_more_is_read_than_the_blocks_that_changed() -> None:
    old = whole(([1, 2, 3, 1, 0], 0))

    wanted = stretches([(BLOCK_BYTES + 5, BLOCK_BYTES + 6)], old, 5 * BLOCK_BYTES, 5 * BLOCK_BYTES)

    assert [(each.begin, each.end) for each in wanted if not each.is_kept] == [
        (BLOCK_BYTES, 2 * BLOCK_BYTES)
    ]


def test_what_was_not_cut_in_blocks_is_read() -> None:
    odd = [extent(1, BLOCK_BYTES), extent(2, 100), extent(3, 3 * BLOCK_BYTES - 100)]

    wanted = list(stretches([], odd, 4 * BLOCK_BYTES, 4 * BLOCK_BYTES))

    assert [tuple(each) for each in wanted] == [
        (0, BLOCK_BYTES, True),
        (BLOCK_BYTES, 4 * BLOCK_BYTES, False),
    ]


def test_a_content_that_is_shorter_than_its_file_was_is_read_beyond() -> None:
    wanted = list(stretches([], [extent(1, BLOCK_BYTES)], 3 * BLOCK_BYTES, 3 * BLOCK_BYTES))

    assert [tuple(each) for each in wanted] == [
        (0, BLOCK_BYTES, True),
        (BLOCK_BYTES, 3 * BLOCK_BYTES, False),
    ]


@given(files, files)
def test_changes_are_counted_block_by_block(
    old: tuple[list[int], int], new: tuple[list[int], int]
) -> None:
    changes = Changes(whole(old))

    for each in read(new, 0, size_of(new)):
        changes.add(each)

    before = list(read(old, 0, size_of(old)))
    expected = 0
    for number, each in enumerate(read(new, 0, size_of(new))):
        same = number < len(before) and each.id == before[number].id
        if not same or (each.is_hole and each.length > before[number].length):
            expected += each.length
    assert changes.bytes == expected
