"""A full disk in each place that writes: told as what it is, nothing lost, and well again after."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.tidemark.v1 import common_pb2
from tests.e2e import trees
from tests.faults.disks import fill, memory_disk
from tests.faults.site import MARKER, DiedError, Site, pause, running, wait_until

_DISK_BYTES = 24 * 1024 * 1024
_PLACES = ("repository", "data", "state", "restores")


class Bench:
    """A site whose every place is a small disk of its own, with one snapshot."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disks = {name: directory / "disks" / name for name in _PLACES}
        self.tree = directory / "volume"
        trees.build(self.tree, files=20)
        places = {name: self.disks[name] / "own" for name in ("repository", "data", "state")}
        self.site = Site(directory / "site", self.tree, **places)
        self.first = ""
        self.runs = 0

    def grow(self) -> None:
        """Give the next backup half a megabyte to store."""
        (self.tree / "grown").write_bytes(os.urandom(500_000))

    def works(self) -> None:
        """A backup, a restore of it and of the first one."""
        self.grow()
        made = self.site.backup()
        self.restored(made.snapshot_id)
        if self.first:
            job = self.site.ended(self.site.order_restore(self.first, self.target()))
            assert job.phase == common_pb2.PHASE_COMPLETED, job
        self.site.verify()

    def restored(self, snapshot_id: str) -> None:
        target = self.target()
        self.site.restore(snapshot_id, target)
        trees.assert_same(trees.snapshot_of(self.tree), trees.snapshot_of(target))

    def order_until_refused(self) -> None:
        """The log's last page may have room for one or two more."""
        for _ in range(20):
            self.site.order_backup()

    def target(self) -> Path:
        self.runs += 1
        return self.directory / f"restored-{self.runs}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("full")
    (directory / "disks").mkdir()
    bench = Bench(directory)
    with (
        memory_disk(bench.disks["repository"], _DISK_BYTES),
        memory_disk(bench.disks["data"], _DISK_BYTES),
        memory_disk(bench.disks["state"], _DISK_BYTES),
        memory_disk(bench.disks["restores"], 1024 * 1024),
        running(bench.site) as site,
    ):
        site.bring_up()
        bench.first = site.backup().snapshot_id
        bench.restored(bench.first)
        yield bench
        site.end()


def test_a_full_repository(bench: Bench) -> None:
    before = [each.snapshot_id for each in bench.site.snapshots()]
    bench.grow()
    filler = fill(bench.disks["repository"], leave_bytes=100_000)

    job = bench.site.ended(bench.site.order_backup())
    proof = bench.site.ended(bench.site.order_verify())
    filler.unlink()

    assert (job.phase, job.exit_code) == (common_pb2.PHASE_FAILED, 1), job
    assert "the repository's disk is full" in job.message
    assert "free space" in job.hint
    assert [each.snapshot_id for each in bench.site.snapshots()] == before
    # Reading goes on.
    assert proof.phase == common_pb2.PHASE_COMPLETED, proof
    bench.works()


def test_a_full_state_directory_of_the_agent(bench: Bench) -> None:
    before = [each.snapshot_id for each in bench.site.snapshots()]
    bench.grow()
    filler = fill(bench.disks["state"])

    job = bench.site.ended(bench.site.order_backup())
    filler.unlink()

    assert (job.phase, job.exit_code) == (common_pb2.PHASE_FAILED, 1), job
    assert "no space left for the agent's state" in job.message
    assert "free some space" in job.hint
    assert [each.snapshot_id for each in bench.site.snapshots()] == before
    bench.works()


def test_a_full_target_of_a_restore(bench: Bench) -> None:
    target = bench.disks["restores"] / "target"

    job = bench.site.ended(bench.site.order_restore(bench.first, target))

    assert (job.phase, job.exit_code) == (common_pb2.PHASE_FAILED, 1), job
    assert f"no space left in {target}" in job.message
    assert "make room" in job.hint
    assert (target / MARKER).exists()
    bench.works()


def test_a_catalog_without_room_when_a_job_is_asked_for(bench: Bench) -> None:
    filler = fill(bench.disks["data"])

    with pytest.raises(DiedError, match="full"):
        bench.order_until_refused()
    filler.unlink()

    wait_until(lambda: not bench.site.unfinished_jobs(), 60.0, bench.site.logs)
    assert not bench.site.is_disturbed()
    bench.works()


def test_a_catalog_whose_disk_fills_up_during_a_backup(bench: Bench) -> None:
    """Jobs end by themselves once there is room; what was acknowledged stays."""
    bench.site.end()
    before = bench.site
    go = bench.directory / "go"
    before.start_coordinator(f"coordinator.pack.begun=pause:{go}")
    assert before.serving(), before.logs()
    before.bring_up()
    known = {each.snapshot_id for each in before.snapshots()}
    bench.grow()
    before.order_backup()
    wait_until(Path(f"{go}.reached").exists, 30.0, before.logs)
    filler = fill(bench.disks["data"])
    go.touch()
    pause(1.0)
    filler.unlink()

    wait_until(lambda: not before.unfinished_jobs(), 90.0, before.logs)
    assert not before.is_disturbed()
    assert known <= {each.snapshot_id for each in before.snapshots()}
    bench.works()
