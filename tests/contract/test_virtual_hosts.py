"""A bucket as a host of its own, as AWS has it: asked, signed for and sent to at a real gateway."""

import hashlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import pytest
import pytest_asyncio
import yarl

from agent.daemon import SystemClock
from agent.direct import DirectStore
from agent.throttle import Throttles
from repository.errors import ObjectMissingError, StoreUnavailableError
from repository.store.s3.capabilities import NONE_KNOWN
from repository.store.s3.check import check
from repository.store.s3.location import parse_location
from repository.store.s3.opening import open_s3
from repository.store.s3.probe import probe
from repository.store.s3.store import S3Store
from tests.servers import radosgw
from tests.servers.buckets import CAPABILITIES, CREDENTIALS, make_bucket, new_name, opened
from tests.servers.shared import Server, server

pytestmark = pytest.mark.asyncio

CONTENT: Final = b"what a pack has, and its end"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return server("radosgw", tmp_path_factory)


@pytest.fixture(autouse=True)
def _resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """All hosts of the gateway's domain are this machine, as its DNS would say."""
    ask: Callable[..., list[Any]] = socket.getaddrinfo

    def answer(host: str | bytes | None, *rest: Any, **more: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        ours = name is not None and name.endswith(radosgw.HOST)
        return ask("127.0.0.1" if ours else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest_asyncio.fixture
async def store(gateway: Server) -> AsyncIterator[S3Store]:
    bucket = new_name()
    async with opened(gateway, bucket) as nowhere:
        made = await make_bucket(nowhere)
    port = yarl.URL(gateway.url).port
    location = parse_location(
        f"s3://{made.bucket.location.bucket}/web/repository",
        endpoint=f"http://{radosgw.HOST}:{port}",
        addressing="virtual",
    )
    async with open_s3(
        location, now_ns=time.time_ns, credentials=CREDENTIALS, capabilities=NONE_KNOWN
    ) as found:
        yield found


async def test_a_bucket_is_probed_and_used_as_a_host_of_its_own(store: S3Store) -> None:
    assert await check(store) == []
    assert await probe(store) == CAPABILITIES["radosgw"]
    able = store.able(CAPABILITIES["radosgw"])

    await able.put("packs/ab/one", CONTENT)

    assert await able.get("packs/ab/one") == CONTENT
    assert await able.get_range("packs/ab/one", 5, 6) == CONTENT[5:11]
    assert [each.name async for each in able.list_objects("packs/")] == ["packs/ab/one"]
    await able.delete("packs/ab/one")
    with pytest.raises(ObjectMissingError):
        await able.head("packs/ab/one")


async def test_an_agent_sends_and_reads_there_what_was_signed_and_nothing_else(
    store: S3Store,
) -> None:
    signing, name = store.signing, "packs/ab/one"
    host = f"{store.bucket.location.bucket}.{radosgw.HOST}"
    assert yarl.URL(signing.endpoint).host == host
    request = await signing.sign_put(
        name,
        size_bytes=len(CONTENT),
        checksum=hashlib.md5(CONTENT, usedforsecurity=False).digest(),
        seconds=60,
    )
    agent = DirectStore([signing.endpoint], throttles=Throttles(SystemClock()))
    try:
        with pytest.raises(StoreUnavailableError):
            await agent.put(request, [CONTENT[::-1]], len(CONTENT))
        await agent.put(request, [CONTENT], len(CONTENT))
        reading = await signing.sign_get(name, seconds=60)
        read = await agent.get(reading, 5, 6)
    finally:
        await agent.close()

    assert bytes(read) == CONTENT[5:11]
    found = await signing.stored(name, 10, 4)
    assert (found.size, found.part) == (len(CONTENT), CONTENT[10:14])
