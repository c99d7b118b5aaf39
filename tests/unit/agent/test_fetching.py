from hypothesis import given
from hypothesis import strategies as st

from agent.fetching import FETCH_BYTES, Place, Wanted, coalesce, in_pack_order
from repository.frames import FrameIdentity
from repository.ids import PackNonce
from repository.keys import FrameKey

KEY = FrameKey(b"k" * 32)


def place(offset: int, length: int, pack: str = "p") -> Place:
    return Place(pack, offset, length, KEY)


def test_neighbours_are_fetched_as_one_range() -> None:
    assert coalesce([place(0, 10), place(10, 5), place(100, 5)]) == [(0, 105)]


def test_what_lies_far_apart_is_fetched_apart() -> None:
    assert coalesce([place(0, 10), place(1 << 20, 5)]) == [(0, 10), (1 << 20, 5)]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 1 << 25), st.integers(1, 1 << 21)),
        max_size=40,
    )
)
def test_every_frame_is_in_one_bounded_group_and_in_one_range(
    frames: list[tuple[str, int, int]],
) -> None:
    wanted = [
        Wanted(place(offset, length, pack), FrameIdentity(PackNonce(b"n" * 16), number))
        for number, (pack, offset, length) in enumerate(frames)
    ]

    groups = list(in_pack_order(wanted))

    assert sorted(each for group in groups for each in group) == sorted(wanted)
    for group in groups:
        ranges = coalesce([each.place for each in group])
        assert len({each.place.pack for each in group}) == 1
        assert len(group) == 1 or ranges[-1][0] + ranges[-1][1] - ranges[0][0] <= FETCH_BYTES + (
            1 << 21
        )
        for each in group:
            begin, end = each.place.offset, each.place.offset + each.place.length
            assert sum(at <= begin and end <= at + length for at, length in ranges) == 1
