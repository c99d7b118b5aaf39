"""What clones save of reading makes the snapshot that reading everything makes, on real disks."""

import asyncio
import ctypes
import fcntl
import itertools
import mmap
import os
import random
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import pytest

from agent import clones as module
from agent import packing, rehashing, storing
from agent.beneath import Tree
from agent.clones import DIRECTORY, Clones
from agent.extents import disk_extents
from agent.last import LastManifest
from agent.reading import LargeFile
from agent.services import BackupStatistics
from agent.state import State
from agent.syscalls import clone_file, punch_hole
from repository import chunking
from repository.chunking import BLOCK_BYTES, ContentCutter
from repository.content import read_extents
from repository.entries import Entry
from repository.errors import StoreUnavailableError
from repository.failpoints import VARIABLE, arm
from repository.ids import ObjectType
from repository.needs import drive
from repository.pack import PackKind
from repository.tree import decode_pointer
from tests.faults.disks import fill, loop_disk
from tests.integration.agent.test_backup import VOLUME_ID, Agent
from tests.integration.agent.test_rehashing import Calendar

pytestmark = pytest.mark.asyncio

DISKS: Final = ("xfs", "btrfs")
KEY: Final = b"app.ibd"
SomeSite = TypeVar("SomeSite", bound="Site")
BLOCKS: Final = 40
# Large enough for a clone in these tests; the last block is a short one.
SIZE: Final = BLOCKS * BLOCK_BYTES - 5000
PAGE: Final = 8192


@pytest.fixture(scope="module")
def disks() -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place, ExitStack() as stack:
        yield {
            kind: stack.enter_context(loop_disk(kind, Path(place))).path
            for kind in (*DISKS, "ext4")
        }


@pytest.fixture(autouse=True)
def small_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (module, storing):
        monkeypatch.setattr(each, "BYTES_MIN", 1024 * 1024)
    # Whole packs would be more memory to clear than there is to do.
    targets = {PackKind.DATA: 5 * 1024 * 1024, PackKind.METADATA: 3 * 1024 * 1024}
    monkeypatch.setattr(packing, "_TARGETS", targets)


class Site:
    """A volume with one paged file, and two agents: one with clones, and one that reads it all."""

    key = KEY

    def __init__(self, disk: Path, agent: Agent, whole: Agent) -> None:
        self.disk = disk
        self.agent = agent
        self.whole = whole
        self.volume = agent.volume
        self.file = self.volume / os.fsdecode(self.key)
        self.warnings: list[str] = []
        self.chance = random.Random(5)
        self.start()

    def start(self, directory: Path | None = None) -> None:
        """Begin to work, as after a start of the agent."""
        directories = [directory or self.disk]
        self.agent.clones = Clones(
            self.agent.state, directories, lambda: [os.fsencode(self.volume)], self.warnings.append
        )

    def make(self, size: int = SIZE) -> None:
        self.file.write_bytes(self.chance.randbytes(size))

    def write(self, offset: int, length: int = PAGE) -> None:
        with self.file.open("r+b") as file:
            file.seek(offset)
            file.write(self.chance.randbytes(length))

    async def backup(self) -> BackupStatistics:
        """Back up in both ways: the snapshots are equal, block by block, and what the volume is."""
        outcome, whole = await self.agent.backup(), await self.whole.backup()
        assert (outcome.error, whole.error) == (None, None)
        await self.agent.check()
        assert cut(self.agent) == cut(self.whole)
        assert entry_of(self.agent).flags == 0
        return outcome.statistics

    def clones(self) -> list[str]:
        """Names of what lies in the directory of clones."""
        place = self.disk / DIRECTORY
        return sorted(os.listdir(place)) if place.exists() else []

    def kept(self) -> list[str]:
        """Names of what the state vouches for."""
        return sorted(Path(os.fsdecode(each.path)).name for each in self.agent.state.clones())


def entry_of(agent: Agent, key: bytes = KEY) -> Entry:
    entry = last(agent).entry(key)
    assert entry is not None
    return entry


def last(agent: Agent) -> LastManifest:
    head = agent.state.head(VOLUME_ID)
    assert head is not None
    return LastManifest(agent.state, VOLUME_ID, decode_pointer(head.manifest))


def cut(agent: Agent, key: bytes = KEY) -> list[tuple[bytes, int]]:
    """The blocks of the file; zeros are the same, whether they are stored or a hole.

    A file's room beyond what was written to it is none of its clone's.
    """
    content = entry_of(agent, key).content
    extents = () if content is None else drive(read_extents(content), last(agent).load)
    blocks: list[tuple[bytes, int]] = []
    for extent in itertools.chain.from_iterable(extents):
        for length in chunking.blocks(extent.length):
            zeros = agent.coordinator.ids.chunk_id(ObjectType.DATA, bytes(length))
            blocks.append((zeros if extent.is_hole else extent.id, length))
    return blocks


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def site_on(disk: Path, kind: type[SomeSite]) -> Iterator[SomeSite]:
    volume = disk / "volume"
    volume.mkdir()
    try:
        with (
            tempfile.TemporaryDirectory(dir="/dev/shm") as place,
            State(Path(place) / "state.db") as one,
            State(Path(place) / "whole.db") as other,
            ThreadPoolExecutor(2) as workers,
        ):
            yield kind(disk, Agent(volume, one, workers), Agent(volume, other, workers))
    finally:
        shutil.rmtree(volume)
        shutil.rmtree(disk / DIRECTORY, ignore_errors=True)


@pytest.fixture(params=DISKS)
def site(request: pytest.FixtureRequest, disks: dict[str, Path]) -> Iterator[Site]:
    with site_on(disks[request.param], Site) as site:
        yield site


@pytest.fixture
def xfs(disks: dict[str, Path]) -> Iterator[Site]:
    with site_on(disks["xfs"], Site) as site:
        yield site


@pytest.fixture
def btrfs(disks: dict[str, Path]) -> Iterator[Site]:
    with site_on(disks["btrfs"], Site) as site:
        yield site


async def test_only_the_blocks_of_changed_pages_are_read(site: Site) -> None:
    site.make()
    first = await site.backup()
    for block in (0, 7, 8, BLOCKS - 1):
        site.write(block * BLOCK_BYTES + 1000, 200)

    second = await site.backup()

    assert first.bytes_read == SIZE
    assert second.bytes_read == 4 * BLOCK_BYTES - 5000
    assert 0 < second.data_added <= 4 * BLOCK_BYTES + 100_000
    assert len(site.clones()) == 1
    assert site.clones() == site.kept()


async def test_nothing_of_an_unchanged_file_is_read(site: Site) -> None:
    site.make()
    await site.backup()
    os.utime(site.file)

    touched = await site.backup()
    again = await site.backup()

    assert (touched.bytes_read, again.bytes_read) == (0, 0)
    assert touched.files_changed == again.files_unmodified == 1


async def test_a_file_whose_day_it_is_is_read_whole(
    xfs: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a disk may return other bytes than were written, from wherever."""
    monkeypatch.setattr(rehashing, "DAYS", 1)
    calendar = xfs.agent.clock = Calendar()
    xfs.make()
    await xfs.backup()

    calendar.day = 1
    again = await xfs.backup()
    later = await xfs.backup()

    assert (again.bytes_read, later.bytes_read) == (SIZE, 0)
    assert again.files_unmodified == 1


async def test_many_backups_follow_one_another(site: Site) -> None:
    site.make()
    await site.backup()
    for _ in range(6):
        for _ in range(site.chance.randrange(4)):
            site.write(site.chance.randrange(SIZE - PAGE), site.chance.randrange(1, PAGE))
        statistics = await site.backup()
        assert statistics.bytes_read <= 8 * BLOCK_BYTES


def grow(site: Site) -> None:
    with site.file.open("ab") as file:
        file.write(site.chance.randbytes(300_000))


def grow_by_nothing(site: Site) -> None:
    os.truncate(site.file, SIZE + 300_000)


def grow_within_a_page(site: Site) -> None:
    os.truncate(site.file, SIZE + 100)


def shrink(site: Site) -> None:
    os.truncate(site.file, SIZE - 11 * BLOCK_BYTES - 777)


def shrink_and_grow(site: Site) -> None:
    os.truncate(site.file, SIZE - 6 * BLOCK_BYTES - 777)
    os.truncate(site.file, SIZE)


def punch(site: Site) -> None:
    with site.file.open("r+b") as file:
        assert punch_hole(file.fileno(), 3 * BLOCK_BYTES, 5 * BLOCK_BYTES)
        assert punch_hole(file.fileno(), 12 * BLOCK_BYTES + 100, 10_000)


def punch_and_fill(site: Site) -> None:
    punch(site)
    site.write(4 * BLOCK_BYTES, 2 * BLOCK_BYTES)


def preallocate(site: Site) -> None:
    with site.file.open("r+b") as file:
        os.posix_fallocate(file.fileno(), SIZE, 500_000)


def collapse(site: Site) -> None:
    fallocate(site.file, 0x08, 4 * BLOCK_BYTES, BLOCK_BYTES)


def remove_a_block(path: Path, offset: int) -> None:
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.write(data[:offset] + data[offset + BLOCK_BYTES :])
        file.truncate(len(data) - BLOCK_BYTES)


def zero(site: Site) -> None:
    fallocate(site.file, 0x10, 4 * BLOCK_BYTES + 100, BLOCK_BYTES)


def write_directly(site: Site) -> None:
    buffer = mmap.mmap(-1, 4096)
    buffer.write(site.chance.randbytes(4096))
    descriptor = os.open(site.file, os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pwrite(descriptor, buffer, 9 * BLOCK_BYTES) == 4096
    finally:
        os.close(descriptor)


def store(site: Site) -> None:
    with site.file.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[5 * BLOCK_BYTES : 5 * BLOCK_BYTES + 10] = b"0123456789"


def move_within(site: Site) -> None:
    """Share the blocks of one place with another: the same addresses, elsewhere."""
    with site.file.open("r+b") as file:
        share(file.fileno(), 2 * BLOCK_BYTES, 20 * BLOCK_BYTES, 4 * BLOCK_BYTES)


def share(descriptor: int, source: int, target: int, length: int, into: int | None = None) -> None:
    """FICLONERANGE within one file, or into another one."""
    words = struct.pack("=qQQQ", descriptor, source, length, target)
    fcntl.ioctl(descriptor if into is None else into, 0x4020940D, words)


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    with path.open("r+b") as file:
        if libc.fallocate(file.fileno(), mode, offset, length) == 0:
            return
    remove_a_block(path, offset)  # btrfs does not collapse


CHANGES: Final[list[tuple[Callable[[Site], None], int]]] = [
    (grow, 6),
    (grow_by_nothing, 2),
    (grow_within_a_page, 1),
    (shrink, 1),
    (shrink_and_grow, 7),
    (punch, 7),
    (punch_and_fill, 7),
    (preallocate, 9),
    (collapse, BLOCKS),
    (zero, 3),
    (write_directly, 1),
    (store, BLOCKS),  # XFS may write as much as it holds together in memory
    (move_within, 4),
]


@pytest.mark.parametrize(("change", "blocks"), CHANGES)
async def test_a_change_of_whatever_kind_is_found(
    site: Site, change: Callable[[Site], None], blocks: int
) -> None:
    site.make()
    await site.backup()
    change(site)

    statistics = await site.backup()

    assert statistics.bytes_read <= blocks * BLOCK_BYTES
    assert statistics.files_changed == 1
    site.write(BLOCK_BYTES, 10)
    assert (await site.backup()).bytes_read == BLOCK_BYTES


async def test_a_file_with_holes_stays_one(site: Site) -> None:
    with site.file.open("wb") as file:
        file.truncate(4 * SIZE)
        for block in (0, 1, 50, 100):
            file.seek(block * BLOCK_BYTES)
            file.write(site.chance.randbytes(BLOCK_BYTES))
    await site.backup()
    site.write(20 * BLOCK_BYTES + 7, 5)
    site.write(100 * BLOCK_BYTES, 5)

    statistics = await site.backup()

    assert statistics.bytes_read == 2 * BLOCK_BYTES


async def test_moved_extents_are_read_and_nothing_is_stored(site: Site) -> None:
    site.make()
    await site.backup()
    content = site.file.read_bytes()
    with site.file.open("r+b") as file:
        file.write(content)

    statistics = await site.backup()
    again = await site.backup()

    assert statistics.bytes_read == SIZE
    assert statistics.data_added < 50_000  # the manifest's node
    assert again.bytes_read == 0


async def test_a_defragmented_file_is_read_as_far_as_it_was_moved(btrfs: Site) -> None:
    btrfs.make()
    await btrfs.backup()
    for block in range(0, BLOCKS, 4):
        btrfs.write(block * BLOCK_BYTES, 4096)
        os.sync()
    await btrfs.backup()
    run("btrfs", "filesystem", "defragment", "-f", "-t", "64M", str(btrfs.file))
    os.utime(btrfs.file)

    statistics = await btrfs.backup()

    assert statistics.bytes_read > BLOCKS // 4 * BLOCK_BYTES
    assert statistics.data_added < 50_000


async def test_what_is_compressed_is_read_whole(btrfs: Site) -> None:
    """For other bytes may lie, as far as anybody tells, at the very same place."""
    run("chattr", "+c", str(btrfs.volume))
    btrfs.file.write_bytes(b"".join(b"the same words %8d " % each for each in range(SIZE // 24)))
    source = btrfs.volume / "source"
    run("cp", "--reflink=always", str(btrfs.file), str(source))
    told, bytes_read = [], []
    with btrfs.file.open("r+b") as file, source.open("rb") as packed:
        for half in (0, BLOCK_BYTES):
            share(packed.fileno(), half, 0, BLOCK_BYTES, file.fileno())
            told.append((disk_extents(file.fileno()), os.pread(file.fileno(), BLOCK_BYTES, 0)))
            bytes_read.append((await btrfs.backup()).bytes_read)

    assert told[0][0] == told[1][0]
    assert told[0][1] != told[1][1]
    assert bytes_read[1] == btrfs.file.stat().st_size


async def test_a_file_without_checksums_has_a_clone(btrfs: Site) -> None:
    btrfs.file.touch()
    run("chattr", "+C", str(btrfs.file))
    with btrfs.file.open("r+b") as file:
        file.write(btrfs.chance.randbytes(SIZE))
    await btrfs.backup()
    btrfs.write(3 * BLOCK_BYTES, 100)

    statistics = await btrfs.backup()

    assert statistics.bytes_read == BLOCK_BYTES


async def test_a_file_of_a_subvolume_has_a_clone(btrfs: Site) -> None:
    btrfs.volume.rmdir()
    run("btrfs", "subvolume", "create", str(btrfs.volume))
    btrfs.make()
    await btrfs.backup()
    btrfs.write(3 * BLOCK_BYTES, 100)

    statistics = await btrfs.backup()

    assert statistics.bytes_read == BLOCK_BYTES


async def test_a_file_that_was_cloned_from_another_one_is_read(site: Site) -> None:
    site.make()
    await site.backup()
    other = site.disk / "other"
    other.write_bytes(site.chance.randbytes(SIZE))
    with site.file.open("r+b") as target, other.open("rb") as source:
        clone_file(source.fileno(), target.fileno())
    other.unlink()

    statistics = await site.backup()

    assert statistics.bytes_read == SIZE


async def test_a_file_in_the_place_of_another_one_is_read_whole(site: Site) -> None:
    site.make()
    await site.backup()
    before = site.clones()
    new = site.file.with_suffix(".new")
    new.write_bytes(site.chance.randbytes(SIZE))
    new.rename(site.file)

    statistics = await site.backup()

    assert statistics.bytes_read == SIZE
    assert len(site.clones()) == 1
    assert site.clones() != before


async def test_the_clones_of_files_that_are_gone_or_small_are_removed(site: Site) -> None:
    site.make()
    second = site.volume / "second.ibd"
    second.write_bytes(site.chance.randbytes(SIZE))
    await site.backup()
    assert len(site.clones()) == 2
    site.file.write_bytes(b"small")
    second.rename(site.volume / "third.ibd")

    outcome = await site.agent.backup()

    assert outcome.error is None
    assert site.clones() == site.kept()
    assert [each.key for each in site.agent.state.clones()] == [b"third.ibd"]
    await site.agent.check()


async def test_a_volume_that_is_no_longer_backed_up_has_no_clones(site: Site) -> None:
    site.make()
    await site.backup()
    assert site.agent.clones is not None

    site.agent.clones.keep_only([VOLUME_ID])
    assert len(site.clones()) == 1
    site.agent.clones.keep_only([b"another"])

    assert site.clones() == site.kept() == []


async def test_without_a_directory_on_the_filesystem_there_are_no_clones(
    site: Site, disks: dict[str, Path]
) -> None:
    site.start(disks["ext4"])
    site.make()
    await site.backup()
    site.write(0)

    assert (await site.backup()).bytes_read == SIZE
    assert site.warnings == []
    assert not any((disks["ext4"] / DIRECTORY).glob("*"))


async def test_no_clone_is_ever_made_in_a_volume(site: Site) -> None:
    site.start(site.volume)
    site.make()
    await site.backup()
    site.write(0)

    assert (await site.backup()).bytes_read == SIZE
    assert os.listdir(site.volume) == [site.file.name]


async def test_a_directory_that_others_may_write_to_is_not_used(site: Site) -> None:
    place = site.disk / DIRECTORY
    place.mkdir()
    place.chmod(0o777)
    site.make()

    await site.backup()

    assert site.clones() == []
    assert site.warnings
    assert "others may write to it" in site.warnings[0]


async def test_there_are_no_clones_on_a_disk_that_is_nearly_full(site: Site) -> None:
    site.make()
    await site.backup()
    room = os.statvfs(site.disk)
    filler = fill(site.disk, room.f_blocks * room.f_frsize // 8)
    os.sync()  # btrfs counts what is written out
    try:
        site.write(0)
        full = await site.backup()
        assert site.clones() == site.kept() == []
        # Once, and not at each backup without any.
        site.write(0)
        await site.backup()
        [warning] = site.warnings
        assert "too little room for clones" in warning
    finally:
        os.truncate(filler, 0)  # XFS gives back what is unlinked when it likes
        filler.unlink()
    os.sync()
    site.write(0)
    again = await site.backup()

    assert (full.bytes_read, again.bytes_read) == (SIZE, SIZE)
    assert site.clones() == site.kept() != []


async def test_a_file_that_rests_is_expected_to_cost_less_and_less(xfs: Site) -> None:
    xfs.make()
    costs = []
    for _ in range(4):
        await xfs.backup()
        costs += [each.changed for each in xfs.agent.state.clones()]
    xfs.write(0)
    await xfs.backup()
    costs += [each.changed for each in xfs.agent.state.clones()]

    assert costs == [SIZE, SIZE // 2, SIZE // 4, SIZE // 8, BLOCK_BYTES]


async def test_where_there_is_not_room_for_all_databases_come_first(xfs: Site) -> None:
    xfs.make()
    os.sync()
    room = os.statvfs(xfs.disk)
    # Twice of it is just less than what is then free; of both it is more.
    size = room.f_bavail * room.f_frsize // 3 - SIZE // 3
    run("fallocate", "-l", str(size), str(xfs.volume / "a.log"))

    assert (await xfs.agent.backup()).error is None

    assert [each.key for each in xfs.agent.state.clones()] == [KEY]


def lose(clone: Path) -> None:
    clone.unlink()


def write_to(clone: Path) -> None:
    with clone.open("r+b") as file:
        file.write(b"x")


def store_to(clone: Path) -> None:
    times = clone.stat()
    with clone.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[BLOCK_BYTES] ^= 1
    os.utime(clone, ns=(times.st_atime_ns, times.st_mtime_ns))


def exchange(clone: Path) -> None:
    """With one of the same bytes today, which it did not have when it was stored."""
    volume = clone.parent.parent / "volume" / os.fsdecode(KEY)
    clone.unlink()
    run("cp", "--reflink=always", str(volume), str(clone))


def link(clone: Path) -> None:
    volume = clone.parent.parent / "volume" / os.fsdecode(KEY)
    clone.unlink()
    clone.symlink_to(volume)


@pytest.mark.parametrize("harm", [lose, write_to, store_to, exchange, link])
async def test_a_clone_that_is_not_as_it_was_made_is_of_no_use(
    site: Site, harm: Callable[[Path], None]
) -> None:
    site.make()
    await site.backup()
    site.write(5 * BLOCK_BYTES)
    harm(site.disk / DIRECTORY / site.clones()[0])

    statistics = await site.backup()

    assert statistics.bytes_read == SIZE
    assert site.clones() == site.kept()
    site.write(6 * BLOCK_BYTES)
    assert (await site.backup()).bytes_read == BLOCK_BYTES


async def test_a_start_removes_what_nobody_vouches_for_and_nothing_else(site: Site) -> None:
    site.make()
    await site.backup()
    place = site.disk / DIRECTORY
    (place / f"{VOLUME_ID.hex()}-77-{'0' * 16}").write_bytes(b"a stranger")
    (place / "of the administrator").write_bytes(b"a file")
    vouched = site.kept()

    site.start()

    assert site.clones() == sorted([*vouched, "of the administrator"])
    site.write(0)
    assert (await site.backup()).bytes_read == BLOCK_BYTES
    (place / site.kept()[0]).unlink()
    site.start()
    assert site.kept() == []


async def test_a_failed_commit_leaves_what_was(site: Site) -> None:
    site.make()
    await site.backup()
    before = site.clones()
    site.write(3 * BLOCK_BYTES)
    site.agent.coordinator.commit_error = StoreUnavailableError("gone")

    assert (await site.agent.backup()).error is not None

    assert site.clones() == before == site.kept()
    site.agent.coordinator.commit_error = None
    site.write(9 * BLOCK_BYTES)
    assert (await site.backup()).bytes_read == 2 * BLOCK_BYTES


@pytest.mark.parametrize(
    "place", ["agent.manifest.made", "agent.commit.answered", "agent.head.committed"]
)
async def test_a_backup_that_ends_anywhere_does_no_harm(xfs: Site, place: str) -> None:
    xfs.make()
    await xfs.backup()
    xfs.write(3 * BLOCK_BYTES)
    arm({VARIABLE: f"{place}=error"})
    try:
        assert (await xfs.agent.backup()).error is not None
    finally:
        arm({})
    xfs.write(9 * BLOCK_BYTES)

    await xfs.backup()

    assert len(xfs.clones()) == 1
    assert xfs.clones() == xfs.kept()


@pytest.mark.parametrize("when", ["clone", "keep", "committed"])
async def test_an_agent_that_is_killed_leaves_what_the_next_start_removes(
    xfs: Site, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is killed tidies nothing: neither an error nor a close comes to it."""
    xfs.make()
    await xfs.backup()
    xfs.write(3 * BLOCK_BYTES)

    done = getattr(module.VolumeClones, when)

    def killed(*arguments: object) -> None:
        if when != "committed":
            done(*arguments)
        raise asyncio.CancelledError

    def left(volume: module.VolumeClones) -> None:
        for each in volume._fresh.values():
            each.close()

    with monkeypatch.context() as patched:
        patched.setattr(module.VolumeClones, when, killed)
        patched.setattr(module.VolumeClones, "close", left)
        with pytest.raises(asyncio.CancelledError):
            await xfs.agent.backup()
    assert len(xfs.clones()) == 2
    xfs.start()

    assert len(xfs.clones()) == 1
    xfs.write(9 * BLOCK_BYTES)
    statistics = await xfs.backup()
    assert statistics.bytes_read == (SIZE if when == "committed" else 2 * BLOCK_BYTES)


async def test_a_state_that_was_lost_means_reading_it_all(xfs: Site, tmp_path: Path) -> None:
    xfs.make()
    await xfs.backup()
    with State(tmp_path / "new.db") as state:
        xfs.agent.state = state
        xfs.start()
        assert xfs.clones() == []

        assert (await xfs.backup()).bytes_read == SIZE


async def test_a_file_that_never_rests_is_of_one_moment_and_read_again(
    xfs: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    xfs.make()
    await xfs.backup()
    made = clone_file

    def cloned_in_between(source: int, target: int) -> None:
        made(source, target)
        xfs.write(7 * BLOCK_BYTES, 10)

    with monkeypatch.context() as patched:
        patched.setattr(module, "clone_file", cloned_in_between)
        xfs.write(0, 10)
        outcome = await xfs.agent.backup()

    assert outcome.error is None
    assert (entry_of(xfs.agent).flags, entry_of(xfs.agent).ctime_ns) == (0, 0)
    assert outcome.statistics.bytes_read == 2 * BLOCK_BYTES
    statistics = await xfs.backup()
    assert statistics.bytes_read == BLOCK_BYTES
    assert entry_of(xfs.agent).ctime_ns != 0


async def test_stores_to_a_mapped_file_are_in_the_clone(site: Site) -> None:
    site.make()
    await site.backup()
    with site.file.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0] ^= 1
        with (
            Tree.of_volume(os.fsencode(site.volume)) as tree,
            LargeFile(tree, KEY, suspect=True) as large,
        ):
            memory[5 * BLOCK_BYTES] ^= 1  # the page before is dirty: this one moves no time twice
            assert site.agent.clones is not None
            volume = site.agent.clones.of_volume(VOLUME_ID, tree)
            large.begin()
            cutting = ContentCutter(site.agent.coordinator.writer_keys.chunker).parameters
            cloned = volume.clone(large, KEY, entry_of(site.agent), cutting)
            assert cloned is not None
            assert cloned.is_stable
            assert os.pread(cloned.descriptor, SIZE, 0) == memory[:]
            for offset in (0, 5 * BLOCK_BYTES):
                assert any(begin <= offset < end for begin, end in cloned.changed or [])
            volume.close()
    assert len(site.clones()) == 1


async def test_a_file_that_is_not_large_has_no_clone(xfs: Site) -> None:
    xfs.make(300_000)

    await xfs.backup()

    assert xfs.clones() == []


async def test_both_names_of_a_file_are_backed_up_from_clones(site: Site) -> None:
    site.make()
    os.link(site.file, site.volume / "other.ibd")
    await site.backup()
    site.write(3 * BLOCK_BYTES)

    statistics = await site.backup()

    assert statistics.bytes_read == 2 * BLOCK_BYTES
    assert cut(site.agent, b"other.ibd") == cut(site.agent)
    assert len(site.clones()) == 2


async def test_without_clones_changed_pages_cost_few_blocks_in_small_frames(
    disks: dict[str, Path],
) -> None:
    """As on ext4: all is read, and 200 of 32,768 pages store a sixteenth of it."""
    with site_on(disks["ext4"], Site) as site:
        size = 256 * 1024 * 1024
        with site.file.open("wb") as file:
            for number in range(size // BLOCK_BYTES):
                file.write(number.to_bytes(8, "big") * (BLOCK_BYTES // 8))
        assert (await site.agent.backup()).error is None
        before = set(site.agent.coordinator.live)
        pages = site.chance.sample(range(size // PAGE), 200)
        for page in pages:
            site.write(page * PAGE)

        outcome = await site.agent.backup()

        assert outcome.error is None
        assert outcome.statistics.bytes_read == size
        assert outcome.statistics.data_added <= 16 * 1024 * 1024
        coordinator = site.agent.coordinator
        frames = [coordinator.store.chunks[each] for each in set(coordinator.live) - before]
        data = [frame for frame in frames if frame[0][0] == BLOCK_BYTES]
        assert sum(map(len, data)) == len({page * PAGE // BLOCK_BYTES for page in pages})
        assert max(map(len, data)) <= 4
        (_, stored) = (await coordinator.tree())[KEY]
        assert stored == site.file.read_bytes()
