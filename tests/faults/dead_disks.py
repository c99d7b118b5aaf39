"""Disks that die under running daemons: every call on one fails, until all is started anew.

The filesystem is shut down while a backup stands half-way. The job fails with a reason and a hint,
or names each file that could not be read, or, where nothing can be written of it, ends at the next
start; nothing is shown that is not there. The disk comes back as it was when it died.
"""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from typing_extensions import override

from proto.tidemark.v1 import common_pb2
from tests.e2e import trees
from tests.faults.disks import FILESYSTEMS, loop_disk
from tests.faults.site import DiedError, Site, running, wait_until

# Uploads are tried again for as long as a session's lease lasts.
_LEASE_SECONDS: Final = 30.0
_PLACES: Final = {
    # What lies there: what the message says.
    "volume": "went away",
    "repository": "repository's disk failed",
    "state": "state",
    # Nobody can say anything.
    "data": "",
}


class Death(NamedTuple):
    """One disk and what lies on it."""

    filesystem: str
    place: str

    @override
    def __str__(self) -> str:
        return f"{self.filesystem} {self.place}"


DEATHS: Final = tuple(Death(kind, place) for kind in FILESYSTEMS for place in _PLACES)


def run(death: Death, directory: Path) -> None:
    """One run; AssertionError for whatever does not hold."""
    directory.mkdir(parents=True)
    go = directory / "go"
    with loop_disk(death.filesystem, directory) as disk:
        places = {death.place: disk.path / "own"}
        tree = places.pop("volume", directory / "volume")
        trees.build(tree, files=20)
        subprocess.run(["sync", "--file-system", tree], check=True)
        with running(Site(directory / "site", tree, **places)) as site:
            site.start_coordinator()
            assert site.serving(), site.logs()
            site.make_token()
            site.start_agent(f"agent.batch.read=pause:{go}@2")
            assert site.connected(), site.logs()
            job_id = site.order_backup()
            wait_until(Path(f"{go}.reached").exists, 30.0, site.logs)
            disk.cut()
            go.touch()
            with suppress(DiedError, AssertionError):
                site.ended(job_id, seconds=_LEASE_SECONDS * (0.2 if death.place == "data" else 2))
            shown, is_whole = _shown(site, job_id, death)
            site.kill()
            disk.again()
            site.bring_up()
            wait_until(lambda: not site.unfinished_jobs(), 2 * _LEASE_SECONDS, site.logs)
            assert [each.snapshot_id for each in site.snapshots()] == shown
            if is_whole:
                _restored(site, shown[0], directory / "restored")
            _check(site, directory / "restored")


def _shown(site: Site, job_id: str, death: Death) -> tuple[list[str], bool]:
    """The snapshots that there are, and whether it is whole: none, unless it names what it lacks.

    Of a volume everything may have been read before its disk died.
    """
    told = _PLACES[death.place]
    if not told:
        return [], False
    job = site.job(job_id)
    if death.place == "volume" and job.phase == common_pb2.PHASE_PARTIALLY_FAILED:
        (made,) = job.snapshots
        assert made.errors_total == len(made.errors) > 0, job
        assert all("could not read" in error.message for error in made.errors), job
        return [made.snapshot_id], False
    if death.place == "volume" and job.phase == common_pb2.PHASE_COMPLETED:
        return [job.snapshots[0].snapshot_id], True
    assert job.phase == common_pb2.PHASE_FAILED, (job, site.logs())
    assert told in job.message.lower(), job
    assert job.hint, job
    assert site.snapshots() == []
    return [], False


def _restored(site: Site, snapshot_id: str, target: Path) -> None:
    site.restore(snapshot_id, target)
    trees.assert_same(trees.snapshot_of(site.tree), trees.snapshot_of(target))
    shutil.rmtree(target)


def _check(site: Site, target: Path) -> None:
    """Everything works again."""
    (site.tree / "grown").write_bytes(os.urandom(100_000))
    made = site.backup()
    _restored(site, made.snapshot_id, target)
    site.verify()
    site.end()
