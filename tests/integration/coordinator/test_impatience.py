"""The store is away: whoever looks into a snapshot is told so, and a verification waits for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from coordinator.config import Config, Where
from coordinator.errors import StoreUnavailableError
from coordinator.stores import Clock, Place, impatient
from proto.tidemark.v1 import admin_pb2, common_pb2
from repository.store.local import LocalStore
from repository.store.patience import Patience
from repository.store.retrying import RetryingStore
from tests.fakes.faulty import FaultyStore, Plan
from tests.integration.coordinator.serving import serving

pytestmark = pytest.mark.asyncio

WHERE = "s3://bucket/prefix"
FILES = {"a": b"alpha" * 100, "b": b"beta" * 1000}
QUICK = Patience(wait_seconds_first=0.05, total_seconds=0.3, begin_seconds=0.3)


async def test_people_are_told_soon_that_the_store_is_away(config: Config) -> None:
    faulty = FaultyStore(LocalStore(config.repository))

    @asynccontextmanager
    async def opened(_: Where, __: Clock) -> AsyncIterator[Place]:
        yield Place(RetryingStore(faulty), WHERE, impatient=impatient(faulty, WHERE, QUICK))

    async with serving(config, open_at=opened) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        snapshot = await coordinator.back_up(agent, "data", FILES)
        faulty.plan = Plan(first=1, last=1 << 30, error=StoreUnavailableError)
        calls = (
            coordinator.admin.ListEntries(admin_pb2.ListEntriesRequest(snapshot=snapshot)),
            coordinator.admin.FindEntries(
                admin_pb2.FindEntriesRequest(snapshots=[snapshot], patterns=["a"])
            ),
            coordinator.admin.ReadFile(admin_pb2.ReadFileRequest(snapshot=snapshot, path=b"a")),
        )
        for call in calls:
            async with asyncio.timeout(3):
                with pytest.raises(grpc.aio.AioRpcError, match=f"{WHERE} cannot be read just now"):
                    [each async for each in call]

        request = admin_pb2.CreateVerifyRequest(depth=admin_pb2.VERIFY_DEPTH_DATA, all=True)
        job = (await coordinator.admin.CreateVerify(request)).job
        faulty.plan = Plan()
        assert (await coordinator.ended(job.job_id)).phase == common_pb2.PHASE_COMPLETED
