"""The documents that scripts rest on, as section 14 of the design states them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import trees
from tests.e2e.harness import Machine, Up
from tests.unit.coordinator.cli.test_documents import (
    BACKUP_KEYS,
    BACKUP_VOLUME_KEYS,
    RESTORE_KEYS,
    SNAPSHOT_KEYS,
    VERIFY_KEYS,
    VOLUME_KEYS,
)

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(\d{3})?Z")


def assert_time(text: Any) -> None:
    assert isinstance(text, str)
    assert _TIME.fullmatch(text), text


def test_documents_have_the_fields_and_types_of_the_contract(
    up: Up, tree: Path, tmp_path: Path
) -> None:
    backup = up.json("backup", "create", "web", "--wait")
    assert set(backup) == BACKUP_KEYS
    [one] = backup["snapshots"]
    assert set(one) == BACKUP_VOLUME_KEYS
    assert (backup["phase"], one["phase"]) == ("Completed", "Completed")
    assert (one["volume"], one["change_detection"]) == ("web", "sweep")
    assert one["errors"] == []
    assert one["errors_total"] == 0
    files = [Path(at) / name for at, _, names in os.walk(tree) for name in names]
    links = [path for path in tree.rglob("*") if path.is_symlink() and path.is_dir()]
    assert one["files_new"] == one["total_files_processed"] == len(files) + len(links)
    assert isinstance(one["duration_seconds"], float)
    assert_time(one["started_at"])
    assert_time(one["finished_at"])

    [snapshot] = up.json("snapshot", "list")
    assert set(snapshot) == SNAPSHOT_KEYS
    assert snapshot["snapshot_id"] == one["snapshot_id"]
    assert (snapshot["sequence"], snapshot["pinned"], snapshot["last_proof_at"]) == (1, False, None)
    assert_time(snapshot["committed_at"])

    [volume] = up.json("volume", "list")
    assert set(volume) >= VOLUME_KEYS
    assert (volume["path"], volume["verdict"]) == (str(tree), "protected")
    assert volume["last_snapshot_id"] == one["snapshot_id"]
    assert volume["policy"] is None
    assert 0 <= volume["age_seconds"] < 60
    assert up.json("volume", "list", "--unprotected") == []

    restore = up.restore(one["snapshot_id"], tmp_path / "restored")
    assert set(restore) == RESTORE_KEYS
    assert restore["files_restored"] == one["total_files_processed"]

    verify = up.json("verify", "create", "--all", "--depth", "data", "--wait")
    assert set(verify) == VERIFY_KEYS
    assert verify["snapshots_checked"] == 1
    assert verify["packs_checked"] == len(up.packs())
    assert verify["chunks_checked"] > 0
    assert verify["damaged"] == []
    assert_time(up.json("snapshot", "list")[0]["last_proof_at"])


@pytest.fixture(scope="module")
def shared_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "volume"
    trees.build(root)
    return root


@pytest.fixture(scope="module")
def shared_up(shared_tree: Path) -> Iterator[Up]:
    """One for the tests that only look, for a start takes seconds."""
    machine = Machine(shared_tree.with_name("home"))
    with machine.up(shared_tree.with_name("data"), f"web={shared_tree}") as running:
        yield running


def test_a_difference_is_a_list_of_paths_and_words(shared_up: Up, shared_tree: Path) -> None:
    up, tree = shared_up, shared_tree
    first = up.backup()["snapshot_id"]
    (tree / "added").write_bytes(b"new")
    (tree / "secret").unlink()
    (tree / "zeros").write_bytes(b"modified")
    second = up.backup()["snapshot_id"]

    changes = up.json("snapshot", "diff", first, second)

    # The directory itself was touched too, which is a change of its times.
    assert {one["path"]: one["change"] for one in changes if one["path"]} == {
        "added": "added",
        "secret": "removed",
        "zeros": "modified",
    }
    assert up.json("snapshot", "diff", second, second) == []


def test_looking_into_a_snapshot(shared_up: Up, shared_tree: Path) -> None:
    up, tree = shared_up, shared_tree
    snapshot = up.backup()["snapshot_id"]

    top = {one["path"]: one for one in up.json("snapshot", "ls", snapshot)}
    found = up.json("snapshot", "find", "same inode", "--snapshot", snapshot)
    content = up.run("snapshot", "cat", snapshot[:8], "a/same inode").ok().stdout
    missing = up.run("snapshot", "cat", snapshot, "not/there", "-o", "json")

    assert top["link"]["target"] == "a/b"
    assert top["run"]["type"] == "file"
    assert top["run"]["mode"] == 0o4755
    assert top["text"]["size"] == (tree / "text").stat().st_size
    assert "not-utf8-\\xff" in top
    assert top["not-utf8-\\xff"]["path_base64"] == "bm90LXV0Zjgt/w=="
    assert [(one["snapshot_id"], one["path"]) for one in found] == [(snapshot, "a/same inode")]
    assert content == (tree / "large").read_bytes()
    assert missing.code != 0
    assert missing.stdout == b""


def test_jobs_are_listed_shown_and_logged(shared_up: Up) -> None:
    up = shared_up
    begun = up.json("backup", "create", "web")
    assert set(begun) == {"job_id", "phase"}

    watched = up.json("job", "watch", begun["job_id"])
    listed = up.json("job", "list")
    shown = up.json("backup", "show", begun["job_id"])
    wrong = up.run("restore", "show", begun["job_id"], "-o", "json")

    assert watched["phase"] == shown["phase"] == "Completed"
    assert listed[0]["job_id"] == begun["job_id"]
    assert shown["snapshots"][0]["phase"] == "Completed"
    assert up.json("restore", "list") == []
    assert wrong.code == 2
    up.run("job", "logs", begun["job_id"]).ok()


def test_the_recovery_kit_is_warned_about_until_it_was_exported(shared_up: Up) -> None:
    up = shared_up
    assert up.json("status")["recovery_kit_exported"] is False
    # The doctor is not content before somebody has the kit.
    assert up.run("doctor").code == 1

    kit = up.json("repo", "recovery-kit")["kit"]

    assert up.json("repo", "show")["repository_id"] in kit
    assert up.json("status")["recovery_kit_exported"] is True
    up.run("doctor").ok()


def test_every_reading_command_speaks_table_json_and_yaml(shared_up: Up) -> None:
    up = shared_up
    snapshot = up.backup()["snapshot_id"]
    for command in (
        ("status",),
        ("node", "list"),
        ("volume", "list"),
        ("volume", "show", "web"),
        ("snapshot", "list"),
        ("snapshot", "show", snapshot),
        ("snapshot", "ls", snapshot),
        ("job", "list"),
        ("repo", "show"),
        ("version",),
    ):
        table = up.run(*command).ok().stdout.decode()
        as_yaml = yaml.safe_load(up.run(*command, "-o", "yaml").ok().stdout)
        as_json = up.json(*command)

        assert table.strip(), command
        assert type(as_yaml) is type(as_json), command
        assert "\x1b" not in table, command


def test_a_node_that_was_revoked_can_do_nothing_more(up: Up) -> None:
    [node] = up.json("node", "list")
    token = up.json("node", "token", "--valid", "10m")

    revoked = up.json("node", "revoke", node["name"])

    assert node["state"] == "connected"
    assert set(token) == {"token", "expires_at"}
    assert revoked["state"] == "revoked"
    assert up.run("backup", "create", "web", "--wait").code != 0
