"""Files that are stored to while they are read: real mappings on real disks."""

import itertools
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from agent import reading, sweep
from agent.beneath import Tree
from agent.reading import TRIES, LargeFile, is_settled, read_small
from agent.storing import entry_of
from agent.syscalls import write_out
from repository.entries import EntryStat
from tests.faults.disks import loop_disk, memory_disk, overlay_disk

SIZE = 64 * 1024
# It takes as long to read as there is between two stores: of naive reads one in a hundred is torn.
LONG = 1024 * 1024
KEY = b"file"
HOUR_NS: Final = 3_600_000_000_000
DISKS = ("ext4", "xfs", "btrfs")
# Counts at both ends, first at the beginning, with a pause after each number.
WRITER: Final = """
import mmap, os, sys, time
path, pause = sys.argv[1], float(sys.argv[2])
memory = mmap.mmap(os.open(path, os.O_RDWR), 0)
words = memoryview(memory).cast("Q")
print("begins", flush=True)
for number in range(1, 1 << 40):
    words[0] = number
    words[len(words) - 1] = number
    if pause:
        time.sleep(pause)
"""


@pytest.fixture(scope="module")
def disks() -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place, ExitStack() as stack:
        root = Path(place)
        found = {kind: stack.enter_context(loop_disk(kind, root)).path for kind in DISKS}
        found["tmpfs"] = stack.enter_context(memory_disk(root / "tmpfs", 1 << 20))
        for each in ("lower", "upper"):
            (found["ext4"] / each).mkdir()
        found["overlay"] = stack.enter_context(
            overlay_disk(found["ext4"] / "lower", found["ext4"] / "upper", root / "overlay")
        )
        yield found


def made(disk: Path, size: int = SIZE) -> Path:
    path = disk / os.fsdecode(KEY)
    path.unlink(missing_ok=True)
    path.write_bytes(bytes(size))
    return path


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    with memory:
        yield memory


@contextmanager
def written(path: Path, pause_seconds: float) -> Iterator[None]:
    command = [sys.executable, "-c", WRITER, str(path), str(pause_seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begins\n"
            yield
        finally:
            writer.kill()


def is_torn(data: bytes | memoryview) -> bool:
    """Tell whether the file never was like that: the end follows the beginning by one store."""
    beginning, end = (int.from_bytes(part, sys.byteorder) for part in (data[:8], data[-8:]))
    return beginning - end not in {0, 1}


def later_ns() -> int:
    return time.time_ns() + HOUR_NS


def stat_of(entry: object) -> EntryStat:
    return EntryStat(*[getattr(entry, name) for name in EntryStat.__struct_fields__])


def read_as(tree: Tree, *, suspect: bool) -> EntryStat:
    """Its entry, read when its last change is long ago."""
    content = read_small(tree, KEY, SIZE, later_ns, suspect=suspect)
    assert content is not None
    assert not content.fuzzy
    found = entry_of(content.stat, size=len(content.data), settled=content.settled)
    return stat_of(found)


def is_unchanged(path: Path, entry: EntryStat) -> bool:
    return sweep.is_unchanged(path.stat(), entry)


@pytest.mark.parametrize("disk", [*DISKS, "overlay"])
def test_after_a_write_out_by_a_reader_each_store_shows(disks: dict[str, Path], disk: str) -> None:
    path = made(disks[disk])
    with mapped(path) as memory, path.open("rb") as reader:
        memory[:] = b"x" * SIZE
        for place in (0, SIZE // 2, SIZE - 1):
            assert write_out(reader.fileno())
            before = os.fstat(reader.fileno())
            memory[place] = 0
            assert os.fstat(reader.fileno()).st_ctime_ns > before.st_ctime_ns


def test_in_memory_nothing_is_ever_written_out(disks: dict[str, Path]) -> None:
    path = made(disks["tmpfs"])
    with path.open("rb") as reader, Tree.of_volume(os.fsencode(path.parent)) as tree:
        assert not write_out(reader.fileno())
        content = read_small(tree, KEY, SIZE, later_ns, suspect=True)

        assert content is not None
        assert not content.fuzzy
        assert not content.settled


def test_an_error_of_a_write_out_is_raised() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        write_out(-1)


@pytest.mark.parametrize("pause_seconds", [0.001, 0.0])
@pytest.mark.parametrize("disk", ["ext4", "xfs"])
def test_no_read_is_torn_but_those_marked_fuzzy(
    disks: dict[str, Path], disk: str, pause_seconds: float
) -> None:
    path = made(disks[disk], LONG)
    clean, torn = 0, 0
    with written(path, pause_seconds), Tree.of_volume(os.fsencode(path.parent)) as tree:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            content = read_small(tree, KEY, LONG, suspect=True)
            assert content is not None
            clean += not content.fuzzy
            torn += not content.fuzzy and is_torn(content.data)

    assert clean > 0 or not pause_seconds
    assert torn == 0


@pytest.mark.parametrize("disk", ["ext4", "xfs"])
def test_no_large_file_is_torn_that_is_said_to_be_stable(disks: dict[str, Path], disk: str) -> None:
    path = made(disks[disk], LONG)
    clean, torn = 0, 0
    buffer = memoryview(bytearray(LONG // 4))
    with (
        written(path, 0.003),
        Tree.of_volume(os.fsencode(path.parent)) as tree,
        LargeFile(tree, KEY, suspect=True) as large,
    ):
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            data = b"".join(bytes(window) for _, window in large.windows(lambda: buffer))
            stable = large.is_stable()
            clean += stable
            torn += stable and is_torn(data)
        assert not large.is_settled(time.time_ns())
        assert large.is_settled(later_ns())

    assert clean > 0
    assert torn == 0


@pytest.fixture
def after_each_write_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Let something be stored right after each write-out, before the stat that follows it."""

    def install(store: Callable[[], None]) -> None:
        def write_out_and_store(descriptor: int) -> bool:
            try:
                return write_out(descriptor)
            finally:
                store()

        monkeypatch.setattr(reading, "write_out", write_out_and_store)

    return install


Install = Callable[[Callable[[], None]], None]


@pytest.mark.parametrize("disk", DISKS)
def test_a_writer_that_never_stops_leaves_a_fuzzy_file(
    disks: dict[str, Path], disk: str, after_each_write_out: Install
) -> None:
    path = made(disks[disk])
    numbers = itertools.cycle(range(256))
    with mapped(path) as memory, Tree.of_volume(os.fsencode(path.parent)) as tree:
        after_each_write_out(lambda: memory.__setitem__(0, next(numbers)))
        content = read_small(tree, KEY, SIZE, later_ns, suspect=True)
        stores = next(numbers)
        with LargeFile(tree, KEY, suspect=True) as large:
            large.begin()
            large.size = SIZE
            stable = large.is_stable()

    assert content is not None
    assert content.fuzzy
    assert not content.settled
    assert content.bytes_read == len(content.data) == SIZE
    assert stores == TRIES
    assert not stable


def test_a_writer_that_pauses_leaves_a_clean_file(
    disks: dict[str, Path], after_each_write_out: Install
) -> None:
    path = made(disks["xfs"])
    numbers = iter(range(1, TRIES))

    def store() -> None:
        for number in numbers:
            memory[0] = number
            return

    with mapped(path) as memory, Tree.of_volume(os.fsencode(path.parent)) as tree:
        after_each_write_out(store)
        content = read_small(tree, KEY, SIZE, later_ns, suspect=True)

    assert content is not None
    assert not content.fuzzy
    assert content.data[0] == TRIES - 1


@pytest.mark.parametrize("disk", DISKS)
def test_a_second_store_into_a_dirty_page_is_found(disks: dict[str, Path], disk: str) -> None:
    path = made(disks[disk])
    with mapped(path) as memory, Tree.of_volume(os.fsencode(path.parent)) as tree:
        memory[0] = 1  # dirty from here on
        entry = read_as(tree, suspect=True)
        assert is_unchanged(path, entry)
        memory[0] = 2

        assert not is_unchanged(path, entry)


def test_without_a_write_out_the_second_store_is_lost(disks: dict[str, Path]) -> None:
    # Why an entry that was not read as a suspect's proves nothing of one.
    path = made(disks["ext4"])
    with mapped(path) as memory, Tree.of_volume(os.fsencode(path.parent)) as tree:
        memory[0] = 1
        entry = read_as(tree, suspect=False)
        memory[0] = 2

        assert is_unchanged(path, entry)


def test_what_was_fuzzy_is_never_unchanged(disks: dict[str, Path]) -> None:
    path = made(disks["ext4"])
    entry = stat_of(entry_of(os.stat(path), size=SIZE, fuzzy=True))

    assert not is_unchanged(path, entry)


def test_a_file_settles_only_when_its_last_change_is_older_than_the_scan_for_suspects(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.touch()
    found = os.stat(path)
    now, second_ns = found.st_ctime_ns + HOUR_NS, 1_000_000_000

    assert is_settled(found, now, found.st_ctime_ns + second_ns)
    assert not is_settled(found, now, found.st_ctime_ns - second_ns)
    assert is_settled(found, found.st_ctime_ns - HOUR_NS, found.st_ctime_ns - HOUR_NS)


def test_a_suspect_settles_only_when_no_write_can_be_under_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    found = os.stat(path)
    second_ns = 1_000_000_000

    assert is_settled(found, found.st_ctime_ns + second_ns)
    assert not is_settled(found, found.st_ctime_ns + second_ns, suspect=True)
    assert not is_settled(found, found.st_ctime_ns - second_ns, suspect=True)
    assert is_settled(found, found.st_ctime_ns + 60 * second_ns, suspect=True)


def test_a_suspect_that_is_too_large_is_left_to_the_large_way(disks: dict[str, Path]) -> None:
    path = made(disks["ext4"])
    with Tree.of_volume(os.fsencode(path.parent)) as tree:
        assert read_small(tree, KEY, SIZE - 1, suspect=True) is None
