"""Buffers cut to messages, and what arrives cut as it was asked for."""

from hypothesis import given
from hypothesis import strategies as st

from agent.buffers import cut, pieces, split
from agent.throttle import PIECE_BYTES


@given(st.lists(st.binary(max_size=9)), st.lists(st.integers(0, 12)))
def test_what_arrives_in_pieces_is_cut_as_it_was_asked_for(
    arrived: list[bytes], lengths: list[int]
) -> None:
    whole = b"".join(arrived)
    lengths = [length for length in lengths if length]
    while sum(lengths) > len(whole):
        lengths.pop()

    parts = cut([memoryview(piece) for piece in arrived], lengths)

    assert [len(part) for part in parts] == lengths
    assert whole.startswith(b"".join(parts))


def test_what_arrived_whole_is_not_copied() -> None:
    frame = b"a frame"

    [part] = cut([memoryview(frame)], [len(frame)])

    assert part.obj is frame


@given(st.lists(st.sampled_from([0, 1, 100, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 7])))
def test_pieces_join_to_what_was_cut_and_all_but_the_last_are_full(sizes: list[int]) -> None:
    buffers = [bytes([number % 256]) * size for number, size in enumerate(sizes)]

    cut = [b"".join(piece) for piece in pieces(buffers)]

    assert b"".join(cut) == b"".join(buffers)
    assert all(len(piece) == PIECE_BYTES for piece in cut[:-1])
    assert all(cut)


@given(st.lists(st.binary(max_size=9), max_size=5), st.integers(0, 50))
def test_a_message_is_split_where_it_should_be(parts: list[bytes], size: int) -> None:
    whole = b"".join(parts)

    first, rest = split([memoryview(part) for part in parts], size)

    assert b"".join(first) == whole[:size]
    assert b"".join(rest) == whole[size:]
    assert all(rest)
