"""Requests that the coordinator signed, sent to a server over HTTP."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from aiohttp import web

from agent.daemon import SystemClock
from agent.direct import DirectStore, SignedReads, checksum_of, refusal
from agent.throttle import Grant, Throttles
from repository.errors import (
    DamagedError,
    ObjectMissingError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from repository.store.counting import Requests, Tally, charged
from repository.store.interface import Checksum, SignedRequest
from tests.fakes.answers import Reply, answering

CONTENT = bytes(range(256)) * 4096


def unlimited() -> Throttles:
    return Throttles(SystemClock())


class Heard(NamedTuple):
    """What the server was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Site:
    """A server that does as told, and an agent that may send to it."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.answer = web.Response(status=200)
        self.url = ""
        self.store = DirectStore(throttles=unlimited())

    async def hear(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.heard.append(
            Heard(
                request.method,
                request.raw_path,
                {k.lower(): v for k, v in request.headers.items()},
                body,
            )
        )
        return self.answer

    def request(self, method: str, **headers: str) -> SignedRequest:
        return SignedRequest(method, self.url + "bucket/packs/a?signature=%2F%20b", headers)


@asynccontextmanager
async def serving() -> AsyncIterator[Site]:
    site = Site()
    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_route("*", "/{path:.*}", site.hear)
    runner = web.AppRunner(application)
    await runner.setup()
    listening = web.TCPSite(runner, "127.0.0.1", 0)
    await listening.start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    site.store = DirectStore([site.url + "bucket"], throttles=unlimited())
    try:
        yield site
    finally:
        await site.store.close()
        await runner.cleanup()


def test_a_pack_is_told_by_the_checksum_that_its_store_has() -> None:
    found = checksum_of([b"ab", memoryview(b"c")], Checksum.SHA256)

    assert found == hashlib.sha256(b"abc").digest()
    assert checksum_of([b"abc"], Checksum.MD5) == hashlib.md5(b"abc").digest()  # noqa: S324


@pytest.mark.asyncio
async def test_under_a_limit_packs_end_one_after_the_other_and_not_all_at_once() -> None:
    """Or nothing would flow until the next ones may."""
    throttles = unlimited()
    throttles.on_grant(Grant(1, upload=4_000_000, restore=1, floor=1, lease_seconds=60.0))
    loop = asyncio.get_running_loop()
    ended: list[float] = []
    async with answering(Reply(200)) as server:
        store = DirectStore([server.url + "/"], throttles=throttles)
        headers = {"content-length": str(len(CONTENT))}
        request = SignedRequest("PUT", f"{server.url}/packs/a", headers)

        async def send() -> None:
            await store.put(request, [CONTENT], len(CONTENT))
            ended.append(loop.time())

        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(send(), name=f"pack {number}")
        await store.close()

    first, second, last = (at - began for at in ended)
    assert last == pytest.approx(3 * len(CONTENT) / 4_000_000, rel=0.3)
    assert first < 0.6 * last
    assert second < 0.85 * last


@asynccontextmanager
async def swallowing(silence_seconds: float, throttles: Throttles) -> AsyncIterator[Site]:
    """A server that takes connections, and reads nothing of what comes."""
    site = Site()
    with socket.create_server(("127.0.0.1", 0)) as server:
        site.url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        site.store = DirectStore([site.url], throttles=throttles, silence_seconds=silence_seconds)
        try:
            yield site
        finally:
            await site.store.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [1024, 64 * 1024 * 1024], ids=["buffered", "more than buffers"])
async def test_a_store_that_takes_no_more_is_given_up_before_the_packs_time_is_over(
    size: int,
) -> None:
    async with swallowing(0.3, unlimited()) as site, asyncio.timeout(5):
        request = site.request("PUT", **{"content-length": str(size)})
        with pytest.raises(StoreUnavailableError, match="takes nothing more of what is sent"):
            await site.store.put(request, [bytes(size)], size)


@pytest.mark.asyncio
async def test_a_store_that_never_answers_is_given_up() -> None:
    async with swallowing(0.3, unlimited()) as site, asyncio.timeout(5):
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            await site.store.get(site.request("GET"), 0, 100)


@pytest.mark.asyncio
async def test_what_a_limit_holds_back_is_no_silence() -> None:
    throttles = unlimited()
    throttles.on_grant(Grant(1, upload=4_000, restore=1, floor=1, lease_seconds=60.0))
    loop = asyncio.get_running_loop()
    async with answering(Reply(200)) as server:
        store = DirectStore([server.url + "/"], throttles=throttles, silence_seconds=0.1)
        request = SignedRequest("PUT", f"{server.url}/packs/a", {"content-length": "2000"})
        began = loop.time()

        await store.put(request, [bytes(2000)], 2000)

        await store.close()
    assert loop.time() - began > 0.3


@pytest.mark.asyncio
async def test_a_pack_is_sent_as_it_is_signed_for() -> None:
    async with serving() as site:
        request = site.request("PUT", **{"content-length": str(len(CONTENT)), "content-md5": "x=="})

        await site.store.put(request, [CONTENT[:100], memoryview(CONTENT)[100:]], len(CONTENT))

        (heard,) = site.heard
        assert (heard.method, heard.body) == ("PUT", CONTENT)
        assert heard.path == "/bucket/packs/a?signature=%2F%20b"
        assert heard.headers["content-md5"] == "x=="
        assert heard.headers["content-length"] == str(len(CONTENT))
        assert "transfer-encoding" not in heard.headers
        assert "content-type" not in heard.headers


@pytest.mark.asyncio
async def test_a_name_that_is_taken_is_for_the_coordinator_to_judge() -> None:
    async with serving() as site:
        site.answer = web.Response(status=412, body=b"<Error><Code>PreconditionFailed</Code>")

        await site.store.put(site.request("PUT"), [b"x"], 1)


@pytest.mark.asyncio
async def test_tasks_at_once_are_each_charged_with_every_try_of_their_own() -> None:
    nowhere = "http://127.0.0.1:9/bucket/"
    store = DirectStore([nowhere], throttles=unlimited())

    async def trying(operation: Awaitable[object]) -> None:
        with pytest.raises(StoreUnavailableError):
            await operation

    async def task(tally: Tally, number: int) -> None:
        with charged(tally):
            async with asyncio.TaskGroup() as group:
                for _ in range(number):
                    put = store.put(SignedRequest("PUT", nowhere + "a", {}), [b"abc"], 3)
                    group.create_task(trying(put), name="put")
            await trying(store.get(SignedRequest("GET", nowhere + "a", {}), 0, 9))

    tallies = [Tally() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        for number, tally in enumerate(tallies, start=1):
            group.create_task(task(tally, number), name=f"task {number}")
    await store.close()

    for number, tally in enumerate(tallies, start=1):
        assert tally.snapshot() == Requests(put=number, get=1, bytes_in=3 * number)
    assert store.total.snapshot() == Requests(put=6, get=3, bytes_in=18)


@pytest.mark.asyncio
async def test_a_range_is_read() -> None:
    async with serving() as site:
        headers = {"Content-Range": "bytes 5-1004/9999"}
        site.answer = web.Response(status=206, body=CONTENT[5:1005], headers=headers)

        assert await site.store.get(site.request("GET"), 5, 1000) == CONTENT[5:1005]

        assert site.heard[0].headers["range"] == "bytes=5-1004"
        assert site.store.total.snapshot() == Requests(get=1, bytes_out=1000)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "body", "sent", "error"),
    [
        (206, CONTENT[5:905], "bytes 5-904/905", DamagedError),
        (206, CONTENT[5:1006], "bytes 5-1005/9999", StoreUnavailableError),
        (206, CONTENT[:1000], "bytes 0-999/9999", StoreUnavailableError),
        (200, CONTENT, "", StoreUnavailableError),
        (416, b"<Code>InvalidRange</Code>", "", DamagedError),
        (404, b"<Code>NoSuchKey</Code>", "", ObjectMissingError),
    ],
)
async def test_what_is_not_the_range_is_not_taken_for_it(
    status: int, body: bytes, sent: str, error: type[Exception]
) -> None:
    async with serving() as site:
        headers = {"Content-Range": sent} if sent else {}
        site.answer = web.Response(status=status, body=body, headers=headers)

        with pytest.raises(error):
            await site.store.get(site.request("GET"), 5, 1000)


@pytest.mark.asyncio
@pytest.mark.parametrize("place", ["elsewhere", "127.0.0.1:1/bucket/x", "../other"])
async def test_nothing_is_sent_where_the_settings_send_nothing(place: str) -> None:
    async with serving() as site:
        strange = SignedRequest(
            "PUT", f"{site.url}{place}" if place[0] != "1" else f"http://{place}", {}
        )

        with pytest.raises(StoreError, match="sends nothing"):
            await site.store.put(strange, [b"x"], 1)

        assert site.heard == []


@pytest.mark.asyncio
async def test_no_redirection_is_followed() -> None:
    async with serving() as site:
        site.answer = web.Response(status=307, headers={"Location": site.url + "bucket/other"})

        with pytest.raises(StoreError, match="sends us elsewhere"):
            await site.store.put(site.request("PUT"), [b"x"], 1)

        assert len(site.heard) == 1


@pytest.mark.asyncio
async def test_a_store_that_is_away_may_come_back() -> None:
    store = DirectStore(["http://127.0.0.1:1/"], throttles=unlimited())

    with pytest.raises(StoreUnavailableError, match="does not answer"):
        await store.get(SignedRequest("GET", "http://127.0.0.1:1/x", {}), 0, 1)

    await store.close()


@pytest.mark.asyncio
async def test_a_body_that_is_cut_off_is_asked_for_again() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 206 OK\r\nContent-Length: 100\r\nContent-Range: bytes 0-99/100\r\n\r\n"
        writer.write(head + b"x" * 50)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    store = DirectStore([url], throttles=unlimited())
    async with server:
        with pytest.raises(StoreUnavailableError):
            await store.get(SignedRequest("GET", url + "x", {}), 0, 100)
        await store.close()


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (500, b"", StoreUnavailableError),
        (503, b"<Error><Code>SlowDown</Code></Error>", StoreUnavailableError),
        (403, b"<Code>AccessDenied</Code>", StoreUnavailableError),
        (400, b"<Code>BadDigest</Code>", StoreUnavailableError),
        (403, b"<Code>QuotaExceeded</Code>", StoreFullError),
        (507, b"", StoreFullError),
        (404, b"<Code>NoSuchBucket</Code>", StoreError),
        (301, b"<Code>PermanentRedirect</Code>", StoreError),
    ],
)
def test_what_a_store_refuses_is_named(status: int, said: bytes, error: type[Exception]) -> None:
    found = refusal(status, said)

    assert type(found) is error
    assert str(status) in str(found)


def test_a_signed_read_is_used_until_shortly_before_it_ends() -> None:
    now = 0.0
    kept = SignedReads(lambda: now)
    request = SignedRequest("GET", "https://h/x", {})
    kept.keep("task", "pack", request, 300)

    assert kept.find("task", "pack") == request
    assert kept.find("other", "pack") is None
    now = 239.9
    assert kept.find("task", "pack") == request
    now = 240.0
    assert kept.find("task", "pack") is None


def test_a_signed_read_that_was_refused_is_signed_anew() -> None:
    kept = SignedReads(lambda: 0.0)
    kept.keep("task", "pack", SignedRequest("GET", "https://h/x", {}), 300)

    kept.forget("task", "pack")
    kept.forget("task", "never")

    assert kept.find("task", "pack") is None


def test_only_so_many_signed_reads_are_kept() -> None:
    kept = SignedReads(lambda: 0.0)
    for number in range(1000):
        kept.keep("task", str(number), SignedRequest("GET", "https://h/x", {}), 300)

    assert kept.find("task", "0") is None
    assert kept.find("task", "999") is not None
