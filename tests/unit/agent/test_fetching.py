from hypothesis import given
from hypothesis import strategies as st

from agent.fetching import FETCH_BYTES, Place, Wanted, in_pack_order
from repository.frames import FrameIdentity
from repository.ids import PackNonce
from repository.keys import FrameKey

KEY = FrameKey(b"k" * 32)


def place(offset: int, length: int, pack: str = "p") -> Place:
    return Place(pack, offset, length, KEY)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 1 << 25), st.integers(1, 1 << 21)),
        max_size=40,
    )
)
def test_every_frame_is_in_one_bounded_group(
    frames: list[tuple[str, int, int]],
) -> None:
    wanted = [
        Wanted(place(offset, length, pack), FrameIdentity(PackNonce(b"n" * 16), number))
        for number, (pack, offset, length) in enumerate(frames)
    ]

    groups = list(in_pack_order(wanted))

    assert sorted(each for group in groups for each in group) == sorted(wanted)
    for group in groups:
        begin = group[0].place.offset
        end = max(each.place.offset + each.place.length for each in group)
        assert len({each.place.pack for each in group}) == 1
        assert len(group) == 1 or end - begin <= FETCH_BYTES
