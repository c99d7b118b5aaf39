"""A volume that moves to another node: who may write it when, and what its new node is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_bytes

import grpc
import grpc.aio
import pytest

from coordinator.catalog import open_catalog
from coordinator.config import Config
from coordinator.running import Limits
from proto.tidemark.v1 import admin_pb2, agent_pb2, common_pb2
from repository.frames import FrameIdentity
from repository.ids import NodeId, VolumeId, stated_volume_id
from repository.keys import UnsealingKey
from repository.refs import Refs, decode_refs
from tests.fakes.agent import Connection, FakeAgent, MadeSnapshot, Writing
from tests.integration.coordinator.serving import Coordinator, serving
from tests.integration.coordinator.test_backup import detail
from tests.integration.coordinator.test_base import chunks_of, read_base
from tests.integration.coordinator.test_restore import grant_of, order_restore

pytestmark = pytest.mark.asyncio

FILES = {"a": b"alpha" * 100, "b": b"beta" * 1000}
SECONDS = 10
# Nothing here may be saved by a timer.
LIMITS = Limits()


async def move(
    coordinator: Coordinator,
    volume: str,
    node: str,
    *,
    name: str | None = None,
    replace: bool = False,
) -> admin_pb2.MoveVolumeResponse:
    request = admin_pb2.MoveVolumeRequest(volume=volume, node=node, name=name, replace=replace)
    return await coordinator.admin.MoveVolume(request)


async def listed(coordinator: Coordinator) -> dict[str, admin_pb2.Volume]:
    """By node/name."""
    answer = await coordinator.admin.ListVolumes(admin_pb2.ListVolumesRequest())
    return {f"{volume.node}/{volume.volume}": volume for volume in answer.volumes}


def holders(volumes: dict[str, admin_pb2.Volume]) -> dict[str, tuple[str, bool]]:
    return {name: (volume.volume_id, volume.present) for name, volume in volumes.items()}


def tell(agent: FakeAgent) -> agent_pb2.ConnectRequest:
    return agent_pb2.ConnectRequest(volumes=agent_pb2.VolumesReport(volumes=agent.volumes))


async def until_listed(coordinator: Coordinator, name: str, *, verdict: str = "protected") -> None:
    """A node that joined its machine again has the name of the revoked one, so one of them."""
    async with asyncio.timeout(SECONDS):
        verdicts = set[str]()
        while verdict not in verdicts:
            answer = await coordinator.admin.ListVolumes(admin_pb2.ListVolumesRequest())
            verdicts = {
                volume.verdict
                for volume in answer.volumes
                if f"{volume.node}/{volume.volume}" == name
            }


def joined(*made: MadeSnapshot) -> bytes:
    """Refs of all frames of these."""
    live = dict[FrameIdentity, int]()
    for each in made:
        live |= decode_refs(each.refs).live()
    return Refs.of(live, base=True).encode()


def status(caught: "pytest.ExceptionInfo[grpc.aio.AioRpcError]") -> grpc.StatusCode:
    return caught.value.code()


@dataclass
class Scene:
    """A volume with one snapshot on its first node, and a second node that has that name too."""

    coordinator: Coordinator
    first: FakeAgent
    second: FakeAgent
    volume: VolumeId
    snapshot: str
    made: MadeSnapshot


@asynccontextmanager
async def scene(config: Config, limits: Limits = LIMITS) -> AsyncIterator[Scene]:
    async with serving(config, limits) as coordinator:
        first, second = await coordinator.agent("first"), await coordinator.agent("second")
        volume = first.volume("data")
        second.volume("data")
        async with first.connected() as connection:
            job = await coordinator.order_backup("first/data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            made = first.make(writing, FILES)
            for pack in made.packs:
                await connection.upload(writing, pack)
            signed = first.sign(writing, volume, made)
            committed = await connection.commit(writing, signed, made.refs)
            await connection.finish_backup(task.task_id)
            await coordinator.ended(job.job_id)
        yield Scene(coordinator, first, second, volume, committed.snapshot_id, made)


async def begin(here: Scene, connection: Connection) -> tuple[agent_pb2.RunBackup, Writing]:
    """A backup of the moved volume, up to its session."""
    await here.coordinator.order_backup("second/data")
    task = (await connection.next_message()).run_backup
    return task, await connection.open_session(task)


# ---- the volume goes on -------------------------------------------------------------------------


async def test_a_moved_volume_goes_on_upon_its_last_snapshot_and_sends_nothing(
    config: Config,
) -> None:
    async with scene(config) as here:
        stored = here.coordinator.packs()
        async with here.second.connected() as connection:
            answer = await move(here.coordinator, "first/data", "second")
            task, writing = await begin(here, connection)
            told = await read_base(connection, writing)
            signed = here.second.sign(writing, here.volume, here.made)
            committed = await connection.commit(writing, signed, here.made.refs)
            await connection.finish_backup(task.task_id)
        asked = admin_pb2.ListSnapshotsRequest()
        snapshots = (await here.coordinator.admin.ListSnapshots(asked)).snapshots
        proof = await here.coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
        after = here.coordinator.packs()
    assert (answer.former_node, answer.volume.node) == ("first", "second")
    assert (answer.volume.verdict, answer.volume.path) == ("protected", b"/srv/data")
    assert task.volume_id == here.volume
    assert task.local_id == here.second.volumes[0].local_id
    assert writing.head_sequence == 1
    assert told == chunks_of(here.made)
    assert (committed.sequence, after) == (2, stored)
    assert [(each.node, each.sequence, each.volume_id) for each in snapshots] == [
        ("first", 1, here.volume.hex()),
        ("second", 2, here.volume.hex()),
    ]
    assert proof.phase == common_pb2.PHASE_COMPLETED


async def test_what_another_node_stored_is_marked_as_borrowed(config: Config) -> None:
    async with scene(config) as here, here.second.connected() as connection:
        await move(here.coordinator, "first/data", "second")
        task, writing = await begin(here, connection)
        made = here.second.make(writing, {"c": b"gamma"})
        for pack in made.packs:
            await connection.upload(writing, pack)
        both = MadeSnapshot([], made.manifest, joined(here.made, made), 1, 5)
        signed = here.second.sign(writing, here.volume, both)
        await connection.commit(writing, signed, both.refs)
        await connection.finish_backup(task.task_id)
        _, again = await begin(here, connection)
        request = agent_pb2.ReadBaseRequest(
            session_id=again.session_id, fencing_token=again.fencing_token
        )
        frames = [
            frame async for answer in connection.stub.ReadBase(request) for frame in answer.frames
        ]
    theirs = {place.nonce for pack in here.made.packs for place in pack.locations}
    mine = {place.nonce for pack in made.packs for place in pack.locations}
    assert {frame.pack_nonce for frame in frames if frame.borrowed} == theirs
    assert {frame.pack_nonce for frame in frames if not frame.borrowed} == mine


async def test_older_snapshots_restore_on_the_new_node_by_a_grant(config: Config) -> None:
    async with scene(config) as here, here.second.connected() as connection:
        await move(here.coordinator, "first/data", "second")
        await order_restore(here.coordinator, here.snapshot)
        task = (await connection.next_message()).run_restore
        grant = await grant_of(connection, task.task_id, UnsealingKey(token_bytes(32)))
        await here.coordinator.admin.CreateRestore(
            admin_pb2.CreateRestoreRequest(snapshot=here.snapshot, in_place=True)
        )
        in_place = (await connection.next_message()).run_restore
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await here.coordinator.admin.CreateRestore(
                admin_pb2.CreateRestoreRequest(snapshot=here.snapshot, in_place=True, node="first")
            )
    assert len(grant) == 1 + len(here.made.packs)
    assert in_place.local_id == here.second.volumes[0].local_id
    assert status(caught) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_volume_moves_from_a_revoked_node_and_joins_its_machine_again(
    config: Config,
) -> None:
    async with scene(config) as here:
        await here.coordinator.admin.RevokeNode(admin_pb2.RevokeNodeRequest(node="first"))
        again = await here.coordinator.agent("first")
        again.volume("data")
        async with again.connected() as connection:
            # Its own of that name, which the node holds since now, is not what is meant.
            await until_listed(here.coordinator, "first/data")
            moved = await move(here.coordinator, "data", again.node_id.hex())
            await here.coordinator.order_backup(here.volume.hex())
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
        seen = await here.coordinator.admin.ListVolumes(admin_pb2.ListVolumesRequest())
    assert moved.volume.volume_id == here.volume.hex()
    assert writing.head_sequence == 1
    assert [volume.volume_id for volume in seen.volumes] == [here.volume.hex()]


async def test_a_volume_moves_back(config: Config) -> None:
    async with scene(config) as here, here.first.connected() as first, here.second.connected():
        await move(here.coordinator, "first/data", "second")
        assert (await listed(here.coordinator))["first/data"].held_by == "second"
        await move(here.coordinator, "data", "first")
        seen = await listed(here.coordinator)
        await here.coordinator.order_backup("first/data")
        writing = await first.open_session((await first.next_message()).run_backup)
    assert writing.head_sequence == 1
    assert (seen["first/data"].verdict, seen["first/data"].held_by) == ("protected", "")
    # The directory of that node is a volume of its own again.
    assert seen["second/data"].verdict == "protected"
    assert seen["second/data"].volume_id == here.second.volumes[0].local_id.hex()


# ---- the former holder --------------------------------------------------------------------------


async def test_the_former_holder_is_fenced_under_its_backup(config: Config) -> None:
    async with scene(config) as here, here.first.connected() as connection:
        job = await here.coordinator.order_backup("data")
        queued = await here.coordinator.order_backup("data")
        task = (await connection.next_message()).run_backup
        writing = await connection.open_session(task)
        made = here.first.make(writing, {"c": b"gamma"})
        await connection.upload(writing, made.packs[0])
        stored = here.coordinator.packs()
        await move(here.coordinator, "data", "second")
        canceled = (await connection.next_message()).cancel_task
        ended = [await here.coordinator.ended(each.job_id) for each in (job, queued)]
        refused = []
        signed = here.first.sign(writing, here.volume, made)
        for call in (
            connection.upload(writing, made.packs[1]),
            read_base(connection, writing),
            connection.commit(writing, signed, made.refs),
            connection.open_session(task),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            refused.append(status(caught))
        after = here.coordinator.packs()
    assert canceled.task_id == task.task_id
    assert [each.phase for each in ended] == [common_pb2.PHASE_FAILED] * 2
    assert {each.message for each in ended} == {"the volume was moved meanwhile"}
    assert refused == [grpc.StatusCode.ABORTED] * 3 + [grpc.StatusCode.NOT_FOUND]
    assert after == stored


async def test_other_backups_of_the_former_holder_go_on(config: Config) -> None:
    async with scene(config) as here:
        here.first.volume("other")
        async with here.first.connected() as connection:
            job = await here.coordinator.order_backup("other")
            task = (await connection.next_message()).run_backup
            await move(here.coordinator, "data", "second")
            await connection.back_up(task, FILES)
            await connection.finish_backup(task.task_id)
            ended = await here.coordinator.ended(job.job_id)
    assert ended.phase == common_pb2.PHASE_COMPLETED


async def test_what_the_former_holder_goes_on_telling_is_a_claim(config: Config) -> None:
    async with scene(config) as here, here.first.connected() as first, here.second.connected():
        await move(here.coordinator, "first/data", "second")
        here.first.volumes[0].path = b"/etc"
        await first.say(tell(here.first))
        async with asyncio.timeout(SECONDS):
            seen = await listed(here.coordinator)
            while seen["first/data"].path != b"/etc":
                seen = await listed(here.coordinator)
        doctor = await here.coordinator.admin.RunDoctor(admin_pb2.RunDoctorRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await here.coordinator.order_backup("first/data")
    claim, held = seen["first/data"], seen["second/data"]
    assert (claim.verdict, claim.held_by) == ("unprotected", "second")
    assert f"tidemark volume move {here.volume.hex()} --to first" in claim.reason
    assert (held.path, held.verdict, held.held_by) == (b"/srv/data", "protected", "")
    assert [check.ok for check in doctor.checks if check.name == "volumes"] == [False]


async def test_a_commit_and_a_move_at_once_come_one_after_the_other(config: Config) -> None:
    async with (
        scene(config) as here,
        here.first.connected() as first,
        here.second.connected() as second,
    ):
        job = await here.coordinator.order_backup("first/data")
        task = (await first.next_message()).run_backup
        writing = await first.open_session(task)
        signed = here.first.sign(writing, here.volume, here.made)

        async def commit() -> int:
            try:
                return (await first.commit(writing, signed, here.made.refs)).sequence
            except grpc.aio.AioRpcError as error:
                return 1 if error.code() is grpc.StatusCode.ABORTED else -1

        async with asyncio.TaskGroup() as group:
            committing = group.create_task(commit())
            group.create_task(move(here.coordinator, "first/data", "second"))
        ended = await here.coordinator.ended(job.job_id)
        _, theirs = await begin(here, second)
    newest = 2 if ended.phase == common_pb2.PHASE_COMPLETED else 1
    assert committing.result() == theirs.head_sequence == newest


# ---- the new holder -----------------------------------------------------------------------------


async def test_a_move_waits_for_the_new_node_over_a_restart(config: Config) -> None:
    async with scene(config) as here:
        moved = await move(here.coordinator, "data", "second")
        again = await move(here.coordinator, "data", "second")
        doctor = await here.coordinator.admin.RunDoctor(admin_pb2.RunDoctorRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await here.coordinator.order_backup("data")
        second = here.second
    assert (moved.volume.verdict, moved.volume.present) == ("unprotected", False)
    assert "second, which names no volume data yet" in moved.volume.reason
    assert (again.former_node, again.volume.reason) == ("second", moved.volume.reason)
    assert [check.ok for check in doctor.checks if check.name == "volumes"] == [False]
    assert "does not name it yet" in detail(caught.value).message
    async with serving(config) as coordinator:
        second.address = coordinator.grpc
        async with second.connected() as connection:
            await until_listed(coordinator, "second/data")
            await coordinator.order_backup("data")
            writing = await connection.open_session((await connection.next_message()).run_backup)
    assert writing.head_sequence == 1


async def test_a_coordinator_that_dies_right_after_a_move_loses_nothing_of_it(
    config: Config,
) -> None:
    async with scene(config) as here:
        async with here.second.connected():
            await until_listed(here.coordinator, "second/data")
        first, second = here.first, here.second
    catalog = await open_catalog(config.data / "catalog.db", 0)
    await catalog.fleet.move_volume(here.volume, NodeId(second.node_id), "data", replacing=False)
    await catalog.close()
    async with serving(config) as coordinator:
        first.address = second.address = coordinator.grpc
        async with first.connected(), second.connected():
            await until_listed(coordinator, "second/data")
            seen = await listed(coordinator)
    assert seen["second/data"].volume_id == here.volume.hex()
    assert seen["first/data"].held_by == "second"


async def test_another_name_on_the_new_node_is_said(config: Config) -> None:
    async with scene(config) as here:
        here.second.volume("pictures")
        async with here.second.connected():
            moved = await move(here.coordinator, "first/data", "second", name="pictures")
            seen = await listed(here.coordinator)
    assert (moved.volume.volume, moved.volume.path) == ("pictures", b"/srv/pictures")
    assert seen["second/pictures"].volume_id == here.volume.hex()
    assert seen["second/data"].volume_id == here.second.volumes[0].local_id.hex()


async def test_a_history_on_the_new_node_ends_only_if_that_is_said(config: Config) -> None:
    async with scene(config) as here, here.second.connected() as connection:
        job = await here.coordinator.order_backup("second/data")
        task = (await connection.next_message()).run_backup
        await connection.back_up(task, {"z": b"omega"})
        await connection.finish_backup(task.task_id)
        await here.coordinator.ended(job.job_id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await move(here.coordinator, "first/data", "second")
        kept = (await listed(here.coordinator))["first/data"]
        await move(here.coordinator, "first/data", "second", replace=True)
        answer = await here.coordinator.admin.ListVolumes(admin_pb2.ListVolumesRequest())
        seen = {each.volume_id: each for each in answer.volumes if not each.held_by}
        await here.coordinator.agent("third")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await here.coordinator.order_backup(task.volume_id.hex())
        onwards = await move(here.coordinator, "second/data", "third")
    assert "snapshots of its own" in detail(caught.value).message
    assert "--replace" in detail(caught.value).hint
    assert detail(caught.value).exit_code == 2
    assert kept.volume_id == here.volume.hex()
    assert seen[here.volume.hex()].verdict == "protected"
    replaced = seen[task.volume_id.hex()]
    assert (replaced.verdict, replaced.present) == ("unprotected", False)
    assert "another volume goes on in its place" in replaced.reason
    assert replaced.last_snapshot_id
    assert onwards.volume.volume_id == here.volume.hex()
    assert "another volume goes on" in detail(ended.value).message


async def test_a_stated_uid_is_held_by_who_told_it_first_until_it_is_moved(
    config: Config,
) -> None:
    uid = stated_volume_id("a disk")
    async with serving(config, LIMITS) as coordinator:
        thief, owner = await coordinator.agent("thief"), await coordinator.agent("owner")
        for agent, name in ((thief, "loot"), (owner, "disk")):
            agent.volume(name)
            agent.volumes[0].local_id = uid
        async with thief.connected() as stolen, owner.connected() as connection:
            await until_listed(coordinator, "owner/disk", verdict="unprotected")
            moved = await move(coordinator, uid.hex(), "owner")
            await coordinator.order_backup("disk")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            seen = await listed(coordinator)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stolen.open_session(task)
    assert (moved.former_node, moved.volume.volume) == ("thief", "disk")
    assert writing.head_sequence == 0
    assert seen["thief/loot"].held_by == "owner"
    assert status(caught) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("volume", "node", "message"),
    [
        ("nothing", "second", "there is no volume nothing"),
        ("first/data", "third", "there is no node third"),
        ("first/data", "first", "on that node already"),
        ("first/data", "gone", "is revoked"),
        ("data", "third node", "any of"),
    ],
)
async def test_a_move_that_cannot_be_meant_is_refused(
    config: Config, volume: str, node: str, message: str
) -> None:
    async with scene(config) as here:
        await here.coordinator.agent("third node")
        gone = await here.coordinator.agent("gone")
        await here.coordinator.admin.RevokeNode(admin_pb2.RevokeNodeRequest(node="gone"))
        async with here.second.connected():
            await until_listed(here.coordinator, "second/data")
            before = holders(await listed(here.coordinator))
            to = gone.node_id.hex() if node == "gone" else node
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await move(here.coordinator, volume, to)
            assert holders(await listed(here.coordinator)) == before
    assert message in detail(caught.value).message
    assert detail(caught.value).exit_code == 2
