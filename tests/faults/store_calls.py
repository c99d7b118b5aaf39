"""A store that fails at the n-th call of a backup, for every n and in every way.

The coordinator and the agent are the real ones, in this process, over real gRPC; only the store
fails. After each run both are started anew, everything stored is proven, a backup is made and
restored, and what is restored equals what was backed up.
"""

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from agent import daemon
from agent.config import Address
from agent.config import Config as AgentConfig
from coordinator.stores import in_directory
from proto.tidemark.v1 import admin_pb2, common_pb2
from repository.errors import StoreFullError, StoreUnavailableError, TidemarkError
from repository.store.local import LocalStore
from tests.e2e import trees
from tests.fakes.faulty import FaultyStore, Plan
from tests.integration.coordinator.serving import Coordinator, config_in, serving

VOLUME = "tree"
_FOREVER = 1 << 30
_CONNECT_SECONDS = 30.0


class Manner(NamedTuple):
    """How a call fails."""

    name: str
    error: type[TidemarkError]
    after_effect: bool
    forever: bool


MANNERS = (
    Manner("once", StoreUnavailableError, after_effect=False, forever=False),
    Manner("once, done", StoreUnavailableError, after_effect=True, forever=False),
    Manner("from then on", StoreUnavailableError, after_effect=False, forever=True),
    Manner("from then on, done", StoreUnavailableError, after_effect=True, forever=True),
    Manner("full", StoreFullError, after_effect=False, forever=True),
)


class Bench:
    """One repository, one node, and a tree that grows with every run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tree = directory / "volume"
        self.config = config_in(directory)
        self.state = directory / "state"
        self._targets = 0
        self._source = random.Random(5)
        trees.build(self.tree, files=20)
        self.state.mkdir()
        (directory / "protect.json").write_text(
            f'{{"volumes": [{{"name": "{VOLUME}", "path": "{self.tree}"}}]}}'
        )

    def grow(self) -> None:
        """Give the next backup something to store."""
        with (self.tree / "grown").open("wb") as file:
            file.write(self._source.randbytes(200_000))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Coordinator, FaultyStore]]:
        """Both daemons, for as long as the block lasts."""
        opened: list[FaultyStore] = []

        def open_store(directory: Path) -> FaultyStore:
            opened.append(FaultyStore(LocalStore(directory)))
            return opened[-1]

        async with serving(self.config, open_at=in_directory(open_store)) as coordinator:
            (self.directory / "token").write_text(await coordinator.token())
            async with self._agent(coordinator):
                yield coordinator, opened[0]

    @asynccontextmanager
    async def _agent(self, coordinator: Coordinator) -> AsyncIterator[None]:
        host, _, port = coordinator.grpc.rpartition(":")
        config = AgentConfig(
            coordinator=Address(host, int(port)),
            state=self.state,
            token_file=self.directory / "token",
            node_name="node",
            http=Address("127.0.0.1", 0),
            protect_file=self.directory / "protect.json",
            restore_root=(Path("/"),),
        )
        async with asyncio.TaskGroup() as group:
            running = group.create_task(daemon.run(config), name="agent")
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    while not await _is_connected(coordinator):  # noqa: ASYNC110 - over gRPC
                        await asyncio.sleep(0.02)
                yield
            finally:
                running.cancel()

    async def back_up(self, coordinator: Coordinator) -> admin_pb2.Job:
        """One backup, however it ends."""
        job = await coordinator.order_backup(VOLUME)
        return await coordinator.ended(job.job_id)

    async def restored(self, coordinator: Coordinator, snapshot_id: str) -> None:
        """Restore a snapshot, and compare it with the tree."""
        self._targets += 1
        target = self.directory / f"restored-{self._targets}"
        request = admin_pb2.CreateRestoreRequest(snapshot=snapshot_id, target=os.fsencode(target))
        answer = await coordinator.admin.CreateRestore(request)
        job = await coordinator.ended(answer.job.job_id)
        assert job.phase == common_pb2.PHASE_COMPLETED, job
        trees.assert_same(trees.snapshot_of(self.tree), trees.snapshot_of(target))
        shutil.rmtree(target)

    async def count_calls(self) -> int:
        """How many calls a backup of what has grown makes when all goes well."""
        async with self.running() as (coordinator, _):
            first = await self.back_up(coordinator)
        assert first.phase == common_pb2.PHASE_COMPLETED, first
        self.grow()
        async with self.running() as (coordinator, store):
            store.plan = Plan()
            job = await self.back_up(coordinator)
            calls = store.plan.calls
        assert job.phase == common_pb2.PHASE_COMPLETED, job
        return calls

    async def run(self, manner: Manner, number: int) -> bool:
        """One run; AssertionError for whatever does not hold. Whether the call was made at all."""
        self.grow()
        async with self.running() as (coordinator, store):
            before = await _snapshots(coordinator)
            store.plan = plan = Plan(
                first=number,
                last=_FOREVER if manner.forever else number,
                error=manner.error,
                after_effect=manner.after_effect,
            )
            job = await self.back_up(coordinator)
            store.plan = Plan()
            listed = await _snapshots(coordinator)
        if job.phase == common_pb2.PHASE_COMPLETED:
            assert listed[-1] == job.snapshots[0].snapshot_id
        else:
            assert job.phase == common_pb2.PHASE_FAILED, job
            assert "store" in job.message or "repository" in job.message, job.message
            assert listed == before, "a failed backup shows a snapshot"
        async with self.running() as (coordinator, store):
            if job.phase == common_pb2.PHASE_COMPLETED:
                await self.restored(coordinator, job.snapshots[0].snapshot_id)
            proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
            assert proof.phase == common_pb2.PHASE_COMPLETED, proof
            again = await self.back_up(coordinator)
            assert again.phase == common_pb2.PHASE_COMPLETED, again
            await self.restored(coordinator, again.snapshots[0].snapshot_id)
        assert not list((self.config.repository / ".tmp").iterdir()), "temporary files stay"
        return plan.calls >= number


async def _is_connected(coordinator: Coordinator) -> bool:
    status = await coordinator.admin.GetStatus(admin_pb2.GetStatusRequest())
    return any(volume.volume == VOLUME for volume in status.volumes) and any(
        node.state == "connected" for node in status.nodes
    )


async def _snapshots(coordinator: Coordinator) -> list[str]:
    answer = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
    ordered = sorted(answer.snapshots, key=lambda each: each.sequence)
    return [each.snapshot_id for each in ordered]
