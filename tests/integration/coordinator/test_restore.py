"""Grants, ranges of packs, browsing and proof."""

import asyncio
import os
from pathlib import Path
from secrets import token_bytes

import grpc
import grpc.aio
import pytest
from typing_extensions import override

from coordinator.config import Config
from coordinator.stores import in_directory
from proto.tidemark.v1 import admin_pb2, agent_pb2, common_pb2
from repository.frames import FrameIdentity, FrameReader
from repository.ids import ObjectType
from repository.keys import PackKey, UnsealingKey, frame_key, unwrap
from repository.layout import GRANT_INFO, ReaderKeys
from repository.pack import FrameTable
from repository.store.local import LocalStore
from tests.fakes.agent import Connection
from tests.integration.coordinator.serving import Coordinator, serving
from tests.integration.coordinator.test_backup import detail

pytestmark = pytest.mark.asyncio

FILES = {"a": b"alpha" * 100, "b": b"beta" * 1000, "dir-like": b"x"}
CONTENT = b"".join(FILES.values())


async def grant_of(
    connection: Connection, task_id: str, one_time: UnsealingKey
) -> list[agent_pb2.OpenRestoreResponse]:
    request = agent_pb2.OpenRestoreRequest(task_id=task_id, public_key=one_time.public)
    return [part async for part in connection.stub.OpenRestore(request)]


async def order_restore(coordinator: Coordinator, snapshot: str) -> admin_pb2.Job:
    request = admin_pb2.CreateRestoreRequest(snapshot=snapshot, target=b"/tmp/out")
    return (await coordinator.admin.CreateRestore(request)).job


async def read_pack(
    connection: Connection, task_id: str, name: str, *ranges: tuple[int, int]
) -> bytes:
    wanted = [agent_pb2.ByteRange(offset=offset, length=length) for offset, length in ranges]
    request = agent_pb2.ReadPackRequest(task_id=task_id, name=name, ranges=wanted)
    return b"".join([piece.data async for piece in connection.stub.ReadPack(request)])


class BreakingOnce(LocalStore):
    """Flips a bit of whatever is read of packs and roots for the first time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.broken: set[tuple[str, int]] = set()

    @override
    async def get(self, name: str) -> bytes:
        return self._arrived(name, 0, await super().get(name))

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        return self._arrived(name, offset, await super().get_range(name, offset, length))

    def _arrived(self, name: str, offset: int, sent: bytes) -> bytes:
        if not name.startswith(("packs/", "roots/")) or (name, offset) in self.broken:
            return sent
        self.broken.add((name, offset))
        flipped = bytearray(sent)
        flipped[len(sent) // 2] ^= 1
        return bytes(flipped)


async def test_what_was_broken_on_its_way_is_neither_refused_nor_called_damaged(
    config: Config,
) -> None:
    store = BreakingOnce(config.repository)
    async with serving(config, open_at=in_directory(lambda _: store)) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        snapshot = await coordinator.back_up(agent, "data", FILES)
        taken_in = len(store.broken)
        jobs = []
        for depth in (admin_pb2.VERIFY_DEPTH_PRESENT, admin_pb2.VERIFY_DEPTH_DATA):
            store.broken.clear()
            jobs.append(await coordinator.verify(depth))
        store.broken.clear()
        browsing = admin_pb2.ListEntriesRequest(snapshot=snapshot)
        entries = [each async for each in coordinator.admin.ListEntries(browsing)]

    assert taken_in > 0
    assert [(job.phase, job.verify.damaged_total) for job in jobs] == [
        (common_pb2.PHASE_COMPLETED, 0)
    ] * 2
    assert entries
    assert store.broken


async def test_a_grant_opens_the_volumes_own_packs(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        snapshot = await coordinator.back_up(agent, "data", FILES)
        async with agent.connected() as connection:
            job = await order_restore(coordinator, snapshot)
            task = (await connection.next_message()).run_restore
            one_time = UnsealingKey(token_bytes(32))
            header, *packs = await grant_of(connection, task.task_id, one_time)
            grant_key = one_time.unseal(header.header.sealed_grant_key, GRANT_INFO)
            keys = ReaderKeys.decode(
                unwrap(grant_key, header.header.wrapped_reader_keys, b"reader keys")
            )
            contents = []
            for part in packs:
                pack = part.pack
                key = PackKey(unwrap(grant_key, pack.wrapped_pack_key, b"pack" + pack.pack_nonce))
                places = FrameTable.decode(pack.frame_table).places
                ((nonce, frames),) = places.items()
                ranges = [frames[number] for number in sorted(frames)]
                raw = await read_pack(connection, task.task_id, pack.name, *ranges)
                sealed = raw[: ranges[0][1]]
                kind = ObjectType.DATA if len(frames) > 1 else ObjectType.NODE
                reader = FrameReader(keys.repository, keys.ids)
                (chunk,) = reader.open(sealed, frame_key(key, 0), FrameIdentity(nonce, 0), kind)
                contents.append(bytes(chunk.data))
            result = common_pb2.RestoreResult(files_restored=3)
            finished = agent_pb2.RestoreFinished(task_id=task.task_id, result=result)
            await connection.say(agent_pb2.ConnectRequest(restore_finished=finished))
            ended = await coordinator.ended(job.job_id)
    assert len(packs) == 2
    assert FILES["a"] in contents
    assert (ended.phase, ended.restore.files_restored) == (common_pb2.PHASE_COMPLETED, 3)


async def test_ranges_are_read_only_within_the_grant_of_a_running_task(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent("mine")
        agent.volume("data")
        thief = await coordinator.agent("thief")
        thief.volume("loot")
        snapshot = await coordinator.back_up(agent, "data", FILES)
        name = os.fspath(coordinator.packs()[0].relative_to(config.repository))
        async with thief.connected() as stolen, agent.connected() as connection:
            await order_restore(coordinator, snapshot)
            task = (await connection.next_message()).run_restore
            refused = []
            for caller, task_id, pack in (
                (connection, task.task_id, name),
                (stolen, task.task_id, name),
                (connection, "unknown", name),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await read_pack(caller, task_id, pack, (0, 10))
                refused.append(caught.value.code())
            with pytest.raises(grpc.aio.AioRpcError):
                await grant_of(stolen, task.task_id, UnsealingKey(token_bytes(32)))
            await grant_of(connection, task.task_id, UnsealingKey(token_bytes(32)))
            head = await read_pack(connection, task.task_id, name, (0, 8))
            with pytest.raises(grpc.aio.AioRpcError):
                await read_pack(connection, task.task_id, "config", (0, 8))
    # Asked before the grant was opened, by another node, and for no task at all.
    assert refused == [
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.NOT_FOUND,
    ]
    assert head == b"TIDEMARK"


async def test_another_nodes_frames_cannot_be_named_into_a_snapshot(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent("mine")
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            made = agent.make(writing, FILES)
            for pack in made.packs:
                await connection.upload(writing, pack)
        thief = await coordinator.agent("thief")
        loot = thief.volume("loot")
        async with thief.connected() as connection:
            await coordinator.order_backup("loot")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            signed = thief.sign(writing, loot, made)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connection.commit(writing, signed, made.refs)
    assert "another node" in detail(caught.value).message


async def test_a_snapshot_can_be_looked_into(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        await coordinator.back_up(agent, "data", FILES)
        admin = coordinator.admin
        listing = admin.ListEntries(admin_pb2.ListEntriesRequest(snapshot="latest"))
        listed = [entry.path async for answer in listing for entry in answer.entries]
        finding = admin.FindEntries(admin_pb2.FindEntriesRequest(patterns=["dir*"]))
        found = [each.entry.path async for answer in finding for each in answer.found]
        reading = admin.ReadFile(admin_pb2.ReadFileRequest(snapshot="latest", path=b"b"))
        content = b"".join([piece.data async for piece in reading])
        missing = admin.ReadFile(admin_pb2.ReadFileRequest(snapshot="latest", path=b"c"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await missing.read()
    assert listed == [b"a", b"b", b"dir-like"]
    assert found == [b"dir-like"]
    assert content == FILES["b"]
    assert detail(caught.value).exit_code == 2


@pytest.mark.parametrize("depth", [admin_pb2.VERIFY_DEPTH_PRESENT, admin_pb2.VERIFY_DEPTH_DATA])
async def test_a_sound_repository_proves_sound(
    config: Config, depth: "admin_pb2.VerifyDepth.ValueType"
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        await coordinator.back_up(agent, "data", FILES)
        job = await coordinator.verify(depth)
        listed = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
    assert (job.phase, job.verify.packs_checked, job.verify.damaged_total) == (
        common_pb2.PHASE_COMPLETED,
        2,
        0,
    )
    assert listed.snapshots[0].HasField("last_proof_at")


@pytest.mark.parametrize("depth", [admin_pb2.VERIFY_DEPTH_PRESENT, admin_pb2.VERIFY_DEPTH_DATA])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "swap"])
async def test_any_damage_is_found_and_names_what_it_affects(
    config: Config, depth: "admin_pb2.VerifyDepth.ValueType", damage: str
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        snapshot = await coordinator.back_up(agent, "data", {"a": token_bytes(5000), "b": b"b"})
        data, metadata = coordinator.packs()
        whole = data.read_bytes()
        await asyncio.to_thread(_damage, data, damage, metadata.read_bytes())
        job = await coordinator.verify(depth)
        await asyncio.to_thread(data.write_bytes, whole)
        healed = await coordinator.verify(depth)
    (damaged,) = job.verify.damaged
    assert (job.phase, job.exit_code) == (common_pb2.PHASE_FAILED, 1)
    assert damaged.pack == os.fspath(data.relative_to(config.repository))
    assert list(damaged.snapshots) == [snapshot]
    # One flipped byte hits one frame; whatever breaks the pack as a whole may hit every file.
    assert list(damaged.paths) == ([b"a"] if damage == "flip" else [b"a", b"b"])
    assert healed.phase == common_pb2.PHASE_COMPLETED


def _damage(path: os.PathLike[str], damage: str, other: bytes) -> None:
    with open(path, "r+b") as file:
        if damage == "flip":
            file.seek(100)
            byte = file.read(1)[0]
            file.seek(100)
            file.write(bytes([byte ^ 1]))
        elif damage == "cut":
            file.truncate(4000)
        elif damage == "swap":
            file.truncate(0)
            file.write(other)
    if damage == "remove":
        os.unlink(path)


async def test_a_missing_root_is_found(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        snapshot = await coordinator.back_up(agent, "data", FILES)
        (root,) = (path for path in (config.repository / "roots").rglob("*") if path.is_file())
        await asyncio.to_thread(root.unlink)
        job = await coordinator.verify(admin_pb2.VERIFY_DEPTH_PRESENT)
    assert list(job.verify.damaged[0].snapshots) == [snapshot]


async def test_locked_custody_backs_up_and_proves_presence_but_opens_nothing(
    config: Config,
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
    await asyncio.to_thread((config.data / "custody.passphrase").write_text, "wrong")
    async with serving(config) as coordinator:
        agent.address = coordinator.grpc
        await coordinator.back_up(agent, "data", FILES)
        present = await coordinator.verify(admin_pb2.VERIFY_DEPTH_PRESENT)
        data = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
        status = await coordinator.admin.GetStatus(admin_pb2.GetStatusRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await coordinator.admin.ExportRecoveryKit(admin_pb2.ExportRecoveryKitRequest())
    assert present.phase == common_pb2.PHASE_COMPLETED
    assert (data.phase, data.exit_code) == (common_pb2.PHASE_FAILED, 12)
    assert not status.unlocked
    assert detail(caught.value).exit_code == 12
