"""Packs sent to the store itself, and read from it, by requests that the coordinator has signed.

The node holds no credential: each request is good for one object, for minutes, and a written one
for exactly its content. Nothing is sent but below the endpoints of the agent's own settings, and no
redirection is followed. What speaks HTTP is loaded with the first request, or when asked to.
"""

import asyncio
import hashlib
import importlib
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from typing_extensions import Buffer

from agent.endpoints import is_beneath
from agent.throttle import BYTES_PER_SECOND_MIN, Deadline, Throttles, transfer_seconds
from repository.errors import (
    DamagedError,
    ObjectMissingError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from repository.store.counting import Tally, charge
from repository.store.interface import Checksum, Operation, SignedRequest

# Small enough for the caches, large enough to cost little per byte.
PIECE_BYTES: Final = 256 * 1024
# Under a limit a pack gets an eighth of what the one before it gets. Equal ones would end
# together, and nothing would flow until the next ones are signed for; with nothing at all, a store
# would take the connection for lost.
_YOUNGER_SHIFT: Final = 3
_PIECE_BYTES_MIN: Final = 4096
# Three uploads, and what restores fetch at once: two reads, or under a limit fifty a second, of
# which each may take 0.3 s.
_CONNECTIONS: Final = 20
_CONNECT_SECONDS: Final = 20.0
# Without a byte for so long a request is as good as lost.
_SILENCE_SECONDS: Final = 60.0
# What Linux takes at most of a connection without having sent it: by default, net.ipv4.tcp_wmem.
_KERNEL_BYTES: Final = 4 * 1024 * 1024
# More packs than restores read at once.
_READS_KEPT: Final = 64
# A request that is sent so shortly before its end may come too late.
_SPARE_SECONDS: Final = 60.0
# Of a refusal: more than any store says.
_REFUSAL_BYTES: Final = 4096
_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_FULL: Final = frozenset({"QuotaExceeded", "InsufficientStorage", "EntityTooLarge"})
_CREATED: Final = frozenset({200, 201, 204})
_WHOLE: Final = 200
_PARTIAL: Final = 206
_READ: Final = frozenset({_WHOLE, _PARTIAL})
_NOT_FOUND: Final = 404
_TAKEN: Final = 412
_BEYOND_END: Final = 416
_TOO_FULL: Final = 507
_REDIRECTIONS: Final = range(300, 400)


def checksum_of(buffers: Iterable[Buffer], kind: Checksum) -> bytes:
    """Hash joined buffers as the store does; may take a while, and lets others run."""
    checksum = hashlib.new(kind.value, usedforsecurity=kind is not Checksum.MD5)
    for buffer in buffers:
        checksum.update(buffer)
    return checksum.digest()


class SignedReads:
    """Requests to read packs that are still good, for restores that come back to a pack."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._kept: dict[tuple[str, str], tuple[SignedRequest, float]] = {}

    def find(self, task_id: str, name: str) -> SignedRequest | None:
        """Return one that is good for a while yet."""
        request, good_until = self._kept.get((task_id, name), (None, 0.0))
        return request if self._monotonic() < good_until else None

    def keep(self, task_id: str, name: str, request: SignedRequest, seconds: float) -> None:
        """Keep one that was signed for so long just now."""
        while len(self._kept) >= _READS_KEPT:
            del self._kept[next(iter(self._kept))]
        good_until = self._monotonic() + max(0.0, seconds - _SPARE_SECONDS)
        self._kept[task_id, name] = (request, good_until)

    def forget(self, task_id: str, name: str) -> None:
        """Have it signed anew."""
        self._kept.pop((task_id, name), None)


class DirectStore:
    """Requests to the store."""

    def __init__(
        self,
        endpoints: Sequence[str] = (),
        ca_file: Path | None = None,
        *,
        throttles: Throttles,
        silence_seconds: float = _SILENCE_SECONDS,
    ) -> None:
        """`ca_file` vouches for the store, beside whom the system trusts."""
        self._silence_seconds = silence_seconds
        self._endpoints = endpoints
        self._ca_file = ca_file
        self._throttles = throttles
        self._session: Any = None
        self.total = Tally()
        """What was asked of the store, tries that failed included."""
        # What is being sent, the oldest first.
        self._sending: list[object] = []

    def serves(self, endpoint: str) -> bool:
        """Whether requests there may be sent at all."""
        return bool(endpoint) and is_beneath(endpoint, self._endpoints)

    def load(self) -> None:
        """Load what speaks HTTP, if there is anywhere to send to; in any thread.

        It takes a third of a second of a core, which the first pack need not wait for.
        """
        if self._endpoints:
            _http()

    async def put(self, request: SignedRequest, buffers: Sequence[Buffer], size_bytes: int) -> None:
        """Send joined buffers. Returns, too, where the store has something by that name already.

        StoreError; StoreUnavailableError where the same may succeed when signed anew.
        """
        charge(self.total, Operation.PUT, bytes_in=size_bytes)
        async with self._deadline(size_bytes) as deadline, self._silence() as silence:
            body = self._pieces(buffers, deadline, silence)
            async with self._answer(request, {}, body) as answer:
                if answer.status != _TAKEN:
                    await _check(answer, _CREATED)

    async def _pieces(
        self, buffers: Sequence[Buffer], deadline: Deadline, silence: asyncio.Timeout
    ) -> AsyncIterator[memoryview]:
        """Cut buffers into what may go at a time, when it may.

        The next one is asked for once there is room for it: so much of the others has been sent.
        """
        throttle = self._throttles.upload
        flow = throttle.begin_flow()
        self._sending.append(flow)
        sent = 0
        try:
            for buffer in buffers:
                rest = memoryview(buffer).cast("B")
                while rest:
                    size = PIECE_BYTES
                    if throttle.is_limited:
                        most = PIECE_BYTES >> (_YOUNGER_SHIFT * self._sending.index(flow))
                        most = max(most, _PIECE_BYTES_MIN)
                        _end_after(silence, None)
                        with deadline.halted():
                            size = await throttle.take_some(min(most, len(rest)))
                    _end_after(silence, self._silence_seconds)
                    yield rest[:size]
                    sent += min(size, len(rest))
                    rest = rest[size:]
            # The kernel may have most of it still.
            rest_seconds = min(sent, _KERNEL_BYTES) / BYTES_PER_SECOND_MIN
            _end_after(silence, self._silence_seconds + rest_seconds)
        finally:
            self._sending.remove(flow)
            flow.end()

    async def get(
        self, request: SignedRequest, offset: int, length: int, *, is_paced: bool = False
    ) -> memoryview:
        """Read a range of the object; DamagedError where it is shorter, else StoreError.

        Under a limit, unless `is_paced` says that all of it may come already, it is read no faster
        than that; but the store sends some megabytes more, which the kernel keeps.
        """
        asked = {"Range": f"bytes={offset}-{offset + length - 1}"}
        arrived = bytearray(length)
        filled = 0
        charge(self.total, Operation.GET)
        async with self._deadline(length) as deadline, self._answer(request, asked, None) as answer:
            await _check(answer, _READ)
            if not _is_range(answer.status, answer.headers, offset, length):
                raise StoreUnavailableError("the store sent another range than was asked for")
            while piece := await self._next_piece(answer, deadline, is_paced=is_paced):
                if filled + len(piece) > length:
                    raise StoreUnavailableError("the store sent more than was asked for")
                charge(self.total, Operation.GET, 0, bytes_out=len(piece))
                arrived[filled : filled + len(piece)] = piece
                filled += len(piece)
        if filled != length:
            raise DamagedError(
                f"an object in the store ends {length - filled} bytes too early",
                hint="run tidemark verify to see what it affects",
            )
        return memoryview(arrived)

    async def _next_piece(self, answer: Any, deadline: Deadline, *, is_paced: bool) -> bytes:
        """Read on, when it may be; what is not read the store holds back before long."""
        throttle = self._throttles.restore
        if is_paced or not throttle.is_limited:
            return bytes(await answer.content.readany())
        piece = bytes(await answer.content.read(throttle.piece_bytes))
        with deadline.halted():
            await throttle.take(len(piece))
        return piece

    @asynccontextmanager
    async def _deadline(self, size_bytes: int) -> AsyncIterator[Deadline]:
        """As long as so many bytes may take on the slowest line that is one."""
        try:
            deadline = Deadline(transfer_seconds(size_bytes))
            async with deadline.timeout:
                yield deadline
        except TimeoutError as error:
            raise StoreUnavailableError(
                "the store takes too long", hint="see that this node reaches it: tidemark doctor"
            ) from error

    @asynccontextmanager
    async def _silence(self) -> AsyncIterator[asyncio.Timeout]:
        """Until when something has to be taken of what is sent, or answered in the end."""
        try:
            async with asyncio.timeout(None) as timeout:
                yield timeout
        except TimeoutError as error:
            raise StoreUnavailableError(
                "the store takes nothing more of what is sent there",
                hint="see that this node reaches it: tidemark doctor",
            ) from error

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def _answer(
        self,
        request: SignedRequest,
        headers: Mapping[str, str],
        body: AsyncIterator[memoryview] | None,
    ) -> AsyncIterator[Any]:
        if not is_beneath(request.url, self._endpoints):
            raise StoreError(
                "the coordinator wants something sent to where this agent sends nothing",
                hint="add the store's URL to --store-endpoint, if it is yours",
            )
        aiohttp, yarl = _http()
        if self._session is None:
            self._session = _open_session(aiohttp, self._ca_file)
        url = yarl.URL(request.url, encoded=True)
        # While we send, the store has nothing to say.
        silence = self._silence_seconds if body is None else None
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence
        )
        try:
            async with self._session.request(
                request.method,
                url,
                headers={**request.headers, **headers},
                data=body,
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                yield answer
        except (aiohttp.ClientError, OSError) as error:
            raise StoreUnavailableError(
                f"the store at {url.host} does not answer: {str(error) or type(error).__name__}",
                hint="see that this node reaches it: tidemark doctor",
            ) from error


def _end_after(timeout: asyncio.Timeout, seconds: float | None) -> None:
    """Let it come in so many seconds from now, or not at all."""
    if not timeout.expired():
        when = None if seconds is None else asyncio.get_running_loop().time() + seconds
        timeout.reschedule(when)


def _http() -> tuple[Any, Any]:
    """The modules that speak it."""
    return importlib.import_module("aiohttp"), importlib.import_module("yarl")


def _open_session(aiohttp: Any, ca_file: Path | None) -> Any:
    trusted: ssl.SSLContext | bool = True
    if ca_file is not None:
        trusted = ssl.create_default_context()
        trusted.load_verify_locations(ca_file)
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=trusted)
    # Neither a proxy nor a password of the environment is meant for the store, and a header that
    # nobody has signed may make it refuse.
    skip = ("Content-Type", "User-Agent", "Accept-Encoding")
    return aiohttp.ClientSession(
        connector=connector, trust_env=False, auto_decompress=False, skip_auto_headers=skip
    )


def _is_range(status: int, headers: Mapping[str, str], offset: int, length: int) -> bool:
    """Whether an answer is what was asked for, as far as it says.

    Some stores send a range and call it the whole: then its length has to do. What a wrong one
    holds does not open, and is told as damage.
    """
    said = headers.get("Content-Range")
    if said is None:
        return status == _WHOLE and headers.get("Content-Length") == str(length)
    return said.startswith(f"bytes {offset}-")


async def _check(answer: Any, expected: frozenset[int]) -> None:
    """StoreError unless the store has done it."""
    if answer.status in expected:
        return
    async with asyncio.timeout(_SILENCE_SECONDS):
        said = await answer.content.read(_REFUSAL_BYTES)
    raise refusal(answer.status, said)


def refusal(status: int, said: bytes) -> StoreError | DamagedError:
    """What a store's refusal means. Pure."""
    found = _CODE.search(said)
    code = found[1].decode() if found else ""
    why = f"{code or 'no reason given'} ({status})"
    if code in _FULL or status == _TOO_FULL:
        hint = "free space there, or raise its quota"
        return StoreFullError(f"the store takes no more: {why}", hint=hint)
    if status == _NOT_FOUND and code == "NoSuchKey":
        return ObjectMissingError(f"the repository has no such object: {why}")
    if status == _NOT_FOUND:
        hint = "tidemark doctor says more"
        return StoreError(f"the repository's bucket is not there: {why}", hint=hint)
    if status == _BEYOND_END:
        hint = "run tidemark verify to see what it affects"
        return DamagedError(f"an object in the store is too short: {why}", hint=hint)
    if status in _REDIRECTIONS:
        hint = "the repository's region or endpoint is wrong: tidemark doctor"
        return StoreError(f"the store sends us elsewhere: {why}", hint=hint)
    # A signature may have expired on its way, and a store may have no time.
    return StoreUnavailableError(
        f"the store refuses what the coordinator has signed: {why}",
        hint="if it goes on: tidemark doctor checks its credentials and clock",
    )
