"""Snapshots whose files are slices of chunks: proven and printed, or named as damaged."""

from collections.abc import Callable

import grpc.aio
import msgspec
import pytest

from coordinator.config import Config
from proto.tidemark.v1 import admin_pb2, common_pb2
from repository.entries import ChunkClass, Content, EntryType, Extent, Pointer, encode_entry
from repository.frames import FrameIdentity
from repository.ids import ChunkId, ObjectType
from repository.pack import PackKind
from repository.refs import Refs
from repository.tree import encode_node
from tests.fakes.agent import FakeAgent, MadePack, MadeSnapshot, Writing, entry
from tests.integration.coordinator.serving import Coordinator, serving
from tests.integration.coordinator.test_backup import detail

pytestmark = pytest.mark.asyncio

Make = Callable[[list[Extent]], list[Extent]]
CHUNKS = [b"0123456789" * 10, b"abcdefghij" * 10]


def changed(extent: Extent, **changes: object) -> Extent:
    return msgspec.structs.replace(extent, **changes)


def extents_of(pack: MadePack) -> list[Extent]:
    return [
        Extent.at(ChunkId(chunk_id), place)
        for chunk_id, place in zip(pack.chunk_ids, pack.locations, strict=True)
    ]


def make(agent: FakeAgent, writing: Writing, extents: Make) -> MadeSnapshot:
    """One file `sliced` of these extents, and one that is whole. Without its refs.

    Without extents it says that it has five bytes, and has no content.
    """
    data = agent.make_pack(writing, PackKind.DATA, ObjectType.DATA, CHUNKS)
    mine = extents(extents_of(data))
    files = {b"sliced": mine, b"whole": extents_of(data)}
    entries = [(b"", entry(EntryType.DIRECTORY))]
    for name, each in files.items():
        content = Content(ChunkClass.GENERAL, each, None) if each else None
        size = sum(extent.length for extent in each) if each else 5
        entries.append((name, entry(EntryType.FILE, size, content)))
    node = encode_node(0, [(key, encode_entry(each)) for key, each in entries])
    metadata = agent.make_pack(writing, PackKind.METADATA, ObjectType.NODE, [node])
    (place,) = metadata.locations
    manifest = Pointer.at(ChunkId(metadata.chunk_ids[0]), place)
    return MadeSnapshot([data, metadata], manifest, b"", 2, 300)


async def back_up(coordinator: Coordinator, extents: Make) -> str:
    """The id of the snapshot. A list is stored as well, and given last, as if it were data."""
    agent = await coordinator.agent()
    agent.volume("data")
    async with agent.connected() as connection:
        job = await coordinator.order_backup("data")
        task = (await connection.next_message()).run_backup
        writing = await connection.open_session(task)
        more = agent.make_pack(writing, PackKind.METADATA, ObjectType.LIST, [b"a list"])
        made = make(agent, writing, lambda whole: extents([*whole, *extents_of(more)]))
        made.packs.append(more)
        live = {
            FrameIdentity(at.nonce, at.frame): at.length
            for pack in made.packs
            for at in pack.locations
        }
        made.refs = Refs.of(live, base=True).encode()
        for pack in made.packs:
            await connection.upload(writing, pack)
        signed = agent.sign(writing, task.volume_id, made)
        committed = await connection.commit(writing, signed, made.refs)
        await connection.finish_backup(task.task_id)
        await coordinator.ended(job.job_id)
    return committed.snapshot_id


async def printed(coordinator: Coordinator, snapshot: str) -> bytes:
    request = admin_pb2.ReadFileRequest(snapshot=snapshot, path=b"sliced")
    return b"".join([piece.data async for piece in coordinator.admin.ReadFile(request)])


async def test_slices_are_proven_and_printed(config: Config) -> None:
    def extents(whole: list[Extent]) -> list[Extent]:
        one, two = whole[:2]
        return [
            changed(one, length=5),
            changed(two, skip=3, length=90),
            Extent.hole(7),
            changed(one, skip=99, length=1),
        ]

    async with serving(config) as coordinator:
        snapshot = await back_up(coordinator, extents)
        proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
        content = await printed(coordinator, snapshot)

    assert (proof.phase, proof.verify.damaged_total) == (common_pb2.PHASE_COMPLETED, 0)
    assert content == CHUNKS[0][:5] + CHUNKS[1][3:93] + bytes(7) + CHUNKS[0][99:]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"skip": 1}, b"sliced"),
        ({"skip": 100, "length": 1}, b"sliced"),
        ({"skip": (1 << 32) - 1, "length": 1}, b"sliced"),
        ({"length": 101}, b"sliced"),
        ({"length": (1 << 63) - 1}, b"sliced"),
        ({"chunk": 1}, b"sliced"),
        # What decodes to no extent leaves nothing of its node to be believed.
        ({"length": 0}, b"."),
        ({"skip": 1 << 32}, b"."),
    ],
    ids=str,
)
async def test_a_slice_that_its_chunk_does_not_have_is_named_by_verify_and_never_printed(
    config: Config, change: dict[str, int], path: bytes
) -> None:
    async with serving(config) as coordinator:
        snapshot = await back_up(coordinator, lambda whole: [changed(whole[0], **change)])
        proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await printed(coordinator, snapshot)

    (damaged,) = proof.verify.damaged
    assert (list(damaged.snapshots), list(damaged.paths)) == ([snapshot], [path])
    assert detail(caught.value).exit_code == 1
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS


async def test_a_file_of_some_size_without_content_is_damage(config: Config) -> None:
    async with serving(config) as coordinator:
        snapshot = await back_up(coordinator, lambda _: [])
        proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
        with pytest.raises(grpc.aio.AioRpcError):
            await printed(coordinator, snapshot)

    (damaged,) = proof.verify.damaged
    assert (list(damaged.snapshots), list(damaged.paths)) == ([snapshot], [b"sliced"])


async def test_what_lies_in_a_frame_of_another_type_is_no_content(config: Config) -> None:
    """An extent that names a list, rightly but for that."""
    async with serving(config) as coordinator:
        snapshot = await back_up(coordinator, lambda given: given[-1:])
        proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
        with pytest.raises(grpc.aio.AioRpcError):
            await printed(coordinator, snapshot)

    (damaged,) = proof.verify.damaged
    assert (list(damaged.snapshots), list(damaged.paths)) == ([snapshot], [b"sliced"])
