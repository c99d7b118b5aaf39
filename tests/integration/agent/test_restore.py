"""A restore yields what was backed up, or says what it could not; nothing else is touched."""

import errno
import os
import random
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import restore as module
from agent.backup import run_backup
from agent.restore import run_restore
from agent.services import (
    BackupTask,
    Phase,
    RestoreOutcome,
    RestorePlaces,
    RestoreTask,
    Services,
    Volume,
)
from agent.side import SideProcess
from agent.state import State
from agent.targets import Place, open_target
from agent.writing import File
from repository.chunking import BLOCK_BYTES
from repository.errors import UsageError
from repository.failpoints import VARIABLE, arm
from repository.frames import FrameIdentity
from tests.fakes.coordinator import NODE, REPOSITORY, MemoryCoordinator
from tests.fakes.grants import MemoryGrants
from tests.fakes.tracking import ToldTracking
from tests.unit.agent import trees

pytestmark = pytest.mark.asyncio


class Clock:
    def now_ns(self) -> int:
        return 1 << 62

    def monotonic(self) -> float:
        return 0.0


class Node:
    """An agent with one volume, and a place to restore to."""

    def __init__(self, root: Path, state: State, workers: ThreadPoolExecutor) -> None:
        self.root = root
        self.source = root / "source"
        self.source.mkdir()
        self.target = root / "restores" / "target"
        self.closed: frozenset[tuple[int, int]] = frozenset()
        self.coordinator = MemoryCoordinator()
        self.grants = MemoryGrants(self.coordinator)
        self.services = Services(
            node_id=NODE,
            signing_key=self.coordinator.node,
            state=state,
            coordinator=self.coordinator,
            workers=workers,
            clock=Clock(),
            tracking=ToldTracking(),
            progress=lambda _: None,
            log=lambda _, message: self.logged.append(message),
        )
        self.logged: list[str] = []

    async def back_up(self) -> None:
        volume = Volume(b"V" * 16, "volume", os.fsencode(self.source))
        public = self.coordinator.recovery.public
        task = BackupTask("task", "job", volume, REPOSITORY, public)
        outcome = await run_backup(task, self.services)
        assert outcome.error is None

    async def restore(
        self, *paths: bytes, target: Path | None = None, in_place: bool = False, **options: Any
    ) -> RestoreOutcome:
        at = b"" if in_place else os.fsencode(target or self.target)
        task = RestoreTask("task", "job", "snapshot", at, paths, in_place, **options)
        volumes = {b"V" * 16: os.fsencode(self.source)}
        roots = [os.fsencode(self.root / "restores")]
        places = RestorePlaces(roots, volumes.get, self.closed)
        return await run_restore(task, self.services, self.grants, places)

    async def frame_of(self, path: bytes) -> FrameIdentity:
        """The frame in which the content of a file begins."""
        entry, _ = (await self.coordinator.tree())[path.replace(b"/", b"\0")]
        assert entry.content is not None
        extent = entry.content.extents[0]
        return FrameIdentity(extent.nonce, extent.frame)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with State(tmp_path / "state.db") as state, ThreadPoolExecutor(2) as workers:
        yield Node(tmp_path, state, workers)


def fill(source: Path) -> None:
    chance = random.Random(1)
    for number in range(300):
        path = source / f"d{number % 7}" / f"e{number % 3}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.choice([0, 10, 2000])))
        path.chmod(chance.choice([0o600, 0o644, 0o4755]))
        os.utime(path, ns=(number, number * 1_000_000_007))
    (source / "large").write_bytes(chance.randbytes(3_000_000))
    (source / "medium").write_bytes(b"the same again and again\n" * 20_000)
    (source / "link").symlink_to("d0/nowhere")
    (source / "second-name").hardlink_to(source / "large")
    (source / os.fsdecode(b"not \xff utf-8\n")).write_bytes(b"odd")
    os.mkfifo(source / "pipe")
    os.chown(source / "d1", 1234, 4321)
    (source / "d1").chmod(0o1500)
    os.utime(source / "d1", ns=(5, 5))


def picture(root: Path) -> dict[str, object]:
    """All that can be said of a tree, but inodes and times of access and change."""
    found: dict[str, object] = {}
    groups: dict[int, str] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        name = str(path.relative_to(root))
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = path.readlink()
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        first = groups.setdefault(status.st_ino, name)
        attributes = os.listxattr(path, follow_symlinks=False)
        owner = (status.st_uid, status.st_gid)
        extra = {each: os.getxattr(path, each, follow_symlinks=False) for each in attributes}
        found[name] = (status.st_mode, owner, status.st_mtime_ns, content, first, extra)
    return found


async def test_many_small_files_come_back_by_writers(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.wholes._WRITERS_FROM", 0)
    is_ready, used = SideProcess.is_ready, []

    def is_ready_at_once(side: SideProcess, wait_seconds: float = 0) -> bool:
        used.append(is_ready(side, max(wait_seconds, 30)))
        return used[-1]

    monkeypatch.setattr(SideProcess, "is_ready", is_ready_at_once)
    fill(node.source)
    (node.source / "d1" / "small").write_bytes(b"two names")
    (node.source / "d2" / "other-name").hardlink_to(node.source / "d1" / "small")
    await node.back_up()

    outcome = await node.restore()

    assert outcome.error is None
    assert picture(node.target) == picture(node.source)
    assert used
    assert all(used)
    assert node.logged == []


async def test_large_files_are_on_their_way_to_the_disk_before_the_end(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "agent.writing.begin_writeback", lambda _, offset, length: begun.append((offset, length))
    )
    (node.source / "large").write_bytes(os.urandom(20_000_000))
    await node.back_up()

    outcome = await node.restore()

    assert outcome.error is None
    covered = 0
    for offset, length in sorted(begun):
        assert offset <= covered
        covered = max(covered, offset + length)
    assert covered == 20_000_000


async def test_everything_comes_back_as_it_was(node: Node) -> None:
    fill(node.source)
    await node.back_up()

    outcome = await node.restore()

    assert outcome.error is None
    assert outcome.phase is Phase.COMPLETED
    assert picture(node.target) == picture(node.source)
    statistics = outcome.statistics
    assert statistics.files_restored == sum(
        not stat.S_ISDIR(path.lstat().st_mode) for path in node.source.rglob("*")
    )
    assert statistics.bytes_fetched > 3_000_000
    assert not statistics.warnings


async def test_single_frames_are_granted_as_well_as_whole_packs(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    node.grants.single_frames = True

    assert (await node.restore()).phase is Phase.COMPLETED
    assert picture(node.target) == picture(node.source)


async def test_small_windows_lead_to_the_same_files(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(node.source)
    await node.back_up()
    monkeypatch.setattr(module, "WINDOW_EXTENTS", 2)

    assert (await node.restore()).phase is Phase.COMPLETED
    assert picture(node.target) == picture(node.source)


@pytest.mark.parametrize("over", [None, b"shorter, and of other bytes"])
async def test_a_file_of_more_than_a_window_comes_back_whole(
    node: Node, monkeypatch: pytest.MonkeyPatch, over: bytes | None
) -> None:
    (node.source / "pages.ibd").write_bytes(os.urandom(900 * BLOCK_BYTES + 7))
    (node.source / "small").write_bytes(b"after it")
    await node.back_up()
    monkeypatch.setattr(module, "WINDOW_EXTENTS", 100)
    if over is not None:
        node.target.mkdir(parents=True)
        (node.target / "pages.ibd").write_bytes(over)

    outcome = await node.restore(overwrite=over is not None)

    assert (outcome.phase, outcome.statistics.files_restored) == (Phase.COMPLETED, 2)
    assert picture(node.target) == picture(node.source)


async def test_a_file_that_nobody_finishes_is_an_error(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forget(*_: object) -> None:
        pass

    (node.source / "empty").touch()
    (node.source / "full").write_bytes(b"content")
    await node.back_up()
    monkeypatch.setattr(module._Restore, "_write", forget)

    outcome = await node.restore()

    assert outcome.phase is Phase.PARTIALLY_FAILED
    assert [each.path for each in outcome.statistics.errors] == [b"full"]
    assert (node.target / ".tidemark-incomplete").exists()


async def test_every_frame_is_fetched_once_and_neighbours_together(node: Node) -> None:
    fill(node.source)
    await node.back_up()

    outcome = await node.restore()

    stored = sum(map(len, node.coordinator.store.packs.values()))
    assert outcome.statistics.bytes_fetched <= stored
    assert len(node.grants.asked) < 20


async def test_a_hole_takes_no_space_and_the_bytes_around_it_are_there(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"model")
    entry = msgspec.structs.replace(trees.entry_of((tmp_path / "model").stat()), size=1 << 28)
    place = Place(os.fsencode(tmp_path / "target"), [os.fsencode(tmp_path)], frozenset())
    target = open_target(place, print)
    file = File(b"sparse", entry)

    with target:
        with target.opened(file) as descriptor:
            last = not target.write_at(descriptor, file, memoryview(b"data"), 1 << 27)
        assert last
        assert target.settle(file, (1 << 28) - 4)

    made = tmp_path / "target" / "sparse"
    assert made.stat().st_size == 1 << 28
    assert made.stat().st_blocks * 512 < 1 << 20
    assert made.stat().st_mtime_ns == entry.mtime_ns
    with made.open("rb") as content:
        content.seek((1 << 27) - 1)
        assert content.read(6) == b"\0data\0"


async def test_an_empty_volume_is_restored_as_an_empty_directory(node: Node) -> None:
    await node.back_up()

    assert (await node.restore()).phase is Phase.COMPLETED
    assert list(node.target.iterdir()) == []


async def test_selected_paths_come_with_the_directories_that_lead_there(node: Node) -> None:
    fill(node.source)
    await node.back_up()

    outcome = await node.restore(b"d1/e2", b"/d1/e2/file-50", b"./large")

    assert outcome.phase is Phase.COMPLETED
    restored, source = picture(node.target), picture(node.source)
    names = {name for name in source if name in {"d1", "large"} or name.startswith("d1/e2")}
    assert set(restored) == names | {"."}
    assert {name: restored[name] for name in names} == {name: source[name] for name in names}


@pytest.mark.parametrize("path", [b"absent", b"d1/../..", b"d1\0e1"])
async def test_a_path_that_the_snapshot_has_not_fails_before_anything_is_written(
    node: Node, path: bytes
) -> None:
    fill(node.source)
    await node.back_up()

    outcome = await node.restore(b"large", path)

    assert outcome.phase is Phase.FAILED
    assert isinstance(outcome.error, UsageError)
    assert not node.target.exists()


async def test_a_damaged_frame_costs_the_files_in_it_and_names_them(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    node.grants.damage(await node.frame_of(b"large"))

    outcome = await node.restore()

    assert outcome.phase is Phase.PARTIALLY_FAILED
    assert outcome.error is None
    paths = {problem.path for problem in outcome.statistics.errors}
    assert {b"large", b"second-name"} <= paths
    lost = {os.fsdecode(path) for path in paths}
    restored, source = picture(node.target), picture(node.source)
    assert set(source) - set(restored) == lost
    del restored[".tidemark-incomplete"]
    assert all(restored[name] == source[name] for name in restored)


@pytest.mark.parametrize("writers_from", [0, 1_000_000], ids=["by writers", "here"])
async def test_what_was_broken_on_its_way_is_fetched_again(
    node: Node, monkeypatch: pytest.MonkeyPatch, writers_from: int
) -> None:
    monkeypatch.setattr("agent.wholes._WRITERS_FROM", writers_from)
    fill(node.source)
    await node.back_up()
    node.grants.breaks = True

    outcome = await node.restore()

    assert outcome.phase is Phase.COMPLETED
    assert picture(node.target) == picture(node.source)


async def test_a_missing_pack_of_contents_leaves_what_needs_none_of_it(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    identity = await node.frame_of(b"large")
    node.grants.missing.add(node.coordinator.store._tables[identity.nonce][0])

    outcome = await node.restore()

    assert outcome.phase is Phase.PARTIALLY_FAILED
    assert (node.target / "link").is_symlink()
    assert not (node.target / "large").exists()
    assert outcome.statistics.errors_total > 100
    assert len(outcome.statistics.errors) == 100


async def test_nothing_restored_is_a_failure_and_no_part_of_one(node: Node) -> None:
    (node.source / "file").write_bytes(b"content")
    await node.back_up()
    node.grants.damage(await node.frame_of(b"file"))

    outcome = await node.restore()

    assert outcome.phase is Phase.FAILED
    assert outcome.error is not None
    assert "nothing could be restored" in outcome.error.message


async def test_a_target_that_is_not_empty_is_refused_and_left_alone(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    node.target.mkdir(parents=True)
    (node.target / "mine").write_bytes(b"mine")

    outcome = await node.restore()

    assert outcome.error is not None
    assert "not empty" in outcome.error.message
    assert [path.name for path in node.target.iterdir()] == ["mine"]


async def test_an_unfinished_target_is_marked_and_recognised(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(node.source)
    await node.back_up()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk)
        first = await node.restore()

    second = await node.restore()

    assert first.error is not None
    assert "no space left" in first.error.message
    assert first.phase is Phase.FAILED
    assert (node.target / ".tidemark-incomplete").exists()
    assert second.error is not None
    assert "not finished" in second.error.message


async def test_the_mark_stays_until_directories_have_their_metadata(node: Node) -> None:
    (node.source / "directory").mkdir()
    (node.source / "directory").chmod(0o751)
    await node.back_up()
    arm({VARIABLE: "agent.target.unmarking=error"})
    try:
        outcome = await node.restore()
    finally:
        arm({})

    assert outcome.phase is Phase.FAILED
    assert (node.target / ".tidemark-incomplete").exists()
    assert stat.S_IMODE((node.target / "directory").stat().st_mode) == 0o751


def full_disk(_descriptor: int, _data: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("target", ["elsewhere/target", "restores/../elsewhere/target"])
async def test_a_target_outside_the_restore_roots_is_refused(node: Node, target: str) -> None:
    fill(node.source)
    await node.back_up()

    outcome = await node.restore(target=Path(f"{node.root}/{target}"))

    assert outcome.phase is Phase.FAILED
    assert not (node.root / "elsewhere").exists()


async def test_a_target_behind_a_link_is_refused(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    outside = node.root / "outside"
    outside.mkdir()
    (node.root / "restores").mkdir()
    (node.root / "restores" / "link").symlink_to(outside)

    outcome = await node.restore(target=node.root / "restores" / "link" / "target")

    assert outcome.error is not None
    assert "symbolic link" in outcome.error.message
    assert list(outside.iterdir()) == []


async def test_a_volume_that_is_a_file_becomes_the_target_itself(node: Node) -> None:
    directory = node.source
    node.source = directory / "file"
    node.source.write_bytes(b"content" * 100_000)
    node.source.chmod(0o640)
    await node.back_up()

    first = await node.restore()
    second = await node.restore()

    assert first.phase is Phase.COMPLETED
    assert node.target.read_bytes() == node.source.read_bytes()
    assert stat.S_IMODE(node.target.stat().st_mode) == 0o640
    assert [path.name for path in node.target.parent.iterdir()] == ["target"]
    assert second.error is not None
    assert "exists" in second.error.message


async def test_a_socket_is_a_warning(node: Node) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(node.source)  # the path of a socket is short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    await node.back_up()

    outcome = await node.restore()

    assert outcome.phase is Phase.COMPLETED
    assert [warning.path for warning in outcome.statistics.warnings] == [b"socket"]
