"""The calls of a backup to the coordinator: its session, its packs, its commit.

Packs go through the coordinator, or to the store itself where that is allowed, and then the
coordinator looks what there is. A stream that breaks off on our side is never taken for a whole
one, and its error is what broke it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar

import grpc
from typing_extensions import Buffer, override

from agent.buffers import pieces, split
from agent.channel import NodeChannel, translated
from agent.direct import DirectStore, checksum_of
from agent.errors import UnreachableError
from agent.line import Line
from agent.messages import backup_result, chunks_of, signed_request, signed_uploads
from agent.packing import FinishedPack
from agent.retrying import PATIENCE_SECONDS, Persistence
from agent.services import (
    BackupStatistics,
    Clock,
    Committed,
    CoordinatorClient,
    Phase,
    Session,
    StoredChunks,
)
from agent.throttle import CALL_SECONDS, Deadline, Throttles, transfer_seconds
from proto.payload import encode_bytes_field
from proto.tidemark.v1 import agent_pb2
from repository.failpoints import failpoint

# Two packs of 32 MiB on their way use any line, while a third one is asked for or confirmed; more
# would only use memory.
_UPLOADS: Final = 3
# A commit checks every added reference.
_COMMIT_SECONDS: Final = 300.0
# Reading the footers of all packs of a large volume.
_BASE_SECONDS: Final = 3600.0
_UPLOAD_DATA: Final = agent_pb2.UploadPackRequest.DATA_FIELD_NUMBER

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class BackupCalls(CoordinatorClient):
    """The calls, over one line that all backups share."""

    def __init__(
        self,
        line: Line[NodeChannel],
        clock: Clock,
        throttles: Throttles,
        store: DirectStore | None = None,
    ) -> None:
        """`store` takes what the coordinator signs; without one all goes through the line."""
        self._line = line
        self._persistence = Persistence(line, clock)
        self._throttle = throttles.upload
        self._store = store or DirectStore(throttles=throttles)
        self._uploads = asyncio.Semaphore(_UPLOADS)
        self.uploads_waiting = 0
        self.uploads_running = 0

    @override
    async def open_session(self, task_id: str, sealed_data_key: bytes) -> Session:
        request = agent_pb2.OpenSessionRequest(task_id=task_id, sealed_data_key=sealed_data_key)
        answer = await self._persistence.call(
            lambda line: line.stub.OpenSession(request, timeout=CALL_SECONDS), PATIENCE_SECONDS
        )
        return Session(
            session_id=answer.session_id,
            fencing_token=answer.fencing_token,
            writer_keys=answer.writer_keys,
            head_root=answer.head_root,
            head_sequence=answer.head_sequence,
            lease_seconds=answer.lease_seconds,
            signed_uploads=signed_uploads(answer),
            packs_since_head=list(answer.packs_since_head),
        )

    @override
    async def read_base(
        self, session: Session, since_head: Sequence[bytes] = ()
    ) -> AsyncIterator[StoredChunks]:
        request = agent_pb2.ReadBaseRequest(
            session_id=session.session_id,
            fencing_token=session.fencing_token,
            pack_nonces=since_head,
        )
        # Not asked again from the start if it breaks: what was not heard of is sent again.
        async with self._line.use() as line:
            try:
                async for answer in line.stub.ReadBase(request, timeout=_BASE_SECONDS):
                    for borrowed in (False, True):
                        frames = [each for each in answer.frames if each.borrowed is borrowed]
                        chunks = [chunk for frame in frames for chunk in chunks_of(frame)]
                        if chunks:
                            yield StoredChunks(chunks, borrowed)
            except grpc.RpcError as error:
                raise translated(error) from error

    @override
    async def upload_pack(self, session: Session, pack: FinishedPack) -> None:
        self.uploads_waiting += 1
        try:
            async with self._uploads:
                self.uploads_running += 1
                try:
                    send = await self._sending(session, pack)
                    await self._persistence.call(send, session.lease_seconds)
                finally:
                    self.uploads_running -= 1
        finally:
            self.uploads_waiting -= 1

    async def _sending(
        self,
        session: Session,
        pack: FinishedPack,
    ) -> Callable[[NodeChannel], Awaitable[object]]:
        """Say how to send a pack: to the store itself where it may be."""
        header = agent_pb2.PackHeader(
            session_id=session.session_id,
            fencing_token=session.fencing_token,
            name=pack.name,
            size_bytes=pack.size_bytes,
        )
        signed = session.signed_uploads
        if signed is None or not self._store.serves(signed.endpoint):
            return partial(self._send_through, header=header, buffers=pack.buffers)
        checksum = await asyncio.to_thread(checksum_of, pack.buffers, signed.checksum)
        digest = agent_pb2.PackDigest(
            header=header, checksum=checksum, blake3=pack.blake3, end_bytes=pack.end_bytes
        )
        return partial(self._send_directly, pack=digest, buffers=pack.buffers)

    async def _send_through(
        self, line: NodeChannel, header: agent_pb2.PackHeader, buffers: Sequence[Buffer]
    ) -> None:
        """Send a pack to the coordinator, which stores it."""

        async def requests(deadline: Deadline) -> AsyncIterator[bytes]:
            yield agent_pb2.UploadPackRequest(header=header).SerializeToString()
            async for piece in self._paced(buffers, deadline):
                yield encode_bytes_field(_UPLOAD_DATA, piece)
                failpoint("agent.pack.half_sent", UnreachableError)

        seconds = transfer_seconds(header.size_bytes)
        await _streamed(line.upload, requests, seconds)

    async def _send_directly(
        self, line: NodeChannel, pack: agent_pb2.PackDigest, buffers: Sequence[Buffer]
    ) -> None:
        """Have the request signed, send it, and have the coordinator look what there is."""
        asked = agent_pb2.SignUploadRequest(pack=pack)
        answer = await line.stub.SignUpload(asked, timeout=CALL_SECONDS)
        if answer.HasField("request"):
            request = signed_request(answer.request)
            await self._store.put(request, buffers, pack.header.size_bytes)
            sent = agent_pb2.ConfirmUploadRequest(pack=pack)
            await line.stub.ConfirmUpload(sent, timeout=CALL_SECONDS)

    async def _paced(
        self, buffers: Iterable[Buffer], deadline: Deadline
    ) -> AsyncIterator[list[memoryview]]:
        """Cut joined buffers into messages, as fast as they may go.

        The deadline is the line's: what is waited for here is not its fault.
        """
        throttle = self._throttle
        flow = throttle.begin_flow()
        try:
            for piece in pieces(buffers):
                rest = piece
                while throttle.is_limited and rest:
                    with deadline.halted():
                        size = await throttle.take_some(sum(map(len, rest)))
                    part, rest = split(rest, size)
                    yield part
                if rest:
                    yield rest
        finally:
            flow.end()

    @override
    async def commit(
        self,
        session: Session,
        signed_root: bytes,
        refs: Iterable[bytes],
        statistics: BackupStatistics,
    ) -> Committed:
        header = agent_pb2.CommitHeader(
            session_id=session.session_id,
            fencing_token=session.fencing_token,
            signed_root=signed_root,
            result=backup_result(statistics),
        )

        async def requests(deadline: Deadline) -> AsyncIterator[agent_pb2.CommitRequest]:
            yield agent_pb2.CommitRequest(header=header)
            failpoint("agent.commit.half_sent", UnreachableError)
            async for piece in self._paced(refs, deadline):
                yield agent_pb2.CommitRequest(refs=b"".join(piece))

        failpoint("agent.commit.asked", UnreachableError)
        answer = await self._persistence.call(
            lambda line: _streamed(line.stub.Commit, requests, _COMMIT_SECONDS),
            session.lease_seconds,
        )
        return Committed(answer.snapshot_id, answer.sequence, Phase(answer.phase), answer.root)


async def _streamed(
    call: Callable[[AsyncIterator[_Request]], Awaitable[_Answer]],
    requests: Callable[[Deadline], AsyncIterator[_Request]],
    seconds: float,
) -> _Answer:
    """Make a call with a stream of requests; an error while one is made is the call's error.

    gRPC would take it for a cancellation, which nobody asked for, or wait for the deadline. So the
    stream ends there; cut short, neither a pack nor a commit is accepted.
    """
    failures: list[Exception] = []
    deadline = Deadline(seconds)

    async def each() -> AsyncIterator[_Request]:
        try:
            async for request in requests(deadline):
                yield request
        except Exception as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    try:
        async with deadline.timeout:
            answer = await call(each())
    except TimeoutError as error:
        raise _LateError from error
    except grpc.RpcError:
        if failures:
            raise failures[0] from None
        raise
    if failures:
        raise failures[0]
    return answer


class _LateError(grpc.RpcError):
    """A call did not end by its deadline, and was given up."""

    @override
    def __str__(self) -> str:
        return "it took too long"
