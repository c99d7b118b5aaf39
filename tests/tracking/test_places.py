"""Odd places: each volume gets the best mode that is safe there, and says which and why."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import pytest

from agent.state import State
from agent.tracking.opening import open_tracker
from agent.tracking.tracker import Mode, Tracker
from repository.snapshot import Detection
from tests.faults.disks import LoopDisk, fuse_disk, loop_disks, memory_disk, overlay_disk
from tests.tracking.site import site

ID: Final = b"volume"


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], LoopDisk]]:
    with loop_disks(tmp_path_factory.mktemp) as disk:
        yield disk


@contextmanager
def opened(directory: Path) -> Iterator[Tracker]:
    """The tracker that an agent has."""
    with State(directory / "state.db") as state:
        tracker = open_tracker(directory, state)
        try:
            yield tracker
        finally:
            tracker.close()


def behind_fuse(base: Path) -> AbstractContextManager[Path]:
    (base / "source").mkdir()
    return fuse_disk(base / "source", base / "fuse")


def in_memory(base: Path) -> AbstractContextManager[Path]:
    return memory_disk(base / "memory", 4 << 20)


def in_an_overlay(base: Path) -> AbstractContextManager[Path]:
    for part in ("lower", "upper"):
        (base / part).mkdir()
    return overlay_disk(base / "lower", base / "upper", base / "overlay")


@pytest.mark.parametrize(
    ("mounted", "reason"),
    [
        (behind_fuse, "a FUSE filesystem may change without an event"),
        (in_memory, "a store through a mapping leaves no trace in tmpfs"),
        (in_an_overlay, "an overlay's layers may change without an event"),
    ],
)
def test_where_no_event_tells_of_every_change_each_backup_sweeps(
    mounted: Callable[[Path], AbstractContextManager[Path]], reason: str, tmp_path: Path
) -> None:
    proof = ""

    with (
        opened(tmp_path) as tracker,
        mounted(tmp_path) as path,
        site(tracker, path, tmp_path) as one,
    ):
        # What FUSE shows may be written to where it really is.
        shown = tmp_path / "source" / one.volume.relative_to(path)
        beneath = shown if shown.exists() else one.volume
        (one.volume / "dir").mkdir()
        for content in (b"one", b"two", b"and three"):
            (one.volume / "dir/file").write_bytes(content)
            (beneath / "dir/other").write_bytes(content)
            proof = one.backup().statistics.proof
            one.check()
        mode = tracker.watch(one.volume_id, os.fsencode(one.volume))

    assert one.ways == {Detection.SWEEP: 3}
    assert mode == Mode("sweep", reason)
    assert proof == f"sweep: {reason}"


@contextmanager
def bound(directory: Path, path: Path) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "--bind", directory, path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_bind_mount_is_told_of_by_the_filesystem_it_is_of(
    disks: Callable[[str], LoopDisk], tmp_path: Path
) -> None:
    with (
        opened(tmp_path) as tracker,
        bound(disks("ext4").path, tmp_path / "bound") as path,
        site(tracker, path, tmp_path) as one,
    ):
        one.backup()
        (disks("ext4").path / one.volume.relative_to(path) / "file").touch()
        one.backup()
        one.check()
        mode = tracker.watch(one.volume_id, os.fsencode(one.volume))

    assert one.detection is Detection.EVENTS
    assert mode == Mode("fanotify", "")


def test_a_btrfs_subvolume_is_watched_directory_by_directory(
    disks: Callable[[str], LoopDisk], tmp_path: Path
) -> None:
    path = disks("btrfs").path / "subvolume"
    subprocess.run(["btrfs", "-q", "subvolume", "create", path], check=True)

    with opened(tmp_path) as tracker, site(tracker, path, tmp_path) as one:
        one.backup()
        (one.volume / "file").touch()
        one.backup()
        one.check()
        mode = tracker.watch(one.volume_id, os.fsencode(one.volume))

    assert one.detection is Detection.EVENTS
    assert mode == Mode("inotify", "fanotify: a btrfs subvolume cannot be marked")


# Where the node does not allow it.

ASKED: Final = """
import os, sys
from pathlib import Path
from tests.tracking.test_places import ID, opened
with opened(Path(sys.argv[1])) as tracker:
    print(*tracker.watch(ID, os.fsencode(sys.argv[2])), sep="\\n")
"""
NO_PRIVILEGE: Final = "fanotify: the agent has no CAP_SYS_ADMIN, which fanotify needs"


def limited(limit: str) -> list[str]:
    """A command in a namespace of its own, where root may do little and that limit is zero."""
    script = f'echo 0 > /proc/sys/user/{limit} && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]


@pytest.mark.parametrize(
    ("under", "expected"),
    [
        (["setpriv", "--bounding-set=-sys_admin"], Mode("inotify", NO_PRIVILEGE)),
        (
            limited("max_inotify_watches"),
            Mode(
                "sweep",
                f"{NO_PRIVILEGE}; inotify: the limit of inotify watches is reached "
                "(fs.inotify.max_user_watches)",
            ),
        ),
        (
            limited("max_inotify_instances"),
            Mode(
                "sweep",
                f"{NO_PRIVILEGE}; inotify: the limit of inotify instances is reached "
                "(fs.inotify.max_user_instances)",
            ),
        ),
    ],
    ids=["no privilege", "no watches", "no instances"],
)
def test_what_the_node_does_not_allow_is_said_with_what_is_done_instead(
    under: list[str], expected: Mode, tmp_path: Path
) -> None:
    (tmp_path / "volume").mkdir()

    command = [sys.executable, "-c", ASKED, str(tmp_path), str(tmp_path / "volume")]
    done = subprocess.run([*under, *command], check=True, capture_output=True, text=True)

    assert Mode(*done.stdout.splitlines()) == expected
