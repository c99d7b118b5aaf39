"""Files without an end, or with another one than they say: a backup ends, and says what it has."""

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Machine, Up, eventually
from tests.faults.disks import loop_disk

MIB = 1 << 20
VAST = (1 << 63) - 1
STRANGE = Path(__file__).with_name("strange.py")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "home")


@contextlib.contextmanager
def strange(directory: Path, *names: str) -> Iterator[None]:
    """Strange files in a directory."""
    directory.mkdir()
    command = [sys.executable, str(STRANGE), str(directory), *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mounted\n"
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
            process.kill()


def back_up(up: Up, phase: str) -> dict[str, Any]:
    made = up.run("backup", "create", "--all", "--wait", "-o", "json")
    result = made.document["snapshots"][0]
    assert result["phase"] == phase, (result, made.stderr, up.logs())
    assert isinstance(result, dict)
    return result


def errors(result: dict[str, Any]) -> dict[str, str]:
    return {each["path"]: each["message"] for each in result["errors"]}


def test_what_made_up_files_hold_is_read_or_said_not_to_be(
    machine: Machine, tmp_path: Path
) -> None:
    top = tmp_path / "volume"
    names = ("endless", "longer", "plain", "proc", "shorter")
    with strange(top, *names), machine.up(tmp_path / "data", f"v={top}") as up:
        first, second = back_up(up, "PartiallyFailed"), back_up(up, "PartiallyFailed")
        up.restore(second["snapshot_id"], tmp_path / "target")
        agent_bytes = up.peak_bytes("agent")

    for result in (first, second):
        assert sorted(errors(result)) == ["endless", "longer", "plain"]
        assert "more than the 0 bytes" in errors(result)["endless"]
        assert "user.refused" in errors(result)["plain"]
        assert result["fuzzy_files"] == 2
    found = {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()}
    found.pop(".tidemark-incomplete", None)
    assert found == {"plain": b"xxxxx", "proc": b"x" * 100, "shorter": b""}
    assert os.listxattr(tmp_path / "target" / "plain") == ["user.good"]
    assert agent_bytes < 256 * MIB


def test_a_backup_of_what_takes_for_ever_can_be_canceled(machine: Machine, tmp_path: Path) -> None:
    top = tmp_path / "volume"
    with strange(top, "vast"), machine.up(tmp_path / "data", f"v={top}") as up:
        job = up.json("backup", "create", "v")["job_id"]
        eventually(lambda: up.json("job", "show", job).get("bytes_done", 1) > 0)
        up.json("job", "cancel", job)
        eventually(lambda: up.json("job", "show", job)["phase"] == "Canceled", seconds=20)
        assert up.peak_bytes("agent") < 256 * MIB
        assert up.json("snapshot", "list") == []


def test_the_largest_files_there_can_be(machine: Machine, tmp_path: Path) -> None:
    """Two, so that their sizes together are more than most numbers hold."""
    content = random.Random(1).randbytes(100_000)
    places = (0, 1 << 40, (1 << 62) + 12345, VAST - len(content))
    with loop_disk("xfs", tmp_path) as disk:
        top = disk.path / "volume"
        top.mkdir()
        for name in ("one", "other.db"):
            with (top / name).open("wb") as file:
                for place in places:
                    os.pwrite(file.fileno(), content, place)
                os.truncate(file.fileno(), VAST)
        with machine.up(tmp_path / "data", f"v={top}") as up:
            made, again = back_up(up, "Completed"), back_up(up, "Completed")
            up.restore(made["snapshot_id"], disk.path / "target")
            elsewhere = up.run(
                *("restore", "create", "--from", made["snapshot_id"], "-o", "json"),
                *("--to", tmp_path / "target", "--wait"),
            )
            agent_bytes = up.peak_bytes("agent")

        assert made["bytes_read"] < 4 * MIB
        assert again["bytes_read"] == 0
        for name in ("one", "other.db"):
            with (disk.path / "target" / name).open("rb") as file:
                assert os.fstat(file.fileno()).st_size == VAST
                assert os.fstat(file.fileno()).st_blocks < 4096
                for place in places:
                    assert os.pread(file.fileno(), len(content), place) == content
    # Where tests have their files, none is so large.
    assert elsewhere.code == 1
    assert agent_bytes < 256 * MIB


WRITER = """
import os, sys, time
growing, flapping = (os.open(path, os.O_RDWR | os.O_CREAT) for path in sys.argv[1:])
print("begun", flush=True)
page, end = b"", 0
while True:
    page = end.to_bytes(8, "big") * 512
    os.pwrite(growing, page, end)
    end += 8192
    os.ftruncate(growing, end)
    os.ftruncate(flapping, 0)
    os.pwrite(flapping, page * 200, 0)
    time.sleep(0.0005)
"""


def test_files_that_grow_and_shrink_as_fast_as_they_are_read(
    machine: Machine, tmp_path: Path
) -> None:
    top = tmp_path / "volume"
    top.mkdir()
    growing, flapping = top / "growing", top / "flapping"
    command = [sys.executable, "-c", WRITER, str(growing), str(flapping)]
    with machine.up(tmp_path / "data", f"v={top}") as up:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            made = [back_up(up, "Completed") for _ in range(3)]
            writer.kill()
        last = back_up(up, "Completed")
        for number, result in enumerate(made):
            up.restore(result["snapshot_id"], tmp_path / f"{number}")
        up.restore(last["snapshot_id"], tmp_path / "last")
        agent_bytes = up.peak_bytes("agent")

    assert any(result["fuzzy_files"] for result in made)
    assert last["fuzzy_files"] == 0
    whole = growing.read_bytes()
    assert (tmp_path / "last" / "growing").read_bytes() == whole
    assert (tmp_path / "last" / "flapping").read_bytes() == flapping.read_bytes()
    for number in range(3):
        # What only grows is, at any moment, a beginning of what it came to be.
        begun = (tmp_path / f"{number}" / "growing").read_bytes()
        assert whole.startswith(begun)
        assert (tmp_path / f"{number}" / "flapping").stat().st_size <= 4096 * 200
    assert agent_bytes < 256 * MIB


@contextlib.contextmanager
def bound(source: str, target: Path) -> Iterator[None]:
    target.touch()
    subprocess.run(["mount", "--bind", source, str(target)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_devices_pipes_and_a_kernels_files_among_files_never_block(
    machine: Machine, tmp_path: Path
) -> None:
    top = tmp_path / "volume"
    top.mkdir()
    (top / "file").write_bytes(b"content")
    os.mkfifo(top / "pipe")
    with (
        bound("/dev/zero", top / "zero"),
        bound("/proc/kmsg", top / "kmsg"),
        strange(top / "mounted", "endless"),
        machine.up(tmp_path / "data", f"v={top}") as up,
    ):
        made = back_up(up, "Completed")
        up.restore(made["snapshot_id"], tmp_path / "target")

    warned = {each["path"] for each in made["warnings"]}
    assert warned == {"kmsg", "mounted", "zero"}
    assert sorted(os.listdir(tmp_path / "target")) == ["file", "mounted", "pipe"]


def test_a_volume_that_is_a_kernels_file_never_blocks(machine: Machine, tmp_path: Path) -> None:
    with machine.up(tmp_path / "data", "v=/proc/kmsg") as up:
        made = up.run("backup", "create", "v", "--wait", "-o", "json")

    assert made.code in {1, 3}, made
