"""Restores over what stands in the target: what is kept, patched, replaced, removed, told."""

import ctypes
import errno
import os
import random
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import writing
from agent.errors import TargetError, VolumeError
from agent.restore import run_restore
from agent.services import Phase, RestorePlaces, RestoreStatistics, RestoreTask
from agent.state import State
from repository.errors import UsageError
from tests.integration.agent.test_restore import Node, fill, full_disk, picture

pytestmark = pytest.mark.asyncio

MIB = 1 << 20
MARK = ".tidemark-incomplete"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    yield from nodes(tmp_path)


def large(path: Path, size: int = 6 * MIB, seed: int = 1) -> bytes:
    content = random.Random(seed).randbytes(size)
    path.write_bytes(content)
    return content


async def done(node: Node, *paths: bytes, **options: bool) -> RestoreStatistics:
    """Restore, completely."""
    overwrite = not options.get("in_place", False)
    outcome = await node.restore(*paths, target=node.target, overwrite=overwrite, **options)
    assert outcome.error is None
    assert outcome.phase is Phase.COMPLETED, outcome.statistics.errors
    return outcome.statistics


async def test_in_place_changes_nothing_that_is_as_it_should_be(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    before = {path: path.lstat() for path in [node.source, *node.source.rglob("*")]}

    statistics = await done(node, in_place=True)

    after = {path: path.lstat() for path in [node.source, *node.source.rglob("*")]}
    assert {path for path in before if before[path].st_ino != after[path].st_ino} == set()
    # The top alone was touched: the mark lay there.
    moved = {path for path in before if before[path].st_ctime_ns != after[path].st_ctime_ns}
    assert moved <= {node.source}
    assert (statistics.bytes_written, statistics.files_removed) == (0, 0)
    assert statistics.files_unchanged == statistics.files_restored > 300
    metadata = max(map(len, node.coordinator.store.packs.values()))
    assert statistics.bytes_fetched < metadata


async def test_in_place_fetches_and_writes_only_blocks_that_differ(node: Node) -> None:
    content = large(node.source / "file", 40 * MIB)
    await node.back_up()
    inode = (node.source / "file").stat().st_ino
    with (node.source / "file").open("r+b") as file:
        file.seek(20 * MIB)
        file.write(b"changed")

    statistics = await done(node, in_place=True)

    assert (node.source / "file").read_bytes() == content
    assert (node.source / "file").stat().st_ino == inode
    # One chunk is at most 4 MiB, and it shares its frame with others up to 1 MiB.
    assert 0 < statistics.bytes_written <= 4 * MIB
    assert 0 < statistics.bytes_fetched < 8 * MIB
    assert statistics.files_unchanged == 0


@pytest.mark.parametrize("size", [0, 1, 3 * MIB, 9 * MIB])
async def test_a_file_that_is_shorter_or_longer_gets_its_length(node: Node, size: int) -> None:
    content = large(node.source / "file")
    await node.back_up()
    os.truncate(node.source / "file", size)

    statistics = await done(node, in_place=True)

    assert (node.source / "file").read_bytes() == content
    assert statistics.bytes_written <= max(0, 6 * MIB - size) + 4 * MIB
    if size > 6 * MIB:
        assert statistics.bytes_written == 0


async def test_holes_are_made_where_data_lies_now(node: Node) -> None:
    with (node.source / "sparse").open("wb") as file:
        file.write(random.Random(1).randbytes(MIB))
        file.truncate(64 * MIB)
    await node.back_up()
    blocks = (node.source / "sparse").stat().st_blocks
    with (node.source / "sparse").open("r+b") as file:
        file.seek(8 * MIB)
        file.write(b"x" * (4 * MIB))

    statistics = await done(node, in_place=True)

    assert (node.source / "sparse").stat().st_blocks == blocks
    assert (node.source / "sparse").stat().st_size == 64 * MIB
    with (node.source / "sparse").open("rb") as file:
        file.seek(MIB)
        assert not file.read().strip(b"\0")
    assert statistics.bytes_written == 0


async def test_where_no_hole_can_be_punched_zeros_are_written(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (node.source / "sparse").open("wb") as file:
        file.truncate(3 * MIB)
    await node.back_up()
    (node.source / "sparse").write_bytes(b"x" * (3 * MIB))
    monkeypatch.setattr(writing, "punch_hole", lambda *_: False)

    await done(node, in_place=True)

    assert (node.source / "sparse").read_bytes() == bytes(3 * MIB)


async def test_other_names_of_an_inode_outside_the_snapshot_keep_their_content(
    node: Node, tmp_path: Path
) -> None:
    content = large(node.source / "file")
    (node.source / "small").write_bytes(b"small")
    await node.back_up()
    for name in ("file", "small"):
        with (node.source / name).open("r+b") as file:
            file.write(b"CHANGED")
        (tmp_path / name).hardlink_to(node.source / name)
        (tmp_path / name).chmod(0o640)
    outside = {name: (tmp_path / name).read_bytes() for name in ("file", "small")}

    statistics = await done(node, in_place=True)

    assert (node.source / "file").read_bytes() == content
    assert (node.source / "small").read_bytes() == b"small"
    for name, kept in outside.items():
        assert (tmp_path / name).read_bytes() == kept
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
        assert (tmp_path / name).stat().st_nlink == 1
    # What the other name has too is copied, not fetched.
    assert statistics.bytes_fetched < 6 * MIB


async def test_names_that_became_one_inode_become_two_files_again(node: Node) -> None:
    one, two = large(node.source / "one"), large(node.source / "two", seed=2)
    await node.back_up()
    (node.source / "two").unlink()
    (node.source / "two").hardlink_to(node.source / "one")

    await done(node, in_place=True)

    assert (node.source / "one").read_bytes() == one
    assert (node.source / "two").read_bytes() == two
    assert (node.source / "one").stat().st_nlink == 1


async def test_links_that_stand_are_kept_and_patched_as_the_one_inode_they_are(node: Node) -> None:
    content = large(node.source / "a")
    (node.source / "b").hardlink_to(node.source / "a")
    (node.source / "c").hardlink_to(node.source / "a")
    await node.back_up()
    inode = (node.source / "a").stat().st_ino
    with (node.source / "b").open("r+b") as file:
        file.write(b"changed")
    (node.source / "c").unlink()
    (node.source / "c").write_bytes(b"another file")

    statistics = await done(node, in_place=True)

    found = [(node.source / name).stat() for name in "abc"]
    assert {(each.st_ino, each.st_nlink) for each in found} == {(inode, 3)}
    assert (node.source / "c").read_bytes() == content
    assert statistics.files_restored == 3


async def test_a_program_that_runs_is_replaced_and_goes_on(node: Node) -> None:
    program = node.source / "program"
    shutil.copy("/bin/sleep", program)
    with program.open("ab") as file:
        file.write(random.Random(1).randbytes(3 * MIB))
    await node.back_up()
    content = program.read_bytes()
    with program.open("r+b") as file:
        file.seek(-10, os.SEEK_END)
        file.write(b"0123456789")
    with running(program) as process:
        statistics = await done(node, in_place=True)
        assert process.poll() is None

    assert program.read_bytes() == content
    assert statistics.bytes_written < len(content)


@contextmanager
def running(program: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([program, "60"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_small_file_is_exchanged_whole(node: Node) -> None:
    (node.source / "file").write_bytes(b"restored")
    await node.back_up()
    (node.source / "file").write_bytes(b"another")
    with (node.source / "file").open("rb") as reader:
        await done(node, in_place=True)
        assert reader.read() == b"another"
    assert (node.source / "file").read_bytes() == b"restored"


async def test_only_metadata_that_differs_is_touched(node: Node) -> None:
    large(node.source / "file")
    (node.source / "link").symlink_to("file")
    os.mkfifo(node.source / "pipe")
    (node.source / "directory").mkdir()
    await node.back_up()
    before = picture(node.source)
    (node.source / "file").chmod(0o600)
    os.chown(node.source / "link", 12, 34, follow_symlinks=False)
    (node.source / "pipe").chmod(0o600)
    os.utime(node.source / "directory", ns=(1, 1))

    statistics = await done(node, in_place=True)

    assert picture(node.source) == before
    assert (statistics.files_unchanged, statistics.bytes_written) == (0, 0)


async def test_attributes_come_back_and_others_go(node: Node) -> None:
    large(node.source / "file")
    os.setxattr(node.source / "file", "user.long", b"v" * 2000)
    (node.source / "directory").mkdir()
    os.setxattr(node.source / "directory", "user.mine", b"1")
    await node.back_up()
    before = picture(node.source)
    os.setxattr(node.source / "file", "user.other", b"2")
    os.removexattr(node.source / "file", "user.long")
    os.setxattr(node.source / "directory", "user.mine", b"3")

    statistics = await done(node, in_place=True)
    await done(node)

    assert picture(node.source) == picture(node.target) == before
    assert (statistics.files_unchanged, statistics.bytes_written) == (0, 0)


@pytest.mark.parametrize("was", ["file", "directory", "link", "pipe", "device", "outside"])
@pytest.mark.parametrize("becomes", ["file", "directory", "link", "pipe", "device", "outside"])
async def test_every_kind_of_thing_gives_way_to_every_other(
    node: Node, tmp_path: Path, was: str, becomes: str
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "keep").write_bytes(b"keep")
    make_one(node.source / "x", becomes, tmp_path)
    await node.back_up()
    wanted = picture(node.source)
    remove_one(node.source / "x")
    make_one(node.source / "x", was, tmp_path)
    if was == "directory" and becomes != "directory":
        refused = await node.restore(in_place=True)
        assert refused.phase is Phase.FAILED
        assert [error.hint for error in refused.statistics.errors] == ["--delete removes it"]
        assert (node.source / "x" / "in it").exists()

    await done(node, in_place=True, delete_extra=True)

    assert picture(node.source) == wanted
    assert picture(tmp_path / "outside").keys() == {".", "keep"}


def make_one(path: Path, kind: str, tmp_path: Path) -> None:
    if kind == "file":
        path.write_bytes(random.Random(5).randbytes(2 * MIB))
    elif kind == "directory":
        (path / "in it").mkdir(parents=True)
        (path / "in it" / "file").write_bytes(b"1")
    elif kind == "link":
        path.symlink_to("nowhere")
    elif kind == "outside":
        path.symlink_to(tmp_path / "outside")
    elif kind == "pipe":
        os.mkfifo(path, 0o640)
    else:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def remove_one(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


async def test_an_empty_directory_gives_way_without_being_asked(node: Node) -> None:
    (node.source / "x").write_bytes(b"file")
    await node.back_up()
    (node.source / "x").unlink()
    (node.source / "x").mkdir()

    await done(node, in_place=True)

    assert (node.source / "x").read_bytes() == b"file"


async def test_nothing_extra_is_removed_unasked(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    (node.source / "d1" / "extra").write_bytes(b"extra")
    (node.source / "extra" / "deeper").mkdir(parents=True)

    statistics = await done(node, in_place=True)

    assert (node.source / "d1" / "extra").exists()
    assert (node.source / "extra" / "deeper").exists()
    assert statistics.files_removed == 0


async def test_delete_removes_what_the_snapshot_has_not(node: Node, tmp_path: Path) -> None:
    fill(node.source)
    await node.back_up()
    before = picture(node.source)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_bytes(b"keep")
    (node.source / "extra" / "a" / "b").mkdir(parents=True)
    for name in ("extra/a/b/c", "extra/a/1", "d1/e2/new", "aaa", "zzz"):
        (node.source / name).write_bytes(b"extra")
    (node.source / "extra" / "link").symlink_to(outside)
    (node.source / "d0" / "link").symlink_to(outside)

    statistics = await done(node, in_place=True, delete_extra=True)

    assert picture(node.source) == before
    assert (outside / "keep").exists()
    assert statistics.files_removed == 7


async def test_delete_with_paths_removes_only_beneath_them(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    for name in ("d1/extra", "d1/e2/extra", "extra", "d2/extra"):
        (node.source / name).write_bytes(b"extra")

    await done(node, b"d1/e2", b"d2/e1", in_place=True, delete_extra=True)

    assert not (node.source / "d1/e2/extra").exists()
    assert all((node.source / name).exists() for name in ("d1/extra", "extra", "d2/extra"))


async def test_directories_above_chosen_paths_stay_as_they_are(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    (node.source / "d1").chmod(0o711)
    (node.source / "d1/e2/file-8").write_bytes(b"changed")
    (node.source / "d2").chmod(0o711)

    await done(node, b"d1/e2/file-8", in_place=True)

    assert stat.S_IMODE((node.source / "d1").stat().st_mode) == 0o711
    assert stat.S_IMODE((node.source / "d2").stat().st_mode) == 0o711
    assert (node.source / "d1/e2/file-8").read_bytes() != b"changed"


async def test_nothing_is_removed_where_something_failed(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    (node.source / "moved").write_bytes((node.source / "large").read_bytes())
    (node.source / "large").write_bytes(b"overwritten")
    node.grants.damage(await node.frame_of(b"large"))

    outcome = await node.restore(in_place=True, delete_extra=True)

    assert outcome.phase is Phase.PARTIALLY_FAILED
    assert (node.source / "moved").exists()
    assert (node.source / MARK).exists()
    assert "nothing extra was removed" in outcome.statistics.warnings[-1].message


async def test_delete_is_refused_with_a_snapshot_that_lacks_what_was_there(node: Node) -> None:
    (node.source / "file").write_bytes(b"1")
    await node.back_up()
    (node.source / "unread").write_bytes(b"2")
    node.grants.root_errors = 1

    outcome = await node.restore(in_place=True, delete_extra=True)

    assert (node.source / "unread").exists()
    assert isinstance(outcome.error, UsageError)
    assert "could be read when this snapshot was made" in outcome.error.message


async def test_what_is_closed_is_neither_entered_nor_removed(node: Node) -> None:
    (node.source / "repository").mkdir()
    (node.source / "file").write_bytes(b"1")
    await node.back_up()
    for name in ("repository", "elsewhere/repository"):
        (node.source / name).mkdir(parents=True, exist_ok=True)
        (node.source / name / "pack").write_bytes(b"precious")
    found = [(node.source / name).stat() for name in ("repository", "elsewhere/repository")]
    node.closed = frozenset((each.st_dev, each.st_ino) for each in found)

    outcome = await node.restore(in_place=True, delete_extra=True)

    assert (node.source / "repository/pack").read_bytes() == b"precious"
    assert (node.source / "elsewhere/repository/pack").read_bytes() == b"precious"
    assert [error.path for error in outcome.statistics.errors] == [b"elsewhere/repository"]
    assert b"repository" in [warning.path for warning in outcome.statistics.warnings]


async def test_a_mounted_filesystem_is_neither_entered_nor_removed(node: Node) -> None:
    (node.source / "inside").mkdir()
    (node.source / "inside" / "file").write_bytes(b"1")
    (node.source / "file").write_bytes(b"1")
    await node.back_up()
    (node.source / "extra").mkdir()
    with mounted(node.source / "inside"), mounted(node.source / "extra"):
        outcome = await node.restore(in_place=True)
        deleting = await node.restore(in_place=True, delete_extra=True)
        theirs = [(node.source / name / "theirs").exists() for name in ("inside", "extra")]
        names = [path.name for path in (node.source / "inside").iterdir()]

    assert outcome.phase is deleting.phase is Phase.PARTIALLY_FAILED
    assert [error.path for error in outcome.statistics.errors] == [b"inside/file"]
    assert theirs == [True, True]
    assert names == ["theirs"]


@contextmanager
def mounted(path: Path) -> Iterator[None]:
    """Somebody else's filesystem at that path."""
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=False)
    if done.returncode:
        pytest.skip("cannot mount")
    (path / "theirs").write_bytes(b"theirs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


async def test_overwrite_goes_to_any_directory_and_finishes_what_was_not(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(node.source)
    await node.back_up()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk)
        assert (await node.restore()).phase is Phase.FAILED
    assert (node.target / MARK).exists()

    await done(node)

    assert picture(node.target) == picture(node.source)


async def test_a_mark_stays_if_only_some_paths_were_finished(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(node.source)
    await node.back_up()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk)
        await node.restore()

    statistics = await done(node, b"large")

    assert (node.target / "large").exists()
    assert (node.target / MARK).exists()
    assert "stays" in statistics.warnings[-1].message


async def test_what_fails_leaves_nothing_beside_names(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(node.source)
    await node.back_up()
    for path in ("large", "medium", "d1/e2/file-8"):
        (node.source / path).unlink()
        (node.source / path).symlink_to("elsewhere")
    before = names_of(node.source)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: full_disk(0, b""))
        patch.setattr(os, "write", lambda *_: full_disk(0, b""))

        def mark(*_: object) -> None:
            (node.source / MARK).write_bytes(b"")

        patch.setattr(writing.Target, "mark", mark)
        outcome = await node.restore(in_place=True)

    assert outcome.phase is Phase.FAILED
    assert names_of(node.source) == before | {MARK}


def names_of(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


async def test_a_dry_run_writes_nothing_and_counts_what_a_run_does(node: Node) -> None:
    fill(node.source)
    large(node.source / "big", 12 * MIB)
    await node.back_up()
    disturb(node.source)
    before = {path: path.lstat() for path in [node.source, *node.source.rglob("*")]}
    options = {"in_place": True, "delete_extra": True}

    rehearsed = await done(node, dry_run=True, **options)
    untouched = {path: path.lstat() for path in [node.source, *node.source.rglob("*")]}
    run = await done(node, **options)

    assert {path: each.st_ctime_ns for path, each in before.items()} == {
        path: each.st_ctime_ns for path, each in untouched.items()
    }
    for name in (
        *("files_restored", "files_unchanged", "files_removed"),
        *("bytes_restored", "bytes_written", "bytes_fetched"),
    ):
        assert getattr(rehearsed, name) == getattr(run, name), name
    assert rehearsed.dry_run
    assert not run.changes
    changes = {change.path: change.change for change in rehearsed.changes}
    assert changes[b"big"] == "modified"
    assert changes[b"extra/file"] == "removed"
    assert changes[b"d1/e2/file-8"] == "added"
    assert b"medium" not in changes
    assert rehearsed.changes_total == len(rehearsed.changes)


def disturb(root: Path) -> None:
    """Change something of every kind."""
    with (root / "big").open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"changed")
    (root / "extra").mkdir()
    (root / "extra" / "file").write_bytes(b"1")
    (root / "d1/e2/file-8").unlink()
    (root / "second-name").unlink()
    (root / "second-name").write_bytes(b"2")
    (root / "link").unlink()
    (root / "link").mkdir()
    (root / "link" / "inside").write_bytes(b"3")
    shutil.rmtree(root / "d3")
    (root / "d3").symlink_to("d1")
    (root / "d2").chmod(0o700)


async def test_a_dry_run_to_a_new_directory_makes_none(node: Node) -> None:
    fill(node.source)
    await node.back_up()

    rehearsed = await done(node, dry_run=True)
    assert not node.target.parent.exists()
    run = await done(node)

    assert (rehearsed.files_restored, rehearsed.bytes_written, rehearsed.bytes_fetched) == (
        run.files_restored,
        run.bytes_written,
        run.bytes_fetched,
    )


async def test_a_dry_run_says_what_a_run_would_refuse(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    node.target.mkdir(parents=True)
    (node.target / "mine").write_bytes(b"mine")

    refused = await node.restore(dry_run=True)
    missing = await node.restore(b"absent", dry_run=True, overwrite=True)

    assert refused.error is not None
    assert "not empty" in refused.error.message
    assert isinstance(missing.error, UsageError)


async def test_a_volume_that_is_gone_altogether_comes_back_in_place(node: Node) -> None:
    fill(node.source)
    await node.back_up()
    before = picture(node.source)
    shutil.rmtree(node.source)

    await done(node, in_place=True)

    assert picture(node.source) == before


async def test_a_volume_behind_a_link_is_restored_behind_it(node: Node, tmp_path: Path) -> None:
    real = tmp_path / "real"
    node.source.rename(real)
    node.source.symlink_to(real)
    (real / "file").write_bytes(b"1")
    await node.back_up()
    (real / "file").write_bytes(b"2")

    await done(node, in_place=True)

    assert (real / "file").read_bytes() == b"1"
    assert node.source.is_symlink()


async def test_in_place_is_refused_for_a_volume_that_is_not_here(node: Node) -> None:
    await node.back_up()
    task = RestoreTask("task", "job", "snapshot", b"", in_place=True)

    outcome = await run_restore(task, node.services, node.grants, RestorePlaces([b"/"]))

    assert isinstance(outcome.error, VolumeError)


async def test_a_volume_that_is_a_file_is_patched_in_place(node: Node) -> None:
    node.source = node.source / "file"
    content = large(node.source)
    await node.back_up()
    inode = node.source.stat().st_ino
    with node.source.open("r+b") as file:
        file.write(b"changed")

    rehearsed = await done(node, in_place=True, dry_run=True)
    run = await done(node, in_place=True)

    assert node.source.read_bytes() == content
    assert node.source.stat().st_ino == inode
    assert [path.name for path in node.source.parent.iterdir()] == ["file"]
    assert rehearsed.bytes_written == run.bytes_written <= 4 * MIB


async def test_a_file_never_takes_the_place_of_a_directory_that_was_named(node: Node) -> None:
    node.source = node.source / "file"
    node.source.write_bytes(b"1")
    await node.back_up()
    (node.target / "in it").mkdir(parents=True)

    outcome = await node.restore(overwrite=True, delete_extra=True)

    assert isinstance(outcome.error, TargetError)
    assert (node.target / "in it").exists()


async def test_everything_is_on_the_disk_before_the_mark_goes(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(node.source)
    await node.back_up()
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(writing, "sync_filesystem", lambda _: seen.append(picture(node.target)))

    await done(node)

    [synced] = seen
    assert MARK in synced
    del synced[MARK], synced["."]
    restored = picture(node.target)
    del restored["."]
    assert synced == restored


async def test_a_disk_that_cannot_be_synced_leaves_the_mark(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(node.source)
    await node.back_up()

    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writing, "sync_filesystem", broken)

    outcome = await node.restore()

    assert outcome.phase is Phase.FAILED
    assert (node.target / MARK).exists()


@pytest.fixture
def common_node() -> Iterator[Node]:
    """A node whose agent is a common user."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() != 0:
            yield from nodes(Path(name))
            return
        os.chown(name, 12345, 12345)
        os.setegid(12345)
        os.seteuid(12345)
        # Who gives up rights may not look into /proc/self, unless this is said (PR_SET_DUMPABLE).
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
        try:
            yield from nodes(Path(name))
        finally:
            os.seteuid(0)
            os.setegid(0)


def nodes(root: Path) -> Iterator[Node]:
    with State(root / "state.db") as state, ThreadPoolExecutor(2) as workers:
        yield Node(root, state, workers)


async def test_directories_that_may_not_be_written_are_for_their_owner(common_node: Node) -> None:
    node = common_node
    (node.source / "a" / "b").mkdir(parents=True)
    (node.source / "a" / "b" / "file").write_bytes(b"1")
    (node.source / "a" / "b").chmod(0o500)
    (node.source / "a").chmod(0o500)
    (node.source).chmod(0o500)
    await node.back_up()
    before = picture(node.source)
    for path in (node.source, node.source / "a", node.source / "a" / "b"):
        path.chmod(0o700)
    (node.source / "a" / "b" / "file").write_bytes(b"2")
    (node.source / "a" / "extra" / "c").mkdir(parents=True)
    (node.source / "a" / "extra" / "c" / "file").write_bytes(b"3")
    for name in ("a/extra/c", "a/extra", "a/b", "a", "."):
        (node.source / name).chmod(0o500)

    chosen = await done(node, b"a/b/file", in_place=True)
    assert stat.S_IMODE((node.source / "a").stat().st_mode) == 0o500
    await done(node, in_place=True, delete_extra=True)
    await done(node)

    assert chosen.files_restored == 1
    for root in (node.source, node.target):
        assert picture(root) == before
        for path in (root / "a" / "b", root / "a", root):
            path.chmod(0o700)


async def test_a_device_that_may_not_be_made_is_an_error_of_its_own(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mknod(node.source / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkfifo(node.source / "pipe")
    await node.back_up()
    make = os.mknod

    def forbidden(name: bytes, mode: int, device: int, *, dir_fd: int) -> None:
        if stat.S_ISCHR(mode):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        make(name, mode, device, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mknod", forbidden)

    outcome = await node.restore()

    assert outcome.phase is Phase.PARTIALLY_FAILED
    assert [error.path for error in outcome.statistics.errors] == [b"device"]
    assert (node.target / "pipe").is_fifo()


LEFT = "dir/.tidemark-0123456789abcdef"


async def test_what_a_killed_restore_had_made_goes_with_the_next_one(node: Node) -> None:
    (node.source / "dir").mkdir()
    (node.source / "dir" / "file").write_bytes(b"content")
    (node.source / "dir" / ".tidemark-00000000000000aa").write_bytes(b"of the snapshot")
    await node.back_up()
    await node.restore()
    others = ["dir/.tidemark-0123456789abcdef0", "dir/.tidemark-note", "dir/own"]
    for name in (LEFT, *others):
        (node.target / name).write_bytes(b"x")
    directory = node.target / "dir/.tidemark-00000000000000bb"
    directory.mkdir()

    # Where nothing says that a restore was not finished, nothing of it can be left.
    await node.restore(overwrite=True)
    assert (node.target / LEFT).exists()

    (node.target / ".tidemark-incomplete").touch()
    rehearsed = await node.restore(overwrite=True, dry_run=True)
    outcome = await node.restore(overwrite=True)

    assert rehearsed.statistics.files_removed == outcome.statistics.files_removed == 1
    assert not (node.target / LEFT).exists()
    assert not (node.target / ".tidemark-incomplete").exists()
    assert all((node.target / name).exists() for name in others)
    assert directory.is_dir()
    kept = (node.target / "dir" / ".tidemark-00000000000000aa").read_bytes()
    assert kept == b"of the snapshot"
