"""Calls of a task to the coordinator: sessions, packs, commits, grants, ranges of packs.

With session.py the only place that speaks gRPC. Whatever fails comes back as one of our own errors,
mapped here and nowhere else. A coordinator that is away for a while is asked again, since every
call may be repeated: an upload by its name, a commit by its session.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from typing_extensions import Buffer, override

from agent.config import Address
from agent.direct import DirectStore, SignedReads, checksum_of
from agent.errors import CoordinatorError, UnreachableError, first_error
from agent.fetching import STORE_FETCH_BYTES
from agent.identity import Identity
from agent.line import Line
from agent.logs import get_logger
from agent.pacing import Lag
from agent.packing import FinishedPack
from agent.services import (
    AuditOutcome,
    BackupStatistics,
    Clock,
    Committed,
    CoordinatorClient,
    Grant,
    GrantedFrame,
    GrantedPack,
    PathProblem,
    Phase,
    RestoreClient,
    Session,
    SignedUploads,
    StoredChunks,
)
from agent.throttle import PIECE_BYTES, Deadline, Throttles
from proto.payload import decode_bytes_field, encode_bytes_field
from proto.tidemark.v1 import agent_pb2, common_pb2
from proto.tidemark.v1.agent_pb2_grpc import AgentServiceStub
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
from repository.failpoints import failpoint
from repository.frames import Location
from repository.ids import CHUNK_ID_BYTES, ChunkId, PackNonce
from repository.ranges import reads
from repository.snapshot import Detection
from repository.store.counting import Requests
from repository.store.interface import Checksum, SignedRequest

Channel = grpc.aio.Channel
_T = TypeVar("_T")
_Answer = TypeVar("_Answer")

_ERROR_METADATA: Final = "tidemark-error-bin"
_SERVICE: Final = agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name
_UPLOAD_DATA: Final = agent_pb2.UploadPackRequest.DATA_FIELD_NUMBER
_READ_DATA: Final = agent_pb2.ReadPackResponse.DATA_FIELD_NUMBER
# After so long without a sign the coordinator is asked for one, and given up after as long again:
# together as long as it waits for heartbeats, and less often than it forbids.
KEEPALIVE_SECONDS: Final = 15.0
# The coordinator's certificate carries this name wherever it listens, so that it may move.
_SERVER_NAME: Final = "tidemark-coordinator"
_MESSAGE_BYTES_MAX: Final = 4 * PIECE_BYTES
_DETECTIONS: Final = {
    Detection.EVENTS: common_pb2.CHANGE_DETECTION_EVENTS,
    Detection.SWEEP: common_pb2.CHANGE_DETECTION_SWEEP,
}
_CHECKSUMS: Final = {
    agent_pb2.PACK_CHECKSUM_MD5: Checksum.MD5,
    agent_pb2.PACK_CHECKSUM_SHA256: Checksum.SHA256,
}
# Of a pack in an object store: so many needless bytes cost less than another request, and so many
# come with one. What one call asks for comes with one, then.
_GAP_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = STORE_FETCH_BYTES
# Two packs of 32 MiB on their way use any line, while a third one is asked for or confirmed; more
# would only use memory.
_UPLOADS: Final = 3
# Under a limit each call of a restore reads what goes in 20 ms: these cover a round trip of 0.3 s.
_READS_IN_FLIGHT: Final = 16
# A call without much data; the coordinator syncs files for some of them.
_CALL_SECONDS: Final = 60.0
# A commit checks every added reference.
_COMMIT_SECONDS: Final = 300.0
# Reading the footers of all packs of a large volume.
_BASE_SECONDS: Final = 3600.0
# The slowest line that a transfer is allowed to be on, beside _CALL_SECONDS.
_BYTES_PER_SECOND_MIN: Final = 64 * 1024
# How long a restore waits for a coordinator that went away. A backup waits for its lease.
_PATIENCE_SECONDS: Final = 120.0
_BACKOFF_SECONDS: Final = (0.2, 5.0)
# Lists of errors hold so many; the total counts all.
ERRORS_MAX: Final = 100

_log = get_logger()
_random = random.SystemRandom()


def open_channel(
    address: Address, *, ca_certificate: bytes, certificate: bytes, private_key: bytes
) -> Channel:
    """Open a channel that trusts one authority and shows one certificate. There is no other."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=ca_certificate, private_key=private_key, certificate_chain=certificate
    )
    options = [
        ("grpc.ssl_target_name_override", _SERVER_NAME),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        # A proxy of the environment is not meant for the coordinator.
        ("grpc.enable_http_proxy", 0),
        # The stream's own back-off decides when to try again.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5000),
        # A network that swallows everything tells nobody, and a kernel goes on trying for a quarter
        # of an hour: a connection on which nothing is answered is given up, and made anew.
        ("grpc.keepalive_time_ms", round(KEEPALIVE_SECONDS * 1000)),
        ("grpc.keepalive_timeout_ms", round(KEEPALIVE_SECONDS * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    return grpc.aio.secure_channel(str(address), credentials, options=options)


class NodeChannel:
    """A channel with the node's certificate, and the calls that go over it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.stub = AgentServiceStub(channel)
        # The two calls that carry packs, spared the generated code's copies (proto/payload.py).
        self.upload: Any = channel.stream_unary(
            f"/{_SERVICE}/UploadPack",
            response_deserializer=agent_pb2.UploadPackResponse.FromString,
        )
        self.read: Any = channel.unary_stream(
            f"/{_SERVICE}/ReadPack",
            request_serializer=agent_pb2.ReadPackRequest.SerializeToString,
            response_deserializer=_read_piece,
        )

    async def close(self) -> None:
        """End it, and whatever still uses it."""
        await self._channel.close()


def open_node_channel(address: Address, identity: Identity) -> NodeChannel:
    """Open a channel as the node that we are."""
    channel = open_channel(
        address,
        ca_certificate=identity.membership.ca_certificate,
        certificate=identity.membership.certificate,
        private_key=identity.keys.tls,
    )
    return NodeChannel(channel)


def translated(error: grpc.RpcError) -> TidemarkError:
    """Return what a failed call means to us."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return UnreachableError(f"the call to the coordinator failed: {error}")
    for key, value in error.trailing_metadata():
        if key == _ERROR_METADATA and isinstance(value, bytes):
            try:
                return _from_detail(common_pb2.ErrorDetail.FromString(value))
            except DecodeError:
                break
    return _from_status(error.code(), error.details() or "no reason given")


def _from_detail(detail: common_pb2.ErrorDetail) -> TidemarkError:
    kinds: dict[int, type[TidemarkError]] = {
        UsageError.exit_code: UsageError,
        NoRepositoryError.exit_code: NoRepositoryError,
        FencedError.exit_code: BusyError if detail.retryable else FencedError,
        KeyMaterialError.exit_code: KeyMaterialError,
        CanceledError.exit_code: CanceledError,
    }
    otherwise = StoreUnavailableError if detail.retryable else CoordinatorError
    return kinds.get(detail.exit_code, otherwise)(detail.message, hint=detail.hint)


def _from_status(code: grpc.StatusCode, details: str) -> TidemarkError:
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        return CoordinatorError(
            f"the coordinator refuses this node: {details}",
            hint="join anew with a token, if the node was revoked by mistake",
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return CoordinatorError(
            "the coordinator does not know this call", hint="it is older than this agent"
        )
    if code is grpc.StatusCode.UNAVAILABLE and "certificate" in details.lower():
        return UnreachableError(
            f"no trust between this node and the coordinator: {details}",
            hint="check that --coordinator is the one that this node has joined",
        )
    if code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
    }:
        return UnreachableError(
            f"the coordinator cannot be reached: {details}",
            hint="see that it runs, and that the address in --coordinator is its",
        )
    return CoordinatorError(f"{details} ({code.name.lower()})")


class _LateError(grpc.RpcError):
    """A call did not end by its deadline, and was given up."""

    @override
    def __str__(self) -> str:
        return "it took too long"


class CoordinatorCalls(CoordinatorClient, RestoreClient):
    """The calls, over one line that all tasks share."""

    def __init__(
        self,
        line: Line[NodeChannel],
        clock: Clock,
        throttles: Throttles,
        store: DirectStore | None = None,
    ) -> None:
        """`store` takes what the coordinator signs; without one all goes through the line."""
        self._line = line
        self._clock = clock
        self._throttles = throttles
        self._store = store or DirectStore(throttles=throttles)
        self._reads = SignedReads(clock.monotonic)
        self._uploads = asyncio.Semaphore(_UPLOADS)
        self._lag = Lag()
        self.uploads_waiting = 0
        self.uploads_running = 0

    @override
    async def open_session(self, task_id: str, sealed_data_key: bytes) -> Session:
        request = agent_pb2.OpenSessionRequest(task_id=task_id, sealed_data_key=sealed_data_key)
        answer = await self._persist(
            lambda line: line.stub.OpenSession(request, timeout=_CALL_SECONDS), _PATIENCE_SECONDS
        )
        return Session(
            session_id=answer.session_id,
            fencing_token=answer.fencing_token,
            writer_keys=answer.writer_keys,
            head_root=answer.head_root,
            head_sequence=answer.head_sequence,
            lease_seconds=answer.lease_seconds,
            signed_uploads=_signed_uploads(answer),
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
                        chunks = [chunk for frame in frames for chunk in _chunks_of(frame)]
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
                    await self._persist(send, session.lease_seconds)
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

        seconds = _CALL_SECONDS + header.size_bytes / _BYTES_PER_SECOND_MIN
        await _streamed(line.upload, requests, seconds)

    async def _send_directly(
        self, line: NodeChannel, pack: agent_pb2.PackDigest, buffers: Sequence[Buffer]
    ) -> None:
        """Have the request signed, send it, and have the coordinator look what there is."""
        asked = agent_pb2.SignUploadRequest(pack=pack)
        answer = await line.stub.SignUpload(asked, timeout=_CALL_SECONDS)
        if answer.HasField("request"):
            request = _signed_request(answer.request)
            await self._store.put(request, buffers, pack.header.size_bytes)
            sent = agent_pb2.ConfirmUploadRequest(pack=pack)
            await line.stub.ConfirmUpload(sent, timeout=_CALL_SECONDS)

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
        answer = await self._persist(
            lambda line: _streamed(line.stub.Commit, requests, _COMMIT_SECONDS),
            session.lease_seconds,
        )
        return Committed(answer.snapshot_id, answer.sequence, Phase(answer.phase), answer.root)

    @override
    async def open_restore(self, task_id: str, public_key: bytes) -> Grant:
        request = agent_pb2.OpenRestoreRequest(task_id=task_id, public_key=public_key)

        async def ask(line: NodeChannel) -> Grant:
            answers = line.stub.OpenRestore(request, timeout=_COMMIT_SECONDS)
            header: agent_pb2.GrantHeader | None = None
            packs, frames = [], []
            async for answer in answers:
                match answer.WhichOneof("message"):
                    case "header":
                        header = answer.header
                    case "pack":
                        packs.append(_granted_pack(answer.pack))
                    case "frame":
                        frames.append(_granted_frame(answer.frame))
                    case None:  # of a newer coordinator
                        pass
            if header is None:
                raise CoordinatorError("the coordinator's grant has no beginning")
            return Grant(
                root=header.root,
                sealed_grant_key=header.sealed_grant_key,
                wrapped_reader_keys=header.wrapped_reader_keys,
                packs=packs,
                frames=frames,
                endpoint=header.endpoint,
            )

        return await self._persist(ask, _PATIENCE_SECONDS)

    @override
    async def read_pack(
        self, task_id: str, name: str, ranges: Sequence[tuple[int, int]], endpoint: str = ""
    ) -> list[memoryview]:
        if self._store.serves(endpoint):
            arrived = await self._read_directly(task_id, name, ranges)
            return cut(arrived, [length for _, length in ranges])
        throttle = self._throttles.restore
        if not throttle.is_limited:
            arrived = await self._read_ranges(task_id, name, ranges)
            return cut(arrived, [length for _, length in ranges])
        arrived = await self._read_paced(task_id, name, deque(ranges))
        return cut(arrived, [length for _, length in ranges])

    async def _read_paced(
        self, task_id: str, name: str, left: deque[tuple[int, int]]
    ) -> list[memoryview]:
        """Read ranges as fast as they may come, in small calls, however long each takes."""
        read = partial(self._read_ranges, task_id, name)
        return await self._in_pieces(left, read, PIECE_BYTES, f"read {name}")

    async def _in_pieces(
        self,
        left: deque[tuple[int, int]],
        read_ranges: Callable[[list[tuple[int, int]]], Awaitable[list[memoryview]]],
        piece_max: int,
        about: str,
    ) -> list[memoryview]:
        """Read ranges by small calls, each sent when all of its answer may come.

        The other side sends an answer as fast as the line takes it.
        """
        throttle, clock = self._throttles.restore, self._clock.monotonic
        room = asyncio.Semaphore(_READS_IN_FLIGHT)
        self._lag.begin_anew()
        calls: list[asyncio.Task[list[memoryview]]] = []

        async def read(asked: list[tuple[int, int]]) -> list[memoryview]:
            since = clock()
            try:
                arrived = await read_ranges(asked)
                lag = self._lag.of(clock() - since)
                throttle.postpone(sum(map(len, arrived)), since, since + lag)
                return arrived
            finally:
                room.release()

        try:
            async with asyncio.TaskGroup() as group:
                while missing := sum(length for _, length in left):
                    await room.acquire()
                    asked = list(_first_of(left, await throttle.take_some(missing, piece_max)))
                    calls.append(group.create_task(read(asked), name=f"{about} {asked[0][0]}"))
        except ExceptionGroup as errors:  # by except*, Python 3.11.2 would raise a group again
            raise first_error(errors) from None
        return [piece for call in calls for piece in call.result()]

    async def _read_ranges(
        self, task_id: str, name: str, ranges: Sequence[tuple[int, int]]
    ) -> list[memoryview]:
        """Read ranges of a pack in one call; in pieces as they arrive."""
        request = agent_pb2.ReadPackRequest(
            task_id=task_id,
            name=name,
            ranges=[agent_pb2.ByteRange(offset=at, length=length) for at, length in ranges],
        )
        size = sum(length for _, length in ranges)
        seconds = _CALL_SECONDS + size / _BYTES_PER_SECOND_MIN

        async def ask(line: NodeChannel) -> list[memoryview]:
            arrived: list[memoryview] = []
            missing = size
            async for piece in line.read(request, timeout=seconds):
                missing -= len(piece)
                if missing >= 0:
                    arrived.append(piece)
            if missing:
                raise CoordinatorError(
                    f"the coordinator sent {size - missing} bytes of pack {name} instead of {size}",
                    hint="the pack may be cut short; run tidemark verify",
                )
            return arrived

        return await self._persist(ask, _PATIENCE_SECONDS)

    async def _paced(
        self, buffers: Iterable[Buffer], deadline: Deadline
    ) -> AsyncIterator[list[memoryview]]:
        """Cut joined buffers into messages, as fast as they may go.

        The deadline is the line's: what is waited for here is not its fault.
        """
        throttle = self._throttles.upload
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

    async def _read_directly(
        self, task_id: str, name: str, ranges: Sequence[tuple[int, int]]
    ) -> list[memoryview]:
        """Read ranges of a pack from the store itself, neighbours by one request."""
        found: list[memoryview] = []
        for read in reads(ranges, gap_bytes=_GAP_BYTES, read_bytes=_READ_BYTES):
            begin, arrived = read.offset, await self._get(task_id, name, read.offset, read.length)
            found += [arrived[at - begin : at - begin + length] for at, length in read.wanted]
        return found

    async def _get(self, task_id: str, name: str, offset: int, length: int) -> memoryview:
        """Read a part of a pack by one request; under a limit by one for each moment.

        A store sends what it is asked for at once, however slowly it is read: the kernel takes
        megabytes, which everybody on the line would see.
        """
        if not self._throttles.restore.is_limited:
            return await self._get_signed(task_id, name, offset, length, is_paced=False)

        async def read(asked: list[tuple[int, int]]) -> list[memoryview]:
            return [
                await self._get_signed(task_id, name, at, size, is_paced=True) for at, size in asked
            ]

        left = deque([(offset, length)])
        return memoryview(b"".join(await self._in_pieces(left, read, _READ_BYTES, f"get {name}")))

    async def _get_signed(
        self, task_id: str, name: str, offset: int, length: int, *, is_paced: bool
    ) -> memoryview:
        async def ask(line: NodeChannel) -> memoryview:
            request = self._reads.find(task_id, name)
            if request is None:
                asked = agent_pb2.SignReadsRequest(task_id=task_id, names=[name])
                answer = await line.stub.SignReads(asked, timeout=_CALL_SECONDS)
                if len(answer.requests) != 1:
                    raise CoordinatorError("the coordinator signed another number of requests")
                request = _signed_request(answer.requests[0])
                self._reads.keep(task_id, name, request, answer.requests[0].valid_seconds)
            try:
                return await self._store.get(request, offset, length, is_paced=is_paced)
            except StoreUnavailableError:
                self._reads.forget(task_id, name)  # it may have expired
                raise

        return await self._persist(ask, _PATIENCE_SECONDS)

    async def _persist(
        self, call: Callable[[NodeChannel], Awaitable[_T]], patience_seconds: float
    ) -> _T:
        """Make a call again while the coordinator or the store is away, for so long."""
        shortest, longest = _BACKOFF_SECONDS
        give_up_at: float | None = None
        failure: TidemarkError
        cause: BaseException | None
        while True:
            try:
                async with self._line.use() as line:
                    return await call(line)
            except grpc.RpcError as error:
                failure, cause = translated(error), error
            except StoreUnavailableError as error:
                failure, cause = error, error.__cause__
            if not isinstance(failure, UnreachableError | StoreUnavailableError):
                raise failure from cause
            now = self._clock.monotonic()
            if give_up_at is None:
                give_up_at = now + patience_seconds
                _log.warning("asking again", reason=failure.message, seconds=patience_seconds)
            if now >= give_up_at:
                raise failure from cause
            await asyncio.sleep(shortest * _random.uniform(0.5, 1.5))
            shortest = min(shortest * 2, longest)


async def _streamed(
    call: Callable[[AsyncIterator[_T]], Awaitable[_Answer]],
    requests: Callable[[Deadline], AsyncIterator[_T]],
    seconds: float,
) -> _Answer:
    """Make a call with a stream of requests; an error while one is made is the call's error.

    gRPC would take it for a cancellation, which nobody asked for, or wait for the deadline. So the
    stream ends there; cut short, neither a pack nor a commit is accepted.
    """
    failures: list[Exception] = []
    deadline = Deadline(seconds)

    async def each() -> AsyncIterator[_T]:
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


def _chunks_of(frame: agent_pb2.StoredFrame) -> Iterator[tuple[ChunkId, Location]]:
    nonce = PackNonce(frame.pack_nonce)
    for number, length in enumerate(frame.lengths):
        start = number * CHUNK_ID_BYTES
        chunk_id = ChunkId(frame.chunk_ids[start : start + CHUNK_ID_BYTES])
        yield chunk_id, Location(nonce, frame.frame_number, number, length)


def _signed_uploads(answer: agent_pb2.OpenSessionResponse) -> SignedUploads | None:
    """Return how packs may be sent to the store; None, too, where that is newer than we are."""
    told = answer.signed_uploads
    if not answer.HasField("signed_uploads") or told.checksum not in _CHECKSUMS:
        return None
    return SignedUploads(told.endpoint, _CHECKSUMS[told.checksum])


def _signed_request(told: agent_pb2.SignedRequest) -> SignedRequest:
    return SignedRequest(told.method, told.url, dict(told.headers))


def _read_piece(message: bytes) -> memoryview:
    data = decode_bytes_field(_READ_DATA, message)
    if data is None:
        data = memoryview(agent_pb2.ReadPackResponse.FromString(message).data)
    return data


def _first_of(ranges: deque[tuple[int, int]], room: int) -> Iterator[tuple[int, int]]:
    """Take so many bytes from the beginning of the ranges."""
    while ranges and room > 0:
        offset, length = ranges.popleft()
        if length > room:
            ranges.appendleft((offset + room, length - room))
        yield offset, min(length, room)
        room -= length


def cut(arrived: Iterable[memoryview], lengths: Iterable[int]) -> list[memoryview]:
    """Cut what arrived at other places than it came in; what lies in one piece is not copied."""
    rest = iter(arrived)
    piece = memoryview(b"")
    found = []
    for length in lengths:
        parts: list[memoryview] = []
        missing = length
        while missing > len(piece):
            parts.append(piece)
            missing -= len(piece)
            piece = next(rest)
        parts.append(piece[:missing])
        piece = piece[missing:]
        held = [part for part in parts if part]
        found.append(held[0] if len(held) == 1 else memoryview(b"".join(held)))
    return found


def pieces(buffers: Iterable[Buffer]) -> Iterator[list[memoryview]]:
    """Cut joined buffers into messages: none too large for one, and not many small ones."""
    held: list[memoryview] = []
    size = 0
    for buffer in buffers:
        rest = memoryview(buffer).cast("B")
        while rest:
            part = rest[: PIECE_BYTES - size]
            rest = rest[len(part) :]
            held.append(part)
            size += len(part)
            if size == PIECE_BYTES:
                yield held
                held, size = [], 0
    if held:
        yield held


def split(piece: Sequence[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """Cut a message in two, the first of which is so long."""
    first: list[memoryview] = []
    for number, part in enumerate(piece):
        if size <= len(part):
            rest = [part[size:], *piece[number + 1 :]]
            return [*first, part[:size]], [each for each in rest if each]
        first.append(part)
        size -= len(part)
    return first, []


def backup_result(statistics: BackupStatistics) -> common_pb2.BackupResult:
    """Return statistics as the protocol words them."""
    return common_pb2.BackupResult(
        files_new=statistics.files_new,
        files_changed=statistics.files_changed,
        files_removed=statistics.files_removed,
        files_unmodified=statistics.files_unmodified,
        total_files_processed=statistics.total_files_processed,
        total_bytes_processed=statistics.total_bytes_processed,
        bytes_read=statistics.bytes_read,
        data_added=statistics.data_added,
        data_added_packed=statistics.data_added_packed,
        fuzzy_files=statistics.fuzzy_files,
        warnings=path_errors(statistics.warnings),
        errors=path_errors(statistics.errors),
        errors_total=statistics.errors_total,
        change_detection=_DETECTIONS[statistics.detection],
        proof=statistics.proof,
        audit=_audit_result(statistics.audit),
        store_requests=store_requests(statistics.store_requests),
    )


def store_requests(asked: Requests) -> common_pb2.StoreRequests:
    """Return what the store was asked as the protocol words it."""
    return common_pb2.StoreRequests(**asked._asdict())


def _audit_result(audit: AuditOutcome | None) -> common_pb2.AuditResult | None:
    if audit is None:
        return None
    return common_pb2.AuditResult(
        audited=audit.audited,
        reason=audit.reason,
        places_told=audit.places,
        candidates=audit.candidates,
        missed=audit.missed,
        missed_paths=audit.missed_paths[:ERRORS_MAX],
    )


def path_errors(problems: Sequence[PathProblem]) -> list[common_pb2.PathError]:
    """Return the first of the problems as the protocol words them."""
    return [
        common_pb2.PathError(path=problem.path, message=problem.message, hint=problem.hint)
        for problem in problems[:ERRORS_MAX]
    ]


def _granted_pack(pack: agent_pb2.PackGrant) -> GrantedPack:
    return GrantedPack(
        pack_nonce=pack.pack_nonce,
        name=pack.name,
        wrapped_pack_key=pack.wrapped_pack_key,
        frame_table=pack.frame_table,
    )


def _granted_frame(frame: agent_pb2.FrameGrant) -> GrantedFrame:
    return GrantedFrame(
        pack_nonce=frame.pack_nonce,
        frame=frame.frame_number,
        name=frame.name,
        wrapped_frame_key=frame.wrapped_frame_key,
        offset=frame.offset,
        length=frame.length,
    )
