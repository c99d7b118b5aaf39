"""What a job asks of the store, counted for that job alone and kept with it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_bytes

import aiohttp
import pytest
import pytest_asyncio

from coordinator.stores import in_directory
from proto.tidemark.v1 import admin_pb2, agent_pb2, common_pb2
from repository.frames import FrameIdentity
from repository.ids import ObjectType
from repository.keys import UnsealingKey
from repository.pack import PackKind
from tests.fakes.agent import Connection
from tests.fakes.store import MemoryStore
from tests.integration.coordinator.serving import Coordinator, config_in, serving
from tests.integration.coordinator.test_restore import grant_of, read_pack

pytestmark = pytest.mark.asyncio

FILES = {"a": b"alpha" * 100, "b": b"beta" * 1000}


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest_asyncio.fixture
async def coordinator(memory: MemoryStore, tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(config_in(tmp_path), open_at=in_directory(lambda _: memory)) as running:
        yield running


def requests(**counts: int) -> common_pb2.StoreRequests:
    return common_pb2.StoreRequests(**counts)


async def back_up(
    coordinator: Coordinator, connection: Connection, volume: str, *, more_packs: int = 0
) -> admin_pb2.Job:
    """A backup of two packs that are needed and some that are not, all sent at once."""
    job = await coordinator.order_backup(volume)
    task = (await connection.next_message()).run_backup
    writing = await connection.open_session(task)
    made = connection.agent.make(writing, FILES)
    extra = [
        connection.agent.make_pack(writing, PackKind.DATA, ObjectType.DATA, [token_bytes(100)])
        for _ in range(more_packs)
    ]
    first, *others = [*made.packs, *extra]
    await connection.upload(writing, first)
    async with asyncio.TaskGroup() as group:
        for pack in others:
            group.create_task(connection.upload(writing, pack), name=f"upload {pack.name}")
    signed = connection.agent.sign(writing, task.volume_id, made)
    await connection.commit(writing, signed, made.refs)
    await connection.finish_backup(task.task_id)
    return await coordinator.ended(job.job_id)


async def test_backups_at_once_are_each_charged_with_their_own(
    coordinator: Coordinator, memory: MemoryStore
) -> None:
    agents = [await coordinator.agent(name) for name in ("one", "two", "three")]
    for agent in agents:
        agent.volume(agent.name)
    before = set(memory.objects)
    async with (
        agents[0].connected() as one,
        agents[1].connected() as two,
        agents[2].connected() as three,
        asyncio.TaskGroup() as group,
    ):
        running = [
            group.create_task(
                back_up(coordinator, each, each.agent.name, more_packs=number), name=str(number)
            )
            for number, each in enumerate((one, two, three))
        ]
        jobs = [await each for each in running]

    # Each pack is put, and its footer read; of the first one a frame is opened besides. Then refs
    # and root.
    for number, job in enumerate(jobs):
        asked = job.store_requests
        assert (asked.put, asked.get) == (2 + number + 2, 2 + number + 1)
        assert (asked.head, asked.list, asked.delete) == (0, 0, 0)
        assert job.snapshots[0].store_requests == asked
    stored = sum(len(data) for name, data in memory.objects.items() if name not in before)
    assert sum(job.store_requests.bytes_in for job in jobs) == stored


async def test_what_the_agent_asked_itself_is_added_and_kept(
    memory: MemoryStore, tmp_path: Path
) -> None:
    config, opening = config_in(tmp_path), in_directory(lambda _: memory)
    async with serving(config, open_at=opening) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            job = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            committed = await connection.back_up(task, FILES)
            told = common_pb2.BackupResult(store_requests=requests(put=7, bytes_in=99))
            finished = agent_pb2.BackupFinished(task_id=task.task_id, result=told)
            await connection.say(agent_pb2.ConnectRequest(backup_finished=finished))
            ended = await coordinator.ended(job.job_id)
    async with serving(config, open_at=opening) as coordinator:
        kept = (await coordinator.admin.GetJob(admin_pb2.GetJobRequest(job_id=job.job_id))).job
        asked = admin_pb2.GetSnapshotRequest(snapshot=committed.snapshot_id)
        snapshot = await coordinator.admin.GetSnapshot(asked)

    assert (ended.store_requests.put, ended.store_requests.get) == (4 + 7, 3)
    assert kept.store_requests == ended.store_requests
    # The snapshot was made before all was counted: it says nothing rather than too little.
    assert not snapshot.result.HasField("store_requests")


async def test_a_backup_that_fails_says_what_it_has_asked(coordinator: Coordinator) -> None:
    agent = await coordinator.agent()
    agent.volume("data")
    async with agent.connected() as connection:
        job = await coordinator.order_backup("data")
        task = (await connection.next_message()).run_backup
        writing = await connection.open_session(task)
        await connection.upload(writing, agent.make(writing, FILES).packs[0])
        await connection.finish_backup(task.task_id, message="the volume has gone")
        ended = await coordinator.ended(job.job_id)

    assert ended.phase == common_pb2.PHASE_FAILED
    assert (ended.store_requests.put, ended.store_requests.get) == (1, 2)


async def test_restores_at_once_are_each_charged_with_their_own(
    coordinator: Coordinator, memory: MemoryStore
) -> None:
    agent = await coordinator.agent()
    agent.volume("data")
    snapshot = await coordinator.back_up(agent, "data", FILES)
    pack = next(name for name in memory.objects if name.startswith("packs/"))

    async def restore(connection: Connection, task_id: str, reads: int) -> None:
        await grant_of(connection, task_id, UnsealingKey(token_bytes(32)))
        for length in range(1, reads + 1):
            await read_pack(connection, task_id, pack, (0, length))
        told = common_pb2.RestoreResult(store_requests=requests(get=10, bytes_out=1000))
        finished = agent_pb2.RestoreFinished(task_id=task_id, result=told)
        await connection.say(agent_pb2.ConnectRequest(restore_finished=finished))

    async with agent.connected() as connection:
        orders = [
            admin_pb2.CreateRestoreRequest(snapshot=snapshot, target=b"/tmp/" + name)
            for name in (b"one", b"two")
        ]
        jobs = [(await coordinator.admin.CreateRestore(order)).job for order in orders]
        tasks = [(await connection.next_message()).run_restore for _ in jobs]
        async with asyncio.TaskGroup() as group:
            for task, reads in zip(tasks, (3, 5), strict=True):
                group.create_task(restore(connection, task.task_id, reads), name=task.task_id)
        ended = [await coordinator.ended(task.job_id) for task in tasks]

    assert [job.store_requests for job in ended] == [
        requests(get=10 + 3, bytes_out=1000 + 1 + 2 + 3),
        requests(get=10 + 5, bytes_out=1000 + 1 + 2 + 3 + 4 + 5),
    ]
    assert ended[0].restore.store_requests == ended[0].store_requests


async def test_verifications_one_after_the_other_are_each_charged_alike(
    coordinator: Coordinator, memory: MemoryStore
) -> None:
    agent = await coordinator.agent()
    agent.volume("data")
    await coordinator.back_up(agent, "data", FILES)
    order = admin_pb2.CreateVerifyRequest(depth=admin_pb2.VERIFY_DEPTH_PRESENT, all=True)

    waiting = [(await coordinator.admin.CreateVerify(order)).job for _ in range(3)]
    ended = [await coordinator.ended(job.job_id) for job in waiting]

    packs_and_root = sum(
        len(data) for name, data in memory.objects.items() if name.startswith(("packs/", "roots/"))
    )
    for job in ended:
        assert job.verify.store_requests == requests(head=2, get=3, bytes_out=packs_and_root)


async def test_a_base_that_is_read_is_charged_to_its_backup(coordinator: Coordinator) -> None:
    agent = await coordinator.agent()
    agent.volume("data")
    await coordinator.back_up(agent, "data", FILES)
    async with agent.connected() as connection:
        job = await coordinator.order_backup("data")
        task = (await connection.next_message()).run_backup
        writing = await connection.open_session(task)
        asked = agent_pb2.ReadBaseRequest(
            session_id=writing.session_id, fencing_token=writing.fencing_token
        )
        frames = [
            FrameIdentity(each.pack_nonce, each.frame_number)  # type: ignore[arg-type]
            async for answer in connection.stub.ReadBase(asked)
            for each in answer.frames
        ]
        await connection.finish_backup(task.task_id, canceled=True)
        ended = await coordinator.ended(job.job_id)

    assert len(frames) == 3
    # Of each of two packs its length, and its end.
    counted = ended.store_requests
    assert (counted.put, counted.get, counted.head) == (0, 2, 2)


async def test_metrics_tell_what_the_store_was_asked(
    coordinator: Coordinator, memory: MemoryStore
) -> None:
    agent = await coordinator.agent()
    agent.volume("data")

    async def metrics() -> dict[str, float]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{coordinator.http}/metrics") as answer,
        ):
            lines = (await answer.text()).splitlines()
        pairs = (line.rpartition(" ") for line in lines if line.startswith("tidemark_store_"))
        return {name: float(value) for name, _, value in pairs}

    before, stored = await metrics(), sum(map(len, memory.objects.values()))
    await coordinator.back_up(agent, "data", FILES)
    after = await metrics()

    added = {name: after[name] - before[name] for name in after}
    asked = 'tidemark_store_requests_total{operation="%s",repository="default"}'
    assert [added[asked % each] for each in ("put", "get", "list", "delete")] == [4, 3, 0, 0]
    assert added[asked % "head"] == 0
    grown = sum(map(len, memory.objects.values())) - stored
    assert added['tidemark_store_bytes_total{direction="in",repository="default"}'] == grown
    assert added['tidemark_store_bytes_total{direction="out",repository="default"}'] > 0
    assert after['tidemark_store_circuit_open{repository="default"}'] == 0
    assert after['tidemark_store_circuit_openings_total{repository="default"}'] == 0
