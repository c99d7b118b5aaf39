"""Which portions a restore is cut into, and what waits for the next one."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.fetching import STORE_FETCH_BYTES, Place, Wanted, in_pack_order
from agent.windows import Piece, Window, Windows
from agent.writing import File
from repository.entries import EntryType, Extent
from repository.errors import DamagedError
from repository.frames import FrameIdentity
from repository.ids import ChunkId, PackNonce
from repository.keys import FrameKey
from tests.fakes.agent import entry

KEY: Final = FrameKey(b"k" * 32)
FRAME_BYTES: Final = 256 * 1024
FETCH_BYTES: Final = 4 * FRAME_BYTES
EXTENTS: Final = 64
UNKNOWN: Final = 99


def nonce(pack: int) -> PackNonce:
    return PackNonce(bytes([pack]) * 16)


def piece(pack: int, frame: int) -> Piece:
    file = File(b"f", entry(EntryType.FILE, size=1))
    return Piece(file, 0, Extent(nonce(pack), frame, 0, 0, 1, ChunkId(b"c" * 32)))


def place(frame: FrameIdentity) -> Place:
    if frame.nonce == nonce(UNKNOWN):
        raise DamagedError("not granted")
    return Place(frame.nonce.hex(), frame.number * FRAME_BYTES, FRAME_BYTES, KEY)


def portions(
    pieces: Sequence[Piece], step: int = 1, fetch_bytes: int = FETCH_BYTES, extents: int = EXTENTS
) -> Iterator[Window]:
    """As a restore takes them."""
    windows = Windows(place, fetch_bytes, extents)
    for start in range(0, len(pieces), step):
        windows.add(pieces[start : start + step])
        if windows.is_full:
            yield windows.take()
    yield windows.rest()


def calls(window: Window, fetch_bytes: int = FETCH_BYTES) -> int:
    wanted = [Wanted(place(frame), frame) for frame in window]
    return len(list(in_pack_order(wanted, fetch_bytes)))


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3, UNKNOWN]), st.integers(0, 40)), min_size=0, max_size=400
    ),
    st.integers(1, 50),
)
def test_every_piece_is_in_one_portion_of_a_bounded_size(
    where: list[tuple[int, int]], step: int
) -> None:
    pieces = [piece(pack, frame) for pack, frame in where]

    taken = list(portions(pieces, step))

    came = [each for window in taken for found in window.values() for each in found]
    assert sorted(map(id, came)) == sorted(map(id, pieces))
    for window in taken:
        assert sum(map(len, window.values())) <= 2 * EXTENTS + step
        assert all(each.frame == frame for frame, found in window.items() for each in found)


@pytest.mark.parametrize("extents", [7, 10, 64, 100])
def test_files_that_lie_in_the_order_of_their_names_cost_as_few_calls_as_their_packs_have(
    extents: int,
) -> None:
    # Nine files to a frame, ten frames to a pack: three calls, wherever portions end.
    packs, frames, files = 5, 10, 9
    pieces = [
        piece(pack, frame) for pack in range(packs) for frame in range(frames) for _ in range(files)
    ]

    asked = sum(map(calls, portions(pieces, extents=extents * files)))

    assert asked == packs * 3


def test_a_newer_pack_that_files_take_turns_with_is_fetched_as_it_fills_a_call() -> None:
    # Every twentieth file has changed since, and lies in the last pack.
    newer = count()
    pieces = [
        piece(9, next(newer) // 10) if number % 20 == 0 else piece(number // 400, number % 400 // 9)
        for number in range(2000)
    ]

    asked = sum(map(calls, portions(pieces, extents=200)))

    together: Window = {}
    for each in pieces:
        together.setdefault(each.frame, []).append(each)
    assert asked <= calls(together) + 2


def test_what_a_pack_has_that_nobody_names_any_more_does_not_wait() -> None:
    windows = Windows(place, FETCH_BYTES, EXTENTS)
    windows.add([piece(1, 0)])
    windows.add([piece(2, 0) for _ in range(EXTENTS - 1)])

    assert list(windows.take()) == [FrameIdentity(nonce(1), 0)]
    assert list(windows.rest()) == [FrameIdentity(nonce(2), 0)]


def test_nothing_waits_where_it_would_be_more_than_a_portion() -> None:
    windows = Windows(place, STORE_FETCH_BYTES, EXTENTS)
    windows.add([piece(1, 0) for _ in range(EXTENTS + 1)])

    assert list(windows.take()) == [FrameIdentity(nonce(1), 0)]
    assert not windows.rest()
