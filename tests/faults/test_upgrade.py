"""A coordinator that dies in the midst of an upgrade, and one whose catalog is a newer one."""

import shutil
from pathlib import Path

import pytest

from coordinator.catalog.upgrading import REVISION
from repository.failpoints import COORDINATOR
from tests.e2e import trees
from tests.fakes.catalogs import revision_of, to_first_revision, to_unknown_revision
from tests.faults.site import Site, running

POINTS = [name for name in COORDINATOR if name.startswith("coordinator.upgrade.")]


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with one snapshot, at rest, whose catalog is of the first revision."""
    directory = tmp_path_factory.mktemp("upgrade")
    trees.build(directory / "volume", files=20)
    with running(Site(directory / "site", directory / "volume")) as site:
        site.bring_up()
        site.backup()
        site.end()
    to_first_revision(site.data / "catalog.db")
    return site


def copies(site: Site) -> list[Path]:
    return sorted(site.data.glob("catalog.db.v*"))


@pytest.mark.parametrize("action", ["kill", "error"])
@pytest.mark.parametrize("point", POINTS)
def test_an_upgrade_that_is_interrupted_is_made_by_the_next_start(
    joined: Site, point: str, action: str, tmp_path: Path
) -> None:
    with running(joined.copy(tmp_path / "site")) as site:
        site.start_coordinator(f"{point}={action}")
        assert not site.serving()
        [first] = copies(site)
        assert revision_of(first) == "v0001"

        site.bring_up()
        site.restore(site.snapshots()[0].snapshot_id, tmp_path / "out")
        site.backup()
        site.end()

    trees.assert_same(trees.snapshot_of(site.tree), trees.snapshot_of(tmp_path / "out"))
    assert revision_of(site.data / "catalog.db") == REVISION
    assert [revision_of(copy) for copy in copies(site)] == ["v0001"]


def test_a_newer_catalog_stops_the_start_and_says_what_to_do(joined: Site, tmp_path: Path) -> None:
    with running(joined.copy(tmp_path / "site")) as site:
        to_unknown_revision(site.data / "catalog.db")
        before = (site.data / "catalog.db").read_bytes()

        daemon = site.start_coordinator()

        assert not site.serving()
        assert daemon.process.returncode == 1
        said = daemon.log.read_text()
        assert "has revision v9999" in said
        assert "hint: a newer Tidemark has upgraded it" in said
        assert (site.data / "catalog.db").read_bytes() == before
        assert not (site.data / "catalog.db-wal").exists()


def test_the_copy_brings_the_version_of_before_back(joined: Site, tmp_path: Path) -> None:
    """Before the first backup after the upgrade, that is: what docs/OPERATIONS.md promises."""
    with running(joined.copy(tmp_path / "site")) as site:
        site.bring_up()
        site.end()
        [copy] = copies(site)

        shutil.copy(copy, site.data / "catalog.db")
        site.bring_up()
        site.backup()
        site.restore(site.snapshots()[-1].snapshot_id, tmp_path / "out")
        site.verify()
        site.end()

    trees.assert_same(trees.snapshot_of(site.tree), trees.snapshot_of(tmp_path / "out"))
