"""Everything that a file is comes back: rsync, which knows it all, finds no difference."""

import os
import random
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Machine
from tests.faults.disks import loop_disk, memory_disk, overlay_disk

GIB = 1 << 30

pytestmark = pytest.mark.skipif(
    not (shutil.which("rsync") and shutil.which("setfacl")),
    reason="needs rsync and setfacl (Debian: rsync, acl)",
)


def differences(source: Path, target: Path) -> list[str]:
    """What rsync would change: contents, owners, modes, times, links, ACLs, attributes, devices."""
    command = ["rsync", "--dry-run", "--itemize-changes", "--checksum", "--delete", "-aHAX"]
    done = subprocess.run(
        [*command, f"{source}/", f"{target}/"], capture_output=True, check=True, timeout=120
    )
    return done.stdout.decode("utf-8", "replace").splitlines()


def make_everything(top: Path) -> None:
    """One of each kind of thing that a filesystem holds."""
    top.mkdir()
    for name, mode in (("plain", 0o640), ("setuid", 0o4755), ("setgid", 0o2750), ("none", 0o000)):
        (top / name).write_bytes(name.encode())
        (top / name).chmod(mode)
    os.chown(top / "plain", 12345, 54321)
    (top / "empty").touch()
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    (top / "no way in").mkdir(mode=0o000)
    odd = os.fsencode(top) + b"/odd-\xff\xfe-\n-\t-name"
    Path(os.fsdecode(odd)).write_bytes(b"odd")
    (top / "-rf").write_bytes(b"looks like a flag")
    (top / "ünïcode").mkdir()
    (top / "ünïcode" / "below").write_bytes(b"below")
    (top / "link").symlink_to("plain")
    (top / "dangling").symlink_to("/nowhere/at all")
    try:
        (top / "long link").symlink_to("l" * 4000)
    except OSError:
        (top / "long link").symlink_to("l" * 1000)  # XFS takes up to 1,023 bytes
    os.mkfifo(top / "fifo", 0o620)
    os.mknod(top / "character", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(top / "block", 0o660 | stat.S_IFBLK, os.makedev(7, 99))
    for number in range(3):
        os.link(top / "plain", top / "ünïcode" / f"hard {number}")
    # Cut into pages by the one name, and by its content by the other.
    (top / "large").write_bytes(random.Random(2).randbytes(2_000_000))
    os.link(top / "large", top / "large.db")
    os.link(top / "plain", top / "ünïcode" / "hard.db")
    os.link(top / "fifo", top / "fifo again")


def give_attributes(top: Path) -> None:
    """Attributes of every namespace, ACLs, and times of all sorts."""
    os.setxattr(top / "plain", "user.comment", b"short")
    os.setxattr(top / "plain", "trusted.secret", b"\x00\xff")
    os.setxattr(top / "empty", "user.long", random.Random(1).randbytes(3000))
    os.setxattr(top / "link", "trusted.link", b"of the link", follow_symlinks=False)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(top / "setgid", "security.capability", capability)
    for flags, name in (("-m", "plain"), ("-d", "sticky")):
        rule = ["-m", "u:1000:rx,g:2000:rwx"] if flags == "-m" else ["-d", "-m", "u:1000:rwx"]
        subprocess.run(["setfacl", *rule, str(top / name)], check=True)
    times = {"empty": -1_500_000_001, "setuid": 1, "sticky": 1_700_000_000_123_456_789}
    for name, time_ns in times.items():
        os.utime(top / name, ns=(0, time_ns))
    os.utime(top / "dangling", ns=(0, 946_684_800_000_000_007), follow_symlinks=False)


@pytest.fixture(params=["", "xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a filesystem of this kind, or wherever tests have theirs."""
    if not request.param:
        yield tmp_path
        return
    if shutil.which(f"mkfs.{request.param}") is None:
        pytest.skip(f"needs mkfs.{request.param} (Debian: xfsprogs, btrfs-progs)")
    with loop_disk(request.param, tmp_path) as mounted:
        yield mounted.path


def test_everything_that_a_file_is_comes_back(machine: Machine, tmp_path: Path, disk: Path) -> None:
    top = disk / "volume"
    make_everything(top)
    give_attributes(top)
    with machine.up(tmp_path / "data", f"all={top}") as up:
        first = up.backup("all")
        assert (first["phase"], first["errors_total"]) == ("Completed", 0)
        up.restore(first["snapshot_id"], disk / "first")
        assert differences(top, disk / "first") == []

        # Names of one inode come and go, attributes change without any content.
        (top / "plain").unlink()
        os.link(top / "ünïcode" / "hard 0", top / "new name")
        os.setxattr(top / "empty", "user.long", b"short now")
        os.removexattr(top / "link", "trusted.link", follow_symlinks=False)
        subprocess.run(["setfacl", "-b", str(top / "sticky")], check=True)
        second = up.backup("all")
        up.restore(second["snapshot_id"], disk / "second")
        assert differences(top, disk / "second") == []
        assert (disk / "second" / "new name").stat().st_nlink == 5

        # The same again where it stands, with names parted, joined, and made something else.
        wanted = disk / "wanted"
        subprocess.run(["cp", "-a", str(top), str(wanted)], check=True)
        (top / "new name").unlink()
        (top / "new name").write_bytes(b"alone")
        (top / "empty").unlink()
        os.link(top / "setuid", top / "empty")
        (top / "fifo").unlink()
        os.link(top / "large", top / "fifo")
        restored = ["--from", second["snapshot_id"], "--in-place", "--yes", "--delete", "--wait"]
        up.json("restore", "create", *restored)
        assert differences(wanted, top) == []


def test_a_subvolume_in_a_volume_is_said_once_not_to_be_read(
    machine: Machine, tmp_path: Path
) -> None:
    with loop_disk("btrfs", tmp_path) as disk:
        top = disk.path / "volume"
        top.mkdir()
        (top / "file").write_bytes(b"x")
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(top / "sub")], check=True)
        (top / "sub" / "directory").mkdir()
        for number in range(3):
            (top / "sub" / "directory" / f"{number}").write_bytes(b"x")
        with machine.up(tmp_path / "data", f"v={top}") as up:
            made, again = up.backup("v"), up.backup("v")
            for each in (made, again):
                assert (each["phase"], each["total_files_processed"]) == ("Completed", 1)
                (warning,) = each["warnings"]
                assert (warning["path"], "subvolume" in warning["message"]) == ("sub", True)
            up.restore(made["snapshot_id"], tmp_path / "target")

    assert sorted(os.listdir(tmp_path / "target")) == ["file", "sub"]


def test_what_lies_in_layers_on_several_filesystems_is_read_and_what_is_mounted_is_not(
    machine: Machine, tmp_path: Path
) -> None:
    with (
        memory_disk(tmp_path / "lower", 1 << 24) as lower,
        memory_disk(tmp_path / "upper", 1 << 24) as upper,
    ):
        make_everything(lower / "everything")
        give_attributes(lower / "everything")
        (lower / "mount point").write_bytes(b"below")
        with overlay_disk(lower, upper, tmp_path / "volume") as top:
            (top / "everything" / "setuid").write_bytes(b"copied up")
            (top / "everything" / "new").write_bytes(b"in the upper layer")
            command = ["mount", "--bind", "/etc/hostname", str(top / "mount point")]
            subprocess.run(command, check=True)
            try:
                with machine.up(tmp_path / "data", f"v={top}") as up:
                    made, again = up.backup("v"), up.backup("v")
                    up.restore(made["snapshot_id"], tmp_path / "target")
            finally:
                subprocess.run(["umount", "--lazy", str(top / "mount point")], check=True)
            changes = differences(top, tmp_path / "target")

    assert (made["phase"], made["errors_total"]) == ("Completed", 0)
    assert [warning["path"] for warning in made["warnings"]] == ["mount point"]
    assert (again["files_unmodified"], again["data_added"]) == (made["files_new"], 0)
    assert [each.split(maxsplit=1)[1] for each in changes] == ["mount point"]


def test_a_socket_is_recorded_and_skipped_with_a_warning(machine: Machine, tmp_path: Path) -> None:
    top = tmp_path / "volume"
    top.mkdir()
    (top / "file").write_bytes(b"x")
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(top)  # a socket's path is short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        with machine.up(tmp_path / "data", f"v={top}") as up:
            made = up.backup("v")
            restored = up.restore(made["snapshot_id"], tmp_path / "target")
            listed = up.json("snapshot", "ls", made["snapshot_id"])

    assert (made["phase"], restored["phase"]) == ("Completed", "Completed")
    assert [warning["path"] for warning in restored["warnings"]] == ["socket"]
    assert "socket" in {entry["path"] for entry in listed}
    assert sorted(os.listdir(tmp_path / "target")) == ["file"]


def test_holes_stay_holes_and_cost_nothing(machine: Machine, tmp_path: Path) -> None:
    top = tmp_path / "volume"
    top.mkdir()
    sparse = top / "sparse.img"
    with sparse.open("wb") as file:
        for offset in (0, 5 * GIB, 13 * GIB + 4096):
            file.seek(offset)
            file.write(random.Random(offset).randbytes(100_000))
        file.truncate(20 * GIB)
    with machine.up(tmp_path / "data", f"v={top}") as up:
        made = up.backup("v")
        restored = up.restore(made["snapshot_id"], tmp_path / "target")

    found = (tmp_path / "target" / "sparse.img").stat()
    assert made["bytes_read"] < 1 << 20
    assert made["total_bytes_processed"] == restored["bytes_restored"] == 20 * GIB
    assert found.st_size == 20 * GIB
    assert found.st_blocks * 512 < 1 << 20
    for offset in (0, 5 * GIB, 13 * GIB + 4096):
        with (tmp_path / "target" / "sparse.img").open("rb") as file:
            file.seek(offset)
            assert file.read(100_000) == random.Random(offset).randbytes(100_000)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A place for trees that pytest's own cleaning cannot follow."""
    path = tmp_path / "deep"
    path.mkdir()
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


@pytest.mark.parametrize("depth", [1000])
def test_a_tree_may_be_deeper_than_any_path(
    machine: Machine, tmp_path: Path, deep: Path, depth: int
) -> None:
    top = deep / "volume"
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY)
    for level in range(depth):
        name = f"directory number {level}"
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    file = os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
    os.write(file, b"far down")
    os.close(file)
    os.close(descriptor)
    with machine.up(tmp_path / "data", f"v={top}") as up:
        made = up.backup("v")
        assert (made["phase"], made["errors_total"], made["files_new"]) == ("Completed", 0, 1)
        restored = up.restore(made["snapshot_id"], deep / "target")
        assert (restored["errors_total"], restored["files_restored"]) == (0, 1)

    descriptor = os.open(deep / "target", os.O_RDONLY)
    for level in range(depth):
        below = os.open(f"directory number {level}", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    assert os.listdir(descriptor) == ["bottom"]
    os.close(descriptor)
