"""What every source of changes promises, run for each of them on each filesystem."""

import ctypes
import mmap
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from watchdog.observers.inotify_c import InotifyFD

from agent.beneath import Tree
from agent.errors import UntrackableError, VolumeError
from agent.syscalls import Filesystem
from agent.tracking.fanotify import FanotifySource
from agent.tracking.inotify import InotifySource
from agent.tracking.source import Source, Swapped
from tests.faults.disks import (
    LoopDisk,
    fuse_disk,
    loop_disk,
    loop_disks,
    memory_disk,
    overlay_disk,
)

ID, OTHER_ID = b"volume", b"other"
BARRIER_SECONDS = 20.0
PAIRS = [
    ("fanotify", "ext4"),
    ("fanotify", "xfs"),
    ("fanotify", "btrfs"),
    ("inotify", "ext4"),
    ("inotify", "xfs"),
]
# From <linux/fs.h> and <linux/falloc.h>.
EXCHANGE = 2
KEEP_SIZE, PUNCH_HOLE = 1, 2
libc = ctypes.CDLL(None, use_errno=True)
# No text; what the kernel writes otherwise in its tables; what it says of a name that is gone.
STRANGE = (b"\xff\xfe", b"\n", b" \\040", b"a (deleted)")


class Place(NamedTuple):
    """A source, and directories on the disk that it is tried on."""

    source: Source
    disk: LoopDisk
    volume: Path
    outside: Path
    """Beside the volume, on the same filesystem."""


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], LoopDisk]]:
    with loop_disks(tmp_path_factory.mktemp) as disk:
        yield disk


def begin(name: str, state: Path) -> Source:
    state.mkdir(exist_ok=True)
    return FanotifySource(state) if name == "fanotify" else InotifySource(state)


def make_place(source: Source, disk: LoopDisk) -> Place:
    base = disk.path / os.urandom(8).hex()
    volume, outside = base / "volume", base / "outside"
    (volume / "dir/sub").mkdir(parents=True)
    (outside / "dir/sub").mkdir(parents=True)
    for path in ("file", "other", "dir/inner", "dir/sub/deep"):
        (volume / path).write_bytes(bytes(65536))
        (outside / path).write_bytes(b"outside")
    os.link(volume / "dir/inner", volume / "linked")
    return Place(source, disk, volume, outside)


@pytest.fixture(params=PAIRS, ids=["-".join(pair) for pair in PAIRS])
def place(
    request: pytest.FixtureRequest, disks: Callable[[str], LoopDisk], tmp_path: Path
) -> Iterator[Place]:
    name, kind = request.param
    source = begin(name, tmp_path / "state")
    try:
        yield make_place(source, disks(kind))
    finally:
        source.close()


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def fanotify(
    request: pytest.FixtureRequest, disks: Callable[[str], LoopDisk], tmp_path: Path
) -> Iterator[Place]:
    """For what only fanotify can tell."""
    source = begin("fanotify", tmp_path / "state")
    try:
        yield make_place(source, disks(request.param))
    finally:
        source.close()


def key(path: str) -> bytes:
    return path.encode().replace(b"/", b"\0")


def swap(source: Source, path: Path, volume_id: bytes = ID) -> Swapped:
    assert source.barrier(BARRIER_SECONDS)
    with Tree.of_volume(os.fsencode(path)) as tree:
        return source.swap(volume_id, tree)


def watch(place: Place) -> None:
    place.source.watch(ID, os.fsencode(place.volume))


def told(place: Place) -> Swapped:
    swapped = swap(place.source, place.volume)
    assert swapped.lost is None
    return swapped


def is_beneath(path: bytes, subtrees: set[bytes]) -> bool:
    return any(path == top or path.startswith(top + b"\0") for top in subtrees)


# Kinds of change: what is done, which names it is about, and what came with all it holds.


def direct(volume: Path, _: Path) -> None:
    page = mmap.mmap(-1, 4096)
    descriptor = os.open(volume / "file", os.O_WRONLY | os.O_DIRECT)
    os.write(descriptor, page)
    os.close(descriptor)


def with_file(work: Callable[[int], object]) -> Callable[[Path, Path], None]:
    def act(volume: Path, _: Path) -> None:
        descriptor = os.open(volume / "file", os.O_RDWR)
        try:
            work(descriptor)
        finally:
            os.close(descriptor)

    return act


def fallocate(mode: int) -> Callable[[Path, Path], None]:
    def work(descriptor: int) -> None:
        start, length = ctypes.c_int64(4096), ctypes.c_int64(8192)
        assert libc.fallocate(descriptor, mode, start, length) == 0

    return with_file(work)


def store(volume: Path, _: Path) -> None:
    """Through a mapping: the event comes when that ends, and no descriptor is open any more."""
    descriptor = os.open(volume / "file", os.O_RDWR)
    with mmap.mmap(descriptor, 4096) as mapped:
        os.close(descriptor)
        mapped[0] = 1


def copy_range(volume: Path, _: Path) -> None:
    with (volume / "other").open("rb") as source, (volume / "file").open("r+b") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 8192)


def exchange(volume: Path, first: str, second: str) -> None:
    names = [os.fsencode(volume / name) for name in (first, second)]
    assert libc.renameat2(-100, names[0], -100, names[1], EXCHANGE) == 0


def listen(volume: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        descriptor = os.open(volume, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)


def again(volume: Path, _: Path) -> None:
    shutil.rmtree(volume / "dir")
    (volume / "dir").mkdir()
    (volume / "dir/new").touch()


def exchange_directories(volume: Path, _: Path) -> None:
    (volume / "two").mkdir()
    exchange(volume, "two", "dir/sub")


def into(*names: str) -> Callable[[Path, Path], None]:
    def act(volume: Path, outside: Path) -> None:
        for name in names:
            (outside / name).rename(volume / f"in-{name}")

    return act


class Change(NamedTuple):
    """One kind of change, as a volume has to hear of it."""

    act: Callable[[Path, Path], object]
    names: Set[str]
    subtrees: Set[str] = frozenset()


CHANGES = {
    "create": Change(lambda v, _: (v / "new").touch(), {"new"}),
    "write": Change(lambda v, _: (v / "file").write_bytes(b"x"), {"file"}),
    "append": Change(with_file(lambda d: os.pwrite(d, b"x", 65536)), {"file"}),
    "truncate": Change(lambda v, _: os.truncate(v / "dir/sub/deep", 3), {"dir/sub/deep"}),
    "extend": Change(with_file(lambda d: os.ftruncate(d, 1 << 20)), {"file"}),
    "direct": Change(direct, {"file"}),
    "store": Change(store, {"file"}),
    "mkdir": Change(lambda v, _: os.makedirs(v / "a/b/c/d/e"), {"a"}, {"a"}),
    "copy": Change(
        lambda v, o: subprocess.run(["cp", "-a", o / "dir", v / "dir/c"], check=True),
        {"dir/c"},
        {"dir/c"},
    ),
    "rename": Change(lambda v, _: (v / "file").rename(v / "dir/sub/to"), {"file", "dir/sub/to"}),
    "replace": Change(lambda v, _: (v / "file").rename(v / "other"), {"file", "other"}),
    "rename directory": Change(
        lambda v, _: (v / "dir/sub").rename(v / "to"), {"dir/sub", "to"}, {"to"}
    ),
    "move in": Change(into("file", "dir"), {"in-file", "in-dir"}, {"in-dir"}),
    "move out": Change(lambda v, o: (v / "dir").rename(o / "came"), {"dir"}),
    "exchange": Change(lambda v, _: exchange(v, "file", "dir/sub/deep"), {"file", "dir/sub/deep"}),
    "exchange directories": Change(
        exchange_directories,
        {"two", "dir/sub"},
        {"two", "dir/sub"},
    ),
    "exchange both": Change(
        lambda v, _: exchange(v, "file", "dir/sub"), {"file", "dir/sub"}, {"file"}
    ),
    "link": Change(lambda v, _: os.link(v / "file", v / "dir/link"), {"dir/link"}),
    "unlink": Change(lambda v, _: (v / "dir/sub/deep").unlink(), {"dir/sub/deep"}),
    "unlink link": Change(lambda v, _: (v / "linked").unlink(), {"linked"}),
    "symlink": Change(lambda v, _: (v / "link").symlink_to("nowhere"), {"link"}),
    "fifo": Change(lambda v, _: os.mkfifo(v / "fifo"), {"fifo"}),
    "device": Change(lambda v, _: os.mknod(v / "null", stat.S_IFCHR, os.makedev(1, 3)), {"null"}),
    "socket": Change(listen, {"socket"}),
    "chmod": Change(lambda v, _: (v / "file").chmod(0o601), {"file"}),
    "chmod directory": Change(lambda v, _: (v / "dir/sub").chmod(0o701), {"dir/sub"}),
    "chmod root": Change(lambda v, _: v.chmod(0o701), {""}),
    "chown": Change(lambda v, _: os.chown(v / "file", 1, 2), {"file"}),
    "utime": Change(lambda v, _: os.utime(v / "file", (1, 1)), {"file"}),
    "setxattr": Change(lambda v, _: os.setxattr(v / "file", "user.a", b"b"), {"file"}),
    "setxattr root": Change(lambda v, _: os.setxattr(v, "user.a", b"b"), {""}),
    "fallocate": Change(fallocate(0), {"file"}),
    "punch hole": Change(fallocate(KEEP_SIZE | PUNCH_HOLE), {"file"}),
    "copy range": Change(copy_range, {"file"}),
    # Where blocks cannot be shared, cp copies them.
    "reflink": Change(
        lambda v, _: subprocess.run(["cp", "--reflink=auto", v / "other", v / "file"], check=True),
        {"file"},
    ),
    "remove tree": Change(lambda v, _: shutil.rmtree(v / "dir"), {"dir"}),
    "make again": Change(again, {"dir"}, {"dir"}),
}


def test_each_kind_of_change_is_told_with_its_names_and_no_others(place: Place) -> None:
    for kind, change in CHANGES.items():
        fresh = make_place(place.source, place.disk)
        # Else some of how it was made might be told yet.
        assert place.source.barrier(BARRIER_SECONDS)
        watch(fresh)

        change.act(fresh.volume, fresh.outside)

        dirty = told(fresh).dirty
        names = {key(name) for name in change.names}
        assert names <= dirty.names, kind
        assert {key(name) for name in change.subtrees} <= dirty.subtrees, kind
        # Nothing but them, what holds them, and what is in a directory that came or went.
        holding = {name.rpartition(b"\0")[0] for name in names}
        came_or_went = names if kind in {"remove tree", "make again"} else dirty.subtrees
        others = dirty.names - names - holding
        assert not [each for each in others if not is_beneath(each, came_or_went)], kind
        assert all(is_beneath(each, names) for each in dirty.subtrees), kind


def test_names_of_any_bytes_are_told(place: Place) -> None:
    watch(place)

    for name in STRANGE:
        os.makedirs(os.fsencode(place.volume / "dir") + b"/" + name + b"/in")
    first = told(place).dirty
    for name in STRANGE:
        os.mkdir(os.fsencode(place.volume / "dir") + b"/" + name + b"/in/" + name)

    for name in STRANGE:
        assert b"dir\0" + name in first.subtrees
    assert told(place).dirty.subtrees == {
        b"\0".join((b"dir", name, b"in", name)) for name in STRANGE
    }


@pytest.mark.parametrize("kind", ["create", "unlink", "rename", "rename directory", "symlink"])
def test_a_directory_whose_list_of_names_changed_is_told(place: Place, kind: str) -> None:
    watch(place)

    CHANGES[kind].act(place.volume, place.outside)

    holding = {key(name).rpartition(b"\0")[0] for name in CHANGES[kind].names}
    assert holding <= told(place).dirty.names


def test_what_was_told_is_not_told_again(place: Place) -> None:
    watch(place)
    (place.volume / "file").write_bytes(b"x")
    told(place)

    assert told(place).dirty.size() == 0


def test_changes_beneath_a_renamed_directory_come_with_its_new_key(place: Place) -> None:
    watch(place)
    (place.volume / "dir").rename(place.volume / "new")
    told(place)

    (place.volume / "new/sub/deep").write_bytes(b"x")
    (place.volume / "new/sub/more").mkdir()

    assert {key("new/sub/deep"), key("new/sub/more")} <= told(place).dirty.names


def test_changes_in_what_came_in_are_told_and_in_what_went_out_are_not(place: Place) -> None:
    watch(place)
    into("dir")(place.volume, place.outside)
    (place.volume / "dir").rename(place.outside / "gone")
    told(place)

    (place.volume / "in-dir/sub/deep").write_bytes(b"x")
    (place.outside / "gone/sub/deep").write_bytes(b"x")

    assert told(place).dirty.names == {key("in-dir/sub/deep")}


def test_changes_in_exchanged_directories_come_with_the_keys_they_have_now(place: Place) -> None:
    watch(place)
    for name in ("one", "two"):
        (place.volume / name / "sub").mkdir(parents=True)
    exchange(place.volume, "one", "two")
    exchange(place.volume, "one", "dir")
    told(place)

    for name in ("one", "two", "dir"):
        (place.volume / name / "sub/here").touch()

    names = {key(f"{name}/sub/here") for name in ("one", "two", "dir")}
    assert names <= told(place).dirty.names


def test_a_tree_made_at_once_is_watched_wholly_afterwards(place: Place) -> None:
    watch(place)
    for number in range(40):
        os.makedirs(place.volume / f"t{number}/" / "/".join("abcdefgh"))
    first = told(place).dirty

    for number in range(40):
        (place.volume / f"t{number}/a/b/c/d/e/f/g/h/x").touch()

    assert {key(f"t{number}") for number in range(40)} <= first.subtrees
    expected = {key(f"t{number}/a/b/c/d/e/f/g/h/x") for number in range(40)}
    assert expected <= told(place).dirty.names


def test_the_same_directory_made_and_removed_again_and_again_stays_watched(place: Place) -> None:
    watch(place)
    for _ in range(200):
        (place.volume / "again").mkdir()
        (place.volume / "again/in").mkdir()
        (place.volume / "again").rename(place.volume / "spare")
        (place.volume / "spare/in").rmdir()
        (place.volume / "spare").rmdir()
    (place.volume / "again/in").mkdir(parents=True)
    told(place)

    (place.volume / "again/in/file").touch()

    assert key("again/in/file") in told(place).dirty.names


def test_two_volumes_of_one_filesystem_hear_of_themselves_alone(place: Place) -> None:
    watch(place)
    place.source.watch(OTHER_ID, os.fsencode(place.outside))

    (place.volume / "file").write_bytes(b"x")
    (place.outside / "dir/inner").write_bytes(b"x")

    assert told(place).dirty.names == {b"file"}
    # It was drained with the first one's swap.
    assert swap(place.source, place.outside, OTHER_ID).dirty.names == {key("dir/inner")}


def test_a_volume_within_a_volume_is_told_in_both(place: Place) -> None:
    watch(place)
    place.source.watch(OTHER_ID, os.fsencode(place.volume / "dir"))

    (place.volume / "dir/sub/deep").write_bytes(b"x")
    (place.volume / "dir/sub/new").mkdir()

    names = {b"sub", key("sub/deep"), key("sub/new")}
    assert told(place).dirty.names == {b"dir\0" + name for name in names}
    inner = swap(place.source, place.volume / "dir", OTHER_ID).dirty
    assert (inner.names, inner.subtrees) == (names, {key("sub/new")})


def test_what_happens_outside_is_not_told(place: Place) -> None:
    watch(place)

    for number in range(50):
        (place.outside / f"{number}").write_bytes(b"x")
        (place.outside / f"{number}").rename(place.outside / "one")
    (place.outside / "one").unlink()
    os.makedirs(place.outside / "volume/file")
    shutil.rmtree(place.outside)

    assert told(place).dirty.size() == 0


def test_a_volume_that_is_a_file_is_told_by_the_empty_key(place: Place) -> None:
    path = place.volume / "file"
    place.source.watch(ID, os.fsencode(path))
    (place.volume / "other").write_bytes(b"x")
    (place.volume / "dir/sub/deep").write_bytes(b"x")
    before = swap(place.source, path)

    path.write_bytes(b"x")
    written = swap(place.source, path)
    (place.volume / "other").rename(path)
    replaced = swap(place.source, path)

    assert [each.lost for each in (before, written, replaced)] == [None] * 3
    assert before.dirty.size() == 0
    assert written.dirty.names == replaced.dirty.names == {b""}


def test_a_volume_that_is_watched_twice_begins_anew(place: Place) -> None:
    watch(place)
    (place.volume / "file").write_bytes(b"x")
    assert place.source.barrier(BARRIER_SECONDS)

    watch(place)
    (place.volume / "other").write_bytes(b"x")

    assert told(place).dirty.names == {b"other"}


def test_a_volume_that_is_forgotten_is_lost(place: Place) -> None:
    watch(place)
    place.source.watch(OTHER_ID, os.fsencode(place.outside))

    place.source.forget(ID)
    place.source.forget(b"unknown")
    (place.outside / "file").write_bytes(b"x")

    assert swap(place.source, place.volume).lost == "the volume is not watched"
    assert swap(place.source, place.outside, OTHER_ID).dirty.names == {b"file"}


def test_a_volume_that_is_not_there_is_not_watched(place: Place) -> None:
    with pytest.raises(VolumeError, match="is not there"):
        place.source.watch(ID, os.fsencode(place.volume / "absent"))


def test_a_watched_filesystem_can_be_unmounted_and_its_remount_is_noticed(place: Place) -> None:
    watch(place)
    (place.volume / "file").write_bytes(b"x")
    told(place)

    place.disk.again()
    (place.volume / "file").write_bytes(b"y")
    lost = swap(place.source, place.volume).lost
    (place.volume / "other").write_bytes(b"y")

    assert lost is not None
    assert told(place).dirty.names == {b"other"}


def test_a_remount_under_another_volume_is_noticed_by_each(place: Place) -> None:
    watch(place)
    place.source.watch(OTHER_ID, os.fsencode(place.outside))
    place.disk.again()

    place.source.watch(OTHER_ID, os.fsencode(place.outside))

    assert swap(place.source, place.volume).lost is not None
    assert swap(place.source, place.outside, OTHER_ID).lost is None
    assert told(place).dirty.size() == 0


def test_another_directory_at_the_path_is_noticed(place: Place) -> None:
    watch(place)

    place.volume.rename(place.outside / "was")
    (place.outside / "dir").rename(place.volume)
    lost = swap(place.source, place.volume).lost
    (place.volume / "sub/deep").write_bytes(b"x")

    assert lost == "another directory or another mount is at the volume's path"
    assert told(place).dirty.names == {key("sub/deep")}


def test_a_volume_whose_path_moves_is_watched_on(place: Place) -> None:
    watch(place)
    moved = place.volume.parent.rename(place.disk.path / os.urandom(8).hex()) / "volume"

    (moved / "dir/sub/new").mkdir()
    first = swap(place.source, moved)
    (moved / "dir/sub/new/file").touch()
    second = swap(place.source, moved)

    assert first.lost is None or second.lost is None
    assert key("dir/sub/new/file") in second.dirty.names


def test_what_is_mounted_or_unmounted_within_is_told(place: Place) -> None:
    watch(place)

    with memory_disk(place.volume / "dir/sub", 1 << 20):
        mounted = told(place).dirty
    unmounted = told(place).dirty
    (place.volume / "dir/sub/deep").write_bytes(b"x")

    assert mounted.subtrees == unmounted.subtrees == {key("dir/sub")}
    assert told(place).dirty.names == {key("dir/sub/deep")}


def test_more_than_the_cap_is_lost(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"agent.tracking.{'resolving' if place.source.name == 'fanotify' else 'inotify'}"
    monkeypatch.setattr(f"{module}.CAP", 100)
    watch(place)

    for number in range(101):
        (place.volume / f"{number}").touch()
    swapped = swap(place.source, place.volume)
    (place.volume / "other").write_bytes(b"x")

    assert swapped.lost == "more than 100 changes since the last backup"
    assert swapped.dirty.size() == 0
    assert told(place).dirty.names == {b"other"}


WRITER = """
import mmap, os, struct, sys, time
shared = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 64)
os.chdir(sys.argv[2])
number, at = 0, int(sys.argv[3])
while not shared[63]:
    time.sleep(0.0003)
    os.close(os.open(f"w{at}-{number}", os.O_CREAT))
    number += 1
    struct.pack_into("=Q", shared, 8 * at, number)
    if number > 50:
        os.unlink(f"w{at}-{number - 50}")
"""


@contextmanager
def writers(directory: Path, shared: Path, count: int) -> Iterator[mmap.mmap]:
    shared.write_bytes(bytes(64))
    counts = mmap.mmap(os.open(shared, os.O_RDWR), 64)
    command = [sys.executable, "-S", "-c", WRITER, str(shared), str(directory)]
    running = [subprocess.Popen([*command, str(at)]) for at in range(count)]
    try:
        yield counts
    finally:
        counts[63] = 1
        assert [each.wait() for each in running] == [0] * count


def test_the_barrier_holds_under_four_writers(place: Place, tmp_path: Path) -> None:
    watch(place)
    seen: set[bytes] = set()
    checked = [0] * 4

    end = time.monotonic() + 2
    with writers(place.volume / "dir", tmp_path / "shared", 4) as counts:
        while sum(checked) < 4000 and (time.monotonic() < end or not sum(checked)):
            returned = struct.unpack_from("=4Q", counts)
            seen |= told(place).dirty.names
            for at, number in enumerate(returned):
                expected = {key(f"dir/w{at}-{each}") for each in range(checked[at], number)}
                assert expected <= seen
                checked[at] = number


def stopped(source: Source) -> threading.Lock:
    """What its reader needs for anything: who has it stops the reader."""
    if isinstance(source, FanotifySource):
        return source._raw_lock
    assert isinstance(source, InotifySource)
    return source._volumes[ID]._lock


def test_an_overflow_of_the_queue_is_lost(place: Place, tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    bounded = FanotifySource(tmp_path / "short", unlimited=False)
    source = bounded if place.source.name == "fanotify" else place.source
    source.watch(ID, os.fsencode(place.volume))

    with stopped(source):
        # The cheapest events that are not one another's equals.
        name = os.fsencode(place.volume / "file")
        for number in range(17_000):
            new = os.fsencode(place.volume / f"file{number}")
            os.rename(name, new)
            name = new
        os.makedirs(place.volume / "made/meanwhile")
    swap_1 = swap(source, place.volume)
    (place.volume / "made/meanwhile/file").touch()
    swap_2 = swap(source, place.volume)
    bounded.close()

    assert swap_1 == (swap_1.dirty, "the queue of events overflowed")
    assert swap_2.lost is None
    assert key("made/meanwhile/file") in swap_2.dirty.names


def test_no_descriptor_is_held_and_no_name_is_left_in_a_volume(place: Place) -> None:
    before = sorted(place.volume.rglob("*"))
    watch(place)
    told(place)

    held = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]

    assert not [path for path in held if path.startswith(str(place.disk.path))]
    assert sorted(place.volume.rglob("*")) == before


def test_a_barrier_whose_event_cannot_come_does_not_hold(place: Place, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "state")

    assert not place.source.barrier(0.1)


def test_a_source_that_has_ended_tells_nothing(place: Place) -> None:
    watch(place)

    place.source.close()
    place.source.close()

    assert not place.source.barrier(BARRIER_SECONDS)
    with Tree.of_volume(os.fsencode(place.volume)) as tree:
        assert place.source.swap(ID, tree).lost is not None
    with pytest.raises(UntrackableError, match="has ended"):
        watch(place)


def test_a_reader_that_fails_is_lost(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(place)
    if isinstance(place.source, FanotifySource):
        monkeypatch.setattr("agent.tracking.fanotify.gather", lambda *_: 1 // 0)
    else:
        assert isinstance(place.source, InotifySource)
        instance = place.source._instance
        assert instance is not None
        monkeypatch.setattr(instance, "should_keep_running", lambda: False)
    (place.volume / "file").write_bytes(b"x")
    for thread in threading.enumerate():
        if thread.name == "fanotify_read" or isinstance(thread, InotifyFD):
            thread.join()

    assert not place.source.barrier(0.5)
    with Tree.of_volume(os.fsencode(place.volume)) as tree:
        assert "cannot be read" in str(place.source.swap(ID, tree).lost)


def test_a_source_is_used_from_many_threads(place: Place) -> None:
    failures: list[BaseException] = []

    def use(number: int) -> None:
        volume_id, path = b"%d" % number, place.outside / f"{number}"
        path.mkdir()
        try:
            for turn in range(10):
                place.source.watch(volume_id, os.fsencode(path))
                (path / f"{turn}").touch()
                swapped = swap(place.source, path, volume_id)
                assert swapped.lost is None
                assert b"%d" % turn in swapped.dirty.names
            place.source.forget(volume_id)
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


def test_a_further_name_that_goes_after_a_while_is_told_by_the_inode(place: Place) -> None:
    watch(place)
    os.link(place.volume / "file", place.volume / "dir/brief")
    assert place.source.barrier(BARRIER_SECONDS)

    (place.volume / "dir/brief").write_bytes(b"x")
    (place.volume / "dir/brief").unlink()

    assert (place.volume / "file").stat().st_ino in told(place).dirty.inodes


@pytest.mark.parametrize("name", ["fanotify", "inotify"])
def test_where_others_write_or_nothing_is_told_it_says_so(name: str, tmp_path: Path) -> None:
    source = begin(name, tmp_path / "state")
    for part in ("lower", "upper", "source"):
        (tmp_path / part).mkdir()

    with (
        memory_disk(tmp_path / "memory", 1 << 20) as memory,
        overlay_disk(tmp_path / "lower", tmp_path / "upper", tmp_path / "overlay") as overlay,
        fuse_disk(tmp_path / "source", tmp_path / "fuse") as fuse,
    ):
        for path, word in ((memory, "tmpfs"), (overlay, "overlay"), (fuse, "FUSE")):
            with pytest.raises(UntrackableError, match=word):
                source.watch(ID, os.fsencode(path))
        source.close()


@pytest.mark.parametrize("name", ["fanotify", "inotify"])
@pytest.mark.parametrize(("magic", "kind"), [(0x6969, "NFS"), (0x01021997, "9p")])
def test_where_other_machines_write_it_says_so(
    name: str, magic: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the number of its kind alone: many kernels have no such filesystem to mount."""
    source = begin(name, tmp_path / "state")
    monkeypatch.setattr("agent.tracking.roots.filesystem_of", lambda _: Filesystem(magic, bytes(8)))

    with pytest.raises(UntrackableError, match=f"others may write to {kind}"):
        source.watch(ID, os.fsencode(tmp_path))
    source.close()


@pytest.mark.parametrize("name", ["fanotify", "inotify"])
def test_a_file_that_is_mounted_over_its_name_is_left_to_sweeps(name: str, tmp_path: Path) -> None:
    source = begin(name, tmp_path / "state")
    for each in ("real", "seen"):
        (tmp_path / each).touch()
    subprocess.run(["mount", "--bind", tmp_path / "real", tmp_path / "seen"], check=True)

    try:
        with pytest.raises(UntrackableError, match="mount of its own"):
            source.watch(ID, os.fsencode(tmp_path / "seen"))
    finally:
        subprocess.run(["umount", tmp_path / "seen"], check=True)
        source.close()


@pytest.mark.parametrize("name", ["fanotify", "inotify"])
def test_the_state_may_lie_in_memory_or_in_an_overlay(name: str, tmp_path: Path) -> None:
    for part in ("lower", "upper", "volume"):
        (tmp_path / part).mkdir()

    with (
        memory_disk(tmp_path / "memory", 1 << 20) as memory,
        overlay_disk(tmp_path / "lower", tmp_path / "upper", tmp_path / "overlay") as overlay,
    ):
        for state in (memory, overlay):
            source = begin(name, state)
            source.watch(ID, os.fsencode(tmp_path / "volume"))
            (tmp_path / "volume" / state.name).touch()
            assert os.fsencode(state.name) in swap(source, tmp_path / "volume").dirty.names
            source.close()


REFUSED = """
import os, sys
from pathlib import Path
from agent.errors import UntrackableError
from tests.contract.test_sources import begin
source = begin(sys.argv[1], Path(sys.argv[2]))
try:
    source.watch(b"volume", os.fsencode(sys.argv[3]))
except UntrackableError as error:
    print(error)
finally:
    source.close()
"""


@pytest.mark.parametrize(
    ("name", "under", "word"),
    [
        ("fanotify", ["setpriv", "--bounding-set=-sys_admin"], "CAP_SYS_ADMIN"),
        ("fanotify", ["setpriv", "--bounding-set=-dac_read_search"], "CAP_DAC_READ_SEARCH"),
        (
            "inotify",
            [
                *("unshare", "--user", "--map-root-user", "sh", "-c"),
                'echo 3 > /proc/sys/user/max_inotify_watches && exec "$@"',
                "sh",
            ],
            "max_user_watches",
        ),
    ],
)
def test_what_is_not_allowed_is_said(
    name: str, under: list[str], word: str, tmp_path: Path
) -> None:
    os.makedirs(tmp_path / "volume/a/b/c/d")

    command = [sys.executable, "-c", REFUSED, name, f"{tmp_path}/state", f"{tmp_path}/volume"]
    done = subprocess.run([*under, *command], check=True, capture_output=True, text=True)

    assert word in done.stdout


def inode(path: Path) -> int:
    return path.lstat().st_ino


def test_a_hard_link_is_told_by_its_inode_too(fanotify: Place) -> None:
    watch(fanotify)

    (fanotify.volume / "linked").write_bytes(b"x")

    dirty = told(fanotify).dirty
    assert (dirty.names, dirty.inodes) == ({b"linked"}, {inode(fanotify.volume / "linked")})


def test_a_write_after_its_name_went_is_told_by_the_inode(fanotify: Place) -> None:
    watch(fanotify)
    with (fanotify.volume / "linked").open("r+b") as file:
        (fanotify.volume / "linked").unlink()
        told(fanotify)
        file.write(b"x")
        file.flush()
        written = told(fanotify).dirty
    closed = told(fanotify).dirty

    assert written.inodes == closed.inodes == {inode(fanotify.volume / "dir/inner")}


def test_a_write_through_a_link_that_came_and_went_is_told_by_the_inode(fanotify: Place) -> None:
    watch(fanotify)

    for where in (fanotify.volume, fanotify.outside):
        os.link(fanotify.volume / "file", where / "link")
        (where / "link").write_bytes(b"x")
        (where / "link").unlink()
        assert told(fanotify).dirty.inodes == {inode(fanotify.volume / "file")}


def test_a_write_through_a_name_outside_is_told_by_the_inode(fanotify: Place) -> None:
    os.link(fanotify.volume / "file", fanotify.outside / "link")
    watch(fanotify)

    (fanotify.outside / "link").write_bytes(b"x")

    assert told(fanotify).dirty.inodes == {inode(fanotify.volume / "file")}


def test_a_file_that_is_gone_has_no_inode_to_tell(fanotify: Place) -> None:
    watch(fanotify)

    with (fanotify.volume / "file").open("r+b") as file:
        (fanotify.volume / "file").unlink()
        file.write(b"x")
        file.flush()
        assert told(fanotify).dirty.inodes == set()


def test_one_that_writes_and_renames_needs_no_inode(fanotify: Place) -> None:
    watch(fanotify)

    (fanotify.volume / "new").write_bytes(b"x")
    (fanotify.volume / "new").rename(fanotify.volume / "file")

    dirty = told(fanotify).dirty
    assert (dirty.names, dirty.inodes) == ({b"", b"new", b"file"}, set())


def test_one_filesystem_is_watched_through_several_mounts(fanotify: Place, tmp_path: Path) -> None:
    bound = [tmp_path / "one", tmp_path / "two"]
    for path, source in zip(bound, (fanotify.volume / "dir", fanotify.outside), strict=True):
        path.mkdir()
        subprocess.run(["mount", "--bind", source, path], check=True)

    try:
        watch(fanotify)
        fanotify.source.watch(b"one", os.fsencode(bound[0]))
        fanotify.source.watch(b"two", os.fsencode(bound[1]))
        (fanotify.volume / "dir/sub/deep").write_bytes(b"x")
        (bound[0] / "sub/new").touch()
        (fanotify.outside / "file").write_bytes(b"x")
        within = swap(fanotify.source, bound[0], b"one").dirty.names
        beside = swap(fanotify.source, bound[1], b"two").dirty.names
    finally:
        for path in bound:
            subprocess.run(["umount", path], check=True)

    expected = {b"sub", key("sub/deep"), key("sub/new")}
    assert within == expected
    assert told(fanotify).dirty.names == {b"dir\0" + name for name in expected}
    assert beside == {b"file"}


def test_what_lies_deeper_than_a_path_can_tell_counts_from_there(place: Place) -> None:
    name = "d" * 200
    with Tree.of_volume(os.fsencode(place.volume)) as tree:
        held = os.dup(tree.root)
        for _ in range(24):
            os.mkdir(name, dir_fd=held)
            below = os.open(name, os.O_RDONLY, dir_fd=held)
            os.close(held)
            held = below
    watch(place)

    os.close(os.open("file", os.O_CREAT, dir_fd=held))
    os.close(held)

    dirty = told(place).dirty
    deep = key("/".join([name] * 24))
    assert deep in dirty.names or is_beneath(deep, dirty.subtrees)
    assert b"" not in dirty.subtrees


def test_a_btrfs_subvolume_cannot_be_marked(
    disks: Callable[[str], LoopDisk], tmp_path: Path
) -> None:
    source = begin("fanotify", tmp_path / "state")
    path = disks("btrfs").path / "subvolume"
    subprocess.run(["btrfs", "-q", "subvolume", "create", path], check=True)

    with pytest.raises(UntrackableError, match="btrfs subvolume"):
        source.watch(ID, os.fsencode(path))
    source.close()


def test_an_error_of_the_filesystem_is_lost(tmp_path: Path) -> None:
    source = begin("fanotify", tmp_path / "state")
    with loop_disk("ext4", tmp_path) as disk:
        place = make_place(source, disk)
        watch(place)
        device = disk.path.stat().st_dev
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name

        Path(f"/sys/fs/ext4/{block}/trigger_fs_error").write_text("as if it were damaged")

        assert swap(source, place.volume).lost == "the filesystem reports an error"
        assert told(place).dirty.size() == 0
    source.close()


def test_much_is_looked_at_before_anybody_asks(
    fanotify: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.tracking.fanotify._PENDING_MAX", 50)
    watch(fanotify)

    for number in range(2000):
        os.mknod(fanotify.volume / f"dir/{number}")
    assert fanotify.source.barrier(BARRIER_SECONDS)
    assert isinstance(fanotify.source, FanotifySource)
    early = fanotify.source._volumes[ID].dirty.size()

    assert {key(f"dir/{number}") for number in range(2000)} <= told(fanotify).dirty.names
    assert early


def test_far_too_much_at_once_is_lost(fanotify: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.tracking.fanotify._RAW_MAX", 100)
    watch(fanotify)

    for number in range(200):
        os.mknod(fanotify.volume / f"{number}")
    swapped = swap(fanotify.source, fanotify.volume)
    (fanotify.volume / "file").write_bytes(b"x")

    assert "overflowed" in str(swapped.lost)
    assert told(fanotify).dirty.names == {b"file"}


def test_marks_go_with_the_last_volume(fanotify: Place) -> None:
    watch(fanotify)
    fanotify.source.watch(OTHER_ID, os.fsencode(fanotify.outside))
    assert isinstance(fanotify.source, FanotifySource)
    group = fanotify.source._group
    assert group is not None

    marked = []
    for volume_id in (ID, OTHER_ID):
        fanotify.source.forget(volume_id)
        marked.append(len(group.marked()))

    assert marked == [1, 0]


CROWDED = """
import os, sys
from pathlib import Path
from tests.contract.test_sources import ID, begin, swap
volume = Path(sys.argv[2])
source = begin("inotify", Path(sys.argv[1]))
source.watch(ID, os.fsencode(volume))
os.makedirs(volume / "a/b/c/d/e/f")
print(swap(source, volume).lost)
print(swap(source, volume).lost)
(volume / "a").rename(volume.parent / "gone")
swap(source, volume)
source.watch(ID, os.fsencode(volume))
(volume / "file").touch()
print(swap(source, volume).dirty.names)
source.close()
"""


def test_a_volume_that_outgrows_the_limit_of_watches_is_lost_until_there_is_room(
    tmp_path: Path,
) -> None:
    (tmp_path / "volume").mkdir()
    script = 'echo 5 > /proc/sys/user/max_inotify_watches && exec "$@"'
    under = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]

    command = [sys.executable, "-c", CROWDED, f"{tmp_path}/state", f"{tmp_path}/volume"]
    done = subprocess.run([*under, *command], check=True, capture_output=True, text=True)

    reached = "the limit of inotify watches is reached (fs.inotify.max_user_watches)"
    assert done.stdout.splitlines() == [reached, reached, "{b'', b'file'}"]
