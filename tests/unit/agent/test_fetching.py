"""Which frames come by which call."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from agent.errors import CoordinatorError, UnreachableError
from agent.fetching import FETCH_BYTES, Fetcher, OpenedGrant, Place, Wanted, in_pack_order
from agent.services import Grant, GrantedPack, RestoreClient
from repository.frames import FrameIdentity
from repository.ids import PackNonce
from repository.keys import FrameKey, PackKey
from repository.pack import FrameTable

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


KIB = 1024
NONCE = PackNonce(b"n" * 16)
FRAMES = 200
# Some do not follow the one before.
GAPS = {70: 64 * KIB, 120: 2 * 1024 * KIB}
METADATA_PACK = bytes(range(256)) * (4 * FRAMES * KIB)


class Granted(OpenedGrant):
    """A pack of frames of 100 KiB, as if its grant had been opened."""

    def __init__(self) -> None:
        places, offset = {}, 32
        for number in range(FRAMES):
            offset += GAPS.get(number, 0)
            places[number] = (offset, 100 * KIB)
            offset += 100 * KIB
        self.places = places
        self._packs = {NONCE: GrantedPack(NONCE, "metadata", b"", b"")}
        self._frames = {}
        self._opened = {NONCE: (PackKey(b"k" * 32), FrameTable({NONCE: places}))}
        self.endpoint = "https://store/"


class Reads(RestoreClient):
    """Serves a pack and remembers how often; `broken_from` there is nothing to be had."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.broken_from = len(METADATA_PACK)
        self.error: CoordinatorError | UnreachableError = CoordinatorError(
            "the pack is shorter than it should be"
        )

    @override
    async def open_restore(self, task_id: str, public_key: bytes) -> Grant:
        raise NotImplementedError

    @override
    async def read_pack(
        self, task_id: str, name: str, ranges: Sequence[tuple[int, int]], endpoint: str = ""
    ) -> list[memoryview]:
        self.asked += ranges
        if any(offset + length > self.broken_from for offset, length in ranges):
            raise self.error
        return [memoryview(METADATA_PACK)[at : at + length] for at, length in ranges]


async def read_each(reads: Reads, numbers: Sequence[int]) -> Fetcher:
    """Read frames one by one, as a manifest is walked, and compare them."""
    granted = Granted()
    fetcher = Fetcher(reads, "task", granted)
    for number in numbers:
        (found,) = await fetcher.read([FrameIdentity(NONCE, number)])
        offset, length = granted.places[number]
        assert found.sealed == METADATA_PACK[offset : offset + length]
    return fetcher


@pytest.mark.asyncio
async def test_what_is_read_in_order_comes_in_ever_larger_portions() -> None:
    reads = Reads()

    fetcher = await read_each(reads, range(FRAMES))

    assert len(reads.asked) <= 12
    assert reads.asked[0] == (32, 100 * KIB)
    assert max(length for _, length in reads.asked) == 40 * 100 * KIB
    # Nothing twice, and no gap that nobody asked for.
    assert fetcher.bytes_fetched == FRAMES * 100 * KIB


@pytest.mark.asyncio
async def test_what_is_read_here_and_there_comes_alone() -> None:
    reads = Reads()

    fetcher = await read_each(reads, [*range(0, FRAMES, 5), 3, 190, 7])

    assert len(reads.asked) == FRAMES // 5 + 3
    assert fetcher.bytes_fetched == len(reads.asked) * 100 * KIB


@pytest.mark.asyncio
async def test_what_lies_before_damage_is_read_though_more_was_asked_for() -> None:
    reads = Reads()
    reads.broken_from = 32 + 5 * 100 * KIB

    await read_each(reads, range(5))
    with pytest.raises(CoordinatorError):
        await read_each(reads, range(6))


@pytest.mark.asyncio
async def test_a_store_that_is_away_is_not_asked_for_less() -> None:
    reads = Reads()
    reads.broken_from, reads.error = 32 + 5 * 100 * KIB, UnreachableError("it is away")

    with pytest.raises(UnreachableError):
        await read_each(reads, range(5))

    assert len(reads.asked) == 2
