"""A volume that moves to another node goes on there; whoever only claims it gets nothing."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import trees
from tests.e2e.agents import Agent, agents, volume
from tests.e2e.harness import Machine, Up, eventually
from tests.faults.site import free_port

LARGE = 20 * 1024 * 1024


@pytest.fixture
def up(machine: Machine, tmp_path: Path) -> Iterator[Up]:
    """A coordinator; its own agent protects nothing."""
    with machine.up(tmp_path / "data") as running:
        yield running


@pytest.fixture
def tree(tree: Path) -> Path:
    """With a file that would be seen if it were sent again."""
    (tree / "large").write_bytes(os.urandom(LARGE))
    return tree


@pytest.fixture
def pair(up: Up, tmp_path: Path) -> Iterator[list[Agent]]:
    with agents(up, tmp_path, "old", "new") as made:
        yield made


def listed(up: Up) -> dict[str, dict[str, Any]]:
    return {f"{each['node']}/{each['volume']}": each for each in up.json("volume", "list")}


def backed_up(up: Up, agent: Agent, tree: Path, **more: str) -> dict[str, Any]:
    """The first backup of the tree, on this node."""
    agent.protect(volume("data", tree, **more))
    agent.start()
    return up.backup(f"{agent.name}/data")


def brought(tree: Path, to: Path) -> Path:
    """The data as it is on the other node: other inodes, the rest alike."""
    shutil.copytree(tree, to, symlinks=True)
    for source in [tree, *tree.rglob("*")]:
        at = source.lstat()
        target = to / source.relative_to(tree)
        os.chown(target, at.st_uid, at.st_gid, follow_symlinks=False)
        os.utime(target, ns=(at.st_atime_ns, at.st_mtime_ns), follow_symlinks=False)
    return to


def test_a_volume_of_a_lost_node_goes_on_where_it_is_now_and_sends_nothing_again(
    up: Up, pair: list[Agent], tree: Path, tmp_path: Path
) -> None:
    old, new = pair
    first = backed_up(up, old, tree)
    before = trees.snapshot_of(tree)
    packs = up.packs()
    old.kill()
    up.run("node", "revoke", "old").ok()
    here = brought(tree, tmp_path / "here")
    new.protect(volume("data", here), volume("copy", here / "large"))
    new.start()

    refused = up.run("volume", "move", "data", "--to", "new", "-o", "json")
    moved = up.json("volume", "move", "data", "--to", "new", "--yes")
    second = up.backup("new/data")

    assert (refused.code, refused.error["hint"]) == (2, "say --yes if that is meant")
    assert moved["volume_id"] == first["volume_id"] == second["volume_id"]
    assert (moved["node"], moved["path"], moved["verdict"]) == ("new", str(here), "protected")
    assert second["bytes_read"] >= first["bytes_read"]
    assert second["data_added"] < 100_000  # entries hold other inodes
    assert sum(path.stat().st_size for path in set(up.packs()) - set(packs)) < 200_000
    third = up.backup("new/data")
    assert (third["bytes_read"], third["data_added"]) == (0, 0)

    # What the volume held is not known to another volume of the new node.
    other = up.backup("new/copy")
    assert other["data_added"] >= LARGE

    snapshots = up.json("snapshot", "list", "--volume", "data")
    assert [(each["node"], each["sequence"]) for each in snapshots] == [
        ("old", 1),
        ("new", 2),
        ("new", 3),
    ]
    # Of before the move, and on the new node.
    up.restore(first["snapshot_id"], tmp_path / "out")
    trees.assert_same(before, trees.snapshot_of(tmp_path / "out"))
    (here / "large").write_bytes(b"changed")
    in_place = ("restore", "create", "--from", first["snapshot_id"], "--in-place", "--yes")
    assert up.json(*in_place, "--wait")["phase"] == "Completed"
    trees.assert_same(before, trees.snapshot_of(here))
    proof = up.json("verify", "create", "--all", "--depth", "data", "--wait")
    assert (proof["phase"], proof["damaged_total"]) == ("Completed", 0)


def test_a_volume_with_a_uid_moves_there_and_back_under_two_living_nodes(
    up: Up, pair: list[Agent], tree: Path
) -> None:
    old, new = pair
    first = backed_up(up, old, tree, uid="disk-7")
    new.protect(volume("disk", tree, uid="disk-7"))
    new.start()
    claim = listed(up)["new/disk"]
    denied = up.run("backup", "create", "new/disk", "--wait")

    up.run("volume", "move", "data", "--to", "new", "--yes").ok()
    there = up.backup("disk")
    seen = listed(up)
    up.run("volume", "move", "disk", "--to", "old", "--yes").ok()
    back = up.backup("data")

    assert (claim["verdict"], claim["held_by"]) == ("unprotected", "old")
    assert f"volume move {first['volume_id']} --to new" in claim["reason"]
    assert denied.code == 2
    assert seen["old/data"]["held_by"] == "new"
    assert {each["volume_id"] for each in (first, there, back)} == {first["volume_id"]}
    # The very same files: not even an entry is another one.
    assert (there["data_added"], back["data_added"]) == (0, 0)
    sequences = [each["sequence"] for each in up.json("snapshot", "list")]
    assert sequences == [1, 2, 3]


def test_a_backup_that_runs_while_its_volume_moves_ends_and_leaves_nothing(
    up: Up, pair: list[Agent], tree: Path, tmp_path: Path
) -> None:
    old, new = pair
    backed_up(up, old, tree)
    old.stop()
    gate = tmp_path / "gate"
    old.start(failpoints=f"agent.pack.sending=pause:{gate}")
    new.start()
    (tree / "more").write_bytes(os.urandom(LARGE))
    packs = up.packs()
    running = up.json("backup", "create", "old/data")
    eventually(Path(f"{gate}.reached").exists)

    up.run("volume", "move", "old/data", "--to", "new", "--yes").ok()
    waited = up.run("job", "watch", running["job_id"], "-o", "json")
    gate.touch()
    eventually(lambda: "backup ends" in old.log().rpartition("backup begins")[2])
    stored = up.packs()
    new.protect(volume("data", tree))
    eventually(lambda: listed(up)["new/data"]["verdict"] == "protected")
    second = up.backup("new/data")

    assert waited.code == 1
    assert "was moved" in waited.error["message"]
    assert stored == packs
    assert LARGE <= second["data_added"] < 2 * LARGE
    assert [each["sequence"] for each in up.json("snapshot", "list")] == [1, 2]
    proof = up.json("verify", "create", "--all", "--depth", "data", "--wait")
    assert (proof["phase"], proof["damaged_total"]) == ("Completed", 0)


def test_a_move_outlives_the_coordinator_and_waits_for_its_node(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    # A fixed port: the agents of a fleet look for their coordinator where it was.
    listen = ("--every", "off", "--listen", f"127.0.0.1:{free_port()}")
    with (
        machine.up(tmp_path / "data", options=listen) as up,
        agents(up, tmp_path, "old", "new") as (old, new),
    ):
        first = backed_up(up, old, tree)
        new.start()
        up.run("volume", "move", "data", "--to", "new", "--yes").ok()
        waiting = listed(up)["new/data"]
        os.kill(up.child("coordinator"), signal.SIGKILL)
        up.process.wait()
        with machine.up(tmp_path / "data", options=listen) as again:
            eventually(lambda: "old/data" in listed(again), seconds=40)
            claim, still = listed(again)["old/data"], listed(again)["new/data"]
            new.protect(volume("data", tree))
            eventually(lambda: listed(again)["new/data"]["verdict"] == "protected", seconds=40)
            second = again.backup("new/data")
    assert "which names no volume data yet" in waiting["reason"]
    assert claim["held_by"] == "new"
    assert (still["verdict"], still["present"]) == ("unprotected", False)
    assert second["volume_id"] == first["volume_id"]
    assert second["data_added"] == 0
