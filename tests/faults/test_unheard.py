"""Packs that are in the catalog, and whose agent died before it heard so."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e import trees
from tests.faults.site import Site, running, wait_until

MIB = 1024 * 1024
# Each is about a pack.
FILES = 3
# A pack's padding, and the manifest.
OVERHEAD = 1.02


@pytest.mark.parametrize("dies", ["agent", "both"])
def test_packs_that_an_agent_never_heard_of_are_not_sent_again(dies: str, tmp_path: Path) -> None:
    tree = tmp_path / "volume"
    tree.mkdir()
    for number in range(FILES):
        (tree / str(number)).write_bytes(os.urandom(32 * MIB))
    site = Site(tmp_path / "site", tree)
    gate = tmp_path / "gate"
    with running(site):
        site.bring_up(coordinator=site.script("coordinator"))
        site.arm("coordinator", f"coordinator.pack.recorded=pause:{gate}@2")
        site.order_backup()
        wait_until(Path(f"{gate}.reached").exists, 60, site.logs)
        assert site.agent is not None
        site.agent.kill()
        if dies == "both":
            site.kill()
        gate.touch()
        site.bring_up()
        wait_until(lambda: not site.unfinished_jobs(), 60, site.logs)
        recorded = in_catalog(site)
        assert recorded.keys() - known(site)
        result = site.backup()
        stored = in_catalog(site)
        site.verify()
        site.restore(result.snapshot_id, tmp_path / "restored")
        site.end()

    assert recorded.items() <= stored.items()
    assert sum(stored.values()) <= FILES * 32 * MIB * OVERHEAD
    assert result.data_added_packed == sum(stored.values()) - sum(recorded.values())
    trees.assert_same(trees.snapshot_of(tree), trees.snapshot_of(tmp_path / "restored"))


def in_catalog(site: Site) -> dict[bytes, int]:
    """Bytes of each pack, by nonce."""
    with closing(sqlite3.connect(site.data / "catalog.db")) as database:
        query = "SELECT pack_nonce, size_bytes FROM pack_origins JOIN packs ON name = pack"
        return dict(database.execute(query).fetchall())


def known(site: Site) -> set[bytes]:
    """Nonces of the packs that the agent knows."""
    return {nonce for nonce, *_ in site.known_chunks().values()}
