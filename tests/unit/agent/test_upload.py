"""The calls of a backup, to a coordinator that takes what comes or refuses it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from typing_extensions import override

from agent.errors import CoordinatorError, StateError, UnreachableError
from agent.services import BackupStatistics, Session
from agent.upload import BackupCalls
from proto.tidemark.v1.agent_pb2 import CommitRequest, UploadPackRequest, UploadPackResponse
from proto.tidemark.v1.agent_pb2_grpc import AgentServiceServicer
from repository.failpoints import VARIABLE, arm
from tests.fakes.coordinator import finished_pack
from tests.unit.agent.serving import served_by

SESSION = Session(b"s" * 16, 1, b"", b"", 0, 30)


class _Takes(AgentServiceServicer):
    """Takes the packs that come."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    @override
    async def UploadPack(self, request: AsyncIterator[UploadPackRequest], context: Any) -> Any:
        async for message in request:
            self.taken.append(message.data)
        return UploadPackResponse()


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
) -> AsyncIterator[BackupCalls]:
    async with served_by(servicer, rate) as served:
        yield BackupCalls(*served)


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


@pytest.mark.asyncio
async def test_under_a_limit_a_pack_is_sent_whole_in_small_pieces_in_its_time() -> None:
    pack = bytes(range(256)) * 4096
    store = _Takes()  # type: ignore[abstract]  # one call is enough
    async with _calls(store, rate=2_000_000) as calls:
        began = asyncio.get_running_loop().time()
        await calls.upload_pack(SESSION, finished_pack(pack[:1000], pack[1000:]))
        seconds = asyncio.get_running_loop().time() - began

    assert b"".join(store.taken) == pack
    assert max(map(len, store.taken)) == 2_000_000 // 50
    assert 0.45 <= seconds <= 1.5
