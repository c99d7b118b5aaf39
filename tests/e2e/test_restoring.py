"""Each option of `restore create` through the command line, the coordinator and the agent."""

import os
import pty
import shutil
from pathlib import Path
from typing import Any

from tests.e2e import trees
from tests.e2e.harness import Machine, Result, Up
from tests.e2e.test_main_job import flip_byte


def restore(up: Up, snapshot: str, *options: str | Path) -> dict[str, Any]:
    """Restore, wait, succeed."""
    made = up.json("restore", "create", "--from", snapshot, *options, "--wait")
    assert made["phase"] == "Completed"
    assert isinstance(made, dict)
    return made


def test_in_place_brings_back_what_differs_and_delete_removes_the_rest(up: Up, tree: Path) -> None:
    before = trees.snapshot_of(tree)
    snapshot = up.backup()["snapshot_id"]
    unchanged = restore(up, snapshot, "--in-place", "--yes")
    trees.change(tree)
    (tree / "empty").write_bytes(b"a file where a directory was")

    rehearsed = restore(up, snapshot, "--in-place", "--delete", "--dry-run")
    between = trees.snapshot_of(tree)
    kept = restore(up, snapshot, "--in-place", "--yes")
    extra = sorted(trees.snapshot_of(tree).keys() - before.keys())
    deleted = restore(up, snapshot, "--in-place", "--delete", "--yes")

    assert b"a/added" in between
    assert unchanged["bytes_written"] == 0
    assert unchanged["files_unchanged"] == unchanged["files_restored"]
    assert extra == [b"a/added", b"a/moved text"]
    trees.assert_same(before, trees.snapshot_of(tree))
    for name in ("files_restored", "bytes_restored", "bytes_written", "bytes_fetched"):
        assert rehearsed[name] == kept[name], name
    assert 0 < kept["bytes_written"] < kept["bytes_restored"] / 2
    assert (rehearsed["dry_run"], kept["dry_run"]) == (True, False)
    assert rehearsed["files_removed"] == deleted["files_removed"] == 2
    changes = {(one["path"], one["change"]) for one in rehearsed["changes"]}
    assert changes >= {("a/added", "removed"), ("large", "modified"), ("secret", "added")}
    assert rehearsed["changes_total"] == len(rehearsed["changes"])


def test_overwrite_replaces_what_exists_in_a_directory(up: Up, tree: Path, tmp_path: Path) -> None:
    snapshot = up.backup()["snapshot_id"]
    target = tmp_path / "target"
    (target / "a").mkdir(parents=True)
    (target / "a" / "file-0000").mkdir()
    (target / "run").symlink_to(tmp_path / "elsewhere")
    (target / "extra").write_bytes(b"mine")

    restore(up, snapshot, "--to", target, "--overwrite")
    assert (target / "extra").read_bytes() == b"mine"
    restore(up, snapshot, "--to", target, "--overwrite", "--delete", "--yes")

    trees.assert_same(trees.snapshot_of(tree), trees.snapshot_of(target))
    assert not (tmp_path / "elsewhere").exists()


def test_a_chosen_path_is_restored_in_place_and_nothing_else(up: Up, tree: Path) -> None:
    snapshot = up.backup()["snapshot_id"]
    before = trees.snapshot_of(tree)
    (tree / "secret").unlink()
    (tree / "text").write_bytes(b"changed")

    made = restore(up, snapshot, "--in-place", "--path", "secret", "--yes")
    missing = up.run(
        *("restore", "create", "--from", snapshot, "--in-place", "--path", "not/there"),
        *("--yes", "--wait", "-o", "json"),
    )

    assert made["files_restored"] == 1
    assert trees.snapshot_of(tree)[b"secret"] == before[b"secret"]
    assert (tree / "text").read_bytes() == b"changed"
    assert missing.code == 2
    assert "not/there" in missing.error["message"]
    assert "snapshot ls" in missing.error["hint"]


def test_a_dry_run_prints_what_would_change_and_makes_nothing(
    up: Up, tree: Path, tmp_path: Path
) -> None:
    snapshot = up.backup()["snapshot_id"]
    (tree / "run").write_bytes(b"changed")

    table = up.run("restore", "create", "--from", snapshot, "--in-place", "--dry-run").ok()
    elsewhere = restore(up, snapshot, "--to", tmp_path / "new", "--dry-run")

    lines = [line.split() for line in table.stdout.decode().splitlines()]
    assert ["modified", "run"] in lines
    assert (tree / "run").read_bytes() == b"changed"
    assert not (tmp_path / "new").exists()
    assert elsewhere["files_restored"] > 60
    assert {one["change"] for one in elsewhere["changes"]} == {"added"}


def test_what_overwrites_or_deletes_must_be_meant(up: Up, tree: Path, tmp_path: Path) -> None:
    snapshot = up.backup()["snapshot_id"]
    (tree / "run").write_bytes(b"changed")
    command = ("restore", "create", "--from", snapshot)

    target: list[str | Path] = ["--to", tmp_path / "x"]
    for meant in (["--in-place"], [*target, "--overwrite", "--delete"]):
        refused = up.run(*command, *meant, "--wait", "-o", "json")
        assert refused.code == 2
        assert "--yes" in refused.error["hint"]
    for wrong in ([], ["--in-place", *target], [*target, "--delete"]):
        assert up.run(*command, *wrong, "--yes").code == 2
    assert up.json("restore", "list") == []

    no = answered(up, "n\n", *command, "--in-place", "--wait")
    assert (tree / "run").read_bytes() == b"changed"
    yes = answered(up, "y\n", *command, "--in-place", "--wait")
    assert (tree / "run").read_bytes() == b"#!/bin/sh\n"

    assert (no.code, yes.code) == (1, 0)
    assert "nothing was restored" in no.stderr


def answered(up: Up, text: str, *command: str | Path) -> Result:
    """Run a command on a terminal where somebody types this."""
    mine, theirs = pty.openpty()
    try:
        os.write(mine, text.encode())
        return up.run(*command, stdin=theirs)
    finally:
        os.close(mine)
        os.close(theirs)


def test_a_restore_in_place_that_could_not_do_everything_is_marked_until_one_can(
    up: Up, tree: Path
) -> None:
    before = trees.snapshot_of(tree)
    snapshot = up.backup()["snapshot_id"]
    # Whatever the damage hits has to be fetched.
    for name in os.listdir(os.fsencode(tree)):
        remove(os.fsencode(tree) + b"/" + name)
    (tree / "extra").write_bytes(b"extra")
    pack = max(up.packs(), key=os.path.getsize)
    flip_byte(pack, 2_000_000)

    damaged = up.run(
        *("restore", "create", "--from", snapshot, "--in-place", "--delete", "--yes"),
        *("--wait", "-o", "json"),
    )
    marked = (tree / ".tidemark-incomplete").exists()
    kept = (tree / "extra").exists()
    flip_byte(pack, 2_000_000)
    restore(up, snapshot, "--in-place", "--delete", "--yes")

    assert (damaged.code, damaged.document["phase"]) == (3, "PartiallyFailed")
    assert damaged.document["errors_total"] >= 1
    assert damaged.document["files_restored"] >= 1
    assert marked
    assert kept
    trees.assert_same(before, trees.snapshot_of(tree))


def remove(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def test_tidemarks_own_data_survives_a_restore_that_deletes(
    machine: Machine, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_bytes(b"1")
    with machine.up(volume / "tidemark", f"web={volume}") as up:
        snapshot = up.backup()["snapshot_id"]
        (volume / "extra").write_bytes(b"extra")

        up.run(
            *("restore", "create", "--from", snapshot, "--in-place", "--delete", "--yes"),
            "--wait",
        )
        into = up.run(
            *("restore", "create", "--from", snapshot, "--to", volume / "tidemark/repository"),
            *("--overwrite", "--delete", "--yes", "--wait"),
        )

        assert not (volume / "extra").exists()
        assert into.code == 1
        proof = up.json("verify", "create", "--all", "--depth", "data", "--wait")
        assert (proof["phase"], proof["damaged_total"]) == ("Completed", 0)
