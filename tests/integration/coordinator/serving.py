"""A whole coordinator in this process, on free ports, with the administrator's calls at hand."""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes

import grpc.aio

from coordinator.config import Address, Config
from coordinator.running import Limits
from coordinator.server import serve
from coordinator.stores import OpenPlace, open_place
from proto.tidemark.v1 import admin_pb2, admin_pb2_grpc, common_pb2
from proto.versions import PROTOCOL, Versions
from tests.fakes.agent import FakeAgent, channel

TIMEOUT_SECONDS = 20
LIMITS = Limits(agent_wait_seconds=0.3, grace_seconds=0.3)
ENDED = {
    common_pb2.PHASE_COMPLETED,
    common_pb2.PHASE_PARTIALLY_FAILED,
    common_pb2.PHASE_FAILED,
    common_pb2.PHASE_CANCELED,
}


@dataclass
class Coordinator:
    """One that serves."""

    config: Config
    grpc: str
    http: str
    admin: "admin_pb2_grpc.AdminServiceAsyncStub"

    async def token(self) -> str:
        """A new node token."""
        return (await self.admin.CreateNodeToken(admin_pb2.CreateNodeTokenRequest())).token

    async def agent(self, name: str = "node") -> FakeAgent:
        """A newly enrolled node."""
        return await FakeAgent.enrol(self.grpc, await self.token(), name)

    async def order_backup(self, *volumes: str) -> admin_pb2.Job:
        """Ask for a backup."""
        answer = await self.admin.CreateBackup(admin_pb2.CreateBackupRequest(volumes=volumes))
        return answer.job

    async def ended(self, job_id: str) -> admin_pb2.Job:
        """The job, when it has ended."""
        last = admin_pb2.Job()
        watching = self.admin.WatchJob(
            admin_pb2.WatchJobRequest(job_id=job_id), timeout=TIMEOUT_SECONDS
        )
        async for answer in watching:
            last = answer.job
        assert last.phase in ENDED
        return last

    async def back_up(self, agent: FakeAgent, volume: str, files: dict[str, bytes]) -> str:
        """A whole backup by a sound agent: the id of its snapshot."""
        async with agent.connected() as connection:
            job = await self.order_backup(volume)
            task = (await connection.next_message()).run_backup
            committed = await connection.back_up(task, files)
            await connection.finish_backup(task.task_id)
            assert (await self.ended(job.job_id)).phase == common_pb2.PHASE_COMPLETED
        return committed.snapshot_id

    async def verify(self, depth: "admin_pb2.VerifyDepth.ValueType") -> admin_pb2.Job:
        """Verify everything."""
        request = admin_pb2.CreateVerifyRequest(depth=depth, all=True)
        return await self.ended((await self.admin.CreateVerify(request)).job.job_id)

    def packs(self) -> list[Path]:
        """The packs in the repository, the largest first."""
        found = [path for path in (self.config.repository / "packs").rglob("*") if path.is_file()]
        return sorted(found, key=lambda path: -path.stat().st_size)


def config_in(directory: Path, *, every_seconds: int | None = None) -> Config:
    return Config(
        data=directory / "data",
        repository=directory / "repository",
        listen=Address("127.0.0.1", 0),
        http=Address("127.0.0.1", 0),
        every_seconds=every_seconds,
    )


@asynccontextmanager
async def serving(
    config: Config,
    limits: Limits = LIMITS,
    open_at: OpenPlace = open_place,
    protocol: Versions = PROTOCOL,
    clock: Callable[[], int] = time.time_ns,
) -> AsyncIterator[Coordinator]:
    """Run a coordinator as long as the block lasts."""
    endpoints = config.data / "endpoints.json"
    config.data.mkdir(parents=True, exist_ok=True)
    stop, started = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running = serve(
            config,
            stop,
            clock=clock,
            random=token_bytes,
            limits=limits,
            started=started,
            open_at=open_at,
            protocol=protocol,
        )
        group.create_task(running, name="coordinator")
        # A coordinator that fails to start cancels this wait with its group.
        await started.wait()
        where = json.loads(endpoints.read_text())
        try:
            async with admin_channel(config) as open_:
                stub: admin_pb2_grpc.AdminServiceAsyncStub = admin_pb2_grpc.AdminServiceStub(open_)
                yield Coordinator(config, where["grpc"], where["http"], stub)
        finally:
            stop.set()


def admin_channel(config: Config) -> grpc.aio.Channel:
    context = json.loads((config.data / "admin.context").read_text())
    authority, certificate, key = (context[name].encode() for name in ("ca", "certificate", "key"))
    return channel(context["address"], authority, certificate, key)


async def make_template(directory: Path) -> Path:
    """A founded coordinator that is not running, to copy: founding one takes most of a second."""
    async with serving(config_in(directory)):
        pass
    return directory


def copy_template(template: Path, directory: Path) -> Config:
    for name in ("data", "repository"):
        shutil.copytree(template / name, directory / name, dirs_exist_ok=True)
    return config_in(directory)
