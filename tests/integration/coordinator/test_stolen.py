"""Whoever has stolen a node's session and all that was signed for it, before a real gateway.

He has the node's certificate, its session with its fencing token, and the URLs that were signed for
it. He can put the packs that were signed for to where nothing was, and read what a restore of that
node was granted: nothing else, and nothing once the session has ended.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import grpc
import grpc.aio
import msgspec
import pytest
from blake3 import blake3
from yarl import URL

from coordinator.config import Bucket as BucketConfig
from coordinator.config import Config
from proto.tidemark.v1 import admin_pb2, agent_pb2, common_pb2
from repository.keys import UnsealingKey
from repository.layout import CONFIG_NAME, refs_name, root_name
from repository.pack import TAIL_BYTES
from repository.store.s3.location import parse_location
from tests.e2e.test_bucket import PREFIX, Bucket, new_bucket
from tests.fakes.agent import Connection, FakeAgent, MadePack, MadeSnapshot, Writing
from tests.integration.coordinator.serving import Coordinator, config_in, serving
from tests.integration.coordinator.test_restore import grant_of, order_restore
from tests.servers.buckets import opened
from tests.servers.shared import server

FILES = {"a": b"alpha" * 100, "b": b"beta" * 1000}
OTHERS = {"c": b"gamma" * 500}
Objects = dict[str, tuple[str, str]]
Headers = Mapping[str, str]


@pytest.fixture
def bucket(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    return new_bucket(server("radosgw", tmp_path_factory), tmp_path)


@pytest.fixture
def config(bucket: Bucket, tmp_path: Path) -> Config:
    location = parse_location(f"s3://{bucket.name}/{PREFIX}", endpoint=bucket.server.url)
    return msgspec.structs.replace(
        config_in(tmp_path),
        repository=Path(),
        bucket=BucketConfig(location, bucket.credentials),
    )


@dataclass
class Stolen:
    """What he has of a backup that runs, and how he talks to the store."""

    connection: Connection
    task: agent_pb2.RunBackup
    writing: Writing
    made: MadeSnapshot
    job_id: str
    http: aiohttp.ClientSession
    bucket: Bucket

    def digest(self, pack: MadePack, *, end_bytes: int = 0, **instead: Any) -> agent_pb2.PackDigest:
        said = {"name": pack.name, "size_bytes": len(pack.raw), **instead}
        header = agent_pb2.PackHeader(
            session_id=self.writing.session_id, fencing_token=self.writing.fencing_token, **said
        )
        checksum = hashlib.md5(pack.raw, usedforsecurity=False).digest()
        whole = blake3(pack.raw).digest()
        return agent_pb2.PackDigest(
            header=header, checksum=checksum, blake3=whole, end_bytes=end_bytes
        )

    async def sign(self, pack: MadePack, **instead: Any) -> agent_pb2.SignUploadResponse:
        request = agent_pb2.SignUploadRequest(pack=self.digest(pack, **instead))
        return await self.connection.stub.SignUpload(request)

    async def confirm(self, pack: MadePack, end_bytes: int = 0) -> None:
        digest = self.digest(pack, end_bytes=end_bytes)
        request = agent_pb2.ConfirmUploadRequest(pack=digest)
        await self.connection.stub.ConfirmUpload(request)

    async def send(
        self, method: str, url: str, headers: Headers | None = None, body: bytes | None = None
    ) -> tuple[int, bytes]:
        target = URL(url, encoded=True)
        async with self.http.request(method, target, headers=headers or {}, data=body) as answer:
            return answer.status, await answer.read()

    async def put(self, signed: agent_pb2.SignedRequest, body: bytes) -> int:
        return (await self.send(signed.method, signed.url, signed.headers, body))[0]

    async def objects(self) -> Objects:
        """All there is in the bucket: tags and times by key."""
        async with opened(self.bucket.server, self.bucket.name) as store:
            answer = await store.bucket.call("list_objects_v2", "all", Prefix="")
        return {
            each["Key"]: (each["ETag"], str(each["LastModified"]))
            for each in answer.get("Contents", [])
        }


@asynccontextmanager
async def stolen(
    coordinator: Coordinator, agent: FakeAgent, bucket: Bucket
) -> AsyncIterator[Stolen]:
    async with agent.connected() as connection, aiohttp.ClientSession() as http:
        job = await coordinator.order_backup("data")
        task = (await connection.next_message()).run_backup
        writing = await connection.open_session(task)
        made = agent.make(writing, FILES)
        yield Stolen(connection, task, writing, made, job.job_id, http, bucket)


def at(url: str, path: str) -> str:
    """The same request for something else."""
    return urlunsplit(urlsplit(url)._replace(path=path))


@pytest.mark.asyncio
@pytest.mark.parametrize("end_bytes", [0, 1, TAIL_BYTES, TAIL_BYTES + 9, 2**32 - 1])
async def test_a_pack_is_read_back_whatever_its_agent_says_of_its_end(
    config: Config, bucket: Bucket, end_bytes: int
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        volume = agent.volume("data")
        async with stolen(coordinator, agent, bucket) as honest:
            for pack in honest.made.packs:
                assert await honest.put((await honest.sign(pack)).request, pack.raw) == 200
                await honest.confirm(pack, end_bytes)
            root = agent.sign(honest.writing, volume, honest.made)
            await honest.connection.commit(honest.writing, root, honest.made.refs)
            await honest.connection.finish_backup(honest.task.task_id)
            job = await coordinator.ended(honest.job_id)

    assert job.phase == common_pb2.PHASE_COMPLETED


@pytest.mark.asyncio
async def test_a_signed_url_writes_its_pack_and_does_nothing_else(
    config: Config, bucket: Bucket
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        volume = agent.volume("data")
        async with stolen(coordinator, agent, bucket) as thief:
            data, metadata = thief.made.packs
            signed = (await thief.sign(data)).request
            there = await thief.objects()
            await refused_with(thief, signed, data, there)
            assert await thief.objects() == there

            assert await thief.put(signed, data.raw) == 200
            first = await thief.objects()
            again = [await thief.put(signed, body) for body in (data.raw, data.raw[::-1])]
            assert await thief.objects() == first
            await thief.confirm(data)
            taken_in = await thief.sign(data)
            assert await thief.put((await thief.sign(metadata)).request, metadata.raw) == 200
            await thief.confirm(metadata)
            root = agent.sign(thief.writing, volume, thief.made)
            await thief.connection.commit(thief.writing, root, thief.made.refs)
            await thief.connection.finish_backup(thief.task.task_id)
            ended = await coordinator.ended(thief.job_id)
        proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)

    assert set(first) - set(there) == {f"{PREFIX}/{data.name}"}
    assert again[0] == 412
    assert 400 <= again[1] < 500
    # What is taken in is not signed for again.
    assert not taken_in.HasField("request")
    assert ended.phase == common_pb2.PHASE_COMPLETED
    assert (proof.phase, proof.verify.packs_checked) == (common_pb2.PHASE_COMPLETED, 2)


async def refused_with(
    thief: Stolen, signed: agent_pb2.SignedRequest, pack: MadePack, there: Objects
) -> None:
    """Everything that is tried with one signed request, and without any."""
    url, headers, raw = signed.url, dict(signed.headers), pack.raw
    own = f"/{thief.bucket.name}"
    config = f"{own}/{PREFIX}/{CONFIG_NAME}"
    assert config.removeprefix(f"{own}/") in there
    plain = thief.bucket.server.url
    shorter = headers | {"content-length": str(len(raw) - 1)}
    other_sum = headers | {
        "content-md5": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    attempts = {
        "other bytes": ("PUT", url, headers, raw[::-1]),
        "fewer bytes": ("PUT", url, shorter, raw[:-1]),
        "another sum": ("PUT", url, other_sum, raw),
        "no condition": ("PUT", url, without(headers, "if-none-match"), raw),
        "another name": ("PUT", at(url, f"{own}/{PREFIX}/packs/ab/another"), headers, raw),
        "an overwrite": ("PUT", at(url, config), headers, raw),
        "a read of it": ("GET", url, {}, None),
        "a read": ("GET", at(url, config), {}, None),
        "a look": ("HEAD", at(url, config), {}, None),
        "a deletion": ("DELETE", at(url, config), {}, None),
        "a listing": ("GET", at(url, f"{own}/") + "&list-type=2", {}, None),
        "all buckets": ("GET", at(url, "/"), {}, None),
        "a read without any": ("GET", plain + config, {}, None),
        "a listing without any": ("GET", f"{plain}{own}?list-type=2", {}, None),
        "a write without any": ("PUT", f"{plain}{own}/{PREFIX}/packs/ab/x", {}, raw),
        "a deletion without any": ("DELETE", plain + config, {}, None),
    }
    answers = {what: (await thief.send(*each))[0] for what, each in attempts.items()}
    assert {what: status for what, status in answers.items() if not 400 <= status < 500} == {}


def without(headers: Headers, name: str) -> dict[str, str]:
    return {each: value for each, value in headers.items() if each != name}


@pytest.mark.asyncio
async def test_a_session_gets_nothing_signed_but_new_packs(config: Config, bucket: Bucket) -> None:
    async with serving(config) as coordinator:
        agent, neighbour = await coordinator.agent("one"), await coordinator.agent("two")
        volume = agent.volume("data")
        neighbour.volume("other")
        await coordinator.back_up(neighbour, "other", OTHERS)
        async with stolen(coordinator, agent, bucket) as thief:
            data = thief.made.packs[0]
            before = await thief.objects()
            foreign = next(key.removeprefix(f"{PREFIX}/") for key in before if "/packs/" in key)
            names = {CONFIG_NAME, root_name(volume, 1), refs_name(volume, 1), "packs/ab/x", foreign}
            for name in names:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await thief.sign(data, name=name)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
            for size in (0, 1 << 40):
                with pytest.raises(grpc.aio.AioRpcError):
                    await thief.sign(data, size_bytes=size)
            # What did not come is not taken in, whatever is said of it.
            with pytest.raises(grpc.aio.AioRpcError) as missing:
                await thief.confirm(data)
            # And a backup reads nothing.
            reads = agent_pb2.SignReadsRequest(task_id=thief.task.task_id, names=[foreign])
            with pytest.raises(grpc.aio.AioRpcError) as reading:
                await thief.connection.stub.SignReads(reads)
            after = await thief.objects()

    assert missing.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reading.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert after == before


@pytest.mark.asyncio
async def test_a_restore_reads_what_its_grant_covers_and_no_more(
    config: Config, bucket: Bucket
) -> None:
    async with serving(config) as coordinator:
        agent, neighbour = await coordinator.agent("one"), await coordinator.agent("two")
        agent.volume("data")
        neighbour.volume("other")
        await coordinator.back_up(neighbour, "other", OTHERS)
        snapshot = await coordinator.back_up(agent, "data", FILES)
        async with agent.connected() as connection, aiohttp.ClientSession() as http:
            await order_restore(coordinator, snapshot)
            task = (await connection.next_message()).run_restore
            made = MadeSnapshot([], None, b"", 0, 0)  # type: ignore[arg-type]
            thief = Stolen(connection, task, None, made, "", http, bucket)  # type: ignore[arg-type]
            _, *parts = await grant_of(connection, task.task_id, UnsealingKey(token_bytes(32)))
            granted = {part.pack.name for part in parts}
            there = await thief.objects()
            every = {key.removeprefix(f"{PREFIX}/") for key in there}
            for name in every - granted:
                with pytest.raises(grpc.aio.AioRpcError):
                    await sign_reads(connection, task.task_id, name)
            signed = await sign_reads(connection, task.task_id, min(granted))
            covered, _ = await thief.send("GET", signed.url)
            foreign = min(name for name in every - granted if name.startswith("packs/"))
            elsewhere = f"/{bucket.name}/{PREFIX}/{foreign}"
            answers = [
                await thief.send("GET", at(signed.url, elsewhere)),
                await thief.send("PUT", signed.url, body=b"other"),
                await thief.send("DELETE", signed.url),
                await thief.send("GET", at(signed.url, f"/{bucket.name}/") + "&list-type=2"),
            ]
            after = await thief.objects()

    assert covered == 200
    assert [status for status, _ in answers] == [403] * 4
    assert after == there


async def sign_reads(connection: Connection, task_id: str, name: str) -> agent_pb2.SignedRequest:
    request = agent_pb2.SignReadsRequest(task_id=task_id, names=[name])
    return (await connection.stub.SignReads(request)).requests[0]


async def finish(_: Coordinator, thief: Stolen) -> None:
    await thief.connection.finish_backup(thief.task.task_id, message="it went wrong")


async def cancel(coordinator: Coordinator, thief: Stolen) -> None:
    await coordinator.admin.CancelJob(admin_pb2.CancelJobRequest(job_id=thief.job_id))
    await thief.connection.next_message()
    await thief.connection.finish_backup(thief.task.task_id, canceled=True)


async def lose_the_lease(_: Coordinator, thief: Stolen) -> None:
    thief.connection.stream.cancel()


async def revoke(coordinator: Coordinator, _: Stolen) -> None:
    await coordinator.admin.RevokeNode(admin_pb2.RevokeNodeRequest(node="node"))


ENDINGS: dict[str, Callable[[Coordinator, Stolen], Awaitable[None]]] = {
    "its task has ended": finish,
    "it was canceled": cancel,
    "its lease is over": lose_the_lease,
    "its node is revoked": revoke,
}


@pytest.mark.asyncio
async def test_nothing_is_signed_or_taken_in_once_a_session_has_ended(
    config: Config, bucket: Bucket
) -> None:
    """One after the other: revoking comes last, since it ends the node."""
    late: set[str] = set()
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        for what, end in ENDINGS.items():
            async with stolen(coordinator, agent, bucket) as thief:
                data, metadata = thief.made.packs
                signed = (await thief.sign(data)).request
                await end(coordinator, thief)
                async with asyncio.timeout(10):
                    ended = await coordinator.ended(thief.job_id)
                # The store knows nothing of sessions: what was signed is good for its minutes.
                assert await thief.put(signed, data.raw) == 200, what
                for call in (thief.sign(metadata), thief.sign(data), thief.confirm(data)):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call
                    refusals = {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAUTHENTICATED}
                    assert caught.value.code() in refusals, what
                late.add(f"{PREFIX}/{data.name}")
                assert late <= set(await thief.objects())
            assert ended.phase in {common_pb2.PHASE_FAILED, common_pb2.PHASE_CANCELED}, what
        status = await coordinator.admin.GetRepository(admin_pb2.GetRepositoryRequest())
        another = await coordinator.agent("another")
        another.volume("other")
        await coordinator.back_up(another, "other", OTHERS)
        proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)

    # They lie there, and nothing refers to them.
    assert status.packs == 0
    assert len(late) == len(ENDINGS)
    assert (proof.phase, proof.verify.packs_checked) == (common_pb2.PHASE_COMPLETED, 2)
