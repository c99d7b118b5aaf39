"""What two lists of extents prove, and what they do not."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.extents import ENCODED, LAST, MERGED, SHARED, UNWRITTEN, DiskExtent, joined, may_differ

UNIT = 4096
# From <linux/fiemap.h>: what nobody knows, what is not placed yet, not aligned, inline, in a tail.
ODD = (0x2, 0x4, ENCODED, 0x80, 0x100, 0x200, 0x400)

extents = st.lists(
    st.tuples(
        st.integers(0, 3),  # hole before it
        st.integers(1, 4),
        st.integers(0, 6),  # where it lies
        st.sampled_from((SHARED, SHARED | MERGED, 0, UNWRITTEN, SHARED | ENCODED, SHARED | 0x200)),
    ),
    max_size=6,
)


def made(spec: list[tuple[int, int, int, int]]) -> list[DiskExtent]:
    found, position = [], 0
    for hole, length, physical, flags in spec:
        position += hole
        found.append(DiskExtent(position * UNIT, physical * UNIT, length * UNIT, flags))
        position += length
    return found


def block_of(listed: list[DiskExtent], unit: int) -> tuple[int, int] | None:
    """Address and flags of one block, found by looking at all extents."""
    for each in listed:
        if each.logical <= unit * UNIT < each.end:
            return each.physical + unit * UNIT - each.logical, each.flags & ~MERGED
    return None


def is_same(left: tuple[int, int] | None, right: tuple[int, int] | None) -> bool:
    def is_zeros(block: tuple[int, int] | None) -> bool:
        return block is None or block[1] in {UNWRITTEN, UNWRITTEN | SHARED}

    if is_zeros(left) and is_zeros(right):
        return True
    return left == right and left is not None and left[1] == SHARED


@given(extents, extents, st.integers(0, 40))
def test_all_and_only_what_is_not_proven_may_differ(
    left: list[tuple[int, int, int, int]], right: list[tuple[int, int, int, int]], units: int
) -> None:
    kept, fresh = made(left), made(right)

    ranges = list(may_differ(kept, fresh, units * UNIT))

    told = {unit for begin, end in ranges for unit in range(begin // UNIT, end // UNIT)}
    assert told == {
        unit for unit in range(units) if not is_same(block_of(kept, unit), block_of(fresh, unit))
    }
    assert ranges == list(joined(ranges))


@pytest.mark.parametrize("flag", ODD)
def test_an_extent_that_says_more_than_where_it_is_proves_nothing(flag: int) -> None:
    extent = DiskExtent(0, 8 * UNIT, UNIT, SHARED | flag)
    plain = DiskExtent(0, 8 * UNIT, UNIT, SHARED)

    for pair in ((extent, extent), (extent, plain), (plain, extent)):
        assert list(may_differ([pair[0]], [pair[1]], UNIT)) == [(0, UNIT)]


def test_an_address_that_is_not_shared_proves_nothing() -> None:
    alone, shared = DiskExtent(0, UNIT, UNIT, LAST), DiskExtent(0, UNIT, UNIT, LAST | SHARED)

    assert list(may_differ([alone], [alone], UNIT)) == [(0, UNIT)]
    assert list(may_differ([shared], [alone], UNIT)) == [(0, UNIT)]
    assert list(may_differ([shared], [shared], UNIT)) == []


def test_one_extent_that_is_told_in_parts_is_the_same() -> None:
    whole = [DiskExtent(0, UNIT, 4 * UNIT, SHARED)]
    parts = [DiskExtent(0, UNIT, UNIT, SHARED), DiskExtent(UNIT, 2 * UNIT, 3 * UNIT, SHARED)]

    assert list(may_differ(whole, parts, 4 * UNIT)) == []
    assert list(may_differ(parts, whole, 5 * UNIT)) == []


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=8))
def test_joined_ranges_cover_the_same_and_do_not_touch(spec: list[tuple[int, int]]) -> None:
    ranges = [(begin, begin + length) for begin, length in spec]

    found = list(joined(ranges))

    assert {at for pair in found for at in range(*pair)} == {
        at for pair in ranges for at in range(*pair)
    }
    assert all(left[1] < right[0] for left, right in pairwise(found))
