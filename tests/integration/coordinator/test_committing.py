"""A row that a crash left COMMITTING: it is brought to its end, once the store lets us."""

from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest
from typing_extensions import override

from coordinator.catalog import open_catalog
from coordinator.config import Config
from coordinator.stores import in_directory
from proto.tidemark.v1 import admin_pb2, common_pb2
from repository.errors import ObjectExistsError, StoreUnavailableError
from repository.failpoints import VARIABLE, arm
from repository.frames import FrameIdentity
from repository.ids import VolumeId
from repository.layout import parse_kit, root_name
from repository.rebuilding import Rebuilder
from repository.refs import Refs
from repository.store.local import LocalStore
from tests.fakes.agent import FakeAgent, MadeSnapshot
from tests.fakes.ledger import Held, held_by_catalog, held_by_store
from tests.integration.coordinator.serving import Coordinator, serving
from tests.integration.coordinator.test_backup import detail
from tests.integration.coordinator.test_base import backed_up

pytestmark = pytest.mark.asyncio

FIRST = {"a": b"alpha" * 100, "b": b"beta" * 1000}
SECOND = {"b": b"beta" * 999, "c": b"gamma" * 500}
# The second step fails in the middle of its transaction: the root is in the store, the row is not
# told. And the first step is done, and nothing follows.
STORED, NOT_STORED = "coordinator.commit.finish_written=error", "coordinator.commit.begun=error"
both = pytest.mark.parametrize("step", [STORED, NOT_STORED], ids=["stored", "not stored"])


@dataclass
class Crashed:
    """A volume with one snapshot and, behind it, a commit that was cut off."""

    agent: FakeAgent
    volume: VolumeId
    kit: str


def live(made: MadeSnapshot) -> dict[FrameIdentity, int]:
    return {
        FrameIdentity(place.nonce, place.frame): place.length
        for pack in made.packs
        for place in pack.locations
    }


async def commit_stops(step: str, commit: Awaitable[object]) -> None:
    """The coordinator fails at this step of a commit."""
    arm({VARIABLE: step})
    try:
        with pytest.raises(grpc.aio.AioRpcError):
            await commit
    finally:
        arm({})


async def crash(config: Config, step: str, *, delta: bool = True) -> Crashed:
    """The coordinator ends between the two steps of a commit."""
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        volume = agent.volume("data")
        agent.volume("other")
        async with agent.connected() as connection:
            before = await backed_up(coordinator, connection, FIRST)
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            made = agent.make(writing, SECOND)
            if delta:
                # As an agent's do after its first snapshot: what changed, which is all of it.
                changed = dict.fromkeys(live(before), 0) | live(made)
                made.refs = Refs.of(changed, base=False).encode()
            for pack in made.packs:
                await connection.upload(writing, pack)
            signed = agent.sign(writing, task.volume_id, made)
            await commit_stops(step, connection.commit(writing, signed, made.refs))
        export = await coordinator.admin.ExportRecoveryKit(admin_pb2.ExportRecoveryKitRequest())
    assert await undecided(config) == [2]
    return Crashed(agent, volume, export.kit)


async def undecided(config: Config) -> list[int]:
    """Sequences of rows that are COMMITTING."""
    catalog = await open_catalog(config.data / "catalog.db", 0)
    rows = await catalog.ledger.unsettled()
    await catalog.close()
    return [pinned.sequence for pinned, _ in rows]


async def by_store(config: Config, kit: str) -> Held:
    rebuilder = await Rebuilder.open(LocalStore(config.repository), parse_kit(kit))
    held, unreadable = await held_by_store(rebuilder)
    assert unreadable == []
    return held


async def sequences(coordinator: Coordinator) -> list[int]:
    listed = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
    return [each.sequence for each in listed.snapshots if each.volume == "data"]


@both
@pytest.mark.parametrize("delta", [True, False], ids=["delta", "base"])
async def test_a_start_brings_it_to_its_end(config: Config, step: str, delta: bool) -> None:
    crashed = await crash(config, step, delta=delta)
    before = held_by_catalog(config.data / "catalog.db")
    for _ in range(2):
        async with serving(config) as coordinator:
            listed = await sequences(coordinator)
            proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
        assert listed == [1, 2]
        assert (proof.phase, proof.verify.damaged_total) == (common_pb2.PHASE_COMPLETED, 0)
        assert await undecided(config) == []
    held, told = held_by_catalog(config.data / "catalog.db"), await by_store(config, crashed.kit)

    # What a commit that nothing interrupts would have left, as the store tells it.
    assert (held.refs, held.snapshots) == (told.refs, told.snapshots)
    assert held.last_sequences == {crashed.volume: 2}
    assert (held.packs, held.origins) == (before.packs, before.origins)


@both
async def test_the_next_backup_builds_upon_what_was_settled(config: Config, step: str) -> None:
    crashed = await crash(config, step)
    async with serving(config) as coordinator:
        crashed.agent.address = coordinator.grpc
        await coordinator.back_up(crashed.agent, "data", {"d": b"after it"})
        listed = await sequences(coordinator)
        proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
    told = await by_store(config, crashed.kit)
    held = held_by_catalog(config.data / "catalog.db")

    assert listed == [1, 2, 3]
    assert (proof.phase, proof.verify.damaged_total) == (common_pb2.PHASE_COMPLETED, 0)
    assert held == told


class SilentStore(LocalStore):
    """Says nothing about the objects below a prefix, as long as it is told to."""

    def __init__(self, directory: Path, prefix: str) -> None:
        super().__init__(directory)
        self.prefix: str | None = prefix

    @override
    async def get(self, name: str) -> bytes:
        if self.prefix is not None and name.startswith(self.prefix):
            raise StoreUnavailableError("the store does not answer")
        return await super().get(name)


async def refused(coordinator: Coordinator, agent: FakeAgent) -> grpc.aio.AioRpcError:
    """What a backup of the volume is told, which ends with it."""
    async with agent.connected() as connection:
        job = await coordinator.order_backup("data")
        task = (await connection.next_message()).run_backup
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await connection.open_session(task)
        await connection.finish_backup(task.task_id, message="refused")
        assert (await coordinator.ended(job.job_id)).phase == common_pb2.PHASE_FAILED
    return caught.value


@both
async def test_while_the_store_does_not_answer_it_stays_and_only_its_volume_waits(
    config: Config, step: str
) -> None:
    crashed = await crash(config, step)
    store = SilentStore(config.repository, root_name(crashed.volume, 2))
    for _ in range(2):
        async with serving(config, open_at=in_directory(lambda _: store)) as coordinator:
            crashed.agent.address = coordinator.grpc
            before = await sequences(coordinator)
            answer = await refused(coordinator, crashed.agent)
            await coordinator.back_up(crashed.agent, "other", FIRST)
        assert await undecided(config) == [2]
        assert before == [1]
        assert detail(answer).exit_code == 11
        assert detail(answer).retryable
    async with serving(config, open_at=in_directory(lambda _: store)) as coordinator:
        crashed.agent.address = coordinator.grpc
        store.prefix = None
        # Without another start: the next session asks the store again.
        await coordinator.back_up(crashed.agent, "data", {"d": b"after it"})
        after = await sequences(coordinator)
    assert after == [1, 2, 3]
    assert held_by_catalog(config.data / "catalog.db") == await by_store(config, crashed.kit)


async def test_another_root_in_its_place_settles_nothing_and_holds_up_nobody_else(
    config: Config,
) -> None:
    crashed = await crash(config, STORED)
    root = config.repository / root_name(crashed.volume, 2)
    content = root.read_bytes()
    root.chmod(0o600)
    root.write_bytes((config.repository / root_name(crashed.volume, 1)).read_bytes())
    async with serving(config) as coordinator:
        crashed.agent.address = coordinator.grpc
        before = await sequences(coordinator)
        answer = await refused(coordinator, crashed.agent)
        await coordinator.back_up(crashed.agent, "other", FIRST)
    assert await undecided(config) == [2]
    root.write_bytes(content)
    async with serving(config) as coordinator:
        after = await sequences(coordinator)

    assert before == [1]
    assert answer.code() is grpc.StatusCode.DATA_LOSS
    assert after == [1, 2]


@both
async def test_a_commit_that_is_asked_again_without_a_start_goes_on(
    config: Config, step: str
) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            made = agent.make(writing, FIRST)
            for pack in made.packs:
                await connection.upload(writing, pack)
            signed = agent.sign(writing, task.volume_id, made)
            await commit_stops(step, connection.commit(writing, signed, made.refs))
            answers = [await connection.commit(writing, signed, made.refs) for _ in range(2)]

    assert answers[0] == answers[1]
    assert answers[0].phase == common_pb2.PHASE_COMPLETED
    assert answers[0].sequence == 1


class LateStore(LocalStore):
    """Takes a root only after it was given up: what was sent stays on its way until `arrive`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.on_its_way: list[tuple[str, bytes]] = []
        self.is_late = False

    @override
    async def put(self, name: str, data: bytes) -> None:
        if self.is_late and name.startswith("roots/"):
            self.on_its_way.append((name, data))
            raise StoreUnavailableError("the store did not answer a put in time")
        await super().put(name, data)

    async def arrive(self) -> None:
        """All of it; what has come another way meanwhile has to be the same."""
        for name, data in self.on_its_way:
            try:
                await super().put(name, data)
            except ObjectExistsError:
                assert await self.get(name) == data


@pytest.mark.parametrize("arrives", ["before", "after"])
async def test_a_root_that_arrives_when_nobody_waits_for_it_breaks_no_chain(
    config: Config, arrives: str
) -> None:
    """A rebuild takes a volume only as far as each root follows on the one before it."""
    store = LateStore(config.repository)
    async with serving(config, open_at=in_directory(lambda _: store)) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        await coordinator.back_up(agent, "data", FIRST)
        async with agent.connected() as connection:
            job = await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            made = agent.make(writing, SECOND)
            for pack in made.packs:
                await connection.upload(writing, pack)
            signed = agent.sign(writing, task.volume_id, made)
            store.is_late = True
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connection.commit(writing, signed, made.refs)
            store.is_late = False
            await connection.finish_backup(task.task_id, message="the store does not answer")
            failed = await coordinator.ended(job.job_id)
        if arrives == "before":
            await store.arrive()
        await coordinator.back_up(agent, "data", {"d": b"after it"})
        await store.arrive()
        listed = await sequences(coordinator)
        export = await coordinator.admin.ExportRecoveryKit(admin_pb2.ExportRecoveryKitRequest())

    assert len(store.on_its_way) == 1
    assert detail(caught.value).retryable
    assert failed.phase == common_pb2.PHASE_FAILED
    assert listed == [1, 2, 3]
    assert held_by_catalog(config.data / "catalog.db") == await by_store(config, export.kit)


async def test_a_commit_whose_root_nobody_sent_is_forgotten(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            writing = await connection.open_session(task)
            made = agent.make(writing, FIRST)
            for pack in made.packs:
                await connection.upload(writing, pack)
            signed = agent.sign(writing, task.volume_id, made)
            step = "coordinator.commit.refs_stored=error"
            await commit_stops(step, connection.commit(writing, signed, made.refs))
            left = await undecided(config)
            again = await connection.commit(writing, signed, made.refs)

    assert left == []
    # A sequence that was given out is never given out again.
    assert again.sequence == 2
