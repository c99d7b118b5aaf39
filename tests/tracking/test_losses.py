"""What could make a backup by events miss something, one thing at a time."""

import itertools
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from agent.services import Committed, Phase
from agent.syscalls import write_out
from agent.tracking.fanotify import FanotifySource
from agent.tracking.inotify import InotifySource
from agent.tracking.suspects import SuspectScanner, scan
from agent.tracking.tracker import Tracker
from repository.entries import Flag
from repository.errors import StoreFullError, StoreUnavailableError
from repository.snapshot import Detection
from tests.e2e.harness import Machine
from tests.faults.disks import LoopDisk, loop_disks, memory_disk
from tests.faults.site import pause
from tests.tracking.site import Clock, Site, site, track

SWEEP, EVENTS = Detection.SWEEP, Detection.EVENTS
# Longer than what agent/reading.py waits for a clock to move on.
SETTLED_SECONDS: Final = 0.03
HOUR_NS: Final = 3_600_000_000_000
# Half of the events that are raised come of a file's new name, the other half of the file.
RENAMES: Final = 100_000
# The number at the beginning is never less than that at the end, but for a store.
WRITER: Final = """
import mmap, os, sys
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0)
words = memoryview(memory).cast("Q")
print("begins", flush=True)
for number in range(1, 1 << 40):
    words[0] = number
    words[len(words) - 1] = number
"""


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], LoopDisk]]:
    with loop_disks(tmp_path_factory.mktemp) as disk:
        yield disk


@contextmanager
def tracked(source: str, disk: LoopDisk, state: Path) -> Iterator[Site]:
    """A site that was backed up once, with a few files."""
    clock = Clock()
    tracker = track(source, state / "agent", clock)
    try:
        with site(tracker, disk.path, state, clock) as made:
            (made.volume / "dir/sub").mkdir(parents=True)
            for name in ("file", "other", "dir/inner", "dir/sub/deep"):
                (made.volume / name).write_bytes(bytes(16_384))
            made.backup()
            yield made
    finally:
        tracker.close()


PLACES: Final = [
    *[("fanotify", kind) for kind in ("ext4", "xfs", "btrfs")],
    ("inotify", "ext4"),
    ("sweep", "xfs"),
]


@pytest.fixture(params=PLACES, ids=["-".join(place) for place in PLACES])
def place(
    request: pytest.FixtureRequest, disks: Callable[[str], LoopDisk], tmp_path: Path
) -> Iterator[Site]:
    """Whatever tells of changes."""
    source, kind = request.param
    with tracked(source, disks(kind), tmp_path) as made:
        yield made


@pytest.fixture(params=["fanotify", "inotify"])
def told(
    request: pytest.FixtureRequest, disks: Callable[[str], LoopDisk], tmp_path: Path
) -> Iterator[Site]:
    """Where events tell."""
    with tracked(request.param, disks("ext4"), tmp_path) as made:
        yield made


def by_events(one: Site) -> None:
    """Back up by events, and find everything."""
    one.backup()
    assert one.detection is EVENTS
    one.check()


def by_sweep(one: Site) -> str:
    """Back up by a sweep, and find everything; why it was a sweep."""
    proof = one.backup().statistics.proof
    assert one.detection is SWEEP
    one.check()
    return proof


def by_events_and_settled(one: Site) -> None:
    """Back up until no file is looked at again for being changed just before."""
    by_events(one)
    pause(SETTLED_SECONDS)
    by_events(one)


# Stores that raise no event.


@pytest.mark.parametrize("ended", [False, True], ids=["mapped", "unmapped"])
def test_a_second_store_into_a_page_that_is_dirty_already_is_found(
    place: Site, ended: bool
) -> None:
    with (place.volume / "file").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    for number in (1, 2):
        mapped[0] = number
        place.backup()
        place.check()
        mapped[0] = number + 100
        if ended and number == 2:
            mapped.close()
        place.backup()
        place.check()
    mapped.close()


@contextmanager
def never_stops(path: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begins\n"
            yield
        finally:
            writer.kill()


@pytest.mark.parametrize("place", PLACES[:3], indirect=True)
def test_nothing_torn_by_a_writer_is_called_clean(place: Site) -> None:
    path = place.volume / "busy"
    path.write_bytes(bytes(1024 * 1024))
    with never_stops(path):
        for _ in range(3):
            place.backup()
            entry, content = place.tree()[b"busy"]
            begin, end = (int.from_bytes(part, "little") for part in (content[:8], content[-8:]))
            assert place.coordinator.body().fuzzy_files == bool(entry.flags & Flag.FUZZY)
            assert entry.flags or begin - end in {0, 1}

    place.backup()
    place.check()


@pytest.mark.parametrize("size", [64 * 1024, 512 * 1024], ids=["small", "large"])
def test_a_writer_that_never_stops_is_told_of(
    place: Site, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = place.volume / "busy"
    path.write_bytes(bytes(size))
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    numbers = itertools.cycle(range(256))

    def write_out_and_store(descriptor: int) -> bool:
        try:
            return write_out(descriptor)
        finally:
            mapped[0] = next(numbers)

    with monkeypatch.context() as patch:
        patch.setattr("agent.reading.write_out", write_out_and_store)
        statistics = place.backup().statistics
        entry, _ = place.tree()[b"busy"]
    place.backup()
    place.check()
    mapped.close()

    assert entry.flags == Flag.FUZZY
    assert statistics.fuzzy_files == 1
    assert statistics.errors_total == 0


# Names that nobody tells of.


def test_what_is_written_through_a_name_outside_of_the_volume_is_found(told: Site) -> None:
    path, outside = told.volume / "file", told.outside / "link"
    outside.hardlink_to(path)
    path.chmod(0o600)
    by_events_and_settled(told)
    for content in (b"from outside", b"and again"):
        outside.write_bytes(content)
        by_events_and_settled(told)


def test_what_is_done_through_a_name_that_comes_and_goes_is_found_by_those_that_stay(
    told: Site,
) -> None:
    (told.volume / "linked").hardlink_to(told.volume / "dir/sub/deep")
    by_events_and_settled(told)
    (told.volume / "dir/brief").hardlink_to(told.volume / "linked")
    os.chown(told.volume / "dir/brief", 3, 3)
    (told.volume / "dir/brief").unlink()

    by_events(told)


def test_where_very_many_files_have_several_names_all_is_looked_at(
    told: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.whereabouts._LINKED_MAX", 0)
    (told.outside / "link").hardlink_to(told.volume / "dir/sub/deep")
    (told.volume / "dir/sub/deep").chmod(0o600)
    by_events_and_settled(told)
    (told.outside / "link").write_bytes(b"from outside")

    by_events(told)


# Events that do not come.


def hold_up(source: FanotifySource | InotifySource, volume_id: bytes) -> threading.Lock:
    """What its reader needs for anything: who has it holds it up."""
    if isinstance(source, FanotifySource):
        return source._raw_lock
    return source._volumes[volume_id]._lock


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("short", "the queue of events overflowed"),
        ("unlimited", "more than 50,000 changes since the last backup"),
        ("inotify", "the queue of events overflowed"),
    ],
)
def test_a_burst_of_200_000_events_loses_nothing(
    disks: Callable[[str], LoopDisk],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    why: str,
) -> None:
    monkeypatch.setattr("agent.tracking.resolving.CAP", 50_000)
    monkeypatch.setattr("agent.tracking.fanotify._RAW_MAX", 1_000_000)
    unlimited = kind == "unlimited"
    source = (
        InotifySource(tmp_path)
        if kind == "inotify"
        else FanotifySource(tmp_path, unlimited=unlimited)
    )
    tracker = Tracker([lambda: source], SuspectScanner(lambda: scan(vouched_for={1})))
    with site(tracker, disks("ext4").path, tmp_path) as one:
        (one.volume / "0").touch()
        one.backup()
        with hold_up(source, one.volume_id):
            burst(one.volume)
        proof = by_sweep(one)
        (one.volume / "made/meanwhile/file").write_bytes(b"x")
        by_events(one)
    tracker.close()

    assert proof == f"sweep: {why}"


def burst(volume: Path) -> None:
    """By a process of its own, as long as the reader may not go on."""
    directory = os.open(volume, os.O_RDONLY)
    for number in range(RENAMES):
        os.rename(f"{number}", f"{number + 1}", src_dir_fd=directory, dst_dir_fd=directory)
    os.close(directory)
    (volume / "made/meanwhile").mkdir(parents=True)


def test_a_clock_that_is_set_back_loses_nothing(place: Site) -> None:
    path = place.volume / "file"
    for ahead_ns in (0, -HOUR_NS, -2 * HOUR_NS, HOUR_NS):
        place.clock.ahead_ns = ahead_ns
        before = path.stat()
        path.write_bytes(os.urandom(16_384))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        place.backup()
        place.check()


# Backups that fail.


@pytest.mark.parametrize("how", ["upload", "commit"])
def test_what_a_failed_backup_had_taken_is_looked_at_by_the_next_one(told: Site, how: str) -> None:
    (told.volume / "file").write_bytes(b"before")
    (told.volume / "dir/sub").rename(told.volume / "moved")
    if how == "upload":
        told.coordinator.uploads_left = 0
    else:
        told.coordinator.commit_error = StoreUnavailableError("the store is away")

    outcome = told.try_backup()
    told.coordinator.uploads_left = told.coordinator.commit_error = None
    (told.volume / "other").write_bytes(b"after")

    assert isinstance(outcome.error, StoreFullError | StoreUnavailableError)
    by_events(told)


def test_after_a_commit_whose_answer_was_lost_all_is_looked_at(
    told: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (told.volume / "file").write_bytes(b"before")
    commit = told.coordinator.commit

    async def commit_silently(*arguments: object) -> Committed:
        await commit(*arguments)  # type: ignore[arg-type]
        raise StoreUnavailableError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(told.coordinator, "commit", commit_silently)
        assert told.try_backup().error is not None
    (told.volume / "other").write_bytes(b"after")

    assert by_sweep(told) == "sweep: changes are known since another snapshot than the last one"
    (told.volume / "file").write_bytes(b"again")
    by_events(told)


def test_a_file_that_cannot_be_read_is_looked_at_until_it_can(
    told: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (told.volume / "file").write_bytes(b"not to be read")

    def refuse(*_: object) -> object:
        raise OSError(5, "Input/output error")

    phases = []
    with monkeypatch.context() as patch:
        patch.setattr("agent.beneath.TreeCursor.open_regular", refuse)
        for _ in range(2):
            committed = told.backup().committed
            phases.append(committed and committed.phase)
            entry, content = told.tree()[b"file"]
            assert (entry.flags, content) == (Flag.STALE, bytes(16_384))

    by_events(told)
    assert phases == [Phase.PARTIALLY_FAILED] * 2


# Mounts.


def test_a_volume_that_is_mounted_again_is_swept(
    told: Site, disks: Callable[[str], LoopDisk]
) -> None:
    disks("ext4").again()
    (told.volume / "file").write_bytes(b"by the new mount")

    by_sweep(told)
    (told.volume / "other").write_bytes(b"x")
    by_events(told)


def test_what_was_written_while_nothing_was_mounted_there_is_found(
    told: Site, disks: Callable[[str], LoopDisk], tmp_path: Path
) -> None:
    disk, name = disks("ext4"), told.volume.relative_to(disks("ext4").path)
    image, elsewhere = disk.path.with_suffix(".img"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    disk.unmount()
    subprocess.run(["mount", "-o", "loop", image, elsewhere], check=True)
    (elsewhere / name / "file").write_bytes(b"under another path")
    subprocess.run(["umount", elsewhere], check=True)
    subprocess.run(["mount", "-o", "loop", image, disk.path], check=True)

    by_sweep(told)


def test_another_filesystem_in_the_place_of_the_volume_is_swept_and_so_is_its_return(
    told: Site,
) -> None:
    held = os.open(told.volume, os.O_RDONLY)
    with memory_disk(told.volume, 1 << 20) as memory:
        (memory / "strange").write_bytes(b"x")
        by_sweep(told)
        descriptor = os.open("file", os.O_WRONLY, dir_fd=held)
        os.write(descriptor, b"beneath")
        os.close(descriptor)
    os.close(held)

    by_sweep(told)
    (told.volume / "other").write_bytes(b"x")
    told.backup()
    told.check()


def test_what_a_mount_within_the_volume_hides_is_found_when_it_goes(told: Site) -> None:
    held = os.open(told.volume / "dir/sub", os.O_RDONLY)
    with memory_disk(told.volume / "dir/sub", 1 << 20) as memory:
        (memory / "strange").write_bytes(b"x")
        told.backup()
        hidden = [key for key in told.tree() if key.startswith(b"dir\0sub\0")]
        descriptor = os.open("deep", os.O_WRONLY, dir_fd=held)
        os.write(descriptor, b"beneath")
        os.close(descriptor)
    os.close(held)

    assert hidden == []
    told.backup()
    told.check()


# The real daemons.


def test_an_agent_that_was_killed_sweeps_and_finds_what_changed_meanwhile(tmp_path: Path) -> None:
    machine, volume = Machine(tmp_path / "home"), tmp_path / "volume"
    volume.mkdir()
    (volume / "kept").write_bytes(b"kept")
    (volume / "file").write_bytes(b"one")
    ways = []
    with machine.up(tmp_path / "data", f"web={volume}") as up:
        for content in (b"one", b"two", b"and three"):
            (volume / "file").write_bytes(content)
            ways.append(up.backup()["change_detection"])
        agent = up.child("agent")
        (volume / "file").write_bytes(b"before")
        os.kill(agent, signal.SIGKILL)
        up.process.wait(30)
    (volume / "file").write_bytes(b"while it was away")
    (volume / "new").write_bytes(b"new")
    with machine.up(tmp_path / "data") as up:
        made = up.backup()
        ways.append(made["change_detection"])
        up.restore(made["snapshot_id"], tmp_path / "restored")
        (volume / "file").write_bytes(b"after")
        ways.append(up.backup()["change_detection"])

    found = {path.name: path.read_bytes() for path in (tmp_path / "restored").iterdir()}
    assert found == {"kept": b"kept", "file": b"while it was away", "new": b"new"}
    assert ways == ["sweep", "events", "events", "sweep", "events"]
