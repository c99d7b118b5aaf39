"""The same exchanges under the real daemons: nothing outside is opened, read or changed."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from tests.e2e.harness import Machine, Up
from tests.hostile.test_flips import FLIPS, NAMES, SECRET, Flip, fill, picture, read_naively
from tests.hostile.watching import Watch

MIB = 1 << 20
# Done, failed, done in part: whatever a volume that never stands still comes to.
ENDS = {0, 1, 3}
# Long before anything else, so that one read would show even where few times are kept.
OLD = (0, 0)


def set_up(volume: Path, outside: Path) -> None:
    """The volume as it is meant to be: a directory, and a link to what lies outside."""
    for path in volume.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    fill(volume / "swap", b"inside")
    (volume / "decoy").symlink_to(outside)


def one_round(up: Up, snapshot: str) -> list[str]:
    """A backup and a restore over it while names are exchanged; the snapshots that there are."""
    assert up.run("backup", "create", "v", "--wait", "-o", "json").code in ENDS
    words = ("--from", snapshot, "--in-place", "--yes", "--delete", "--wait", "-o", "json")
    assert up.run("restore", "create", *words).code in ENDS
    return [each["snapshot_id"] for each in up.json("snapshot", "list")]


def assert_no_secret(up: Up, snapshot: str, target: Path) -> None:
    """Nothing in a snapshot is what lies outside."""
    up.run("restore", "create", "--from", snapshot, "--to", target, "--wait", "-o", "json")
    for path in target.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert not path.read_bytes().startswith(SECRET), path
    shutil.rmtree(target)


@pytest.mark.timeout(3600)
def test_daemons_are_led_nowhere(tmp_path: Path, flip: Flip) -> None:
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    volume.mkdir()
    fill(outside, SECRET)
    canaries = [outside, *outside.rglob("*")]
    for path in canaries:
        os.utime(path, ns=OLD)
    before = picture(outside)
    set_up(volume, outside)
    with Machine(tmp_path / "home").up(tmp_path / "data", f"v={volume}") as up:
        good = up.backup("v")["snapshot_id"]
        checked = {good}
        with Watch(outside) as watch, flip(volume / "swap", volume / "decoy") as flipper:
            for path in canaries:
                os.utime(path, ns=OLD)
            watch.seen()  # that was us
            rounds = 0
            while flipper.flips < FLIPS or rounds < 3:
                made = one_round(up, good)
                rounds += 1
                for snapshot in made:
                    if snapshot not in checked:
                        assert_no_secret(up, snapshot, tmp_path / "looked at")
                        checked.add(snapshot)
                with flipper.paused():
                    set_up(volume, outside)
            assert watch.seen() == []
            assert {path.lstat().st_atime_ns for path in canaries} == {0}
            # Whoever goes by paths is led astray, and seen: or all this would prove nothing.
            leaks = 0
            while not leaks:
                leaks += read_naively(volume / "swap")
            assert watch.seen() != []
        assert picture(outside) == before
        assert len(checked) > 1
        set_up(volume, outside)
        up.backup("v")
        shutil.rmtree(volume / "swap")
        with contextlib.suppress(FileNotFoundError):
            (volume / "decoy").unlink()
        up.json("restore", "create", "--from", "latest", "--in-place", "--yes", "--wait")
        assert sum(path.is_file() for path in (volume / "swap").rglob("*")) == len(NAMES)
        assert up.peak_bytes("agent") < 256 * MIB
