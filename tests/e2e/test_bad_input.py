"""Bad input and bad luck: a clear error, the right phase and exit code, and nothing lost."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import trees
from tests.e2e.harness import Machine, Result, Up
from tests.e2e.test_main_job import flip_byte


@contextmanager
def small_filesystem(path: Path, size: str) -> Iterator[Path]:
    """A filesystem in memory of this size, mounted at the path."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def backup(up: Up, *volumes: str) -> tuple[Result, dict[str, Any]]:
    done = up.run("backup", "create", *volumes, "--wait", "-o", "json")
    return done, done.document


def test_a_volume_that_has_gone_is_failed_and_never_an_empty_snapshot(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    with machine.up(tmp_path / "data", f"web={tree}") as up:
        first = up.backup()
        shutil.rmtree(tree)
        gone, document = backup(up, "web")
        os.mkfifo(tree)
        became_another_thing, _ = backup(up, "web")
        tree.unlink()
    with machine.up(tmp_path / "data") as up:
        again, _ = backup(up, "web")
        snapshots = up.json("snapshot", "list")

    assert gone.code == became_another_thing.code == again.code == 1
    assert gone.error["message"]
    assert document["phase"] == document["snapshots"][0]["phase"] == "Failed"
    assert document["snapshots"][0]["snapshot_id"] is None
    assert [one["snapshot_id"] for one in snapshots] == [first["snapshot_id"]]


def test_one_volume_that_failed_among_others_exits_1_and_the_others_are_safe(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    with machine.up(tmp_path / "data", f"web={tree}", tmp_path / "gone") as up:
        (tmp_path / "gone").rmdir()
        done, document = backup(up, "--all")

    phases = {one["volume"]: one["phase"] for one in document["snapshots"]}
    assert done.code == 1
    assert phases == {"web": "Completed", "gone": "Failed"}


def test_an_unreadable_file_is_named_and_the_rest_is_safe(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    # Root reads everything, unless it gave that right away.
    through: tuple[str, ...] = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    if os.geteuid() == 0:
        os.chown(tree / "secret", 12345, 12345)
    else:
        through = ()
        (tree / "secret").chmod(0)
    with machine.up(tmp_path / "data", f"web={tree}", through=through) as up:
        done, document = backup(up, "web")
        [one] = document["snapshots"]
        restored = up.run(
            *("restore", "create", "--from", one["snapshot_id"], "--to", tmp_path / "target"),
            "--wait",
        )

    assert (done.code, document["phase"], one["phase"]) == (3, "PartiallyFailed", "PartiallyFailed")
    assert [problem["path"] for problem in one["errors"]] == ["secret"]
    assert one["errors_total"] == 1
    assert one["errors"][0]["message"]
    assert restored.code in (0, 3)
    assert (tmp_path / "target/large").read_bytes() == (tree / "large").read_bytes()


def test_files_that_come_and_go_and_change_do_not_stop_a_backup(up: Up, tree: Path) -> None:
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path = tree / f"churn-{number % 7}"
            path.write_bytes(os.urandom(number * 997 % 400_000))
            with path.open("ab") as file:
                file.truncate(number * 31 % 100_000)
            path.unlink()

    writer = threading.Thread(target=churn)
    writer.start()
    try:
        for _ in range(3):
            done, document = backup(up, "web")
            assert done.code in (0, 3), done.stderr
            assert document["phase"] in ("Completed", "PartiallyFailed")
    finally:
        stop.set()
        writer.join()
    settled = up.backup()
    proof = up.json("verify", "create", "--all", "--depth", "data", "--wait")

    assert settled["phase"] == "Completed"
    assert proof["damaged_total"] == 0


def test_the_wrong_passphrase_backs_up_but_opens_nothing(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    passphrase, wrong = tmp_path / "passphrase", tmp_path / "wrong"
    passphrase.write_text("correct horse\n")
    wrong.write_text("battery staple\n")
    data = tmp_path / "data"
    with machine.up(
        data, f"web={tree}", environment={"TIDEMARK_PASSPHRASE_FILE": str(passphrase)}
    ) as up:
        first = up.backup()["snapshot_id"]
    restore = ("restore", "create", "--from", first, "--to", tmp_path / "restored", "--wait")
    with machine.up(data, environment={"TIDEMARK_PASSPHRASE_FILE": str(wrong)}) as up:
        unlocked = up.json("status")["unlocked"]
        locked = up.backup()
        refused = up.run(*restore, "-o", "json")
        proof = up.run("verify", "create", "--all", "--depth", "data", "--wait", "-o", "json")
    with machine.up(data, environment={"TIDEMARK_PASSPHRASE_FILE": str(passphrase)}) as up:
        up.run(*restore).ok()

    assert unlocked is False
    assert locked["phase"] == "Completed"
    assert refused.code == proof.code == 12
    assert "passphrase" in refused.error["message"] + refused.error["hint"]
    trees.assert_same(trees.snapshot_of(tree), trees.snapshot_of(tmp_path / "restored"))


def test_a_full_repository_disk_fails_the_backup_and_not_the_source(
    machine: Machine, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "small").write_bytes(b"small")
    with (
        small_filesystem(tmp_path / "disk", "48m") as disk,
        machine.up(disk / "data", f"web={source}") as up,
    ):
        first = up.backup()
        (source / "big").write_bytes(os.urandom(80_000_000))
        full, document = backup(up, "web")
        (source / "big").unlink()
        (source / "small").write_bytes(b"small again")
        later = up.backup()
        up.restore(first["snapshot_id"], tmp_path / "restored")

    assert (full.code, document["phase"]) == (1, "Failed")
    assert document["snapshots"][0]["snapshot_id"] is None
    assert not any(one["path"] for one in document["snapshots"][0]["errors"])
    assert "space" in full.error["message"].lower() or "full" in full.error["message"].lower()
    assert later["phase"] == "Completed"
    assert (tmp_path / "restored/small").read_bytes() == b"small"


def test_a_full_restore_target_fails_and_says_which_files(machine: Machine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(20_000_000))
    with machine.up(tmp_path / "data", f"web={source}") as up:
        snapshot = up.backup()["snapshot_id"]
        with small_filesystem(tmp_path / "disk", "8m") as disk:
            done = up.run(
                *("restore", "create", "--from", snapshot, "--to", disk / "target"),
                *("--wait", "-o", "json"),
            )

    assert done.code == 1
    assert done.document["phase"] == "Failed"
    assert done.error["message"]


def test_a_target_that_is_not_empty_is_not_touched(up: Up, tmp_path: Path) -> None:
    snapshot = up.backup()["snapshot_id"]
    target = tmp_path / "target"
    target.mkdir()
    (target / "run").write_bytes(b"mine")
    (target / "extra").write_bytes(b"mine too")

    refused = up.run(
        *("restore", "create", "--from", snapshot, "--to", target, "--wait", "-o", "json")
    )
    assert refused.code != 0
    assert (target / "run").read_bytes() == b"mine"

    assert refused.document["phase"] == "Failed"
    assert (target / "extra").read_bytes() == b"mine too"
    assert sorted(path.name for path in target.iterdir()) == ["extra", "run"]


def test_chosen_paths_are_restored_and_a_path_without_a_match_fails(
    up: Up, tree: Path, tmp_path: Path
) -> None:
    snapshot = up.backup()["snapshot_id"]

    up.restore(snapshot, tmp_path / "part", "--path", "a/b")
    missing = up.run(
        *("restore", "create", "--from", snapshot, "--to", tmp_path / "none"),
        *("--path", "not/there", "--wait", "-o", "json"),
    )

    part = trees.snapshot_of(tmp_path / "part/a/b")
    trees.assert_same(trees.snapshot_of(tree / "a/b"), part)
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == ["a"]
    assert missing.code in (1, 2)
    assert "not/there" in missing.stderr


def damage(victim: Path, how: str, other: bytes) -> None:
    """Damage a stored pack in one of the ways that disks and people have."""
    if how == "missing":
        victim.unlink()
    elif how == "truncated":
        os.truncate(victim, victim.stat().st_size // 2)
    elif how == "emptied":
        os.truncate(victim, 0)
    elif how == "flipped":
        flip_byte(victim, victim.stat().st_size // 3)
    else:
        victim.write_bytes(other)


def test_damaged_packs_are_found_and_never_restored_as_if_whole(up: Up, tmp_path: Path) -> None:
    snapshot = up.backup()["snapshot_id"]
    packs = sorted(up.packs(), key=lambda path: path.stat().st_size)
    other, victim = packs[0].read_bytes(), packs[-1]
    whole = victim.read_bytes()
    for how in ("missing", "truncated", "emptied", "flipped", "swapped"):
        damage(victim, how, other)

        for depth in ("present", "data"):
            found = up.run("verify", "create", snapshot, "--depth", depth, "--wait", "-o", "json")
            assert found.code == 1, (how, depth)
            assert found.document["damaged_total"] >= 1, (how, depth)
            assert snapshot in found.document["damaged"][0]["snapshots"], (how, depth)
        restored = up.run(
            *("restore", "create", "--from", snapshot, "--to", tmp_path / how),
            *("--wait", "-o", "json"),
        )
        assert restored.code != 0, how
        assert restored.document["phase"] in ("Failed", "PartiallyFailed"), how

        victim.unlink(missing_ok=True)
        victim.write_bytes(whole)
    up.restore(snapshot, tmp_path / "whole")


def test_selectors_that_fit_nothing_or_too_much_say_so(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    with machine.up(tmp_path / "data", f"web={tree}", f"b={tmp_path / 'b'}") as up:
        up.backup()
        wrong = [
            ("backup", "create", "nothing"),
            ("volume", "show", "nothing"),
            ("node", "show", "nothing"),
            ("snapshot", "show", "ffffffffffff"),
            ("snapshot", "show", "latest"),
            ("job", "show", "nothing"),
            ("restore", "create", "--from", "nothing", "--to", tmp_path / "x"),
        ]
        for arguments in wrong:
            done = up.run(*arguments, "-o", "json")
            assert done.code in (1, 2), arguments
            assert done.error["message"], arguments
        latest = up.json("snapshot", "show", "latest", "--volume", "web")

    assert latest["volume"] == "web"
