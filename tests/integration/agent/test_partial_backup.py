"""A backup of what was touched makes the snapshot that a backup of everything would make."""

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs
from typing_extensions import override

from agent import attributes, making
from agent.making import Made, Maker
from agent.services import BackupOutcome, BackupStatistics, Progress
from agent.state import State
from agent.tracking.dirty import Dirty
from repository.entries import Entry, Flag
from repository.snapshot import Detection
from tests.integration.agent.test_backup import VOLUME_ID, Agent, Clock, fill
from tests.unit.agent.test_sweep import failing_open
from tests.unit.agent.touching import Toucher

pytestmark = pytest.mark.asyncio


class Twins:
    """One volume that two agents back up: one by what was touched, and one by sweeps."""

    def __init__(self, volume: Path, partial: Agent, swept: Agent) -> None:
        self.volume = volume
        self.partial = partial
        self.swept = swept

    async def begin(self) -> None:
        for each in (self.partial, self.swept):
            assert (await each.backup()).error is None

    async def backup(self, dirty: Dirty) -> tuple[BackupStatistics, BackupStatistics]:
        """Back up in both ways; the snapshots and what is told of them are equal."""
        partial, swept = await self.partial.backup(dirty=dirty), await self.swept.backup()
        assert (partial.error, swept.error) == (None, None)
        assert await seen(self.partial) == await seen(self.swept)
        attributes_of = self.partial.coordinator.attributes, self.swept.coordinator.attributes
        assert await attributes_of[0]() == await attributes_of[1]()
        bodies = self.partial.coordinator.body(), self.swept.coordinator.body()
        assert [body.detection for body in bodies] == [Detection.EVENTS, Detection.SWEEP]
        totals = [(body.total_files, body.total_bytes, body.fuzzy_files) for body in bodies]
        assert totals[0] == totals[1]
        assert told(partial) == told(swept)
        assert partial.statistics.bytes_read <= swept.statistics.bytes_read
        if not partial.statistics.errors_total:
            await self.partial.check()
        coordinator = self.partial.coordinator
        assert coordinator.live == coordinator.used()
        return partial.statistics, swept.statistics


async def seen(agent: Agent) -> dict[bytes, tuple[Entry, bytes]]:
    """What the last snapshot holds, wherever that lies."""
    return {
        key: (structs.replace(entry, content=None, long_xattrs=None), content)
        for key, (entry, content) in (await agent.coordinator.tree()).items()
    }


def told(outcome: BackupOutcome) -> BackupStatistics:
    """All that a summary says but which way it was, and what it took."""
    statistics = replace(outcome.statistics, bytes_read=0, data_added=0, data_added_packed=0)
    return replace(statistics, detection=Detection.SWEEP, proof="")


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[Twins]:
    volume = tmp_path / "volume"
    volume.mkdir()
    with (
        State(tmp_path / "partial.db") as one,
        State(tmp_path / "swept.db") as other,
        ThreadPoolExecutor(2) as workers,
    ):
        yield Twins(volume, Agent(volume, one, workers), Agent(volume, other, workers))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Made]:
    """Every manifest that is made."""
    all_made: list[Made] = []
    make = Maker.make

    def making_one(*arguments: object, **options: object) -> Made:
        all_made.append(make(*arguments, **options))  # type: ignore[arg-type]
        return all_made[-1]

    monkeypatch.setattr(Maker, "make", making_one)
    return all_made


def fill_with_everything(directory: Path) -> None:
    """What is stored in each way: small, cut in pieces, listed, with long attributes, linked."""
    directory.mkdir()
    chance = random.Random(1)
    (directory / "small").write_bytes(b"small")
    (directory / "empty").write_bytes(b"")
    (directory / "large").write_bytes(chance.randbytes(2_500_000))
    (directory / "app.sqlite").write_bytes(b"SQLite format 3\0" + chance.randbytes(2_000_000))
    (directory / "link").symlink_to("small")
    os.link(directory / "small", directory / "other-name")
    os.setxattr(directory / "large", "user.long", b"l" * 2000)


@pytest.mark.parametrize("seed", range(4))
async def test_random_changes_make_the_same_snapshot_in_both_ways(
    twins: Twins, tmp_path: Path, seed: int
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    toucher = Toucher(twins.volume, outside, random.Random(seed))
    toucher.touch(40)
    toucher.take()
    await twins.begin()
    for _ in range(5):
        toucher.touch(6)
        await twins.backup(toucher.take())


async def test_a_summary_counts_what_was_not_looked_at(twins: Twins) -> None:
    fill(twins.volume)
    await twins.begin()
    (twins.volume / "d0" / "e0" / "file-0").write_bytes(b"changed")
    (twins.volume / "d1" / "e1" / "file-1").unlink()
    (twins.volume / "large").unlink()
    (twins.volume / "medium").touch()
    (twins.volume / "new").write_bytes(b"new")
    names = {b"d0\0e0\0file-0", b"d1\0e1\0file-1", b"large", b"medium", b"new", b"link"}

    partial, swept = await twins.backup(Dirty(names=names))

    assert (partial.files_new, partial.files_changed, partial.files_removed) == (1, 2, 2)
    assert partial.total_files_processed > 600
    assert partial.bytes_read == swept.bytes_read


async def test_nothing_dirty_is_a_new_snapshot_of_the_same_manifest(twins: Twins) -> None:
    fill_with_everything(twins.volume / "d")
    await twins.begin()

    await twins.backup(Dirty())

    coordinator = twins.partial.coordinator
    assert coordinator.body(0).manifest == coordinator.body(1).manifest


async def test_progress_counts_what_is_not_looked_at_first(twins: Twins) -> None:
    fill(twins.volume)
    await twins.begin()
    (twins.volume / "new").write_bytes(b"new")
    progress: list[Progress] = []
    twins.partial.on_progress = progress.append

    await twins.partial.backup(dirty=Dirty(names={b"new"}))

    done = [each.files_done for each in progress]
    assert done == sorted(done)
    assert {604, 605} <= {*done} <= {0, 604, 605}


async def test_what_lies_beneath_a_renamed_directory_is_not_read_again(twins: Twins) -> None:
    fill_with_everything(twins.volume / "d")
    await twins.begin()
    (twins.volume / "d").rename(twins.volume / "a")

    partial, swept = await twins.backup(Dirty(names={b"d"}, subtrees={b"a"}))

    assert partial.bytes_read == 0
    assert swept.bytes_read > 4_500_000
    # And away, and back, so that what is counted is counted right.
    (twins.volume / "a").rename(twins.volume / "z")
    (twins.volume / "z" / "app.sqlite").unlink()
    await twins.backup(Dirty(names={b"a", b"z\0app.sqlite"}, subtrees={b"z"}))
    (twins.volume / "z").rename(twins.volume.with_name("elsewhere"))
    await twins.backup(Dirty(names={b"z"}))
    (twins.volume.with_name("elsewhere")).rename(twins.volume / "d")
    await twins.backup(Dirty(subtrees={b"d"}))


async def test_what_changes_after_it_was_known_again_is_read(twins: Twins) -> None:
    fill_with_everything(twins.volume / "d")
    (twins.volume / "d" / "other-name").unlink()
    await twins.begin()
    (twins.volume / "d").rename(twins.volume / "a")

    def change(progress: Progress) -> None:
        if progress.activity == "reading" and (twins.volume / "a" / "empty").exists():
            (twins.volume / "a" / "empty").unlink()
            (twins.volume / "a" / "small").write_bytes(b"other")
            (twins.volume / "a" / "large").write_bytes(random.Random(2).randbytes(2_500_000))

    twins.partial.on_progress = change
    outcome = await twins.partial.backup(dirty=Dirty(names={b"d"}, subtrees={b"a"}))

    assert outcome.error is None
    tree = await twins.partial.coordinator.tree()
    assert b"a\0empty" not in tree
    assert tree[b"a\0small"][1] == b"other"
    assert tree[b"a\0large"][1] == random.Random(2).randbytes(2_500_000)
    assert outcome.statistics.bytes_read == 2_500_000 + 5
    assert twins.partial.coordinator.live == twins.partial.coordinator.used()


async def test_another_file_of_the_same_inode_number_is_read(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_with_everything(twins.volume / "d")
    await twins.begin()
    (twins.volume / "d").rename(twins.volume / "a")
    monkeypatch.setattr("agent.storing.generation_of", lambda *_: 7)

    outcome = await twins.partial.backup(dirty=Dirty(names={b"d"}, subtrees={b"a"}))

    assert outcome.statistics.bytes_read > 4_500_000


# What has to be looked at again.


async def test_what_was_read_well_need_not_be_looked_at_again(
    twins: Twins, made: list[Made]
) -> None:
    fill_with_everything(twins.volume / "d")
    await twins.begin()

    assert [each.again for each in made] == [Dirty(), Dirty()]


class Now(Clock):
    """A clock that stands."""

    def __init__(self, now_ns: int) -> None:
        self._now_ns = now_ns

    @override
    def now_ns(self) -> int:
        return self._now_ns


async def test_what_was_read_too_soon_after_it_changed_is_looked_at_again(
    twins: Twins, made: list[Made]
) -> None:
    (twins.volume / "d").mkdir()
    (twins.volume / "d" / "file").write_bytes(b"old")
    await twins.begin()
    (twins.volume / "d" / "file").write_bytes(b"new")
    os.utime(twins.volume / "d")
    twins.partial.clock = twins.swept.clock = Now(os.stat(twins.volume / "d").st_ctime_ns)

    await twins.backup(Dirty(names={b"d\0file"}))

    assert made[-2].again == Dirty(names={b"d", b"d\0file"})
    twins.partial.clock = twins.swept.clock = Clock()
    await twins.backup(made[-2].again)
    assert made[-2].again == Dirty()


async def test_a_directory_that_cannot_be_opened_is_looked_at_again_with_all_in_it(
    twins: Twins, made: list[Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_with_everything(twins.volume / "d")
    await twins.begin()
    (twins.volume / "d" / "new").write_bytes(b"new")
    (twins.volume / "d" / "small").write_bytes(b"new")
    (twins.volume / "new").write_bytes(b"new")
    dirty = Dirty(names={b"new", b"d\0new", b"d\0small"})

    with failing_open(monkeypatch, b"d", PermissionError(13, "Permission denied")):
        partial, _ = await twins.backup(dirty)

    assert [problem.path for problem in partial.errors] == [b"d"]
    assert made[-2].again == Dirty(subtrees={b"d"})
    await twins.backup(made[-2].again)


async def test_a_file_that_cannot_be_read_is_stale_and_looked_at_again(
    twins: Twins, made: list[Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    (twins.volume / "file").write_bytes(b"old")
    await twins.begin()
    (twins.volume / "file").write_bytes(b"new")
    (twins.volume / "another").write_bytes(b"new")

    def refuse(*_: object) -> object:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("agent.beneath.TreeCursor.open_regular", refuse)
        partial = await twins.partial.backup(dirty=Dirty(names={b"file", b"another"}))
        swept = await twins.swept.backup()

    assert told(partial) == told(swept)
    assert partial.statistics.errors_total == 2
    assert made[0].again == Dirty()
    assert made[-2].again == Dirty(names={b"file", b"another"})
    entry, _ = (await twins.partial.coordinator.tree())[b"file"]
    assert entry.flags == Flag.STALE
    await twins.backup(made[-2].again)


async def test_a_large_file_that_keeps_changing_is_looked_at_again(
    twins: Twins, made: list[Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_with_everything(twins.volume / "d")
    monkeypatch.setattr("agent.reading.LargeFile.is_stable", lambda _: False)

    await twins.begin()

    assert made[0].again == Dirty(names={b"d\0app.sqlite", b"d\0large"})
    monkeypatch.undo()
    await twins.backup(made[0].again)


async def test_what_lacks_its_attributes_is_looked_at_again(
    twins: Twins, made: list[Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    (twins.volume / "file").write_bytes(b"content")
    os.setxattr(twins.volume / "file", "user.long", b"12345")
    monkeypatch.setattr(attributes, "ATTRIBUTES_BYTES_MAX", 10)

    await twins.begin()
    partial, _ = await twins.backup(made[0].again)

    assert made[0].again == Dirty(names={b"file"})
    assert partial.errors_total == 1


# Where a dirty set is of no use.


async def test_without_a_last_manifest_everything_is_read(twins: Twins) -> None:
    fill_with_everything(twins.volume / "d")

    outcome = await twins.partial.backup(dirty=Dirty())

    assert outcome.statistics.files_unmodified == 0
    assert twins.partial.coordinator.body().detection is Detection.SWEEP
    await twins.partial.check()


async def test_with_a_node_missing_everything_is_read(twins: Twins) -> None:
    fill_with_everything(twins.volume / "d")
    await twins.begin()
    head = twins.partial.state.head(VOLUME_ID)
    assert head is not None
    await twins.partial.state.commit(VOLUME_ID, head, {}, [], replace=True)
    (twins.volume / "new").write_bytes(b"new")

    outcome = await twins.partial.backup(dirty=Dirty(names={b"new"}))

    assert outcome.error is None
    assert outcome.statistics.files_unmodified == 0
    assert twins.partial.coordinator.body().detection is Detection.SWEEP
    await twins.partial.check()


async def test_where_bytes_are_past_counting_everything_is_looked_at(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "BYTES_MAX", 7)
    (twins.volume / "file").write_bytes(b"content")
    await twins.begin()
    (twins.volume / "file").write_bytes(b"new")

    await twins.partial.backup(dirty=Dirty())

    assert twins.partial.coordinator.body().detection is Detection.SWEEP
    await twins.partial.check()
