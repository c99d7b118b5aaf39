"""Backups from the coordinator's side, with an agent that does what the test says."""

import asyncio
from dataclasses import replace

import grpc
import grpc.aio
import pytest

from coordinator.config import Config
from proto.tidemark.v1 import admin_pb2, agent_pb2, common_pb2
from repository.frames import FrameIdentity
from repository.refs import Refs
from tests.integration.coordinator.serving import serving

pytestmark = pytest.mark.asyncio

FILES = {"a": b"alpha" * 100, "b": b"beta" * 1000}


def detail(error: grpc.aio.AioRpcError) -> common_pb2.ErrorDetail:
    trailing = dict(error.trailing_metadata())
    value = trailing["tidemark-error-bin"]
    assert isinstance(value, bytes)
    return common_pb2.ErrorDetail.FromString(value)


async def test_a_backup_makes_a_snapshot_that_is_listed(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent("web1")
        agent.volume("data")
        snapshot_id = await coordinator.back_up(agent, "data", FILES)
        listed = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
        (snapshot,) = listed.snapshots
    assert (snapshot.snapshot_id, snapshot.volume, snapshot.node) == (snapshot_id, "data", "web1")
    assert (snapshot.phase, snapshot.sequence) == (common_pb2.PHASE_COMPLETED, 1)
    assert snapshot.total_files == 2


async def test_a_commit_that_is_asked_twice_answers_the_same(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        volume = agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            made = agent.make(writing, FILES)
            for pack in made.packs:
                await connection.upload(writing, pack)
                await connection.upload(writing, pack)
            signed = agent.sign(writing, volume, made)
            first = await connection.commit(writing, signed, made.refs)
            second = await connection.commit(writing, signed, made.refs)
    assert first == second


async def test_a_root_with_errors_makes_a_partial_snapshot(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        volume = agent.volume("data")
        async with agent.connected() as connection:
            job = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            made = agent.make(writing, FILES)
            for pack in made.packs:
                await connection.upload(writing, pack)
            signed = agent.sign(writing, volume, made, errors_total=1)
            answer = await connection.commit(writing, signed, made.refs)
            await connection.finish_backup(task.task_id)
            ended = await coordinator.ended(job.job_id)
    assert answer.phase == common_pb2.PHASE_PARTIALLY_FAILED
    assert (ended.phase, ended.exit_code) == (common_pb2.PHASE_PARTIALLY_FAILED, 3)


async def test_a_second_backup_of_a_volume_waits_for_the_first(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            first = await coordinator.order_backup("data")
            second = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            waiting = await coordinator.admin.GetJob(admin_pb2.GetJobRequest(job_id=second.job_id))
            await connection.back_up(task, FILES)
            await connection.finish_backup(task.task_id)
            next_task = (await connection.next_message()).run_backup
    assert task.job_id == first.job_id
    assert waiting.job.phase == common_pb2.PHASE_NEW
    assert next_task.job_id == second.job_id


async def test_a_node_whose_agent_stays_away_fails_the_backup_with_a_hint(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected():
            pass
        ended = await coordinator.ended((await coordinator.order_backup("data")).job_id)
    assert (ended.phase, ended.exit_code) == (common_pb2.PHASE_FAILED, 1)
    assert "not connected" in ended.message
    assert ended.hint


async def test_an_agent_that_goes_away_fails_its_task_after_the_grace(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            job = await coordinator.order_backup("data")
            await connection.next_message()
        ended = await coordinator.ended(job.job_id)
    assert ended.phase == common_pb2.PHASE_FAILED
    assert "did not come back" in ended.message


async def test_an_agent_that_committed_and_vanished_has_made_its_snapshot(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            job = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            committed = await connection.back_up(task, FILES)
        ended = await coordinator.ended(job.job_id)
    assert ended.phase == common_pb2.PHASE_COMPLETED
    assert ended.snapshots[0].snapshot_id == committed.snapshot_id


async def test_an_agent_that_comes_back_in_time_goes_on_with_its_task(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            job = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
        async with agent.connected(running=[task.task_id, "unknown"]) as connection:
            unknown = list(connection.welcome.unknown_task_ids)
            await connection.back_up(task, FILES)
            await connection.finish_backup(task.task_id)
            ended = await coordinator.ended(job.job_id)
    assert unknown == ["unknown"]
    assert ended.phase == common_pb2.PHASE_COMPLETED


async def test_a_task_that_an_ending_connection_swallowed_is_handed_over_again(
    config: Config,
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            job = await coordinator.order_backup("data")
            swallowed = (await connection.next_message()).run_backup
        async with agent.connected(running=[]) as connection:
            task = (await connection.next_message()).run_backup
            await connection.back_up(task, FILES)
            await connection.finish_backup(task.task_id)
            ended = await coordinator.ended(job.job_id)
    assert task.task_id == swallowed.task_id
    assert ended.phase == common_pb2.PHASE_COMPLETED


async def test_a_task_that_an_agent_forgets_twice_or_had_begun_is_lost(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            forgotten = await coordinator.order_backup("data")
            await connection.next_message()
        async with agent.connected(running=[]) as connection:
            await connection.next_message()
        async with agent.connected(running=[]) as connection:
            ended = [await coordinator.ended(forgotten.job_id)]
            begun = await coordinator.order_backup("data")
            await connection.open_session((await connection.next_message()).run_backup)
        async with agent.connected(running=[]):
            ended.append(await coordinator.ended(begun.job_id))
    assert [job.phase for job in ended] == [common_pb2.PHASE_FAILED] * 2
    assert all("agent was restarted" in job.snapshots[0].errors[0].message for job in ended)


async def test_a_canceled_backup_is_canceled_when_its_agent_says_so(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            job = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            await coordinator.admin.CancelJob(admin_pb2.CancelJobRequest(job_id=job.job_id))
            told = (await connection.next_message()).cancel_task
            await connection.finish_backup(task.task_id, canceled=True)
            ended = await coordinator.ended(job.job_id)
    assert told.task_id == task.task_id
    assert (ended.phase, ended.exit_code) == (common_pb2.PHASE_CANCELED, 130)


async def test_an_agents_word_about_a_snapshot_is_not_believed(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            job = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            result = common_pb2.BackupResult(phase=common_pb2.PHASE_COMPLETED, snapshot_id="x")
            finished = agent_pb2.BackupFinished(task_id=task.task_id, result=result)
            await connection.say(agent_pb2.ConnectRequest(backup_finished=finished))
            ended = await coordinator.ended(job.job_id)
    assert ended.phase == common_pb2.PHASE_FAILED
    assert not ended.snapshots[0].HasField("snapshot_id")


async def test_an_agents_failure_is_told_in_its_own_words(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            job = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            await connection.finish_backup(task.task_id, message="the volume is gone")
            ended = await coordinator.ended(job.job_id)
    assert ended.message == "the volume is gone"
    assert ended.snapshots[0].errors[0].message == "the volume is gone"


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "name", "session"])
async def test_a_pack_that_is_not_whole_is_refused_and_not_stored(
    config: Config, damage: str
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            pack = agent.make(writing, FILES).packs[0]
            raw, size = pack.raw, 0
            if damage == "flip":
                raw = raw[:100] + bytes([raw[100] ^ 1]) + raw[101:]
            elif damage == "cut":
                raw = raw[:-1]
            elif damage == "longer":
                size = len(raw) - 10
            elif damage == "name":
                pack = replace(pack, name=pack.name[:-1] + ("0" if pack.name[-1] != "0" else "1"))
            else:
                writing.fencing_token += 1
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connection.upload(writing, pack, raw=raw, size=size)
        stored = coordinator.packs()
    assert stored == []
    assert detail(caught.value).message


async def test_a_pack_that_custody_cannot_open_is_refused(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            writing.data_key = bytes(32)
            pack = agent.make(writing, FILES).packs[0]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connection.upload(writing, pack)
    assert "could not be opened again" in detail(caught.value).message


async def test_a_commit_whose_packs_are_missing_is_refused(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        volume = agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            made = agent.make(writing, FILES)
            await connection.upload(writing, made.packs[1])
            signed = agent.sign(writing, volume, made)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connection.commit(writing, signed, made.refs)
        listed = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
    assert "not stored" in detail(caught.value).message
    assert list(listed.snapshots) == []


async def test_a_commit_that_was_not_signed_for_this_session_is_refused(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        volume = agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            made = agent.make(writing, FILES)
            for pack in made.packs:
                await connection.upload(writing, pack)
            signed = agent.sign(writing, volume, made)
            other_refs = Refs.of({FrameIdentity(made.manifest.nonce, 0): 1}, base=True).encode()
            wrong = [
                (signed[:-1] + bytes([signed[-1] ^ 1]), made.refs),
                (signed, other_refs),
                (signed, b"nonsense"),
                (agent.sign(writing, bytes(16), made), made.refs),
                (agent.sign(writing, volume, made, parent=bytes(32)), made.refs),
            ]
            for root, refs in wrong:
                with pytest.raises(grpc.aio.AioRpcError):
                    await connection.commit(writing, root, refs)
            right = await connection.commit(writing, signed, made.refs)
    assert right.phase == common_pb2.PHASE_COMPLETED


async def test_a_newer_session_of_a_task_fences_the_older(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            older = await connection.open_session(task)
            await connection.open_session(task)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connection.upload(older, agent.make(older, FILES).packs[0])
    assert detail(caught.value).exit_code == 11


async def test_a_restart_fails_what_was_running_and_keeps_what_was_committed(
    config: Config,
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        agent.volume("more")
        async with agent.connected() as connection:
            done = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            committed = await connection.back_up(task, FILES)
            lost = await coordinator.order_backup("more")
    async with serving(config) as coordinator:
        kept = await coordinator.ended(done.job_id)
        failed = await coordinator.ended(lost.job_id)
    assert kept.snapshots[0].snapshot_id == committed.snapshot_id
    assert kept.phase == common_pb2.PHASE_COMPLETED
    assert failed.phase == common_pb2.PHASE_FAILED
    assert "restarted" in failed.message


async def test_the_next_backup_builds_on_the_last(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        await coordinator.back_up(agent, "data", FILES)
        await coordinator.back_up(agent, "data", FILES | {"c": b"gamma"})
        differences = [
            (change.path, change.change)
            async for answer in coordinator.admin.DiffSnapshots(
                admin_pb2.DiffSnapshotsRequest(
                    snapshot_a=(await _ids(coordinator.admin))[0], snapshot_b="latest"
                )
            )
            for change in answer.changes
        ]
    assert (b"c", admin_pb2.CHANGE_KIND_ADDED) in differences


async def _ids(admin: object) -> list[str]:
    listed = await admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())  # type: ignore[attr-defined]
    return [snapshot.snapshot_id for snapshot in listed.snapshots]


async def test_a_scheduled_backup_comes_after_one_interval(config: Config) -> None:
    every_second = config.__class__(
        data=config.data,
        repository=config.repository,
        listen=config.listen,
        http=config.http,
        every_seconds=1,
    )
    async with serving(every_second) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            async with asyncio.timeout(60):
                task = (await connection.next_message()).run_backup
            job = await coordinator.admin.GetJob(admin_pb2.GetJobRequest(job_id=task.job_id))
    assert job.job.origin == "schedule"
