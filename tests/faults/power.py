"""Power cuts: the disk loses what was not synced, at a chosen moment of a backup.

Everything that either daemon keeps lies on the disk. One of them is made to wait at a failpoint,
the power is cut, both are killed, the disk is mounted anew, and both start. What was acknowledged
is there: each snapshot that a finished job had named, and the node's identity.
"""

import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from proto.tidemark.v1 import common_pb2
from repository.failpoints import AGENT, COORDINATOR, STORE
from tests.e2e import trees
from tests.faults.cases import Scene, scene_of
from tests.faults.disks import FILESYSTEMS, LoopDisk
from tests.faults.site import DiedError, Site, running, wait_until

# Passed while a backup runs: before that there is nothing to lose yet.
POINTS = tuple(name for name in AGENT + COORDINATOR + STORE if scene_of(name) is Scene.BACKUP)
# After the job was told to have ended.
ACKNOWLEDGED = "acknowledged"


class Cut(NamedTuple):
    """One power cut."""

    filesystem: str
    moment: str
    """A failpoint, or ACKNOWLEDGED."""


def all_cuts() -> list[Cut]:
    """Every moment on every filesystem."""
    return [Cut(kind, moment) for kind in FILESYSTEMS for moment in (*POINTS, ACKNOWLEDGED)]


class Bench:
    """A site on a disk, whose tree changes with every run."""

    def __init__(self, disk: LoopDisk, directory: Path) -> None:
        self._disk = disk
        self._directory = directory
        self._tree = directory / "volume"
        self._source = random.Random(9)
        self._runs = 0
        trees.build(self._tree, files=20)
        places = {name: disk.path / name for name in ("data", "repository", "state")}
        self._site = Site(directory / "site", self._tree, **places)
        self._acknowledged: list[str] = []

    def run(self, moment: str) -> None:
        """One power cut; AssertionError for whatever does not hold."""
        self._runs += 1
        with running(self._site) as site:
            if self._runs == 1:
                site.bring_up()
                site.end()
            go = self._directory / f"go-{self._runs}"
            armed = f"{moment}=pause:{go}" if moment != ACKNOWLEDGED else ""
            self._start(site, moment, armed)
            self._change()
            job_id = self._until(site, moment, go)
            self._disk.cut()
            site.kill()
            self._disk.again()
            site.bring_up()
            self._check(site, job_id if moment == ACKNOWLEDGED else None)
            site.end()

    def _start(self, site: Site, moment: str, armed: str) -> None:
        by_agent = moment.startswith("agent.")
        site.start_coordinator("" if by_agent else armed)
        assert site.serving(), site.logs()
        site.start_agent(armed if by_agent else "")
        assert site.connected(), site.logs()

    def _change(self) -> None:
        """A file that is read with others, and one that is read by itself."""
        (self._tree / f"grown-{self._runs % 5}").write_bytes(self._source.randbytes(50_000))
        (self._tree / "grown").write_bytes(self._source.randbytes(1_500_000))

    def _until(self, site: Site, moment: str, go: Path) -> str:
        job_id = ""
        if moment == ACKNOWLEDGED:
            made = site.backup()
            self._acknowledged.append(made.snapshot_id)
            return str(made.snapshot_id)
        reached = Path(f"{go}.reached")
        with suppress(DiedError):  # a coordinator that waits answers nobody
            job_id = site.order_backup()
        wait_until(reached.exists, 30.0, site.logs)
        return job_id

    def _check(self, site: Site, newest: str | None) -> None:
        wait_until(lambda: not site.unfinished_jobs(), 60.0, site.logs)
        listed = site.snapshots()
        ids = [each.snapshot_id for each in listed]
        assert set(self._acknowledged) <= set(ids), "an acknowledged snapshot is gone"
        assert {each.phase for each in listed} <= {common_pb2.PHASE_COMPLETED}
        if newest is not None:
            self._restore(site, newest)
        made = site.backup()
        self._acknowledged = [*ids, made.snapshot_id]
        self._restore(site, made.snapshot_id)
        site.verify()

    def _restore(self, site: Site, snapshot_id: str) -> None:
        target = self._directory / f"restored-{self._runs}"
        site.restore(snapshot_id, target)
        trees.assert_same(trees.snapshot_of(self._tree), trees.snapshot_of(target))
        shutil.rmtree(target)
