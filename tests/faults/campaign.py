"""Each failpoint, one run: make a daemon die or fail there, start again, and lose nothing.

What holds after every run, whatever was done to it:

- every job ends by itself once both daemons run again;
- no unfinished snapshot is listed, and each listed one restores equal to what was backed up;
- a new backup is Completed, and stores nothing anew that the agent knew to be stored;
- verification at depth data finds nothing wrong;
- a restore that was interrupted says so by its mark, and is not taken for a whole one.
"""

import random
import shutil
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from typing_extensions import override

from proto.tidemark.v1 import common_pb2
from repository.failpoints import AGENT, COORDINATOR, STORE
from tests.e2e import trees
from tests.fakes.catalogs import to_first_revision
from tests.faults.site import MARKER, DiedError, Site, running, wait_until

# The agent is back at once; what waits for its lease waits for 30 s.
_SETTLE_SECONDS = 60.0
_SHOWN = frozenset({common_pb2.PHASE_COMPLETED, common_pb2.PHASE_PARTIALLY_FAILED})


ACTIONS = ("kill", "error")
# Between two steps in memory: there a process can die, and no call can fail.
NOTHING_FAILS = frozenset(
    {
        "agent.commit.half_sent",
        "agent.pack.half_sent",
        "coordinator.job.created",
        "coordinator.job.closed",
        "coordinator.task.sent",
    }
)


class Scene(StrEnum):
    """What goes on when a place is passed."""

    FOUND = "found"
    JOIN = "join"
    START = "start"
    UPGRADE = "upgrade"
    BACKUP = "backup"
    RESTORE = "restore"
    VERIFY = "verify"


# The first prefix that fits decides; each failpoint must have one.
_SCENES = (
    ("coordinator.secret.", Scene.FOUND),
    ("coordinator.founding.", Scene.FOUND),
    ("coordinator.upgrade.", Scene.UPGRADE),
    ("coordinator.catalog.", Scene.START),
    ("coordinator.start.", Scene.START),
    ("coordinator.node.enrol", Scene.JOIN),
    ("coordinator.node.certified", Scene.JOIN),
    ("agent.join.", Scene.JOIN),
    ("agent.connect.", Scene.BACKUP),
    ("agent.task.", Scene.BACKUP),
    ("agent.backup.", Scene.BACKUP),
    ("agent.session.", Scene.BACKUP),
    ("agent.batch.", Scene.BACKUP),
    ("agent.large.", Scene.BACKUP),
    ("agent.frame.", Scene.BACKUP),
    ("agent.pack.", Scene.BACKUP),
    ("agent.chunks.", Scene.BACKUP),
    ("agent.nodes.", Scene.BACKUP),
    ("agent.manifest.", Scene.BACKUP),
    ("agent.root.", Scene.BACKUP),
    ("agent.commit.", Scene.BACKUP),
    ("agent.head.", Scene.BACKUP),
    ("agent.end.", Scene.BACKUP),
    ("agent.restore.", Scene.RESTORE),
    ("agent.target.", Scene.RESTORE),
    ("agent.directory.", Scene.RESTORE),
    ("agent.file.", Scene.RESTORE),
    ("agent.links.", Scene.RESTORE),
    ("coordinator.node.", Scene.BACKUP),
    ("coordinator.job.", Scene.BACKUP),
    ("coordinator.task.", Scene.BACKUP),
    ("coordinator.session.", Scene.BACKUP),
    ("coordinator.pack.", Scene.BACKUP),
    ("coordinator.commit.", Scene.BACKUP),
    ("coordinator.grant.", Scene.RESTORE),
    ("coordinator.restore.", Scene.RESTORE),
    ("coordinator.verify.", Scene.VERIFY),
    ("store.", Scene.BACKUP),
)


def scene_of(name: str) -> Scene:
    """What to do so that a failpoint is passed; KeyError for one that nobody thought of."""
    for prefix, scene in _SCENES:
        if name.startswith(prefix):
            return scene
    raise KeyError(name)


class Case(NamedTuple):
    """One run."""

    name: str
    action: str
    at: int = 1

    @property
    def by_agent(self) -> bool:
        """Whose it is."""
        return self.name.startswith("agent.")

    @override
    def __str__(self) -> str:
        return f"{self.name}={self.action}@{self.at}"


def all_cases() -> list[Case]:
    """Every failpoint with every action, and a later hit of those that are passed often."""
    cases = [
        Case(name, action)
        for action in ACTIONS
        for name in AGENT + COORDINATOR + STORE
        if action == "kill" or name not in NOTHING_FAILS
    ]
    often = (
        *STORE,
        "agent.frame.sealed",
        "agent.nodes.written",
        "agent.pack.half_sent",
        "agent.pack.uploaded",
        "agent.pack.settled",
        "coordinator.pack.stored",
        "coordinator.pack.recorded",
        "coordinator.job.saved",
    )
    later = [
        Case(name, action, at)
        for name in often
        for action in ACTIONS
        for at in (2, 3, 4)
        if action == "kill" or name not in NOTHING_FAILS
    ]
    return cases + later


def sample(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """Some of them, of both daemons."""
    chosen = random.Random(seed)
    kills = [case for case in cases if case.action == "kill" and case.at == 1]
    agents = [case for case in kills if case.by_agent]
    others = [case for case in kills if not case.by_agent]
    return chosen.sample(agents, count - count // 2) + chosen.sample(others, count // 2)


class Templates:
    """Sites to copy: founded, joined with one snapshot, and interrupted in the middle of a commit.

    The tree has changed since the snapshot, and changes no more: every later one must equal it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tree = directory / "volume"
        trees.build(self.tree)
        self.founded = Site(directory / "founded", self.tree)
        with running(self.founded) as site:
            site.start_coordinator()
            assert site.serving(), site.logs()
            site.end()
        self.joined = self.founded.copy(directory / "joined")
        with running(self.joined) as site:
            site.bring_up()
            self.before = trees.snapshot_of(self.tree)
            site.backup()
            site.end()
        trees.change(self.tree)
        trees.build(self.tree / "more", seed=3)
        self.now = trees.snapshot_of(self.tree)
        self._interrupted: Site | None = None

    def interrupted(self) -> Site:
        """A coordinator that was killed between both steps of a commit."""
        if self._interrupted is None:
            self._interrupted = self.joined.copy(self.directory / "interrupted")
            with running(self._interrupted) as site:
                site.start_coordinator("coordinator.commit.root_stored=kill")
                assert site.serving(), site.logs()
                site.bring_up()
                with suppress(DiedError):
                    site.ended(site.order_backup())
                site.kill()
        return self._interrupted


def run(case: Case, templates: Templates, directory: Path) -> str:
    """One run; AssertionError for whatever does not hold. "passed", or "not reached"."""
    scene = scene_of(case.name)
    if scene is Scene.FOUND:
        site = Site(directory, templates.tree)
    elif scene is Scene.JOIN:
        site = templates.founded.copy(directory)
    elif scene is Scene.START:
        site = templates.interrupted().copy(directory)
    elif scene is Scene.UPGRADE:
        site = templates.joined.copy(directory)
        to_first_revision(site.data / "catalog.db")
    else:
        site = templates.joined.copy(directory)
    with running(site):
        reached = _provoke(case, scene, site, directory / "interrupted")
        _check(scene, site, templates, directory)
    shutil.rmtree(directory)
    # How often a place is passed depends on the tree; that it is passed at all does not.
    return "passed" if reached or case.at > 1 else "not reached"


def _provoke(case: Case, scene: Scene, site: Site, target: Path) -> bool:
    """Do what passes the place. Whether it was reached, as far as that shows."""
    armed = str(case)
    site.start_coordinator("" if case.by_agent else armed)
    daemon = site.coordinator
    if site.serving():
        if not (site.state / "identity").exists():
            site.make_token()
        site.start_agent(armed if case.by_agent else "")
        daemon = site.agent if case.by_agent else daemon
        if site.connected():
            with suppress(DiedError):
                _operate(scene, site, target)
    assert daemon is not None
    if case.action == "kill" and not daemon.died:
        # The end of a job is told before the last steps of its daemon.
        with suppress(AssertionError):
            wait_until(lambda: daemon.died, 2.0)
    return daemon.died or case.action != "kill"


def _operate(scene: Scene, site: Site, target: Path) -> None:
    if scene is Scene.VERIFY:
        site.ended(site.order_verify())
    elif scene is Scene.RESTORE:
        site.ended(site.order_restore(site.snapshots()[-1].snapshot_id, target))
    else:
        job = site.ended(site.order_backup())
        assert (job.phase in _SHOWN) == bool(job.snapshots[0].snapshot_id), job


def _check(scene: Scene, site: Site, templates: Templates, directory: Path) -> None:
    """What must hold afterwards."""
    site.bring_up()
    wait_until(lambda: not site.unfinished_jobs(), _SETTLE_SECONDS, site.logs)
    known = site.known_chunks()
    if scene is Scene.RESTORE:
        _check_interrupted(site, templates, directory / "interrupted")
    made = site.backup()
    listed = site.snapshots()
    assert {each.phase for each in listed} <= _SHOWN, listed
    assert listed[-1].snapshot_id == made.snapshot_id
    first = 0 if scene in {Scene.FOUND, Scene.JOIN} else 1
    for number, snapshot in enumerate(listed):
        if snapshot.phase == common_pb2.PHASE_PARTIALLY_FAILED:
            # What could not be read is not there, and is named.
            assert snapshot.errors_total, snapshot
            continue
        target = directory / f"restored-{number}"
        site.restore(snapshot.snapshot_id, target)
        expected = templates.before if number < first else templates.now
        trees.assert_same(expected, trees.snapshot_of(target))
        shutil.rmtree(target)
    site.verify()
    after = site.known_chunks()
    again = [chunk.hex() for chunk, place in known.items() if after.get(chunk) != place]
    assert not again, f"stored again: {again}"
    site.end()
    assert not list((site.repository / ".tmp").iterdir()), "temporary files stay"


def _check_interrupted(site: Site, templates: Templates, target: Path) -> None:
    """A target is marked, or untouched, or whole."""
    if not target.exists() or not any(target.iterdir()):
        return
    if (target / MARKER).exists():
        job = site.ended(site.order_restore(site.snapshots()[0].snapshot_id, target))
        assert job.phase == common_pb2.PHASE_FAILED, job
        assert "not finished" in job.message, job
        return
    found = trees.snapshot_of(target)
    # Its own metadata comes last, since taking the mark away changes it.
    expected = dict(templates.before)
    expected[b""] = found[b""]
    trees.assert_same(expected, found)
