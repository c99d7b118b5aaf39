"""Commits that a failing store interrupts between their two steps."""

import grpc.aio
import pytest
from sqlalchemy import engine

from coordinator.catalog import open_catalog
from coordinator.config import Config
from proto.tidemark.v1 import admin_pb2, agent_pb2, common_pb2
from repository.failpoints import VARIABLE, arm
from tests.fakes.agent import Connection, FakeAgent, MadeSnapshot, Writing
from tests.integration.coordinator.serving import serving
from tests.integration.coordinator.test_backup import FILES, detail

pytestmark = pytest.mark.asyncio


async def uploaded(
    agent: FakeAgent, connection: Connection, task: agent_pb2.RunBackup
) -> tuple[Writing, MadeSnapshot, bytes]:
    """A session whose packs are stored, ready to commit."""
    writing = await connection.open_session(task)
    made = agent.make(writing, FILES)
    for pack in made.packs:
        await connection.upload(writing, pack)
    return writing, made, agent.sign(writing, task.volume_id, made)


def break_roots(config: Config) -> None:
    """A loop where the store's directory of roots should be: nothing can be said of any root."""
    (config.repository / "roots").symlink_to("roots")


def mend_roots(config: Config) -> None:
    (config.repository / "roots").unlink()


async def test_a_commit_goes_through_when_it_is_asked_again_after_the_store_is_back(
    config: Config,
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing, made, signed = await uploaded(agent, connection, task)
            break_roots(config)
            with pytest.raises(grpc.aio.AioRpcError):
                await connection.commit(writing, signed, made.refs)
            between = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
            mend_roots(config)
            committed = await connection.commit(writing, signed, made.refs)
    assert list(between.snapshots) == []
    assert (committed.phase, committed.sequence) == (common_pb2.PHASE_COMPLETED, 1)


async def test_a_commit_whose_root_may_be_under_way_is_finished_at_the_next_start(
    config: Config,
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing, made, signed = await uploaded(agent, connection, task)
            break_roots(config)
            with pytest.raises(grpc.aio.AioRpcError):
                await connection.commit(writing, signed, made.refs)
    mend_roots(config)
    async with serving(config) as coordinator:
        agent.address = coordinator.grpc
        await coordinator.back_up(agent, "data", FILES)
        proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
        jobs = (await coordinator.admin.ListJobs(admin_pb2.ListJobsRequest())).jobs
    assert proof.phase == common_pb2.PHASE_COMPLETED
    assert proof.verify.snapshots_checked == 2
    assert {job.phase for job in jobs} == {common_pb2.PHASE_COMPLETED}


async def test_a_volume_whose_commit_is_undecided_opens_no_session(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing, made, signed = await uploaded(agent, connection, task)
            break_roots(config)
            with pytest.raises(grpc.aio.AioRpcError):
                await connection.commit(writing, signed, made.refs)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connection.open_session(task)
    catalog = await open_catalog(config.data / "catalog.db", 0)
    undecided = await catalog.ledger.unsettled()
    await catalog.close()
    assert detail(caught.value).exit_code == 11
    assert len(undecided) == 1


async def test_a_root_that_was_written_makes_the_snapshot_whatever_came_after(
    config: Config,
) -> None:
    """The crash between the root and the catalog: the row says undecided, the store decides."""
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing, made, signed = await uploaded(agent, connection, task)
            committed = await connection.commit(writing, signed, made.refs)
    await _undo_second_step(config, made.refs)
    async with serving(config) as coordinator:
        listed = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
        proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
    assert [each.snapshot_id for each in listed.snapshots] == [committed.snapshot_id]
    assert (proof.phase, proof.verify.packs_checked) == (common_pb2.PHASE_COMPLETED, 2)


@pytest.mark.parametrize(
    "step", ["job.saved=error@1", "job.saved=error@2", "task.concluding=error", "task.fenced=error"]
)
async def test_a_job_ends_though_the_catalog_failed_on_its_way(config: Config, step: str) -> None:
    arm({VARIABLE: f"coordinator.{step}"})
    try:
        async with serving(config) as coordinator:
            agent = await coordinator.agent()
            agent.volume("data")
            # Each waits for the end of its job, and that it is Completed. The second would wait
            # for ever behind a first that never ends.
            made = {
                await coordinator.back_up(agent, "data", FILES),
                await coordinator.back_up(agent, "data", {**FILES, "more": b"more"}),
            }
            listed = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
    finally:
        arm({})

    assert {each.snapshot_id for each in listed.snapshots} == made


async def test_what_a_crash_left_half_written_is_removed_at_the_start(config: Config) -> None:
    leftover = config.repository / ".tmp" / "0123"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"half")

    async with serving(config):
        assert not leftover.exists()


async def _undo_second_step(config: Config, refs: bytes) -> None:
    """The catalog as a crash leaves it after the root was written and before it was told so."""
    catalog = await open_catalog(config.data / "catalog.db", 0)
    connections = catalog.ledger.connections  # type: ignore[attr-defined]

    def undo(connection: engine.Connection) -> None:
        connection.exec_driver_sql(
            "UPDATE snapshots SET state = 'COMMITTING', root_object = x'', refs_object = ?", (refs,)
        )
        connection.exec_driver_sql("DELETE FROM refs")
        connection.exec_driver_sql("UPDATE sessions SET state = 'open'")

    await connections.write(undo)
    await catalog.close()
