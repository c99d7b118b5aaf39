"""The right to write is lost with the coordinator that gave it; a disk that fails loses nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.tidemark.v1 import common_pb2
from tests.e2e import trees
from tests.faults.injection import failing
from tests.faults.site import Site, pause, running, wait_until


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Both daemons, founded and joined, and a small tree."""
    trees.build(tmp_path / "volume", files=10)
    with running(Site(tmp_path / "site", tmp_path / "volume")) as site:
        yield site
        site.end()


def test_a_backup_that_outlived_its_coordinator_may_not_commit(site: Site, tmp_path: Path) -> None:
    """The agent stands still before its commit; meanwhile the coordinator begins a new life."""
    go = tmp_path / "go"
    site.start_coordinator()
    assert site.serving(), site.logs()
    site.make_token()
    agent = site.start_agent(f"agent.root.signed=pause:{go}")
    assert site.connected(), site.logs()
    job_id = site.order_backup()
    wait_until(Path(f"{go}.reached").exists, 30.0, site.logs)
    assert site.coordinator is not None
    site.coordinator.kill()

    site.start_coordinator()
    assert site.serving(), site.logs()
    ended = site.job(job_id)
    go.touch()
    assert site.connected(), site.logs()
    wait_until(lambda: "backup ends" in agent.log.read_text(), 60.0, site.logs)

    # The job ended without anybody's help, and what came later makes no snapshot of it.
    assert ended.phase == common_pb2.PHASE_FAILED
    assert "restarted" in ended.message
    assert site.snapshots() == []
    # What it had uploaded counts.
    known = site.known_chunks()
    assert known
    made = site.backup()
    assert made.data_added == 0
    after = site.known_chunks()
    assert {chunk: after[chunk] for chunk in known} == known
    site.restore(made.snapshot_id, tmp_path / "restored")
    trees.assert_same(trees.snapshot_of(site.tree), trees.snapshot_of(tmp_path / "restored"))


def test_nothing_is_acknowledged_that_could_not_be_flushed(site: Site, tmp_path: Path) -> None:
    site.bring_up()
    assert site.coordinator is not None
    trace = tmp_path / "trace"
    with failing(site.coordinator.pid, "fsync", trace):
        job_id = site.order_backup()
        wait_until(lambda: "EIO" in trace.read_text(), 30.0, site.logs)
        pause(0.5)
        assert site.known_chunks() == {}
        assert site.snapshots() == []

    job = site.ended(job_id)

    assert job.phase == common_pb2.PHASE_COMPLETED, job
    site.restore(job.snapshots[0].snapshot_id, tmp_path / "restored")
    trees.assert_same(trees.snapshot_of(site.tree), trees.snapshot_of(tmp_path / "restored"))
    site.verify()
