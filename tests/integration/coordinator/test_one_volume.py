"""Two jobs of one volume: one backs it up or changes it, the next one waits."""

import pytest

from coordinator.config import Config
from proto.tidemark.v1 import admin_pb2, agent_pb2, common_pb2
from tests.fakes.agent import Connection
from tests.integration.coordinator.serving import Coordinator, serving

pytestmark = pytest.mark.asyncio

FILES = {"a": b"alpha" * 100, "b": b"beta" * 1000}


async def order_in_place(
    coordinator: Coordinator, snapshot: str, *, dry_run: bool = False
) -> admin_pb2.Job:
    request = admin_pb2.CreateRestoreRequest(snapshot=snapshot, in_place=True, dry_run=dry_run)
    return (await coordinator.admin.CreateRestore(request)).job


async def phase_of(coordinator: Coordinator, job: admin_pb2.Job) -> "common_pb2.Phase.ValueType":
    answer = await coordinator.admin.GetJob(admin_pb2.GetJobRequest(job_id=job.job_id))
    return answer.job.phase


async def finish_restore(connection: Connection, task_id: str) -> None:
    finished = agent_pb2.RestoreFinished(task_id=task_id, result=common_pb2.RestoreResult())
    await connection.say(agent_pb2.ConnectRequest(restore_finished=finished))


async def test_a_restore_in_place_waits_for_the_backup_of_its_volume(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        snapshot = await coordinator.back_up(agent, "data", FILES)
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            in_place = await order_in_place(coordinator, snapshot)
            dry_run = await order_in_place(coordinator, snapshot, dry_run=True)
            # What changes nothing need not wait.
            rehearsal = (await connection.next_message()).run_restore
            waiting = await phase_of(coordinator, in_place)
            await connection.back_up(task, FILES)
            await connection.finish_backup(task.task_id)
            restore = (await connection.next_message()).run_restore
    assert rehearsal.job_id == dry_run.job_id
    assert waiting == common_pb2.PHASE_NEW
    assert restore.job_id == in_place.job_id


async def test_backups_and_restores_in_place_wait_for_a_restore_in_place(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        agent.volume("other")
        snapshot = await coordinator.back_up(agent, "data", FILES)
        async with agent.connected() as connection:
            jobs = [await order_in_place(coordinator, snapshot) for _ in range(2)]
            restore = (await connection.next_message()).run_restore
            backup = await coordinator.order_backup("data")
            other = await coordinator.order_backup("other")
            task = (await connection.next_message()).run_backup
            waiting = [await phase_of(coordinator, job) for job in (jobs[1], backup)]
            await finish_restore(connection, restore.task_id)
            second = (await connection.next_message()).run_restore
            still = await phase_of(coordinator, backup)
            await finish_restore(connection, second.task_id)
            await connection.back_up(task, FILES)
            await connection.finish_backup(task.task_id)
            last = (await connection.next_message()).run_backup
    assert (restore.job_id, second.job_id) == (jobs[0].job_id, jobs[1].job_id)
    assert task.job_id == other.job_id
    assert {*waiting, still} == {common_pb2.PHASE_NEW}
    assert last.job_id == backup.job_id
