"""The main job: up, backup, change, backup, restore both, compare, verify, damage, find it."""

import os
from pathlib import Path

from tests.e2e import trees
from tests.e2e.harness import Machine


def flip_byte(path: Path, offset: int) -> None:
    """Turn one byte of a stored file into another."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x01]))


def test_what_was_backed_up_comes_back_and_damage_is_found(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    before = trees.snapshot_of(tree)
    with machine.up(tmp_path / "data", f"web={tree}") as up:
        first = up.backup("web")
        trees.change(tree)
        after = trees.snapshot_of(tree)
        second = up.backup("web")

        up.restore(first["snapshot_id"], tmp_path / "first")
        up.restore(second["snapshot_id"], tmp_path / "second")

        trees.assert_same(before, trees.snapshot_of(tmp_path / "first"))
        trees.assert_same(after, trees.snapshot_of(tmp_path / "second"))
        assert first["phase"] == second["phase"] == "Completed"
        assert first["files_new"] == sum(
            "content" in one or "target" in one for one in before.values()
        )
        assert 0 < second["data_added"] < first["data_added"]

        for depth in ("present", "data"):
            proof = up.json("verify", "create", "--all", "--depth", depth, "--wait")
            assert (proof["phase"], proof["damaged_total"]) == ("Completed", 0)

        damaged = max(up.packs(), key=os.path.getsize)
        flip_byte(damaged, damaged.stat().st_size // 2)
        found = up.run("verify", "create", "--all", "--depth", "data", "--wait", "-o", "json")

        assert found.code == 1
        assert found.error["message"]
        assert found.document["damaged_total"] >= 1
        [report] = found.document["damaged"]
        assert report["pack"] in damaged.name or damaged.name in report["pack"]
        assert first["snapshot_id"] in report["snapshots"]
        assert report["paths"]
        assert set(report["paths"]) <= {os.fsdecode(path) for path in [*before, *after]}
