"""An agent whose own database is gone, damaged, or of a version that is yet to come."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e import trees
from tests.e2e.harness import Machine


def remove(database: Path) -> None:
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()


def damage(database: Path) -> None:
    database.write_bytes(b"no database at all" * 1000)


def make_newer(database: Path) -> None:
    """As a later agent leaves it to the one that is installed after it."""
    with closing(sqlite3.connect(database)) as newer:
        newer.execute("CREATE TABLE yet_to_come (number INTEGER)")
        newer.execute("PRAGMA user_version = 99")
        newer.commit()


@pytest.mark.parametrize("lose", [remove, damage, make_newer])
def test_what_is_stored_is_read_again_and_not_sent_again(
    lose: Callable[[Path], None], machine: Machine, tree: Path, tmp_path: Path
) -> None:
    (tree / "large").write_bytes(os.urandom(20 * 1024 * 1024))
    with machine.up(tmp_path / "data", f"web={tree}") as up:
        first = up.backup()
        packs = up.packs()
    (database,) = (tmp_path / "data").rglob("state.db")
    lose(database)

    with machine.up(tmp_path / "data", f"web={tree}") as up:
        second = up.backup()
        up.restore(second["snapshot_id"], tmp_path / "out")
        proof = up.json("verify", "create", "--all", "--depth", "data", "--wait")

        assert second["bytes_read"] == first["bytes_read"]
        assert second["data_added"] == 0
        assert up.packs() == packs
        assert (proof["phase"], proof["damaged_total"]) == ("Completed", 0)
        told = "the agent's state is begun anew" in (up.data / "logs/agent.log").read_text()
    assert told == (lose is not remove)
    trees.assert_same(trees.snapshot_of(tree), trees.snapshot_of(tmp_path / "out"))
