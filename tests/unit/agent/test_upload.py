import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc.aio import AioRpcError, Metadata
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from agent.daemon import SystemClock
from agent.errors import CoordinatorError, StateError, UnreachableError
from agent.line import Line
from agent.services import BackupStatistics, PathProblem, Session
from agent.throttle import PIECE_BYTES, Grant, Throttles
from agent.upload import (
    CoordinatorCalls,
    NodeChannel,
    backup_result,
    cut,
    pieces,
    split,
    translated,
)
from proto.tidemark.v1.agent_pb2 import (
    CommitRequest,
    ReadPackRequest,
    ReadPackResponse,
    UploadPackRequest,
    UploadPackResponse,
)
from proto.tidemark.v1.agent_pb2_grpc import (
    AgentServiceServicer,
    add_AgentServiceServicer_to_server,
)
from proto.tidemark.v1.common_pb2 import ErrorDetail
from repository.errors import (
    BusyError,
    CanceledError,
    FencedError,
    KeyMaterialError,
    NoRepositoryError,
    StoreUnavailableError,
    TidemarkError,
    UsageError,
)
from repository.failpoints import VARIABLE, arm
from tests.fakes.coordinator import finished_pack


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


def failed(
    code: grpc.StatusCode, detail: ErrorDetail | None = None, details: str = "why"
) -> AioRpcError:
    trailing = Metadata()
    if detail is not None:
        trailing.add("tidemark-error-bin", detail.SerializeToString())
    return AioRpcError(code, Metadata(), trailing, details)


@pytest.mark.parametrize(
    ("exit_code", "retryable", "kind"),
    [
        (1, False, CoordinatorError),
        (1, True, StoreUnavailableError),
        (2, False, UsageError),
        (10, False, NoRepositoryError),
        (11, False, FencedError),
        (11, True, BusyError),
        (12, False, KeyMaterialError),
        (130, False, CanceledError),
    ],
)
def test_the_coordinators_errors_come_back_as_what_they_were(
    exit_code: int, retryable: bool, kind: type[TidemarkError]
) -> None:
    detail = ErrorDetail(exit_code=exit_code, message="m", hint="h", retryable=retryable)

    error = translated(failed(grpc.StatusCode.INTERNAL, detail))

    assert type(error) is kind
    assert (error.message, error.hint) == ("m", "h")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnreachableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnreachableError),
        (grpc.StatusCode.UNAUTHENTICATED, CoordinatorError),
        (grpc.StatusCode.UNIMPLEMENTED, CoordinatorError),
        (grpc.StatusCode.INTERNAL, CoordinatorError),
    ],
)
def test_a_call_that_failed_without_words_says_what_it_means(
    code: grpc.StatusCode, kind: type[TidemarkError]
) -> None:
    assert type(translated(failed(code))) is kind


def test_a_foreign_certificate_is_named_as_such() -> None:
    error = translated(
        failed(grpc.StatusCode.UNAVAILABLE, details="Ssl handshake: CERTIFICATE_VERIFY_FAILED")
    )

    assert isinstance(error, UnreachableError)
    assert "no trust" in error.message


def test_damaged_details_are_no_details() -> None:
    trailing = Metadata(("tidemark-error-bin", b"\xff\xff"))

    error = translated(AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), trailing, "why"))

    assert isinstance(error, UnreachableError)


def test_lists_of_errors_are_bounded_and_the_total_counts_all() -> None:
    problems = [PathProblem(b"%d" % number, "m") for number in range(150)]

    result = backup_result(BackupStatistics(errors=problems, errors_total=150))

    assert len(result.errors) == 100
    assert result.errors_total == 150


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


class _Store(AgentServiceServicer):
    """Takes what comes, and gives what is asked for, of one pack."""

    def __init__(self, pack: bytes = b"", away_seconds: float = 0.0) -> None:
        self.pack = pack
        self.away_seconds = away_seconds
        self.taken: list[bytes] = []
        self.asked: list[list[tuple[int, int]]] = []

    @override
    async def UploadPack(self, request: AsyncIterator[UploadPackRequest], context: Any) -> Any:
        async for message in request:
            self.taken.append(message.data)
        return UploadPackResponse()

    @override
    async def ReadPack(
        self, request: ReadPackRequest, context: object
    ) -> AsyncIterator[ReadPackResponse]:
        self.asked.append([(each.offset, each.length) for each in request.ranges])
        await asyncio.sleep(self.away_seconds)
        for each in request.ranges:
            yield ReadPackResponse(data=self.pack[each.offset : each.offset + each.length])


class _Refuses(AgentServiceServicer):
    """Hears what is streamed to it, and refuses it, as what is cut short is."""

    @override
    async def UploadPack(self, request: AsyncIterator[UploadPackRequest], context: Any) -> Any:
        await self._hear(request, context)

    @override
    async def Commit(self, request: AsyncIterator[CommitRequest], context: Any) -> Any:
        await self._hear(request, context)

    async def _hear(self, requests: AsyncIterator[Any], context: Any) -> None:
        async for _ in requests:
            pass
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "cut short")


@asynccontextmanager
async def _calls(
    servicer: AgentServiceServicer, rate: int | None = None
) -> AsyncIterator[CoordinatorCalls]:
    server = grpc.aio.server()
    add_AgentServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    clock = SystemClock()
    throttles = Throttles(clock)
    if rate is not None:
        throttles.on_grant(Grant(1, rate, rate, rate, lease_seconds=100.0))
    try:
        async with asyncio.timeout(8), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield CoordinatorCalls(Line(NodeChannel(channel)), clock, throttles)
    finally:
        await server.stop(None)


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


SESSION = Session(b"s" * 16, 1, b"", b"", 0, 30)


@pytest.mark.asyncio
async def test_an_error_while_a_commit_is_streamed_is_its_error() -> None:
    def refs() -> Iterator[bytes]:
        yield b"some"
        raise StateError("the state failed")

    async with _calls(_Refuses()) as calls:  # type: ignore[abstract]  # two calls are enough
        with pytest.raises(StateError, match="the state failed"):
            await calls.commit(SESSION, b"root", refs(), BackupStatistics())


@pytest.mark.asyncio
async def test_an_error_while_a_pack_is_streamed_is_its_error() -> None:
    arm({VARIABLE: "agent.pack.half_sent=error"})
    try:
        async with _calls(_Refuses()) as calls:  # type: ignore[abstract]
            with pytest.raises(UnreachableError, match="half_sent"):
                await calls.upload_pack(SESSION, finished_pack(b"content"))
    finally:
        arm({})


@pytest.mark.asyncio
async def test_a_refused_commit_says_so() -> None:
    async with _calls(_Refuses()) as calls:  # type: ignore[abstract]
        with pytest.raises(CoordinatorError, match="cut short"):
            await calls.commit(SESSION, b"root", [b"refs"], BackupStatistics())


@given(st.lists(st.binary(max_size=9), max_size=5), st.integers(0, 50))
def test_a_message_is_split_where_it_should_be(parts: list[bytes], size: int) -> None:
    whole = b"".join(parts)

    first, rest = split([memoryview(part) for part in parts], size)

    assert b"".join(first) == whole[:size]
    assert b"".join(rest) == whole[size:]
    assert all(rest)


@pytest.mark.asyncio
async def test_under_a_limit_a_pack_is_sent_whole_in_small_pieces_in_its_time() -> None:
    pack = bytes(range(256)) * 4096
    store = _Store()  # type: ignore[abstract]  # two calls are enough
    async with _calls(store, rate=2_000_000) as calls:
        began = asyncio.get_running_loop().time()
        await calls.upload_pack(SESSION, finished_pack(pack[:1000], pack[1000:]))
        seconds = asyncio.get_running_loop().time() - began

    assert b"".join(store.taken) == pack
    assert max(map(len, store.taken)) == 2_000_000 // 50
    assert 0.45 <= seconds <= 1.5


@pytest.mark.asyncio
async def test_under_a_limit_ranges_are_read_whole_in_small_calls_in_their_time() -> None:
    pack = bytes(range(256)) * 4096
    ranges = [(0, 10), (500, 0), (1000, 700_000), (800_000, 100_000)]
    store = _Store(pack)  # type: ignore[abstract]
    async with _calls(store, rate=2_000_000) as calls:
        began = asyncio.get_running_loop().time()
        read = await calls.read_pack("task", "packs/x", ranges)
        seconds = asyncio.get_running_loop().time() - began

    assert [bytes(part) for part in read] == [pack[at : at + size] for at, size in ranges]
    assert max(sum(size for _, size in asked) for asked in store.asked) <= 40_000
    assert 0.3 <= seconds <= 1.5


@pytest.mark.asyncio
async def test_without_a_limit_ranges_are_read_in_one_call() -> None:
    store = _Store(bytes(1000))  # type: ignore[abstract]
    async with _calls(store) as calls:
        await calls.read_pack("task", "packs/x", [(0, 10), (100, 50)])

    assert store.asked == [[(0, 10), (100, 50)]]


@pytest.mark.asyncio
async def test_under_a_limit_a_store_far_away_is_read_at_the_whole_rate() -> None:
    pack = bytes(range(256)) * 8192
    store = _Store(pack, away_seconds=0.1)  # type: ignore[abstract]
    async with _calls(store, rate=2_000_000) as calls:
        began = asyncio.get_running_loop().time()
        [read] = await calls.read_pack("task", "packs/x", [(0, len(pack))])
        seconds = asyncio.get_running_loop().time() - began

    assert bytes(read) == pack
    # One call after the other would take more than five.
    assert 0.9 <= seconds <= 2.5


@pytest.mark.asyncio
async def test_under_a_limit_a_read_that_fails_fails_as_it_does_without() -> None:
    store = _Store(bytes(1000))  # type: ignore[abstract]  # shorter than what is asked for
    async with _calls(store, rate=2_000_000) as calls:
        with pytest.raises(CoordinatorError, match="sent 0 bytes"):
            await calls.read_pack("task", "packs/x", [(500_000, 100_000)])
