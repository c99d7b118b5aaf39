"""Files that seem unchanged are read again, each once in thirty days, and what differs is told."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typing_extensions import override

from agent import rehashing
from agent.making import is_same_content
from agent.rehashing import DAYS, Share, begun, is_chosen, next_share
from agent.services import BackupStatistics
from agent.state import Rehashed, State
from agent.tracking.dirty import Dirty
from repository.entries import ChunkClass, Content, Extent
from repository.frames import Location
from repository.ids import ChunkId, PackNonce
from tests.fakes.tracking import ToldTracking
from tests.faults.disks import LoopDisk, loop_disk
from tests.integration.agent.test_backup import VOLUME_ID, Agent, Clock, fill
from tests.unit.agent import trees
from tests.unit.agent.test_rescan import last_of

DAY_NS = 24 * 3600 * 1_000_000_000
FIRST_DAY = (1 << 62) // DAY_NS


class Calendar(Clock):
    """A clock of days."""

    def __init__(self) -> None:
        self.day = 0

    @override
    def now_ns(self) -> int:
        return (FIRST_DAY + self.day) * DAY_NS + DAY_NS // 2


class Node:
    """An agent, and the day it has."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.volume = agent.volume
        self.calendar = agent.clock = Calendar()
        self.tracking = ToldTracking()
        agent.tracking = self.tracking

    async def backup(self, day: int, dirty: Dirty | None = None) -> BackupStatistics:
        """`dirty` None is a sweep."""
        self.calendar.day = day
        self.tracking.dirty = dirty
        outcome = await self.agent.backup()
        assert outcome.error is None
        return outcome.statistics

    def rehashed(self) -> Rehashed | None:
        return self.agent.state.rehashed(VOLUME_ID)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    volume = tmp_path / "volume"
    volume.mkdir()
    with State(tmp_path / "state.db") as state, ThreadPoolExecutor(2) as workers:
        yield Node(Agent(volume, state, workers))


# Whose day it is.


def at(day: int) -> int:
    return day * DAY_NS + 5


@pytest.mark.parametrize(
    ("done", "today", "share"),
    [
        (None, 100, None),
        (Rehashed(100, None), 100, None),
        (Rehashed(99, None), 100, Share(100, b"")),
        (Rehashed(95, None), 100, Share(96, b"")),
        (Rehashed(10, None), 100, Share(71, b"")),
        (Rehashed(100, b"k"), 100, Share(100, b"k")),
        (Rehashed(98, b"k"), 100, Share(98, b"k")),
        (Rehashed(101, b"k"), 100, None),
    ],
)
def test_a_share_is_of_the_next_day_that_was_not_looked_at(
    done: Rehashed | None, today: int, share: Share | None
) -> None:
    assert next_share(done, at(today)) == share


def test_counting_begins_with_the_first_backup_and_after_a_clock_was_set_back() -> None:
    assert begun(None, at(100)) == Rehashed(100, None)
    assert begun(Rehashed(101, b"k"), at(100)) == Rehashed(100, None)
    assert begun(Rehashed(100, None), at(100)) is None


def test_each_leaf_has_one_day_in_thirty_and_each_secret_another_one() -> None:
    firsts = [b"%d" % number for number in range(3000)]
    days = {first: [d for d in range(DAYS) if is_chosen(first, d, b"s")] for first in firsts}

    assert all(len(each) == 1 for each in days.values())
    counts = [sum(each == [day] for each in days.values()) for day in range(DAYS)]
    assert min(counts) > 50
    assert is_chosen(firsts[0], days[firsts[0]][0] + 7 * DAYS, b"s")
    assert days != {
        first: [d for d in range(DAYS) if is_chosen(first, d, b"t")] for first in firsts
    }


def test_leaves_are_chosen_by_their_first_key(tmp_path: Path) -> None:
    trees.make(tmp_path, {b"%04d" % number: b"" for number in range(1500)})
    last = last_of(trees.manifest(tmp_path))
    firsts = [leaf.stats[0][0] for leaf in last.leaves()]
    assert len(firsts) > 5

    assert [leaf.stats[0][0] for leaf in last.some_leaves(b"", lambda _: True)] == firsts
    chosen = set(firsts[::2])
    found = [leaf.stats[0][0] for leaf in last.some_leaves(b"", chosen.__contains__)]
    assert found == firsts[::2]
    behind = [leaf.stats[0][0] for leaf in last.some_leaves(firsts[3] + b"x", lambda _: True)]
    assert behind == firsts[3:]
    assert list(last.some_leaves(b"", lambda _: False)) == []
    assert list(last_of([]).some_leaves(b"", lambda _: True)) == []


# Backups.


@pytest.mark.asyncio
async def test_each_file_is_read_again_once_in_thirty_days_whichever_way_changes_are_found(
    node: Node,
) -> None:
    fill(node.volume)
    first = await node.backup(0)

    later = [await node.backup(day, Dirty() if day % 2 else None) for day in range(1, DAYS + 1)]

    read = [each.bytes_read for each in later]
    assert sum(read) == first.bytes_read
    assert max(read) < first.bytes_read
    for each in later:
        assert (each.files_new, each.files_changed, each.altered_files) == (0, 0, 0)
        assert each.files_unmodified == each.total_files_processed == first.files_new
        assert each.total_bytes_processed == first.total_bytes_processed
    assert node.agent.coordinator.body().manifest == node.agent.coordinator.body(0).manifest
    await node.agent.check()


@pytest.mark.asyncio
async def test_nothing_is_read_again_twice_in_a_day_or_on_the_first(node: Node) -> None:
    fill(node.volume)
    await node.backup(0)
    assert (await node.backup(0)).bytes_read == 0
    for day in range(1, DAYS + 1):
        await node.backup(day, Dirty())

    assert (await node.backup(DAYS)).bytes_read == 0
    assert node.rehashed() == Rehashed(FIRST_DAY + DAYS, None)


@pytest.mark.asyncio
@pytest.mark.parametrize(("name", "limit"), [("_FILES_MAX", 90), ("_BYTES_MAX", 150_000)])
async def test_what_is_too_much_for_a_backup_is_left_to_the_next(
    node: Node, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    fill(node.volume)
    (node.volume / "large").unlink()
    (node.volume / "medium").unlink()
    first = await node.backup(0)
    monkeypatch.setattr(rehashing, name, limit)
    monkeypatch.setattr(rehashing, "is_chosen", lambda *_: True)

    read = [(await node.backup(1, Dirty())).bytes_read]
    while node.rehashed() != Rehashed(FIRST_DAY + 1, None):
        read.append((await node.backup(1, Dirty())).bytes_read)

    assert len(read) > 3
    assert sum(read) == first.bytes_read
    assert (await node.backup(1)).bytes_read == 0


@pytest.mark.asyncio
async def test_a_backup_that_fails_leaves_its_share_to_the_next(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(node.volume)
    first = await node.backup(0)
    monkeypatch.setattr(rehashing, "is_chosen", lambda *_: True)
    (node.volume / "new").write_bytes(b"new")
    node.agent.coordinator.uploads_left = 0
    node.calendar.day = 1
    assert (await node.agent.backup()).error is not None
    node.agent.coordinator.uploads_left = None

    assert (await node.backup(1)).bytes_read == first.bytes_read + 3


@pytest.mark.asyncio
async def test_what_has_changed_or_gone_is_read_once_or_not_at_all(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehashing, "is_chosen", lambda *_: True)
    trees.make(node.volume, {b"a": b"1", b"b": b"22", b"c": {b"x": b"333"}, b"d": b"4444"})
    await node.backup(0)
    (node.volume / "b").write_bytes(b"changed")
    (node.volume / "c" / "x").unlink()
    (node.volume / "c").rmdir()
    (node.volume / "e").write_bytes(b"new")

    dirty = Dirty(names={b"", b"b", b"c", b"e"})
    statistics = await node.backup(1, dirty)

    assert statistics.bytes_read == 1 + 7 + 4 + 3
    counted = (statistics.files_new, statistics.files_changed, statistics.files_unmodified)
    assert counted == (1, 1, 2)
    assert (statistics.files_removed, statistics.altered_files) == (1, 0)
    await node.agent.check()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    with loop_disk("ext4", tmp_path) as disk:
        yield disk


@pytest.mark.asyncio
async def test_a_file_that_rots_on_its_disk_is_stored_anew_counted_and_named(
    disk: LoopDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehashing, "is_chosen", lambda *_: True)
    volume = disk.path / "volume"
    (volume / "d").mkdir(parents=True)
    mark = os.urandom(32)
    (volume / "d" / "rots").write_bytes(b"before" + mark)
    (volume / "d" / "stays").write_bytes(b"stays")
    large = os.urandom(3_000_000)
    (volume / "large").write_bytes(large)
    with State(tmp_path / "state.db") as state, ThreadPoolExecutor(2) as workers:
        node = Node(Agent(volume, state, workers))
        await node.backup(0)
        disk.unmount()
        image = tmp_path / "ext4.img"
        content = image.read_bytes()
        assert content.count(mark) == 1
        with image.open("r+b") as file:
            for place in (content.index(mark), content.index(large[2_000_000:2_001_000])):
                file.seek(place)
                file.write(b"rotten")
        del content
        disk._mount()
        assert (await node.backup(0)).bytes_read == 0

        statistics = await node.backup(1, Dirty())

        assert statistics.altered_files == node.tracking.altered_files == 2
        assert statistics.files_changed == 2
        assert [each.path for each in statistics.warnings] == [b"d/rots", b"large"]
        message = "its content changed, and its times did not: d/rots, large"
        assert ("error", message) in node.agent.logged
        await node.agent.check()
        tree = await node.agent.coordinator.tree()
        assert tree[b"d\0rots"][1] == b"before" + b"rotten" + mark[6:]
        assert (await node.backup(2)).altered_files == 0


# What passes for the same content.


def content(*extents: Extent, chunking: ChunkClass = ChunkClass.GENERAL) -> Content:
    return Content(chunking, list(extents), None)


def extent(name: bytes, frame: int = 0) -> Extent:
    return Extent.at(ChunkId(name * 32), Location(PackNonce(b"n" * 16), frame, 0, 10))


def test_content_is_the_same_wherever_it_lies_and_however_it_was_cut() -> None:
    def load(_: object) -> bytes:
        raise AssertionError

    old = content(extent(b"a"), Extent.hole(5), extent(b"b"))
    elsewhere = content(extent(b"a", 7), Extent.hole(5), extent(b"b", 8))
    cut = content(extent(b"c"), chunking=ChunkClass.PAGED)
    filled = content(extent(b"a"), extent(b"z"), extent(b"b"))
    other = content(extent(b"a"), Extent.hole(5), extent(b"c"))

    assert is_same_content(old, elsewhere, load)
    assert is_same_content(old, cut, load)
    assert is_same_content(old, filled, load)
    assert not is_same_content(old, other, load)
