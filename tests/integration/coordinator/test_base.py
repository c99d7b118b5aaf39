"""What an agent that lost its state is told of the last snapshot."""

import os
import struct
from collections.abc import Sequence

import grpc
import grpc.aio
import msgspec
import pytest
from blake3 import blake3

from coordinator.config import Config
from proto.tidemark.v1 import agent_pb2, common_pb2
from repository.frames import Location
from repository.ids import ChunkId, ObjectType, PackNonce
from repository.keys import seal, wrap
from repository.pack import HEAD_BYTES, TAIL_BYTES, FrameEntry, PackEnd, parse_tail
from tests.fakes.agent import Connection, MadeSnapshot, Writing
from tests.integration.coordinator.serving import Coordinator, serving

pytestmark = pytest.mark.asyncio

FILES = {"a": b"alpha" * 100, "b": b"beta" * 1000}


async def read_base(
    connection: Connection, writing: Writing, since_head: Sequence[bytes] = ()
) -> dict[bytes, Location]:
    """Chunk ids and places."""
    request = agent_pb2.ReadBaseRequest(
        session_id=writing.session_id,
        fencing_token=writing.fencing_token,
        pack_nonces=since_head,
    )
    found = {}
    async for answer in connection.stub.ReadBase(request):
        for frame in answer.frames:
            for number, length in enumerate(frame.lengths):
                chunk_id = frame.chunk_ids[32 * number : 32 * number + 32]
                nonce = PackNonce(frame.pack_nonce)
                found[chunk_id] = Location(nonce, frame.frame_number, number, length)
            assert len(frame.chunk_ids) == 32 * len(frame.lengths)
    return found


async def begin(coordinator: Coordinator, connection: Connection) -> Writing:
    await coordinator.order_backup("data")
    return await connection.open_session((await connection.next_message()).run_backup)


async def backed_up(
    coordinator: Coordinator, connection: Connection, files: dict[str, bytes]
) -> MadeSnapshot:
    """A whole backup, and what it stored."""
    job = await coordinator.order_backup("data")
    task = (await connection.next_message()).run_backup
    writing = await connection.open_session(task)
    made = connection.agent.make(writing, files)
    for pack in made.packs:
        await connection.upload(writing, pack)
    signed = connection.agent.sign(writing, task.volume_id, made)
    await connection.commit(writing, signed, made.refs)
    await connection.finish_backup(task.task_id)
    await coordinator.ended(job.job_id)
    return made


def chunks_of(made: MadeSnapshot) -> dict[bytes, Location]:
    return {
        chunk_id: place
        for pack in made.packs
        for chunk_id, place in zip(pack.chunk_ids, pack.locations, strict=True)
    }


async def test_a_base_names_the_chunks_of_the_newest_snapshot_and_no_others(
    config: Config,
) -> None:
    async with serving(config) as coordinator:
        agent, other = await coordinator.agent("mine"), await coordinator.agent("other")
        agent.volume("data")
        other.volume("else")
        await coordinator.back_up(other, "else", {"z": b"omega"})
        async with agent.connected() as connection:
            await backed_up(coordinator, connection, {"old": b"of yesterday"})
            newest = await backed_up(coordinator, connection, FILES)
            writing = await begin(coordinator, connection)
            found = await read_base(connection, writing)
    assert found == chunks_of(newest)


async def test_a_first_backup_has_no_base(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            writing = await begin(coordinator, connection)
            assert await read_base(connection, writing) == {}


@pytest.mark.parametrize("damage", ["cut short", "altered", "gone"])
async def test_a_pack_that_cannot_be_read_is_left_out_to_be_stored_anew(
    config: Config, damage: str
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            made = await backed_up(coordinator, connection, FILES)
            path = config.repository / made.packs[0].name
            content = bytearray(path.read_bytes())
            content[parse_tail(bytes(content), len(content)).footer_offset + 10] ^= 1
            path.chmod(0o600)
            if damage == "gone":
                path.unlink()
            else:
                path.write_bytes(content[:1000] if damage == "cut short" else content)
            writing = await begin(coordinator, connection)
            found = await read_base(connection, writing)
    assert set(found) == set(made.packs[1].chunk_ids)


def with_chunk(raw: bytes, chunk_id: ChunkId, metadata_public: bytes) -> bytes:
    """A pack whose first frame is said to hold this chunk, by somebody who cannot sign it."""
    tail = parse_tail(raw, len(raw))
    at = tail.footer_offset + tail.footer_length
    _, origins = msgspec.msgpack.decode(raw[at : at + tail.origins_length])
    key, context = b"k" * 32, b"tidemark pack footer"
    frames = [FrameEntry(0, 0, ObjectType.DATA, HEAD_BYTES, 100, [(5, chunk_id)])]
    footer = wrap(key, msgspec.msgpack.encode(frames), context)
    end = footer + msgspec.msgpack.encode((seal(metadata_public, key, context), origins))
    lengths = struct.pack(">QII", tail.body_length, len(footer), len(end) - len(footer))
    signed = lengths + raw[-TAIL_BYTES + 16 : -TAIL_BYTES + 65] + blake3(end).digest()
    return raw[: tail.footer_offset] + end + signed + raw[-72:]


async def test_chunks_that_only_the_storage_provider_says_to_be_stored_are_not_known(
    config: Config,
) -> None:
    """With a stolen node's help it knows ids; believed, they would never be stored."""
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            made = await backed_up(coordinator, connection, FILES)
            path = config.repository / made.packs[0].name
            writing = await begin(coordinator, connection)
            keys = writing.keys
            wanted = keys.ids.chunk_id(ObjectType.DATA, b"never stored")
            path.chmod(0o600)
            path.write_bytes(with_chunk(path.read_bytes(), wanted, keys.metadata_public))
            found = await read_base(connection, writing)
    forged = parse_tail(path.read_bytes(), path.stat().st_size)
    PackEnd(forged, path.read_bytes()[forged.footer_offset :])
    assert set(found) == set(made.packs[1].chunk_ids)


@pytest.mark.parametrize("case", ["fenced", "committed", "unknown"])
async def test_only_a_session_that_may_write_is_told(config: Config, case: str) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await backed_up(coordinator, connection, FILES)
            job = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            if case == "fenced":
                await connection.open_session(task)
            elif case == "committed":
                made = agent.make(writing, FILES)
                for pack in made.packs:
                    await connection.upload(writing, pack)
                signed = agent.sign(writing, task.volume_id, made)
                await connection.commit(writing, signed, made.refs)
                await connection.finish_backup(task.task_id)
                await coordinator.ended(job.job_id)
            else:
                writing.session_id = os.urandom(16)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_base(connection, writing)
    assert caught.value.code() is grpc.StatusCode.ABORTED


# ---- packs of attempts that came to nothing -----------------------------------------------------


async def attempt(
    coordinator: Coordinator, connection: Connection, volume: str, files: dict[str, bytes]
) -> MadeSnapshot:
    """A backup that stores everything, and then fails."""
    job = await coordinator.order_backup(volume)
    task = (await connection.next_message()).run_backup
    writing = await connection.open_session(task)
    made = connection.agent.make(writing, files)
    for pack in made.packs:
        await connection.upload(writing, pack)
    await connection.finish_backup(task.task_id, message="cut off")
    await coordinator.ended(job.job_id)
    return made


def nonces_of(*made: MadeSnapshot) -> set[bytes]:
    return {place.nonce for each in made for pack in each.packs for place in pack.locations}


async def test_packs_of_a_failed_attempt_are_told_and_make_a_snapshot(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        volume = agent.volume("data")
        async with agent.connected() as connection:
            old = await backed_up(coordinator, connection, {"old": b"of yesterday"})
            made = await attempt(coordinator, connection, "data", FILES)
            stored = coordinator.packs()
            job = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            found = await read_base(connection, writing, writing.packs_since_head)
            base = await read_base(connection, writing)
            signed = agent.sign(writing, volume, made)
            await connection.commit(writing, signed, made.refs)
            await connection.finish_backup(task.task_id)
            ended = await coordinator.ended(job.job_id)
            after = await begin(coordinator, connection)
    assert set(writing.packs_since_head) == nonces_of(made)
    assert (found, base) == (chunks_of(made), chunks_of(old))
    assert (ended.phase, coordinator.packs()) == (common_pb2.PHASE_COMPLETED, stored)
    assert after.packs_since_head == []


async def test_of_packs_of_other_volumes_and_other_nodes_nothing_is_told(config: Config) -> None:
    async with serving(config) as coordinator:
        agent, thief = await coordinator.agent("mine"), await coordinator.agent("thief")
        for name in ("data", "else"):
            agent.volume(name)
        thief.volume("loot")
        async with agent.connected() as connection, thief.connected() as stolen:
            made = await attempt(coordinator, connection, "data", FILES)
            elsewhere = await attempt(coordinator, connection, "else", {"z": b"omega"})
            asked = sorted(nonces_of(made, elsewhere))
            writing = await begin(coordinator, connection)
            found = await read_base(connection, writing, [*asked, os.urandom(16), b""])
            await coordinator.order_backup("loot")
            theirs = await stolen.open_session((await stolen.next_message()).run_backup)
            looted = await read_base(stolen, theirs, asked)
    assert (set(writing.packs_since_head), found) == (nonces_of(made), chunks_of(made))
    assert (theirs.packs_since_head, looted) == ([], {})
