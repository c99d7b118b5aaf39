"""A proxy before any S3 server that misbehaves, by a plan drawn from a seed.

Clients get the proxy's address as their endpoint, and sign for it; it hands on the method, the raw
path and every header that is signed, `Host` among them, so that the server finds the signature
right. tests/fakes/misbehaving.py has the plan, the same faults without a network, and says who
notices what.

A "200 with an error body" has had no effect. What is "done, then" lost has. Bytes that lie do so
with the length and the headers of those that do not.
"""

import asyncio
import io
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from repository.store.interface import Operation
from tests.fakes.misbehaving import Fault, Plan

_KIB: Final = 1024
# Parts of a multipart upload have at most 5 GiB; nobody here sends as much as this.
_BODY_BYTES_MAX: Final = 1 << 30
_FORWARD_SECONDS: Final = 60.0
# Of the connection and not of the message; and Expect, which the proxy has answered itself.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_REFUSALS: Final[Mapping[Fault, tuple[int, str]]] = {
    Fault.ERROR: (500, "InternalError"),
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.TOO_MANY: (429, "TooManyRequests"),
    Fault.FORBIDDEN: (403, "AccessDenied"),
    Fault.ERROR_IN_200: (200, "InternalError"),
}
_CONTENTS: Final = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
_TOKEN: Final = re.compile(rb"<NextContinuationToken>.*?</NextContinuationToken>", re.DOTALL)
_TRUNCATED: Final = re.compile(rb"<IsTruncated>\s*true\s*</IsTruncated>")
_COUNT: Final = re.compile(rb"<KeyCount>\d+</KeyCount>")


@dataclass(frozen=True)
class Answer:
    """Of the server."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


def operation_of(method: str, query: Mapping[str, str]) -> Operation:
    """What a request asks for."""
    if method == "GET":
        return Operation.LIST if "list-type" in query or "prefix" in query else Operation.GET
    if method == "POST":
        return Operation.DELETE if "delete" in query else Operation.PUT
    return {"HEAD": Operation.HEAD, "DELETE": Operation.DELETE}.get(method, Operation.PUT)


class Proxy:
    """One such proxy. Exchange `plan` at any time; its `drawn` tells what was done to whom."""

    def __init__(
        self,
        upstream: str,
        plan: Plan,
        *,
        hang_seconds: float = 300.0,
        slow_bytes_per_second: float = 10 * _KIB,
    ) -> None:
        self.plan = plan
        self.is_down = False
        """While it is, every connection is cut."""
        self.address = ""
        self.done: Counter[str] = Counter()
        """How often each fault really came to pass: a body that is empty has no bit to flip."""
        self._upstream = upstream.rstrip("/")
        self._hang_seconds = hang_seconds
        self._slow_bytes_per_second = slow_bytes_per_second
        self._random = random.Random(plan.seed)
        self._listings: dict[str, bytes] = {}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Proxy"]:
        """Serve on a free port of loopback; `address` is the endpoint for clients."""
        app = web.Application(client_max_size=_BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        timeout = aiohttp.ClientTimeout(total=_FORWARD_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        try:
            async with aiohttp.ClientSession(
                auto_decompress=False, timeout=timeout, connector=connector
            ) as self._session:
                site = web.TCPSite(runner, "127.0.0.1", 0)
                await site.start()
                host, port = runner.addresses[0][:2]
                self.address = f"http://{host}:{port}"
                yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        operation = operation_of(request.method, request.query)
        fault = self.plan.draw(operation)
        if self.is_down or fault is Fault.RESET:
            self._cut(request, fault)
        if fault is Fault.HANG:
            await self._hang(request, fault)
        if fault is not None and fault in _REFUSALS:
            return self._refuse(request, fault)
        answer = await self._forward(request, body)
        if fault is Fault.DONE_THEN_RESET:
            self._cut(request, fault)
        if fault is Fault.DONE_THEN_HANG:
            await self._hang(request, fault)
        if answer.status not in {200, 206} or request.method == "HEAD":
            fault = None
        if operation is Operation.LIST and answer.status == 200:
            answer = self._list(request, answer, fault)
        return await self._send(request, answer, fault)

    # ---- what goes wrong ------------------------------------------------------------------------

    def _cut(self, request: web.BaseRequest, fault: Fault | None) -> NoReturn:
        self.done[fault or "down"] += 1
        if request.transport is not None:
            request.transport.abort()
        raise asyncio.CancelledError

    async def _hang(self, request: web.BaseRequest, fault: Fault) -> NoReturn:
        self.done[fault] += 1
        await asyncio.sleep(self._hang_seconds)
        if request.transport is not None:
            request.transport.abort()
        raise asyncio.CancelledError

    def _refuse(self, request: web.BaseRequest, fault: Fault) -> web.Response:
        self.done[fault] += 1
        status, code = _REFUSALS[fault]
        text = f"<Error><Code>{code}</Code><Message>as planned</Message></Error>"
        return web.Response(
            status=status,
            text='<?xml version="1.0" encoding="UTF-8"?>\n' + text,
            content_type="application/xml",
        )

    def _list(self, request: web.BaseRequest, answer: Answer, fault: Fault | None) -> Answer:
        """A page of a listing, as it is told."""
        before = self._listings.get(request.raw_path)
        self._listings[request.raw_path] = answer.body
        if fault is Fault.LIST_STALE and before is not None:
            self.done[fault] += 1
            return Answer(answer.status, answer.headers, before)
        contents = _CONTENTS.findall(answer.body)
        begin, end = self.plan.part(len(contents))
        if fault is Fault.LIST_EMPTY:
            told = _page(answer.body, [], ends=True)
        elif fault is Fault.LIST_SHORT:
            # Some names of a page, or all pages behind it.
            ends = bool(_TRUNCATED.search(answer.body)) and self._random.random() < 0.5
            kept = contents if ends else contents[:begin] + contents[end:]
            told = _page(answer.body, kept, ends=ends)
        elif fault is Fault.LIST_TWICE:
            told = _page(answer.body, contents + contents[begin:], ends=False)
        else:
            return answer
        self.done[fault] += told != answer.body
        return Answer(answer.status, answer.headers, told)

    async def _send(
        self, request: web.BaseRequest, answer: Answer, fault: Fault | None
    ) -> web.StreamResponse:
        body = answer.body
        if fault is Fault.FLIPPED and body:
            self.done[fault] += 1
            flipped = bytearray(body)
            flipped[self._random.randrange(len(body))] ^= 1 << self._random.randrange(8)
            body = bytes(flipped)
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        if request.method == "HEAD":
            response.content_length = int(answer.headers.get("Content-Length", "0"))
        elif answer.status not in {204, 304}:
            response.content_length = len(body)
        await response.prepare(request)
        if fault is Fault.SLOW:
            self.done[fault] += 1
            await self._dribble(response, body)
        elif fault is Fault.TRUNCATED and body:
            await response.write(body[: len(body) // 2])
            self._cut(request, fault)
        elif request.method != "HEAD":
            await response.write(body)
        await response.write_eof()
        return response

    async def _dribble(self, response: web.StreamResponse, body: bytes) -> None:
        piece = max(1, int(self._slow_bytes_per_second / 10))
        for begin in range(0, len(body), piece):
            await asyncio.sleep(piece / self._slow_bytes_per_second)
            await response.write(body[begin : begin + piece])

    # ---- what goes right ------------------------------------------------------------------------

    async def _forward(self, request: web.BaseRequest, body: bytes) -> Answer:
        headers = CIMultiDict(
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in _HOP_BY_HOP
        )
        async with self._session.request(
            request.method,
            URL(self._upstream + request.raw_path, encoded=True),
            headers=headers,
            # A large one, given as bytes, raises a warning.
            data=io.BytesIO(body) if request.body_exists else None,
            allow_redirects=False,
            skip_auto_headers={"User-Agent", "Accept", "Accept-Encoding", "Content-Type"},
        ) as response:
            kept = CIMultiDict(
                (name, value)
                for name, value in response.headers.items()
                if name.lower() not in _HOP_BY_HOP
            )
            return Answer(response.status, kept, await response.read())


def _page(body: bytes, contents: list[bytes], *, ends: bool) -> bytes:
    """A page of a listing with other contents, and whether it says that it is the last."""
    found = list(_CONTENTS.finditer(body))
    if found:
        body = body[: found[0].start()] + b"".join(contents) + body[found[-1].end() :]
    body = _COUNT.sub(b"<KeyCount>%d</KeyCount>" % len(contents), body)
    if ends:
        body = _TRUNCATED.sub(b"<IsTruncated>false</IsTruncated>", _TOKEN.sub(b"", body))
    return body
