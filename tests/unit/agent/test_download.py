"""The calls of a restore, to a coordinator that answers them as it likes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from typing_extensions import override

from agent.download import RestoreCalls
from agent.errors import CoordinatorError
from proto.tidemark.v1.agent_pb2 import ReadPackRequest, ReadPackResponse
from proto.tidemark.v1.agent_pb2_grpc import AgentServiceServicer
from tests.unit.agent.serving import served_by


class _Reads(AgentServiceServicer):
    """Answers every ReadPack with the same pieces."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers

    @override
    async def ReadPack(
        self, request: ReadPackRequest, context: object
    ) -> AsyncIterator[ReadPackResponse]:
        for answer in self._answers:
            yield ReadPackResponse(data=answer)


class _Gives(AgentServiceServicer):
    """Gives what is asked for, of one pack."""

    def __init__(self, pack: bytes, away_seconds: float = 0.0) -> None:
        self.pack = pack
        self.away_seconds = away_seconds
        self.asked: list[list[tuple[int, int]]] = []

    @override
    async def ReadPack(
        self, request: ReadPackRequest, context: object
    ) -> AsyncIterator[ReadPackResponse]:
        self.asked.append([(each.offset, each.length) for each in request.ranges])
        await asyncio.sleep(self.away_seconds)
        for each in request.ranges:
            yield ReadPackResponse(data=self.pack[each.offset : each.offset + each.length])


@asynccontextmanager
async def _calls(
    servicer: AgentServiceServicer, rate: int | None = None
) -> AsyncIterator[RestoreCalls]:
    async with served_by(servicer, rate) as served:
        yield RestoreCalls(*served)


async def _read(answers: list[bytes], ranges: list[tuple[int, int]]) -> list[bytes]:
    async with _calls(_Reads(answers)) as calls:  # type: ignore[abstract]  # it answers one call
        return [bytes(part) for part in await calls.read_pack("task", "packs/x", ranges)]


@pytest.mark.asyncio
async def test_ranges_come_back_each_for_itself_however_they_were_cut() -> None:
    assert await _read([b"ab", b"cdef", b"g"], [(0, 3), (9, 0), (10, 4)]) == [b"abc", b"", b"defg"]


@pytest.mark.asyncio
@pytest.mark.parametrize("answers", [[], [b"abc"], [b"abc", b"de"], [b"abcd", b"e"]])
async def test_an_answer_of_another_length_is_no_answer(answers: list[bytes]) -> None:
    with pytest.raises(CoordinatorError, match=f"sent {len(b''.join(answers))} bytes"):
        await _read(answers, [(0, 2), (5, 2)])


@pytest.mark.asyncio
async def test_without_a_limit_ranges_are_read_in_one_call() -> None:
    store = _Gives(bytes(1000))  # type: ignore[abstract]
    async with _calls(store) as calls:
        await calls.read_pack("task", "packs/x", [(0, 10), (100, 50)])

    assert store.asked == [[(0, 10), (100, 50)]]


@pytest.mark.asyncio
async def test_under_a_limit_ranges_are_read_whole_in_small_calls_in_their_time() -> None:
    pack = bytes(range(256)) * 4096
    ranges = [(0, 10), (500, 0), (1000, 700_000), (800_000, 100_000)]
    store = _Gives(pack)  # type: ignore[abstract]
    async with _calls(store, rate=2_000_000) as calls:
        began = asyncio.get_running_loop().time()
        read = await calls.read_pack("task", "packs/x", ranges)
        seconds = asyncio.get_running_loop().time() - began

    assert [bytes(part) for part in read] == [pack[at : at + size] for at, size in ranges]
    assert max(sum(size for _, size in asked) for asked in store.asked) <= 40_000
    assert 0.3 <= seconds <= 1.5


@pytest.mark.asyncio
async def test_under_a_limit_a_store_far_away_is_read_at_the_whole_rate() -> None:
    pack = bytes(range(256)) * 8192
    store = _Gives(pack, away_seconds=0.1)  # type: ignore[abstract]
    async with _calls(store, rate=2_000_000) as calls:
        began = asyncio.get_running_loop().time()
        [read] = await calls.read_pack("task", "packs/x", [(0, len(pack))])
        seconds = asyncio.get_running_loop().time() - began

    assert bytes(read) == pack
    # One call after the other would take more than five.
    assert 0.9 <= seconds <= 2.5


@pytest.mark.asyncio
async def test_under_a_limit_a_read_that_fails_fails_as_it_does_without() -> None:
    store = _Gives(bytes(1000))  # type: ignore[abstract]  # shorter than what is asked for
    async with _calls(store, rate=2_000_000) as calls:
        with pytest.raises(CoordinatorError, match="sent 0 bytes"):
            await calls.read_pack("task", "packs/x", [(500_000, 100_000)])
