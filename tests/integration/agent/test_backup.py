"""A backup's snapshot holds what the volume holds, costs what changed, and never lies."""

import asyncio
import contextlib
import gc
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent import attributes
from agent.backup import run_backup
from agent.errors import UnreachableError, VolumeError
from agent.services import BackupOutcome, BackupTask, Progress, Services, Tracking, Volume
from agent.state import State
from agent.tracking.dirty import Dirty
from repository.chunking import SMALL_BYTES_MAX
from repository.entries import EntryType, Flag
from repository.errors import FencedError, StoreFullError, StoreUnavailableError
from tests.fakes.coordinator import NODE, REPOSITORY, MemoryCoordinator
from tests.fakes.tracking import ToldTracking

if TYPE_CHECKING:
    from agent.clones import Clones

VOLUME_ID = b"V" * 16


class Clock:
    """Later than any file's times, so that these are settled."""

    def now_ns(self) -> int:
        return 1 << 62

    def monotonic(self) -> float:
        return 0.0


class Agent:
    """One node with one volume."""

    def __init__(self, volume: Path, state: State, workers: ThreadPoolExecutor) -> None:
        self.volume = volume
        self.state = state
        self.workers = workers
        self.coordinator = MemoryCoordinator()
        self.clock = Clock()
        self.on_progress: Callable[[Progress], None] = lambda _: None
        self.tracking: Tracking | None = None
        """What tells of changes, unless a test says it itself."""
        self.logged: list[tuple[str, str]] = []
        self.clones: Clones | None = None

    async def backup(
        self,
        excludes: frozenset[tuple[int, int]] = frozenset(),
        volume_id: bytes = VOLUME_ID,
        dirty: Dirty | None = None,
        *,
        audit: bool = False,
    ) -> BackupOutcome:
        services = Services(
            node_id=NODE,
            signing_key=self.coordinator.node,
            state=self.state,
            coordinator=self.coordinator,
            workers=self.workers,
            clock=self.clock,
            tracking=self.tracking or ToldTracking(dirty),
            progress=self.on_progress,
            log=lambda level, message: self.logged.append((level, message)),
            clones=self.clones,
        )
        volume = Volume(volume_id, "volume", os.fsencode(self.volume))
        public = self.coordinator.recovery.public
        task = BackupTask("task", "job", volume, REPOSITORY, public, excludes, audit=audit)
        return await run_backup(task, services)

    async def check(self) -> None:
        """The last snapshot is what the volume is, and its refs are what it uses."""
        found = await self.coordinator.tree()
        assert {key: content for key, (_, content) in found.items()} == contents(self.volume)
        for key, (entry, _) in found.items():
            now = os.lstat(os.fsencode(self.volume) + b"/" + key.replace(b"\0", b"/"))
            assert (entry.mode, entry.mtime_ns, entry.uid) == (
                now.st_mode & 0o7777,
                now.st_mtime_ns,
                now.st_uid,
            )
        assert self.coordinator.live == self.coordinator.used()


def contents(root: Path) -> dict[bytes, bytes]:
    """What lies beneath a directory by key; nothing for what is no file."""
    found = {b"": b""}
    for directory, directories, files in os.walk(os.fsencode(root)):
        for name in directories + files:
            path = os.path.join(directory, name)
            regular = os.path.isfile(path) and not os.path.islink(path)
            key = os.path.relpath(path, os.fsencode(root)).replace(b"/", b"\0")
            found[key] = Path(os.fsdecode(path)).read_bytes() if regular else b""
    return found


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    volume = tmp_path / "volume"
    volume.mkdir()
    with State(tmp_path / "state.db") as state, ThreadPoolExecutor(2) as workers:
        yield Agent(volume, state, workers)


def fill(volume: Path, seed: int = 1) -> None:
    chance = random.Random(seed)
    for number in range(600):
        path = volume / f"d{number % 7}" / f"e{number % 3}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.choice([0, 10, 2000])) * chance.choice([1, 3]))
    (volume / "large").write_bytes(chance.randbytes(3_000_000))
    (volume / "medium").write_bytes(b"the same again and again\n" * 20_000)
    (volume / "link").symlink_to("d0/nowhere")
    (volume / os.fsdecode(b"not \xff utf-8\n")).write_bytes(b"odd")
    (volume / "d1").chmod(0o700)


@pytest.mark.asyncio
async def test_a_snapshot_holds_what_the_volume_holds(agent: Agent) -> None:
    fill(agent.volume)

    outcome = await agent.backup()

    assert outcome.error is None
    await agent.check()
    statistics = outcome.statistics
    files = sum(not path.is_dir() or path.is_symlink() for path in agent.volume.rglob("*"))
    assert statistics.files_new == statistics.total_files_processed == files
    assert statistics.bytes_read == statistics.total_bytes_processed > 3_000_000
    assert agent.coordinator.body().total_files == files


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [SMALL_BYTES_MAX - 1, SMALL_BYTES_MAX, 2 * SMALL_BYTES_MAX])
async def test_files_between_small_ones_come_in_their_place(agent: Agent, size: int) -> None:
    for number in range(9):
        (agent.volume / f"{number}").write_bytes(os.urandom(size if number % 3 else 10))

    assert (await agent.backup()).error is None

    assert list(await agent.coordinator.tree()) == [b"", *(b"%d" % each for each in range(9))]
    await agent.check()


@pytest.mark.asyncio
async def test_an_unchanged_volume_is_a_new_snapshot_that_reads_and_stores_nothing(
    agent: Agent,
) -> None:
    fill(agent.volume)
    await agent.backup()
    packs = dict(agent.coordinator.store.packs)

    outcome = await agent.backup()

    assert outcome.committed is not None
    assert outcome.committed.sequence == 2
    assert outcome.statistics.bytes_read == outcome.statistics.data_added_packed == 0
    assert outcome.statistics.files_unmodified == outcome.statistics.total_files_processed
    assert agent.coordinator.store.packs == packs
    assert agent.coordinator.body(0).manifest == agent.coordinator.body(1).manifest


@pytest.mark.asyncio
async def test_a_change_costs_what_changed(agent: Agent) -> None:
    fill(agent.volume)
    await agent.backup()
    (agent.volume / "d0" / "e0" / "file-0").write_bytes(b"changed")
    (agent.volume / "new").write_bytes(b"new")
    (agent.volume / "d1" / "e1" / "file-1").unlink()

    outcome = await agent.backup()

    statistics = outcome.statistics
    assert (statistics.files_new, statistics.files_changed, statistics.files_removed) == (1, 1, 1)
    assert statistics.bytes_read == len(b"changed") + len(b"new")
    assert statistics.data_added < 60_000
    await agent.check()


@pytest.mark.asyncio
async def test_random_changes_of_every_kind_leave_the_snapshot_equal_to_the_volume(
    agent: Agent,
) -> None:
    chance = random.Random(7)
    fill(agent.volume)
    await agent.backup()
    for step in range(6):
        paths = sorted(path for path in agent.volume.rglob("*") if path.is_file())
        for path in chance.sample(paths, 12):
            action = chance.choice(["write", "append", "unlink", "chmod", "to_directory", "rename"])
            match action:
                case "write":
                    path.write_bytes(chance.randbytes(chance.choice([5, 300_000])))
                case "append":
                    with path.open("ab") as file:
                        file.write(b"more")
                case "unlink":
                    path.unlink()
                case "chmod":
                    path.chmod(chance.choice([0o600, 0o755, 0o4711]))
                case "to_directory":
                    path.unlink()
                    path.mkdir()
                    (path / f"inside-{step}").write_bytes(b"x" * step)
                case _:
                    path.rename(path.with_name(f"renamed-{step}-{path.name[-6:]}"))
        assert (await agent.backup()).error is None
        await agent.check()


@pytest.mark.asyncio
async def test_what_was_stored_before_is_not_stored_again_under_another_name(agent: Agent) -> None:
    fill(agent.volume)
    await agent.backup()
    (agent.volume / "copy").write_bytes((agent.volume / "large").read_bytes())

    outcome = await agent.backup()

    assert outcome.statistics.bytes_read == 3_000_000
    assert outcome.statistics.data_added < 60_000
    await agent.check()


@pytest.mark.asyncio
async def test_files_of_the_same_content_are_stored_once_though_workers_meet(agent: Agent) -> None:
    content = random.Random(5).randbytes(2_500_000)
    for number in range(6):
        (agent.volume / f"copy-{number}").write_bytes(content)
        (agent.volume / f"small-{number}").write_bytes(content[:50_000])

    outcome = await agent.backup()

    assert outcome.statistics.data_added < 2_500_000 + 50_000 + 20_000
    await agent.check()


@pytest.mark.asyncio
async def test_a_changed_page_of_a_database_costs_a_block(agent: Agent) -> None:
    database = agent.volume / "app.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("create table t (id integer primary key, data blob)")
        rows = [(number, os.urandom(2000)) for number in range(2000)]
        connection.executemany("insert into t values (?, ?)", rows)
    await agent.backup()
    with sqlite3.connect(database) as connection:
        connection.execute("update t set data = ? where id = 1000", (os.urandom(2000),))

    outcome = await agent.backup()

    assert outcome.statistics.files_changed == 1
    assert outcome.statistics.data_added < 5 * 64 * 1024
    await agent.check()


@pytest.mark.asyncio
async def test_a_lost_state_costs_reading_and_sends_nothing_again(
    agent: Agent, tmp_path: Path
) -> None:
    fill(agent.volume)
    first = await agent.backup()
    packs = set(agent.coordinator.store.packs)
    with State(tmp_path / "another.db") as empty:
        agent.state = empty

        again = await agent.backup()

        assert again.error is None
        assert again.statistics.bytes_read == first.statistics.bytes_read
        assert again.statistics.data_added == 0
        assert set(agent.coordinator.store.packs) == packs
        await agent.check()
        # And from there as if nothing had happened.
        third = await agent.backup()
        assert third.statistics.bytes_read == 0
        await agent.check()


@pytest.mark.asyncio
async def test_a_state_that_is_behind_learns_what_was_stored_since(
    agent: Agent, tmp_path: Path
) -> None:
    fill(agent.volume)
    await agent.backup()
    shutil.copy(tmp_path / "state.db", tmp_path / "behind.db")
    shutil.copy(tmp_path / "state.db-wal", tmp_path / "behind.db-wal")
    (agent.volume / "new").write_bytes(random.Random(3).randbytes(3_000_000))
    await agent.backup()
    with State(tmp_path / "behind.db") as behind:
        agent.state = behind

        outcome = await agent.backup()

        assert outcome.error is None
        assert outcome.statistics.data_added == 0
        await agent.check()


@pytest.mark.asyncio
async def test_what_another_node_stored_is_sent_again_for_every_other_volume(
    agent: Agent, tmp_path: Path
) -> None:
    fill(agent.volume)
    first = await agent.backup()
    agent.coordinator.borrowed = True
    with State(tmp_path / "another.db") as empty:
        agent.state = empty
        moved = await agent.backup()
        (agent.volume / "large").rename(agent.volume / "renamed")
        later = await agent.backup()
        # A first backup of a volume of its own, with the same content.
        agent.coordinator.roots.clear()
        agent.coordinator.live.clear()
        other = await agent.backup(volume_id=b"O" * 16)

    assert (moved.error, later.error, other.error) == (None, None, None)
    assert moved.statistics.data_added == 0
    assert 0 < later.statistics.data_added < 100_000  # nodes of the manifest
    assert other.statistics.data_added > first.statistics.data_added * 0.9


@pytest.mark.asyncio
async def test_a_base_that_is_not_to_be_had_costs_sending_and_no_backup(
    agent: Agent, tmp_path: Path
) -> None:
    fill(agent.volume)
    first = await agent.backup()
    agent.coordinator.base_error = StoreUnavailableError("away")
    with State(tmp_path / "another.db") as empty:
        agent.state = empty

        outcome = await agent.backup()

        assert outcome.error is None
        assert outcome.statistics.data_added == first.statistics.data_added
        await agent.check()


@pytest.mark.asyncio
async def test_a_lost_state_makes_no_second_snapshot_of_the_same_place(
    agent: Agent, tmp_path: Path
) -> None:
    fill(agent.volume)
    await agent.backup()
    (agent.volume / "new").write_bytes(b"new")
    with State(tmp_path / "another.db") as empty:
        agent.state = empty

        outcome = await agent.backup()

        assert outcome.error is None
        assert outcome.statistics.files_new == outcome.statistics.total_files_processed
        await agent.check()


@pytest.mark.asyncio
async def test_a_missing_manifest_node_means_reading_all_and_storing_nothing_twice(
    agent: Agent,
) -> None:
    fill(agent.volume)
    first = await agent.backup()
    head = agent.state.head(VOLUME_ID)
    assert head is not None
    await agent.state.commit(VOLUME_ID, head, {}, [], replace=True)

    outcome = await agent.backup()

    assert outcome.error is None
    assert outcome.statistics.bytes_read == first.statistics.bytes_read
    assert outcome.statistics.data_added == 0
    await agent.check()


@pytest.mark.asyncio
async def test_beginning_anew_relies_on_nothing_that_was_only_promised_a_place(
    agent: Agent,
) -> None:
    magic = b"SQLite format 3\0"
    (agent.volume / "b.sqlite").write_bytes(magic + random.Random(1).randbytes(2_000_000))
    await agent.backup()
    entry, _ = (await agent.coordinator.tree())[b"b.sqlite"]
    head = agent.state.head(VOLUME_ID)
    assert head is not None
    assert entry.content is not None
    assert entry.content.list is not None
    await agent.state.commit(VOLUME_ID, head, {entry.content.list.id: -1}, [])
    # The list of the new file is written before that of the changed one is missed.
    (agent.volume / "a.sqlite").write_bytes(magic + random.Random(2).randbytes(2_000_000))
    with (agent.volume / "b.sqlite").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")

    outcome = await agent.backup()

    assert outcome.error is None
    await agent.check()


@pytest.mark.asyncio
async def test_a_full_store_fails_the_backup_and_blames_no_file(agent: Agent) -> None:
    fill(agent.volume)
    for fits in range(2):
        agent.coordinator.uploads_left = fits

        outcome = await agent.backup()

        assert isinstance(outcome.error, StoreFullError)
        assert outcome.committed is None
        assert outcome.statistics.errors_total == 0
    agent.coordinator.uploads_left = None
    assert (await agent.backup()).error is None
    await agent.check()


@pytest.mark.asyncio
async def test_packs_of_a_backup_that_failed_are_not_sent_again(agent: Agent) -> None:
    fill(agent.volume)
    agent.coordinator.commit_error = FencedError("the lease has lapsed")
    failed = await agent.backup()
    assert isinstance(failed.error, FencedError)
    agent.coordinator.commit_error = None

    outcome = await agent.backup()

    assert outcome.error is None
    assert outcome.statistics.data_added == 0
    await agent.check()


@pytest.mark.asyncio
@pytest.mark.parametrize("answered", [0, 1])
async def test_packs_that_were_stored_and_never_answered_are_not_sent_again(
    agent: Agent, answered: int
) -> None:
    fill(agent.volume)
    (agent.volume / "huge").write_bytes(random.Random(9).randbytes(40_000_000))
    agent.coordinator.answers_left = answered
    failed = await agent.backup()
    assert isinstance(failed.error, UnreachableError)
    agent.coordinator.answers_left = None
    stored = list(agent.coordinator.since_head)
    assert len(stored) > answered

    outcome = await agent.backup()

    assert outcome.error is None
    await agent.check()
    frames = agent.coordinator.store.chunks
    before = {id_ for at in frames if at.nonce in stored for _, id_ in frames[at]}
    after = {id_ for at in frames if at.nonce not in stored for _, id_ in frames[at]}
    assert before
    assert not before & after


@pytest.mark.asyncio
async def test_a_state_that_is_lost_amid_a_first_backup_learns_what_that_has_stored(
    agent: Agent, tmp_path: Path
) -> None:
    fill(agent.volume)
    agent.coordinator.commit_error = FencedError("the lease has lapsed")
    await agent.backup()
    agent.coordinator.commit_error = None
    packs = set(agent.coordinator.store.packs)
    with State(tmp_path / "another.db") as empty:
        agent.state = empty

        outcome = await agent.backup()

        assert outcome.error is None
        assert outcome.statistics.data_added == 0
        assert set(agent.coordinator.store.packs) == packs
        await agent.check()


@pytest.mark.asyncio
async def test_a_volume_that_is_not_there_is_an_error_and_no_empty_snapshot(agent: Agent) -> None:
    agent.volume.rmdir()

    outcome = await agent.backup()

    assert isinstance(outcome.error, VolumeError)
    assert not agent.coordinator.roots


@pytest.mark.asyncio
async def test_a_volume_that_goes_away_meanwhile_is_an_error_and_no_empty_snapshot(
    agent: Agent,
) -> None:
    fill(agent.volume)
    await agent.backup()

    def remove(progress: Progress) -> None:
        if progress.activity == "reading" and agent.volume.exists():
            agent.volume.rename(agent.volume.with_name("elsewhere"))

    agent.on_progress = remove

    outcome = await agent.backup()

    assert isinstance(outcome.error, VolumeError)
    assert len(agent.coordinator.roots) == 1


@pytest.mark.asyncio
async def test_an_excluded_directory_is_recorded_and_not_read(agent: Agent) -> None:
    fill(agent.volume)
    excluded = agent.volume / "d0"
    found = excluded.stat()

    await agent.backup(frozenset({(found.st_dev, found.st_ino)}))

    keys = set(await agent.coordinator.tree())
    assert b"d0" in keys
    assert not any(key.startswith(b"d0\0") for key in keys)


@pytest.mark.asyncio
async def test_a_single_file_can_be_a_volume(agent: Agent) -> None:
    agent.volume.rmdir()
    agent.volume.write_bytes(b"alone")

    await agent.backup()
    agent.volume.write_bytes(b"alone and changed")
    outcome = await agent.backup()

    assert outcome.statistics.files_changed == 1
    ((key, (entry, content)),) = (await agent.coordinator.tree()).items()
    assert (key, entry.type, content) == (b"", EntryType.FILE, b"alone and changed")


@pytest.mark.asyncio
async def test_a_file_that_keeps_changing_is_stored_and_said_to_be_fuzzy(agent: Agent) -> None:
    (agent.volume / "busy").write_bytes(b"x" * 400_000)
    stop = asyncio.Event()

    def write() -> None:
        with (agent.volume / "busy").open("r+b", buffering=0) as file:
            while not stop.is_set():
                file.seek(0)
                file.write(os.urandom(16))

    writing = asyncio.get_running_loop().run_in_executor(None, write)
    try:
        outcome = await agent.backup()
    finally:
        stop.set()
        await writing

    assert outcome.error is None
    entry, content = (await agent.coordinator.tree())[b"busy"]
    assert len(content) == 400_000
    assert bool(entry.flags & Flag.FUZZY) == bool(outcome.statistics.fuzzy_files)
    again = await agent.backup()
    assert again.statistics.fuzzy_files == 0
    await agent.check()


@pytest.mark.asyncio
async def test_cancellation_ends_the_thread_and_leaves_no_snapshot(agent: Agent) -> None:
    fill(agent.volume)
    running = asyncio.current_task()
    assert running is not None
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))

    def cancel(progress: Progress) -> None:
        if progress.activity == "reading":
            loop.call_soon_threadsafe(running.cancel)
            agent.on_progress = lambda _: None

    agent.on_progress = cancel

    with pytest.raises(asyncio.CancelledError):
        await agent.backup()

    running.uncancel()
    gc.collect()
    assert complaints == []
    assert not agent.coordinator.roots
    assert (await agent.backup()).error is None
    await agent.check()


@pytest.mark.asyncio
@pytest.mark.timeout(30)
async def test_a_walk_that_breaks_off_does_not_wait_for_workers_that_wait_for_it(
    agent: Agent,
) -> None:
    fill(agent.volume)

    def break_off(progress: Progress) -> None:
        if progress.activity == "reading":
            raise VolumeError("gone")

    agent.on_progress = break_off
    outcome = await agent.backup()

    assert isinstance(outcome.error, VolumeError)
    assert outcome.committed is None


@pytest.mark.asyncio
@pytest.mark.parametrize("dirty", [None, Dirty(subtrees={b""})])
async def test_a_backup_that_breaks_off_leaves_nothing_open_in_the_volume(
    agent: Agent, dirty: Dirty | None
) -> None:
    """What is open cannot be unmounted."""
    fill(agent.volume)
    await agent.backup()
    for path in agent.volume.rglob("file-*"):
        path.write_bytes(b"changed")

    def break_off(progress: Progress) -> None:
        if progress.activity == "reading":
            raise VolumeError("gone")

    agent.on_progress = break_off
    outcome = await agent.backup(dirty=dirty)

    assert outcome.error is not None
    volume, opened = os.fspath(agent.volume), []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            opened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    assert not [path for path in opened if path.startswith(volume)]


@pytest.mark.asyncio
async def test_progress_moves_while_a_single_large_file_is_read(agent: Agent) -> None:
    (agent.volume / "large").write_bytes(random.Random(3).randbytes(12_000_000))
    seen: list[int] = []
    agent.on_progress = lambda progress: seen.append(progress.bytes_done)

    await agent.backup()

    assert seen == sorted(seen)
    assert len([done for done in set(seen) if 0 < done < 12_000_000]) >= 3
    assert seen[-1] == 12_000_000


@pytest.mark.asyncio
async def test_many_small_files_are_what_they_were(agent: Agent) -> None:
    """So many that a reader process takes over in the middle."""
    for number in range(3000):
        (agent.volume / f"{number % 40}").mkdir(exist_ok=True)
        (agent.volume / f"{number % 40}" / f"file-{number}").write_bytes(b"%d " % number * 50)

    outcome = await agent.backup()

    assert outcome.error is None
    assert outcome.statistics.files_new == 3000
    assert outcome.statistics.errors_total == 0
    await agent.check()


@pytest.mark.asyncio
async def test_extended_attributes_are_saved_wherever_they_stand(agent: Agent) -> None:
    large, link = agent.volume / "large", agent.volume / "link"
    (agent.volume / "small").write_bytes(b"small")
    large.write_bytes(random.Random(1).randbytes(400_000))
    link.symlink_to("small")
    wanted: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for key in (b"", b"small", b"large", b"link"):
        path = os.fsencode(agent.volume) + b"/" + key if key else os.fsencode(agent.volume)
        os.setxattr(path, b"trusted.of", key, follow_symlinks=False)
        wanted[key] = [(b"trusted.of", key)]
    os.setxattr(agent.volume / "small", "user.long", b"l" * 2000)
    wanted[b"small"] += [(b"user.long", b"l" * 2000)]

    await agent.backup()
    assert await agent.coordinator.attributes() == wanted
    await agent.check()

    os.setxattr(large, "user.long", b"l" * 3000)
    os.removexattr(agent.volume / "small", "user.long")
    wanted[b"large"] += [(b"user.long", b"l" * 3000)]
    del wanted[b"small"][1]
    outcome = await agent.backup()
    assert outcome.statistics.files_changed == 2
    assert await agent.coordinator.attributes() == wanted
    await agent.check()


@pytest.mark.asyncio
async def test_a_list_that_two_files_share_outlives_one_of_them(agent: Agent) -> None:
    data = b"SQLite format 3\0" + random.Random(7).randbytes(2_000_000)
    for name in ("one.db", "two.db"):
        (agent.volume / name).write_bytes(data)
    await agent.backup()
    (agent.volume / "one.db").unlink()
    await agent.backup()
    with (agent.volume / "two.db").open("r+b") as file:
        file.write(b"x")
    (agent.volume / "three").write_bytes(b"new")

    outcome = await agent.backup()

    assert outcome.error is None
    assert outcome.statistics.bytes_read == len(data) + 3, "nothing else was read again"
    assert outcome.statistics.files_new == 1
    await agent.check()


@pytest.mark.asyncio
async def test_a_directory_whose_attributes_cannot_be_saved_is_an_error_and_keeps_its_files(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attributes, "ATTRIBUTES_BYTES_MAX", 10)
    (agent.volume / "directory").mkdir()
    (agent.volume / "directory" / "file").write_bytes(b"content")
    os.setxattr(agent.volume / "directory", "user.long", b"12345")

    outcome = await agent.backup()

    assert [problem.path for problem in outcome.statistics.errors] == [b"directory"]
    await agent.check()
