"""A node with a good identity of its own: against what belongs to another, and its own past.

Every call that a node may make is in TRIED, or the last test fails.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_bytes
from typing import Final

import grpc
import grpc.aio
import pytest
from blake3 import blake3

from coordinator.api.authorise import RULES
from coordinator.config import Config
from coordinator.enrolment import Role
from coordinator.running import Limits
from proto.tidemark.v1 import admin_pb2, agent_pb2, common_pb2
from repository.keys import UnsealingKey
from tests.fakes.agent import Connection, MadeSnapshot, Writing
from tests.integration.coordinator.serving import Coordinator, serving
from tests.integration.coordinator.test_restore import grant_of, order_restore, read_pack

pytestmark = pytest.mark.asyncio

FILES = {"a": b"alpha" * 100, "b": b"beta" * 1000}
LIMITS = Limits(restores_per_node=1)


@dataclass
class Scene:
    """A victim with a backup that runs and a restore that has its grant, and a thief beside it."""

    coordinator: Coordinator
    victim: Connection
    thief: Connection
    backup: agent_pb2.RunBackup
    writing: Writing
    made: MadeSnapshot
    signed: bytes
    restore: agent_pb2.RunRestore
    pack: str
    jobs: tuple[str, str]

    async def finish(self) -> list["common_pb2.Phase.ValueType"]:
        """Let the victim end what it does; how both jobs ended."""
        for pack in self.made.packs:
            await self.victim.upload(self.writing, pack)
        await self.victim.commit(self.writing, self.signed, self.made.refs)
        await self.victim.finish_backup(self.backup.task_id)
        await self.finish_restore()
        return [(await self.coordinator.ended(job)).phase for job in self.jobs]

    async def finish_restore(self) -> None:
        finished = agent_pb2.RestoreFinished(task_id=self.restore.task_id)
        await self.victim.say(agent_pb2.ConnectRequest(restore_finished=finished))


@asynccontextmanager
async def scene(config: Config) -> AsyncIterator[Scene]:
    async with serving(config, LIMITS) as coordinator:
        victim, thief = await coordinator.agent("victim"), await coordinator.agent("thief")
        volume = victim.volume("data")
        thief.volume("loot")
        snapshot = await coordinator.back_up(victim, "data", FILES)
        pack = str(coordinator.packs()[0].relative_to(config.repository))
        async with victim.connected() as mine, thief.connected() as other:
            backing_up = await coordinator.order_backup("data")
            backup = (await mine.next_message()).run_backup
            writing = await mine.open_session(backup)
            made = victim.make(writing, {"c": b"gamma"})
            restoring = await order_restore(coordinator, snapshot)
            restore = (await mine.next_message()).run_restore
            await grant_of(mine, restore.task_id, UnsealingKey(token_bytes(32)))
            yield Scene(
                coordinator,
                mine,
                other,
                backup,
                writing,
                made,
                victim.sign(writing, volume, made),
                restore,
                pack,
                (backing_up.job_id, restoring.job_id),
            )


async def open_session(here: Scene) -> None:
    await here.thief.open_session(here.backup)


async def upload(here: Scene) -> None:
    await here.thief.upload(here.writing, here.made.packs[0])


def digest_of(here: Scene) -> agent_pb2.PackDigest:
    pack = here.made.packs[0]
    header = agent_pb2.PackHeader(
        session_id=here.writing.session_id,
        fencing_token=here.writing.fencing_token,
        name=pack.name,
        size_bytes=len(pack.raw),
    )
    return agent_pb2.PackDigest(header=header, checksum=b"", blake3=blake3(pack.raw).digest())


async def sign_upload(here: Scene) -> None:
    await here.thief.stub.SignUpload(agent_pb2.SignUploadRequest(pack=digest_of(here)))


async def confirm_upload(here: Scene) -> None:
    await here.thief.stub.ConfirmUpload(agent_pb2.ConfirmUploadRequest(pack=digest_of(here)))


async def sign_reads(here: Scene) -> None:
    task_id = here.restore.task_id
    await here.thief.stub.SignReads(agent_pb2.SignReadsRequest(task_id=task_id, names=[here.pack]))


async def read_base(here: Scene) -> None:
    writing = here.writing
    request = agent_pb2.ReadBaseRequest(
        session_id=writing.session_id, fencing_token=writing.fencing_token
    )
    await here.thief.stub.ReadBase(request).read()


async def commit(here: Scene) -> None:
    await here.thief.commit(here.writing, here.signed, here.made.refs)


async def open_restore(here: Scene) -> None:
    await grant_of(here.thief, here.restore.task_id, UnsealingKey(token_bytes(32)))


async def read(here: Scene) -> None:
    await read_pack(here.thief, here.restore.task_id, here.pack, (0, 8))


# By method: the call, and how it is refused.
TRIED: Final[dict[str, tuple[Callable[[Scene], Awaitable[None]], grpc.StatusCode]]] = {
    "OpenSession": (open_session, grpc.StatusCode.NOT_FOUND),
    "ReadBase": (read_base, grpc.StatusCode.ABORTED),
    "UploadPack": (upload, grpc.StatusCode.ABORTED),
    "SignUpload": (sign_upload, grpc.StatusCode.ABORTED),
    "ConfirmUpload": (confirm_upload, grpc.StatusCode.ABORTED),
    "SignReads": (sign_reads, grpc.StatusCode.NOT_FOUND),
    "Commit": (commit, grpc.StatusCode.ABORTED),
    "OpenRestore": (open_restore, grpc.StatusCode.NOT_FOUND),
    "ReadPack": (read, grpc.StatusCode.NOT_FOUND),
}


@pytest.mark.parametrize("method", sorted(TRIED))
async def test_what_belongs_to_another_node_is_refused_and_takes_no_harm(
    config: Config, method: str
) -> None:
    call, expected = TRIED[method]
    async with scene(config) as here:
        stored = here.coordinator.packs()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(here)
        assert here.coordinator.packs() == stored
        ended = await here.finish()
    assert caught.value.code() is expected
    assert ended == [common_pb2.PHASE_COMPLETED] * 2


@pytest.mark.parametrize("name", ["data", "loot"])
async def test_a_volume_that_another_node_tells_of_is_a_claim_and_good_for_nothing(
    config: Config, name: str
) -> None:
    async with scene(config) as here:
        claimed = agent_pb2.VolumeReport()
        claimed.CopyFrom(here.victim.agent.volumes[0])
        claimed.name, claimed.path = name, b"/thief"
        here.thief.agent.volumes = [claimed]
        async with here.thief.agent.connected() as thief:
            listed = await here.coordinator.admin.ListVolumes(admin_pb2.ListVolumesRequest())
            seen = {each.node: each for each in listed.volumes}
            # Asked for by its id, it is the victim's, who has one task already.
            queued = await here.coordinator.order_backup(claimed.local_id.hex())
            ended = await here.finish()
            task = (await here.victim.next_message()).run_backup
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await thief.open_session(task)
            await here.victim.finish_backup(task.task_id, canceled=True)
            await here.coordinator.ended(queued.job_id)
    assert ended == [common_pb2.PHASE_COMPLETED] * 2
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert (seen["victim"].path, seen["victim"].verdict) == (b"/srv/data", "protected")
    assert (seen["thief"].verdict, seen["thief"].held_by) == ("unprotected", "victim")
    assert not seen["thief"].last_snapshot_id


async def test_a_commit_that_is_done_is_not_answered_to_another(config: Config) -> None:
    async with scene(config) as here:
        await here.finish()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await commit(here)
    assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_what_another_node_says_of_a_task_is_not_believed(config: Config) -> None:
    async with scene(config) as here:
        task_id = here.backup.task_id
        progress = common_pb2.Progress(files_done=99)
        for lie in (
            agent_pb2.ConnectRequest(
                progress=agent_pb2.TaskProgress(task_id=task_id, progress=progress)
            ),
            agent_pb2.ConnectRequest(
                log=agent_pb2.TaskLog(task_id=task_id, level="info", message="a lie")
            ),
            agent_pb2.ConnectRequest(
                backup_finished=agent_pb2.BackupFinished(task_id=task_id, canceled=True)
            ),
            agent_pb2.ConnectRequest(
                restore_finished=agent_pb2.RestoreFinished(task_id=here.restore.task_id)
            ),
        ):
            await here.thief.say(lie)
        # It hears the end of its stream once all of it was heard.
        await here.thief.stream.done_writing()
        assert await here.thief.stream.read() is grpc.aio.EOF
        async with here.thief.agent.connected(running=[task_id]) as again:
            told = list(again.welcome.unknown_task_ids)
        job = await here.coordinator.admin.GetJob(admin_pb2.GetJobRequest(job_id=here.jobs[0]))
        ended = await here.finish()
        logs = admin_pb2.GetJobLogsRequest(job_id=here.jobs[0])
        lines = (await here.coordinator.admin.GetJobLogs(logs)).lines
    assert told == [task_id]
    assert job.job.progress.files_done == 0
    assert ended == [common_pb2.PHASE_COMPLETED] * 2
    assert "a lie" not in str(lines)


async def test_a_node_reads_its_own_past_only_while_a_restore_runs(config: Config) -> None:
    refused = []
    async with scene(config) as here:

        async def try_both(task_id: str) -> None:
            for call in (
                grant_of(here.victim, task_id, UnsealingKey(token_bytes(32))),
                read_pack(here.victim, task_id, here.pack, (0, 8)),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                refused.append(caught.value.code())

        granted = await read_pack(here.victim, here.restore.task_id, here.pack, (0, 8))
        await try_both("")
        await try_both(here.backup.task_id)
        await here.finish()
        await try_both(here.restore.task_id)
    assert granted == b"TIDEMARK"
    assert refused == [
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.NOT_FOUND,
        # A backup runs, but is no restore.
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        # The restore has ended.
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.NOT_FOUND,
    ]


async def test_every_call_that_a_node_may_make_is_tried() -> None:
    may = {method.rpartition("/")[2] for method, roles in RULES.items() if Role.NODE in roles}
    # What a node says on its stream is tried by the tests of claims and of lies.
    assert {*TRIED, "Connect"} == may
