"""Several repositories in one coordinator: made, chosen, apart from each other, and away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import msgspec
import pytest
from typing_extensions import override

from coordinator import repositories
from coordinator.config import Config, Where
from coordinator.stores import Clock, OpenPlace, Place, in_directory
from proto.tidemark.v1 import admin_pb2, common_pb2
from repository.failpoints import VARIABLE, arm
from repository.layout import parse_kit
from repository.rebuilding import Rebuilder
from repository.refs import Refs, decode_refs
from repository.store.local import LocalStore
from tests.fakes.agent import Connection, FakeAgent, MadeSnapshot, Writing
from tests.fakes.ledger import held_by_store
from tests.integration.coordinator.serving import Coordinator, serving
from tests.integration.coordinator.test_base import read_base

pytestmark = pytest.mark.asyncio

FILES = {"a": b"alpha" * 100, "b": b"beta" * 1000}
OTHERS = {"a": b"alpha" * 100, "c": b"gamma" * 1000}
ALL = admin_pb2.VERIFY_DEPTH_DATA


@pytest.fixture
def allowed(config: Config, tmp_path: Path) -> Config:
    return msgspec.structs.replace(config, repository_places=(f"file://{tmp_path}",))


async def init(
    coordinator: Coordinator, name: str, directory: Path
) -> admin_pb2.GetRepositoryResponse:
    request = admin_pb2.InitRepositoryRequest(name=name, url=f"file://{directory}")
    return (await coordinator.admin.InitRepository(request)).repository


async def agent_beside_second(coordinator: Coordinator, directory: Path) -> FakeAgent:
    """An agent with the volume `data`, and a second repository in that directory."""
    agent = await coordinator.agent()
    agent.volume("data")
    await init(coordinator, "second", directory / "second")
    return agent


async def assign(coordinator: Coordinator, volume: str, repository: str) -> admin_pb2.Volume:
    request = admin_pb2.AssignVolumesRequest(volumes=[volume], repository=repository)
    [assigned] = (await coordinator.admin.AssignVolumes(request)).volumes
    return assigned


async def snapshots(coordinator: Coordinator) -> list[tuple[str, int]]:
    """Where each lies, and its number."""
    answer = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
    return [(each.repository, each.sequence) for each in answer.snapshots]


async def standing(coordinator: Coordinator) -> dict[str, admin_pb2.GetRepositoryResponse]:
    answer = await coordinator.admin.ListRepositories(admin_pb2.ListRepositoriesRequest())
    return {each.name: each for each in answer.repositories}


async def content(coordinator: Coordinator, snapshot: str, path: str) -> bytes:
    request = admin_pb2.ReadFileRequest(snapshot=snapshot, path=path.encode())
    return b"".join([piece.data async for piece in coordinator.admin.ReadFile(request)])


async def check(coordinator: Coordinator, snapshot_files: dict[str, dict[str, bytes]]) -> None:
    """All is proven, and reads as it was."""
    job = await coordinator.verify(ALL)
    assert job.phase == common_pb2.PHASE_COMPLETED
    assert (job.verify.snapshots_checked, job.verify.damaged_total) == (len(snapshot_files), 0)
    for snapshot, files in snapshot_files.items():
        for path, expected in files.items():
            assert await content(coordinator, snapshot, path) == expected


async def test_a_volume_goes_to_another_repository_and_comes_back(
    allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        first = await coordinator.back_up(agent, "data", FILES)
        made = await init(coordinator, "second", tmp_path / "second")
        before = await snapshots(coordinator)
        assigned = await assign(coordinator, "data", "second")
        second = await coordinator.back_up(agent, "data", OTHERS)
        third = await coordinator.back_up(agent, "data", FILES)
        await assign(coordinator, "data", made.repository_id[:8])
        await assign(coordinator, "data", "default")
        fourth = await coordinator.back_up(agent, "data", OTHERS)
        lying = await snapshots(coordinator)
        await check(coordinator, {first: FILES, second: OTHERS, third: FILES, fourth: OTHERS})
        apart = admin_pb2.DiffSnapshotsRequest(snapshot_a=second, snapshot_b=fourth)
        with pytest.raises(grpc.aio.AioRpcError, match="lie in different repositories"):
            await anext(aiter(coordinator.admin.DiffSnapshots(apart)))
        stood = await standing(coordinator)
    # And after a start.
    async with serving(allowed) as coordinator:
        await check(coordinator, {first: FILES, second: OTHERS, third: FILES, fourth: OTHERS})
        again = await standing(coordinator)

    assert before == [("default", 1)]
    assert assigned.repository == "second"
    assert lying == [("default", 1), ("second", 2), ("second", 3), ("default", 4)]
    assert [each.snapshots for each in stood.values()] == [2, 2]
    assert {name: each.repository_id for name, each in stood.items()} == {
        name: each.repository_id for name, each in again.items()
    }
    assert all(each.opened and each.packs == 4 for each in again.values())


async def test_each_repository_is_whole_without_the_others_and_the_catalog(
    allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        agent, other = await coordinator.agent("one"), await coordinator.agent("two")
        agent.volume("data")
        other.volume("elsewhere")
        await init(coordinator, "second", tmp_path / "second")
        await coordinator.back_up(agent, "data", FILES)
        await coordinator.back_up(other, "elsewhere", FILES)
        await assign(coordinator, "data", "second")
        await coordinator.back_up(agent, "data", FILES)
        await coordinator.back_up(agent, "data", OTHERS)
        kits = [
            (
                await coordinator.admin.ExportRecoveryKit(
                    admin_pb2.ExportRecoveryKitRequest(repository=name)
                )
            ).kit
            for name in ("", "second")
        ]

    for directory, kit, sequences in (
        (allowed.repository, kits[0], [1, 1]),
        (tmp_path / "second", kits[1], [2, 3]),
    ):
        store = LocalStore(directory)
        held, unreadable = await held_by_store(await Rebuilder.open(store, parse_kit(kit)))
        assert unreadable == []
        assert sorted(sequence for _, sequence in held.snapshots) == sequences
        assert {origin[0] for origin in held.origins.values()} == set(held.packs)


async def test_a_repository_is_made_once_and_only_where_it_may_be(
    allowed: Config, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "somebody's").touch()
    async with serving(allowed) as coordinator:
        made = await init(coordinator, "second", tmp_path / "second")
        again = await init(coordinator, "second", tmp_path / "second" / ".")
        for name, directory, words in (
            ("second", tmp_path / "third", "other settings"),
            ("Third", tmp_path / "third", "cannot be the name"),
            ("default", tmp_path / "third", "settings is called"),
            ("third", Path("/elsewhere"), "do not allow"),
            ("third", tmp_path / ".." / "elsewhere", "do not allow"),
            ("third", tmp_path / "second/within", "lie in one another"),
            ("third", allowed.repository, "lie in one another"),
            ("third", allowed.data / "within", "lie in one another"),
            ("third", tmp_path / "full", "is not empty"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=words):
                await init(coordinator, name, directory)
        left = [path.name for path in (allowed.data / "repositories").iterdir()]
        # What stood in the way is gone.
        (full / "somebody's").unlink()
        third = await init(coordinator, "third", full)

    assert (made.repository_id, made.opened) == (again.repository_id, True)
    assert left == ["second"]
    assert third.repository_id != made.repository_id


async def test_a_place_that_cannot_be_written_to_leaves_nothing_behind(
    allowed: Config, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    async with serving(allowed) as coordinator:
        for directory, words in (
            (file / "within", "no repository can be made in .*: Not a directory"),
            (tmp_path / ("long" * 100), "no repository can be made in .*: File name too long"),
            (tmp_path / "circle", "leads nowhere"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=words):
                await init(coordinator, "second", directory)
        refused = await standing(coordinator)
        made = await init(coordinator, "second", tmp_path / "second")
    async with serving(allowed) as coordinator:
        stood = await standing(coordinator)

    assert list(refused) == ["default"]
    assert made.opened
    assert stood["second"].opened


async def test_one_that_a_disk_refuses_keeps_nothing_from_starting(
    allowed: Config, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def opened(where: Where, clock: Clock) -> AsyncIterator[Place]:
        if where != allowed.repository:
            raise PermissionError(13, "Permission denied")
        async with in_directory()(where, clock) as place:
            yield place

    async with serving(allowed) as coordinator:
        await init(coordinator, "second", tmp_path / "second")
    async with serving(allowed, open_at=opened) as coordinator:
        stood = await standing(coordinator)

    assert "cannot be used: Permission denied" in stood["second"].problem


async def test_a_directory_is_given_no_key(allowed: Config, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/second"
    async with serving(allowed) as coordinator:
        for more in ({"credentials": b"key"}, {"ca": b"ca"}, {"lock": "30d"}):
            request = admin_pb2.InitRepositoryRequest(name="second", url=url, **more)
            with pytest.raises(grpc.aio.AioRpcError, match="a directory has no") as caught:
                await coordinator.admin.InitRepository(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        nothing = not (allowed.data / "repositories").exists()
        await init(coordinator, "second", tmp_path / "second")
        again = admin_pb2.InitRepositoryRequest(name="second", url=url, credentials=b"key")
        with pytest.raises(grpc.aio.AioRpcError, match="a directory has no"):
            await coordinator.admin.InitRepository(again)

    assert nothing
    assert not (allowed.data / "repositories/second/credentials").exists()


async def test_what_never_began_leaves_no_key_to_the_next_of_its_name(
    allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        left = allowed.data / "repositories/second"
        left.mkdir(parents=True)
        (left / "credentials").write_text("of another bucket")
        await init(coordinator, "second", tmp_path / "second")

    assert sorted(path.name for path in left.iterdir()) == ["keys", "place"]


async def test_credentials_that_are_none_are_not_kept(config: Config) -> None:
    anywhere = msgspec.structs.replace(config, repository_places=("any",))
    request = admin_pb2.InitRepositoryRequest(name="far", url="s3://bucket", credentials=b"\xff")
    async with serving(anywhere) as coordinator:
        with pytest.raises(grpc.aio.AioRpcError, match="not of the form that AWS tools use"):
            await coordinator.admin.InitRepository(request)

    assert not (config.data / "repositories").exists()


async def test_settings_that_list_no_place_allow_none(config: Config, tmp_path: Path) -> None:
    bucket = admin_pb2.InitRepositoryRequest(name="far", url="s3://bucket/prefix")
    async with serving(config) as coordinator:
        with pytest.raises(grpc.aio.AioRpcError, match="do not allow") as caught:
            await init(coordinator, "second", tmp_path / "second")
        with pytest.raises(grpc.aio.AioRpcError, match="do not allow"):
            await coordinator.admin.InitRepository(bucket)
        stood = await standing(coordinator)

    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert list(stood) == ["default"]
    assert not (tmp_path / "second").exists()


async def test_a_volume_is_no_place_for_a_repository(allowed: Config, tmp_path: Path) -> None:
    async with serving(allowed) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        agent.volumes[0].path = bytes(tmp_path / "volume")
        async with agent.connected():
            with pytest.raises(grpc.aio.AioRpcError, match="protected volume"):
                await init(coordinator, "second", tmp_path / "volume" / "within")


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize(
    "place", ["begun=error", "object_written=error", "object_written=error@3", "done=error"]
)
async def test_what_broke_off_while_it_was_made_goes_on(
    place: str, asks: bool, allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        arm({VARIABLE: f"coordinator.founding.{place}"})
        try:
            with pytest.raises(grpc.aio.AioRpcError):
                await init(coordinator, "second", tmp_path / "second")
        finally:
            arm({})
        before = await standing(coordinator)
        if asks:
            await init(coordinator, "second", tmp_path / "second")
    async with serving(allowed) as coordinator:
        found = await standing(coordinator)

    assert not before["second"].opened
    assert found["second"].opened
    assert found["second"].repository_id == before["second"].repository_id


async def test_who_asked_for_one_and_went_away_may_ask_again(
    allowed: Config, tmp_path: Path
) -> None:
    reached = asyncio.Event()

    class Slow(LocalStore):
        @override
        async def put(self, name: str, data: bytes) -> None:
            reached.set()
            await asyncio.sleep(0.2)
            await super().put(name, data)

    @asynccontextmanager
    async def opened(where: Where, clock: Clock) -> AsyncIterator[Place]:
        make = LocalStore if where == allowed.repository else Slow
        async with in_directory(make)(where, clock) as place:
            yield place

    async with serving(allowed, open_at=opened) as coordinator:
        request = admin_pb2.InitRepositoryRequest(name="second", url=f"file://{tmp_path}/second")
        asking = coordinator.admin.InitRepository(request)
        await reached.wait()
        asking.cancel()
        made = await init(coordinator, "second", tmp_path / "second")

    assert made.opened


@pytest.mark.parametrize("papers", [b"{", b'{"url":"tape:///1"}'])
async def test_one_whose_papers_are_damaged_keeps_nothing_from_starting(
    papers: bytes, allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        await init(coordinator, "second", tmp_path / "second")
        await init(coordinator, "third", tmp_path / "third")
    (allowed.data / "repositories/second/place").write_bytes(papers)
    async with serving(allowed) as coordinator:
        stood = await standing(coordinator)

    assert list(stood) == ["default", "third"]


async def test_one_that_is_away_keeps_nothing_else_from_working(
    allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        agent.volume("other")
        here = await coordinator.back_up(agent, "other", FILES)
        await init(coordinator, "second", tmp_path / "second")
        await assign(coordinator, "data", "second")
        there = await coordinator.back_up(agent, "data", FILES)
    (tmp_path / "second").rename(tmp_path / "away")
    async with serving(allowed) as coordinator:
        agent.address = coordinator.grpc
        stood = await standing(coordinator)
        status = await coordinator.admin.GetStatus(admin_pb2.GetStatusRequest())
        await coordinator.back_up(agent, "other", OTHERS)
        assert await content(coordinator, here, "a") == FILES["a"]
        for ask in (
            content(coordinator, there, "a"),
            _open_session(coordinator, agent),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="second cannot be opened"):
                await ask
        verified = await coordinator.verify(ALL)
        (tmp_path / "away").rename(tmp_path / "second")
        back = await init(coordinator, "second", tmp_path / "second")
        again = await coordinator.back_up(agent, "data", OTHERS)
        assert await content(coordinator, there, "a") == FILES["a"]
        assert await content(coordinator, again, "c") == OTHERS["c"]

    assert (stood["default"].opened, stood["second"].opened) == (True, False)
    assert "is gone" in stood["second"].problem
    assert [each.name for each in status.absent_repositories] == ["second"]
    assert status.absent_repositories[0].message == stood["second"].problem
    # What is there is proven all the same.
    assert verified.phase == common_pb2.PHASE_FAILED
    assert verified.verify.snapshots_checked == 2
    assert "1 snapshot in repository second could not be verified" in verified.message
    assert back.opened


class _Hanging(LocalStore):
    """Hangs in all that it is asked, for as long as it is told to."""

    free = asyncio.Event()
    reached = asyncio.Event()

    @override
    async def get(self, name: str) -> bytes:
        await self._pass()
        return await super().get(name)

    @override
    async def put(self, name: str, data: bytes) -> None:
        await self._pass()
        await super().put(name, data)

    async def _pass(self) -> None:
        self.reached.set()
        await self.free.wait()


@pytest.fixture
def hanging() -> type[_Hanging]:
    """One that does not hang yet."""

    class Hanging(_Hanging):
        free, reached = asyncio.Event(), asyncio.Event()

    Hanging.free.set()
    return Hanging


async def _until_opened(
    coordinator: Coordinator, name: str
) -> dict[str, admin_pb2.GetRepositoryResponse]:
    while True:
        found = await standing(coordinator)
        if found[name].opened:
            return found
        await asyncio.sleep(0.05)


def _opening(hanging: type[_Hanging], directory: Path) -> OpenPlace:
    @asynccontextmanager
    async def opened(where: Where, clock: Clock) -> AsyncIterator[Place]:
        make = hanging if where == directory else LocalStore
        async with in_directory(make)(where, clock) as place:
            yield place

    return opened


async def test_a_commit_that_hangs_in_one_repository_holds_up_no_other(
    allowed: Config, tmp_path: Path, hanging: type[_Hanging]
) -> None:
    open_at = _opening(hanging, tmp_path / "second")
    async with serving(allowed, open_at=open_at) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        other = await coordinator.agent("other")
        other.volume("other")
        await init(coordinator, "second", tmp_path / "second")
        async with agent.connected() as connection, asyncio.TaskGroup() as group:
            await assign(coordinator, "data", "second")
            volume, writing = await begun(coordinator, connection)
            made = await sent(connection, writing, FILES)
            hanging.free.clear()
            hanging.reached.clear()
            commit = connection.commit(writing, agent.sign(writing, volume, made), made.refs)
            committing = group.create_task(commit, name="commit")
            await hanging.reached.wait()
            async with asyncio.timeout(5):
                await coordinator.back_up(other, "other", OTHERS)
            was_done = committing.done()
            hanging.free.set()
        lying = await snapshots(coordinator)

    assert not was_done
    assert sorted(lying) == [("default", 1), ("second", 1)]


async def test_one_that_hangs_while_it_is_opened_holds_up_neither_the_start_nor_the_others(
    allowed: Config,
    tmp_path: Path,
    hanging: type[_Hanging],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_at = _opening(hanging, tmp_path / "second")
    async with serving(allowed, open_at=open_at) as coordinator:
        await init(coordinator, "second", tmp_path / "second")
        await init(coordinator, "third", tmp_path / "third")
    (tmp_path / "third").rename(tmp_path / "away")
    monkeypatch.setattr(repositories, "_START_SECONDS", 0.2)
    monkeypatch.setattr(repositories, "_AGAIN_SECONDS", 0.1)
    hanging.free.clear()
    async with asyncio.timeout(10), serving(allowed, open_at=open_at) as coordinator:
        stood = await standing(coordinator)
        (tmp_path / "away").rename(tmp_path / "third")
        meanwhile = await _until_opened(coordinator, "third")
        await init(coordinator, "fourth", tmp_path / "fourth")
        hanging.free.set()
        await _until_opened(coordinator, "second")

    assert [each.opened for each in stood.values()] == [True, False, False]
    assert "not answered" in stood["second"].problem
    assert not meanwhile["second"].opened


async def test_a_task_for_a_repository_that_is_not_known_fails_and_no_other(
    allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        agent = await agent_beside_second(coordinator, tmp_path)
        async with agent.connected():
            await assign(coordinator, "data", "second")
    (allowed.data / "repositories/second/place").write_bytes(b"{")
    async with serving(allowed) as coordinator:
        agent.address = coordinator.grpc
        agent.volume("other")
        async with agent.connected() as connection:
            job = await coordinator.ended((await coordinator.order_backup("data")).job_id)
            await coordinator.order_backup("other")
            told = await connection.next_message()

    assert job.phase == common_pb2.PHASE_FAILED
    assert "has no repository" in job.message
    assert told.WhichOneof("message") == "run_backup"


async def test_damage_is_found_while_another_repository_is_away(
    allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        agent.volume("other")
        here = await coordinator.back_up(agent, "other", FILES)
        sound = await coordinator.back_up(agent, "data", OTHERS)
        await init(coordinator, "second", tmp_path / "second")
        await assign(coordinator, "data", "second")
        there = await coordinator.back_up(agent, "data", FILES)
    [pack, *_] = sorted(
        (path for path in (allowed.repository / "packs").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_mtime_ns,
    )
    content_of_pack = bytearray(pack.read_bytes())
    content_of_pack[100] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content_of_pack)
    (tmp_path / "second").rename(tmp_path / "away")
    async with serving(allowed) as coordinator:
        verified = await coordinator.verify(ALL)
        listed = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
        proven = {each.snapshot_id for each in listed.snapshots if each.HasField("last_proof_at")}

    assert verified.phase == common_pb2.PHASE_FAILED
    [damaged] = verified.verify.damaged
    assert list(damaged.snapshots) == [here]
    assert "1 pack(s) are damaged; 1 snapshot in repository second" in verified.message
    assert proven == {sound}
    assert there not in proven


async def _open_session(coordinator: Coordinator, agent: FakeAgent) -> Writing:
    async with agent.connected() as connection:
        job = await coordinator.order_backup("data")
        task = (await connection.next_message()).run_backup
        try:
            return await connection.open_session(task)
        finally:
            await connection.finish_backup(task.task_id, message="no session")
            await coordinator.ended(job.job_id)


async def begun(coordinator: Coordinator, connection: Connection) -> tuple[bytes, Writing]:
    """A backup of the volume `data` that has begun: the volume's id, and its session."""
    await coordinator.order_backup("data")
    task = (await connection.next_message()).run_backup
    return task.volume_id, await connection.open_session(task)


async def sent(connection: Connection, writing: Writing, files: dict[str, bytes]) -> MadeSnapshot:
    made = connection.agent.make(writing, files)
    for pack in made.packs:
        await connection.upload(writing, pack)
    return made


async def test_a_snapshot_names_nothing_that_lies_in_another_repository(
    allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        agent = await agent_beside_second(coordinator, tmp_path)
        async with agent.connected() as connection:
            volume, writing = await begun(coordinator, connection)
            here = await sent(connection, writing, FILES)
            signed = agent.sign(writing, volume, here)
            await connection.commit(writing, signed, here.refs)
            await assign(coordinator, "data", "second")
        async with agent.connected() as connection:
            volume, writing = await begun(coordinator, connection)
            there = await sent(connection, writing, OTHERS)
            both = {**decode_refs(there.refs).live(), **decode_refs(here.refs).live()}
            refs = Refs.of(both, base=True).encode()
            stolen = with_refs(there, refs)
            with pytest.raises(grpc.aio.AioRpcError, match="in another repository"):
                await connection.commit(writing, agent.sign(writing, volume, stolen), refs)
            base = await read_base(connection, writing)

    assert writing.head_root == b""
    assert base == {}


def with_refs(made: MadeSnapshot, refs: bytes) -> MadeSnapshot:
    """The same with other refs."""
    return MadeSnapshot(made.packs, made.manifest, refs, made.total_files, made.total_bytes)


async def test_what_comes_back_to_a_repository_must_name_all_that_it_needs(
    allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        agent = await agent_beside_second(coordinator, tmp_path)
        await coordinator.back_up(agent, "data", FILES)
        await assign(coordinator, "data", "second")
        await coordinator.back_up(agent, "data", FILES)
        await assign(coordinator, "data", "default")
        async with agent.connected() as connection:
            volume, writing = await begun(coordinator, connection)
            made = await sent(connection, writing, OTHERS)
            refs = Refs.of(decode_refs(made.refs).live(), base=False).encode()
            changes = with_refs(made, refs)
            with pytest.raises(grpc.aio.AioRpcError, match="does not name all that it needs"):
                await connection.commit(writing, agent.sign(writing, volume, changes), refs)
            known = await read_base(connection, writing)

    # What its last snapshot there holds need not be sent again.
    assert writing.head_sequence == 1
    assert len(known) == len(FILES) + 1


async def test_a_backup_goes_on_where_it_began(allowed: Config, tmp_path: Path) -> None:
    async with serving(allowed) as coordinator:
        agent = await agent_beside_second(coordinator, tmp_path)
        async with agent.connected() as connection:
            volume, writing = await begun(coordinator, connection)
            await assign(coordinator, "data", "second")
            made = await sent(connection, writing, FILES)
            await connection.commit(writing, agent.sign(writing, volume, made), made.refs)
        lying = await snapshots(coordinator)

    assert lying == [("default", 1)]


async def test_a_commit_that_was_interrupted_there_is_finished_there(
    allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        agent = await agent_beside_second(coordinator, tmp_path)
        async with agent.connected() as connection:
            await assign(coordinator, "data", "second")
            volume, writing = await begun(coordinator, connection)
            made = await sent(connection, writing, FILES)
            arm({VARIABLE: "coordinator.commit.root_signed=error"})
            try:
                with pytest.raises(grpc.aio.AioRpcError):
                    await connection.commit(writing, agent.sign(writing, volume, made), made.refs)
            finally:
                arm({})
        assert await snapshots(coordinator) == []
    async with serving(allowed) as coordinator:
        lying = await snapshots(coordinator)
        await check(coordinator, dict.fromkeys(await ids(coordinator), FILES))

    assert lying == [("second", 1)]


async def ids(coordinator: Coordinator) -> list[str]:
    answer = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
    return [each.snapshot_id for each in answer.snapshots]


async def test_a_node_hears_of_a_repositorys_limit_before_it_works_with_it(
    allowed: Config, tmp_path: Path
) -> None:
    async with serving(allowed) as coordinator:
        agent = await agent_beside_second(coordinator, tmp_path)
        rule = admin_pb2.SetBandwidthRequest(repository="second", bytes_per_second=1_000_000)
        limit = (await coordinator.admin.SetBandwidth(rule)).limit
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            unlimited = await connection.next_message()
            await connection.finish_backup(unlimited.run_backup.task_id, message="enough")
            await assign(coordinator, "data", "second")
            await coordinator.order_backup("data")
            told = await connection.next_message()
            task = await connection.next_message()

    assert limit.subject == "second"
    assert unlimited.WhichOneof("message") == "run_backup"
    assert told.WhichOneof("message") == "bandwidth"
    assert not told.bandwidth.unlimited
    assert task.WhichOneof("message") == "run_backup"
