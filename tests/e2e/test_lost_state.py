"""An agent whose own database is gone."""

import os
from pathlib import Path

from tests.e2e import trees
from tests.e2e.harness import Machine


def test_what_is_stored_is_read_again_and_not_sent_again(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    (tree / "large").write_bytes(os.urandom(20 * 1024 * 1024))
    with machine.up(tmp_path / "data", f"web={tree}") as up:
        first = up.backup()
        packs = up.packs()
    for path in (tmp_path / "data").rglob("state.db*"):
        path.unlink()

    with machine.up(tmp_path / "data", f"web={tree}") as up:
        second = up.backup()
        up.restore(second["snapshot_id"], tmp_path / "out")
        proof = up.json("verify", "create", "--all", "--depth", "data", "--wait")

        assert second["bytes_read"] == first["bytes_read"]
        assert second["data_added"] == 0
        assert up.packs() == packs
        assert (proof["phase"], proof["damaged_total"]) == ("Completed", 0)
    trees.assert_same(trees.snapshot_of(tree), trees.snapshot_of(tmp_path / "out"))
