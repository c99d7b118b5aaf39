"""What misbehaves does so as it says: the proxy before a server, and the store in process."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from repository.errors import StoreForbiddenError, StoreUnavailableError
from repository.store.interface import Operation, Store
from tests.fakes import virtual_time
from tests.fakes.misbehaving import APPLICABLE, NOTICED, Fault, MisbehavingStore, Plan
from tests.fakes.s3 import ACCESS_KEY, REGION, SECRET_KEY, FakeS3
from tests.fakes.store import MemoryStore
from tests.faults.misbehaving import Proxy

CONTENT = bytes(range(256)) * 40
NAMES = [f"packs/{number}" for number in range(8)]
_READ_SECONDS = 0.3
_HANG_SECONDS = 3.0
# It reads what describes the service from disk once.
SESSION = get_session()
# Botocore raises for a lost connection what its HTTP library does, too.
BROKEN = (BotoCoreError, HTTPClientError, aiohttp.ClientError, TimeoutError, OSError)


class AsksOnce(AIOHTTPSession):  # type: ignore[misc]
    """aiohttp repeats what may be repeated when a connection is lost, whatever botocore is told."""

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


@asynccontextmanager
async def client(endpoint: str) -> AsyncIterator[Any]:
    """A real one, which asks once."""
    config = AioConfig(
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},
        read_timeout=_READ_SECONDS,
        connect_timeout=5,
        http_session_cls=AsksOnce,
    )
    async with SESSION.create_client(
        "s3",
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=config,
    ) as made:
        yield made


@asynccontextmanager
async def site(plan: Plan) -> AsyncIterator[tuple[FakeS3, Proxy, Any]]:
    """A server with some objects, a proxy before it, and a client of the proxy."""
    async with FakeS3().serving() as server:
        server.objects = dict.fromkeys(NAMES, CONTENT)
        proxy = Proxy(
            server.address, plan, hang_seconds=_HANG_SECONDS, slow_bytes_per_second=50 * 1024
        )
        async with proxy.serving(), client(proxy.address) as made:
            yield server, proxy, made


async def ask(made: Any, operation: Operation) -> Any:
    """One request of this kind, and all of its answer."""
    match operation:
        case Operation.PUT:
            return await made.put_object(Bucket="bucket", Key="packs/new", Body=CONTENT)
        case Operation.GET:
            answer = await made.get_object(Bucket="bucket", Key=NAMES[0])
            async with answer["Body"] as body:
                return await body.read()
        case Operation.HEAD:
            return await made.head_object(Bucket="bucket", Key=NAMES[0])
        case Operation.LIST:
            return await made.list_objects_v2(Bucket="bucket", Prefix="packs/")
        case Operation.DELETE:
            return await made.delete_object(Bucket="bucket", Key=NAMES[0])


@pytest.mark.asyncio
async def test_without_a_fault_everything_comes_through_and_is_signed_right() -> None:
    key = "roots/a b+c=d/ü%2F"
    async with site(Plan(seed=1, rate=0.0)) as (server, proxy, made):
        large = bytes(3_000_000)
        await made.put_object(Bucket="bucket", Key=key, Body=large, IfNoneMatch="*")
        await made.put_object(Bucket="bucket", Key="empty", Body=b"")
        answer = await made.get_object(Bucket="bucket", Key=key, Range="bytes=10-19")
        assert len(await answer["Body"].read()) == 10
        head = await made.head_object(Bucket="bucket", Key=key)
        assert head["ContentLength"] == len(large)
        pages = [
            page
            async for page in made.get_paginator("list_objects_v2").paginate(
                Bucket="bucket", Prefix="packs/"
            )
        ]
        await made.delete_object(Bucket="bucket", Key="empty")
        with pytest.raises(ClientError, match="NoSuchKey"):
            await made.get_object(Bucket="bucket", Key="empty")

    assert [each["Key"] for page in pages for each in page["Contents"]] == NAMES
    assert server.objects[key] == large
    assert server.refused == 0
    assert len(server.seen) == proxy.plan.requests.total() == 9
    assert not proxy.done


SEEN_AS_ERROR = {
    Fault.ERROR: "InternalError|500",
    Fault.SLOW_DOWN: "SlowDown|503",
    Fault.TOO_MANY: "TooManyRequests|429",
    Fault.FORBIDDEN: "AccessDenied|403",
    # Whether a client notices is its own affair; this one does.
    Fault.ERROR_IN_200: "InternalError",
}
LOST = {Fault.RESET, Fault.HANG, Fault.DONE_THEN_RESET, Fault.DONE_THEN_HANG, Fault.TRUNCATED}
PAIRS = [(operation, fault) for operation in Operation for fault in sorted(APPLICABLE[operation])]


@pytest.mark.asyncio
@pytest.mark.parametrize("operation", Operation)
async def test_each_fault_is_what_it_says(operation: Operation) -> None:
    async with site(Plan(seed=1, rate=0.0)) as (server, proxy, made):
        for fault in sorted(APPLICABLE[operation]):
            try:
                await _meet(server, proxy, made, operation, fault)
            except BaseException as error:
                error.add_note(f"at {fault}")
                raise


async def _meet(
    server: FakeS3, proxy: Proxy, made: Any, operation: Operation, fault: Fault
) -> None:
    server.objects = dict.fromkeys(NAMES, CONTENT)
    proxy.plan = Plan(seed=1, rate=0.0)
    truth = await ask(made, operation)
    before = {**dict.fromkeys(NAMES, CONTENT), "packs/11": CONTENT}
    server.objects = dict(before)
    proxy.done.clear()
    proxy.plan = Plan(seed=1, rate=1.0, kinds=frozenset({fault}))
    if fault in SEEN_AS_ERROR:
        with pytest.raises(ClientError, match=SEEN_AS_ERROR[fault]):
            await ask(made, operation)
    elif fault in LOST:
        with pytest.raises(BROKEN):
            await ask(made, operation)
    else:
        _check_lie(fault, truth, await ask(made, operation))
    assert proxy.done == Counter({fault: 1})
    assert proxy.plan.drawn == [(operation, 1, fault)]
    is_done = fault in {Fault.DONE_THEN_RESET, Fault.DONE_THEN_HANG}
    changes = operation in {Operation.PUT, Operation.DELETE}
    assert (server.objects != before) == (is_done and changes)


def _check_lie(fault: Fault, truth: Any, told: Any) -> None:
    if fault is Fault.SLOW:
        assert told == truth or "Contents" in told
        return
    if fault is Fault.FLIPPED:
        assert len(told) == len(truth)
        assert sum((one ^ other).bit_count() for one, other in zip(truth, told, strict=True)) == 1
        return
    names = [each["Key"] for each in told.get("Contents", [])]
    assert told["KeyCount"] == len(names)
    if fault is Fault.LIST_STALE:
        assert names == NAMES[:3]
    elif fault is Fault.LIST_EMPTY:
        assert (names, told["IsTruncated"]) == ([], False)
    elif fault is Fault.LIST_SHORT:
        assert len(names) < 3 or not told["IsTruncated"]
    else:
        assert fault is Fault.LIST_TWICE
        assert len(names) > len(set(names))


@pytest.mark.asyncio
async def test_a_slow_body_takes_its_time() -> None:
    async with site(Plan(seed=1, rate=1.0, kinds=frozenset({Fault.SLOW}))) as (_, _, made):
        began = asyncio.get_running_loop().time()
        assert await ask(made, Operation.GET) == CONTENT
        # 10 KiB with 50 KiB/s.
        assert asyncio.get_running_loop().time() - began >= 0.15


@pytest.mark.asyncio
async def test_a_server_that_is_down_is_down_for_everything() -> None:
    async with site(Plan(seed=1, rate=0.0)) as (server, proxy, made):
        proxy.is_down = True
        for operation in Operation:
            with pytest.raises(BROKEN):
                await ask(made, operation)
        proxy.is_down = False
        assert await ask(made, Operation.GET) == CONTENT

    assert len(server.seen) == 1
    assert proxy.done == Counter({"down": len(Operation)})


def test_a_plan_is_the_same_for_the_same_seed_and_has_its_rate() -> None:
    def drawn(seed: int) -> Plan:
        plan = Plan(seed, 0.05)
        for number in range(20_000):
            plan.draw(list(Operation)[number % 5])
        return plan

    plan = drawn(1)

    assert plan.drawn == drawn(1).drawn != drawn(2).drawn
    assert 0.04 < len(plan.drawn) / 20_000 < 0.06
    assert set(plan.counted()) == NOTICED
    assert str(plan) == f"Plan(seed=1, rate=0.05, kinds={NOTICED!r})"


async def _names(store: Store) -> list[str]:
    return [info.name async for info in store.list_objects("")]


async def _in_process(store: Store, operation: Operation) -> Any:
    match operation:
        case Operation.PUT:
            return await store.put("packs/new", CONTENT)
        case Operation.GET:
            return await store.get(NAMES[0])
        case Operation.HEAD:
            return await store.head(NAMES[0])
        case Operation.LIST:
            return await _names(store)
        case Operation.DELETE:
            return await store.delete(NAMES[0])


@pytest.mark.parametrize(("operation", "fault"), PAIRS)
def test_the_store_in_process_has_the_same_faults(operation: Operation, fault: Fault) -> None:
    async def main() -> None:
        memory = MemoryStore()
        memory.objects = dict.fromkeys(NAMES, CONTENT)
        store = MisbehavingStore(memory, Plan(seed=4, rate=0.0))
        assert await _names(store) == NAMES
        memory.objects["packs/9"] = CONTENT
        before = dict(memory.objects)
        store.plan = Plan(seed=4, rate=1.0, kinds=frozenset({fault}))
        failure: type[BaseException] = StoreUnavailableError
        if fault in {Fault.HANG, Fault.DONE_THEN_HANG}:
            failure = TimeoutError
        if fault is Fault.FORBIDDEN:
            failure = StoreForbiddenError
        if fault in SEEN_AS_ERROR or fault in LOST:
            with pytest.raises(failure):
                async with asyncio.timeout(1000):
                    await _in_process(store, operation)
        else:
            told = await _in_process(store, operation)
            _check_lie_in_process(fault, [*before], told)
        is_done = fault in {Fault.DONE_THEN_RESET, Fault.DONE_THEN_HANG}
        changes = operation in {Operation.PUT, Operation.DELETE}
        assert (memory.objects != before) == (is_done and changes)

    virtual_time.run(main(), 1)


def _check_lie_in_process(fault: Fault, truth: list[str], told: Any) -> None:
    if fault is Fault.SLOW:
        assert told in (CONTENT, truth)
    elif fault is Fault.FLIPPED:
        assert told != CONTENT
        assert len(told) == len(CONTENT)
    elif fault is Fault.LIST_STALE:
        assert told == NAMES
    elif fault is Fault.LIST_EMPTY:
        assert told == []
    elif fault is Fault.LIST_SHORT:
        assert set(told) < set(truth)
    else:
        assert fault is Fault.LIST_TWICE
        assert len(told) > len(set(told))
