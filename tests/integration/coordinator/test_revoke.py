"""A node that is revoked under work: what it holds is worth nothing from then on."""

import asyncio
from collections.abc import AsyncIterator
from secrets import token_bytes

import grpc
import grpc.aio
import pytest

from coordinator.config import Config
from coordinator.running import Limits
from proto.tidemark.v1 import admin_pb2, agent_pb2, common_pb2
from repository.keys import UnsealingKey
from tests.fakes.agent import FakeAgent, MadePack, Writing
from tests.integration.coordinator.serving import Coordinator, serving
from tests.integration.coordinator.test_restore import grant_of, order_restore

pytestmark = pytest.mark.asyncio

# Of a real coordinator: nothing here may wait for a grace.
LIMITS = Limits()
# `node revoke` promises a minute.
SECONDS = 10
MIB = 1024 * 1024
FILES = {"a": b"alpha" * 100}


async def revoke(coordinator: Coordinator, name: str) -> None:
    await coordinator.admin.RevokeNode(admin_pb2.RevokeNodeRequest(node=name))


def status(caught: "pytest.ExceptionInfo[grpc.aio.AioRpcError]") -> grpc.StatusCode:
    return caught.value.code()


async def read_all(
    reading: "grpc.aio.UnaryStreamCall[agent_pb2.ReadPackRequest, agent_pb2.ReadPackResponse]",
) -> None:
    while await reading.read() is not grpc.aio.EOF:
        pass


class SlowUpload:
    """An upload that has begun and goes on when the test says so."""

    def __init__(self, writing: Writing, pack: MadePack) -> None:
        self._writing = writing
        self._pack = pack
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def requests(self) -> AsyncIterator[agent_pb2.UploadPackRequest]:
        header = agent_pb2.PackHeader(
            session_id=self._writing.session_id,
            fencing_token=self._writing.fencing_token,
            name=self._pack.name,
            size_bytes=len(self._pack.raw),
        )
        yield agent_pb2.UploadPackRequest(header=header)
        yield agent_pb2.UploadPackRequest(data=self._pack.raw[:100])
        self.begun.set()
        await self.go_on.wait()
        yield agent_pb2.UploadPackRequest(data=self._pack.raw[100:])


async def backing_up(coordinator: Coordinator, agent: FakeAgent) -> None:
    """Revoke under a backup: its stream, its job, an upload that runs, and its commit."""
    async with agent.connected() as connection:
        job = await coordinator.order_backup("data")
        queued = await coordinator.order_backup("data")
        task = (await connection.next_message()).run_backup
        writing = await connection.open_session(task)
        made = agent.make(writing, FILES)
        for pack in made.packs[1:]:
            await connection.upload(writing, pack)
        stored = coordinator.packs()
        slow = SlowUpload(writing, made.packs[0])
        running = connection.stub.UploadPack(slow.requests())
        await slow.begun.wait()

        await revoke(coordinator, "web")
        async with asyncio.timeout(SECONDS):
            assert await connection.stream.read() is grpc.aio.EOF
            ended = [await coordinator.ended(each.job_id) for each in (job, queued)]
            slow.go_on.set()
            with pytest.raises(grpc.aio.AioRpcError) as upload:
                await running
            signed = agent.sign(writing, task.volume_id, made)
            with pytest.raises(grpc.aio.AioRpcError) as commit:
                await connection.commit(writing, signed, made.refs)
    assert [each.phase for each in ended] == [common_pb2.PHASE_FAILED] * 2
    assert status(upload) is grpc.StatusCode.ABORTED
    assert status(commit) is grpc.StatusCode.UNAUTHENTICATED
    assert coordinator.packs() == stored


async def test_a_backup_is_cut_off_and_stores_nothing_more(config: Config) -> None:
    async with serving(config, LIMITS) as coordinator:
        agent = await coordinator.agent("web")
        agent.volume("data")
        await backing_up(coordinator, agent)
        listed = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
        jobs = (await coordinator.admin.ListJobs(admin_pb2.ListJobsRequest())).jobs
    assert not listed.snapshots
    assert {job.message for job in jobs} == {"the node was revoked"}


async def test_a_restore_gets_no_more_keys_and_no_more_bytes(config: Config) -> None:
    async with serving(config, LIMITS) as coordinator:
        agent = await coordinator.agent("web")
        agent.volume("data")
        big = {str(number): token_bytes(MIB) for number in range(3)}
        snapshot = await coordinator.back_up(agent, "data", big)
        name = str(coordinator.packs()[0].relative_to(config.repository))
        async with agent.connected() as connection:
            job = await order_restore(coordinator, snapshot)
            task = (await connection.next_message()).run_restore
            await grant_of(connection, task.task_id, UnsealingKey(token_bytes(32)))
            wanted = [agent_pb2.ByteRange(offset=0, length=3 * MIB)] * 20
            # The stream holds some of it; the rest waits for whoever reads.
            reading = connection.stub.ReadPack(
                agent_pb2.ReadPackRequest(task_id=task.task_id, name=name, ranges=wanted)
            )
            first = await reading.read()

            await revoke(coordinator, "web")
            async with asyncio.timeout(SECONDS):
                assert await connection.stream.read() is grpc.aio.EOF
                ended = await coordinator.ended(job.job_id)
                with pytest.raises(grpc.aio.AioRpcError) as transfer:
                    await read_all(reading)
                with pytest.raises(grpc.aio.AioRpcError) as grant:
                    await grant_of(connection, task.task_id, UnsealingKey(token_bytes(32)))
    assert isinstance(first, agent_pb2.ReadPackResponse)
    assert ended.phase == common_pb2.PHASE_FAILED
    assert status(transfer) is grpc.StatusCode.NOT_FOUND
    assert status(grant) is grpc.StatusCode.UNAUTHENTICATED


async def test_what_others_do_goes_on(config: Config) -> None:
    async with serving(config, LIMITS) as coordinator:
        stays = await coordinator.agent("stays")
        stays.volume("kept")
        goes = await coordinator.agent("goes")
        goes.volume("data")
        async with stays.connected() as connection, goes.connected():
            job = await coordinator.order_backup("kept")
            task = (await connection.next_message()).run_backup
            await revoke(coordinator, "goes")
            await connection.back_up(task, FILES)
            await connection.finish_backup(task.task_id)
            ended = await coordinator.ended(job.job_id)
    assert ended.phase == common_pb2.PHASE_COMPLETED
