"""An upload that goes on while the coordinator is gone, as one to a store does: the floor holds."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from typing_extensions import override

from agent.channel import NodeChannel
from agent.daemon import SystemClock
from agent.line import Line
from agent.services import Session
from agent.throttle import Throttles
from agent.upload import BackupCalls
from proto.tidemark.v1 import agent_pb2, agent_pb2_grpc
from tests.fakes.coordinator import finished_pack
from tests.fakes.handler import QuietHandler
from tests.fakes.virtual import busiest_second

pytestmark = pytest.mark.asyncio

RATE = 20_000_000
FLOOR = 1_000_000
LEASE_SECONDS = 0.5
SESSION = Session(b"s" * 16, 1, b"", b"", 0, 30)


class Coordinator(agent_pb2_grpc.AgentServiceServicer):
    """Grants the same again and again, until it is killed."""

    @override
    async def Connect(  # type: ignore[override]  # writes to the context
        self, request_iterator: AsyncIterator[agent_pb2.ConnectRequest], context: Any
    ) -> None:
        welcome = agent_pb2.Welcome(
            protocol_version=1, oldest_protocol_version=1, heartbeat_seconds=1
        )
        await context.write(agent_pb2.ConnectResponse(welcome=welcome))
        for number in range(1, 1000):
            grant = agent_pb2.BandwidthGrant(
                number=number,
                backup=RATE,
                floor=FLOOR,
                lease_milliseconds=round(LEASE_SECONDS * 1000),
            )
            await context.write(agent_pb2.ConnectResponse(bandwidth=grant))
            await asyncio.sleep(LEASE_SECONDS / 3)


class Store(agent_pb2_grpc.AgentServiceServicer):
    """Takes what comes, and notes when."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, int]] = []

    @override
    async def UploadPack(
        self, request: AsyncIterator[agent_pb2.UploadPackRequest], context: Any
    ) -> agent_pb2.UploadPackResponse:
        async for message in request:
            self.taken.append((time.monotonic(), message.ByteSize()))
        return agent_pb2.UploadPackResponse()

    def since(self, begin: float) -> list[tuple[float, int]]:
        return [(at, size) for at, size in self.taken if at >= begin]


async def serving(servicer: agent_pb2_grpc.AgentServiceServicer) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def test_a_coordinator_that_is_killed_under_an_upload_leaves_the_floor_not_the_sky() -> None:
    clock = SystemClock()
    coordinator, control_address = await serving(Coordinator())  # type: ignore[abstract]
    store = Store()  # type: ignore[abstract]  # one call is enough
    store_server, store_address = await serving(store)
    throttles = Throttles(clock)
    async with (
        asyncio.timeout(9),
        grpc.aio.insecure_channel(control_address) as control,
        grpc.aio.insecure_channel(store_address) as line,
        asyncio.TaskGroup() as group,
    ):
        handler = QuietHandler(throttles, Line(NodeChannel(control)), clock)
        calls = BackupCalls(Line(NodeChannel(line)), clock, throttles)
        tasks = [group.create_task(handler.stream.run(), name="stream")]
        async with asyncio.timeout(5):
            await handler.granted.wait()
        upload = calls.upload_pack(SESSION, finished_pack(bytes(200 * 1024 * 1024)))
        tasks.append(group.create_task(upload, name="upload"))
        await asyncio.sleep(1.2)
        before = store.since(time.monotonic() - 1)
        await coordinator.stop(None)
        await asyncio.sleep(LEASE_SECONDS + 0.1)
        fallen = time.monotonic()
        await asyncio.sleep(1.5)
        after = store.since(fallen)
        for task in tasks:
            task.cancel()
    await store_server.stop(None)

    assert sum(size for _, size in before) >= RATE * 0.9
    assert FLOOR * 0.9 <= busiest_second(after) <= FLOOR * 1.05
