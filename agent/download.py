"""The calls of a restore to the coordinator: its grant, and ranges of packs.

Packs come through the coordinator, or from the store itself where that is allowed. Under a limit
they come in many small calls at once: so a line far away is used as far as it may be, and nothing
is asked for that may not come.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from typing_extensions import override

from agent.buffers import cut
from agent.channel import NodeChannel
from agent.direct import DirectStore, SignedReads
from agent.errors import CoordinatorError, first_error
from agent.fetching import STORE_FETCH_BYTES
from agent.line import Line
from agent.messages import granted_frame, granted_pack, signed_request
from agent.pacing import Lag
from agent.retrying import PATIENCE_SECONDS, Persistence
from agent.services import Clock, Grant, RestoreClient
from agent.throttle import CALL_SECONDS, PIECE_BYTES, Throttles, transfer_seconds
from proto.tidemark.v1 import agent_pb2
from repository.errors import StoreUnavailableError
from repository.ranges import reads, take_ranges

# A grant has the key of every frame that the snapshot needs, out of every pack where one lies.
_GRANT_SECONDS: Final = 300.0
# Under a limit each call reads what goes in 20 ms: these cover a round trip of 0.3 s.
_READS_IN_FLIGHT: Final = 16
# Of a pack in an object store: so many needless bytes cost less than another request, and so many
# come with one. What one call asks for comes with one, then.
_GAP_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = STORE_FETCH_BYTES

# Reads some ranges (offset, length).
_Read = Callable[[list[tuple[int, int]]], Awaitable[list[memoryview]]]


class RestoreCalls(RestoreClient):
    """The calls, over one line that all restores share."""

    def __init__(
        self,
        line: Line[NodeChannel],
        clock: Clock,
        throttles: Throttles,
        store: DirectStore | None = None,
    ) -> None:
        """`store` gives what the coordinator signs; without one all comes through the line."""
        self._persistence = Persistence(line, clock)
        self._clock = clock
        self._throttle = throttles.restore
        self._store = store or DirectStore(throttles=throttles)
        self._reads = SignedReads(clock.monotonic)
        self._lag = Lag()

    @override
    async def open_restore(self, task_id: str, public_key: bytes) -> Grant:
        request = agent_pb2.OpenRestoreRequest(task_id=task_id, public_key=public_key)

        async def ask(line: NodeChannel) -> Grant:
            answers = line.stub.OpenRestore(request, timeout=_GRANT_SECONDS)
            header: agent_pb2.GrantHeader | None = None
            packs, frames = [], []
            async for answer in answers:
                match answer.WhichOneof("message"):
                    case "header":
                        header = answer.header
                    case "pack":
                        packs.append(granted_pack(answer.pack))
                    case "frame":
                        frames.append(granted_frame(answer.frame))
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

        return await self._persistence.call(ask, PATIENCE_SECONDS)

    @override
    async def read_pack(
        self, task_id: str, name: str, ranges: Sequence[tuple[int, int]], endpoint: str = ""
    ) -> list[memoryview]:
        if self._store.serves(endpoint):
            arrived = await self._read_directly(task_id, name, ranges)
        elif self._throttle.is_limited:
            read = partial(self._read_ranges, task_id, name)
            arrived = await self._paced(deque(ranges), read, PIECE_BYTES)
        else:
            arrived = await self._read_ranges(task_id, name, ranges)
        return cut(arrived, [length for _, length in ranges])

    async def _paced(
        self, left: deque[tuple[int, int]], read_ranges: _Read, piece_max: int
    ) -> list[memoryview]:
        """Read ranges by small calls, however long each takes: each when its answer may come."""
        throttle, clock = self._throttle, self._clock.monotonic
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
                    asked = take_ranges(left, await throttle.take_some(missing, piece_max))
                    calls.append(group.create_task(read(asked), name=f"read {asked[0][0]}"))
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
        seconds = transfer_seconds(size)

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

        return await self._persistence.call(ask, PATIENCE_SECONDS)

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
        if not self._throttle.is_limited:
            return await self._get_signed(task_id, name, offset, length, is_paced=False)

        async def read(asked: list[tuple[int, int]]) -> list[memoryview]:
            return [
                await self._get_signed(task_id, name, at, size, is_paced=True) for at, size in asked
            ]

        return memoryview(b"".join(await self._paced(deque([(offset, length)]), read, _READ_BYTES)))

    async def _get_signed(
        self, task_id: str, name: str, offset: int, length: int, *, is_paced: bool
    ) -> memoryview:
        async def ask(line: NodeChannel) -> memoryview:
            request = self._reads.find(task_id, name)
            if request is None:
                asked = agent_pb2.SignReadsRequest(task_id=task_id, names=[name])
                answer = await line.stub.SignReads(asked, timeout=CALL_SECONDS)
                if len(answer.requests) != 1:
                    raise CoordinatorError("the coordinator signed another number of requests")
                request = signed_request(answer.requests[0])
                self._reads.keep(task_id, name, request, answer.requests[0].valid_seconds)
            try:
                return await self._store.get(request, offset, length, is_paced=is_paced)
            except StoreUnavailableError:
                self._reads.forget(task_id, name)  # it may have expired
                raise

        return await self._persistence.call(ask, PATIENCE_SECONDS)
