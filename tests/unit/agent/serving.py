"""A coordinator that answers some calls, and an agent's line to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import grpc.aio

from agent.channel import NodeChannel
from agent.daemon import SystemClock
from agent.line import Line
from agent.services import Clock
from agent.throttle import Grant, Throttles
from proto.tidemark.v1.agent_pb2_grpc import (
    AgentServiceServicer,
    add_AgentServiceServicer_to_server,
)


class Served(NamedTuple):
    """What the calls of a task are made of."""

    line: Line[NodeChannel]
    clock: Clock
    throttles: Throttles


@asynccontextmanager
async def served_by(
    servicer: AgentServiceServicer, rate: int | None = None
) -> AsyncIterator[Served]:
    """Have its calls answered by this; `rate`: bytes per second, None for no limit."""
    server = grpc.aio.server()
    add_AgentServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    clock = SystemClock()
    throttles = Throttles(clock)
    if rate is not None:
        throttles.on_grant(Grant(1, rate, rate, rate, lease_seconds=100.0))
    try:
        async with asyncio.timeout(8), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(Line(NodeChannel(channel)), clock, throttles)
    finally:
        await server.stop(None)
