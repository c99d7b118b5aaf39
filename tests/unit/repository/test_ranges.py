"""Which reads of the store serve the ranges that a restore asks for."""

from collections import deque
from collections.abc import Iterable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from repository.ranges import Read, take_ranges
from repository.ranges import reads as reads_of

MIB = 1024 * 1024


def reads(ranges: Iterable[tuple[int, int]]) -> Iterator[Read]:
    return reads_of(ranges, gap_bytes=128 * 1024, read_bytes=4 * MIB)


def test_neighbours_are_served_by_one_read() -> None:
    assert list(reads([(0, 10), (10, 5), (100, 5)])) == [Read(0, 105, [(0, 10), (10, 5), (100, 5)])]


def test_what_lies_far_apart_is_read_apart() -> None:
    assert [each[:2] for each in reads([(0, 10), (MIB, 5)])] == [(0, 10), (MIB, 5)]


def test_what_is_longer_than_a_read_takes_several() -> None:
    assert list(reads([(7, 9 * MIB)])) == [
        Read(begin, size, [(begin, size)])
        for begin, size in [(7, 4 * MIB), (7 + 4 * MIB, 4 * MIB), (7 + 8 * MIB, MIB)]
    ]


@given(st.lists(st.tuples(st.integers(0, 64 * MIB), st.integers(0, 6 * MIB)), max_size=30))
def test_every_byte_that_was_asked_for_comes_once_and_in_order(
    ranges: list[tuple[int, int]],
) -> None:
    served: list[tuple[int, int]] = []
    for read in reads(ranges):
        assert 0 < read.length <= 4 * MIB
        for offset, length in read.wanted:
            assert read.offset <= offset
            assert offset + length <= read.offset + read.length
            if served and sum(served[-1]) == offset and served[-1] not in ranges:
                served[-1] = served[-1][0], served[-1][1] + length
            else:
                served.append((offset, length))

    assert served == [each for each in ranges if each[1]]


def test_what_is_taken_of_ranges_is_missing_from_their_beginning() -> None:
    ranges = deque([(0, 10), (50, 0), (100, 30), (200, 5)])

    assert take_ranges(ranges, 25) == [(0, 10), (50, 0), (100, 15)]
    assert list(ranges) == [(115, 15), (200, 5)]
    assert take_ranges(ranges, 99) == [(115, 15), (200, 5)]
    assert not ranges
