"""Each failpoint: make a daemon die, fail or wait there, start again, and lose nothing.

What holds after every run, whatever was done to it:

- every job ends by itself once both daemons run again;
- no unfinished snapshot is listed, and each listed one restores equal to what was backed up;
- a new backup is Completed, and stores nothing anew that the agent knew to be stored;
- verification at depth data finds nothing wrong;
- a restore that was interrupted says so by its mark, and is not taken for a whole one; made again,
  it is whole.

While one daemon waits, the other one is killed and starts again.
"""

import random
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from proto.tidemark.v1 import common_pb2
from repository.chunking import SMALL_BYTES_MAX
from repository.failpoints import AGENT, COORDINATOR, STORE
from tests.e2e import trees
from tests.fakes.catalogs import to_first_revision
from tests.faults.cases import Case, Scene
from tests.faults.site import MARKER, Daemon, DiedError, Site, pause, running, wait_until

# The agent is back at once; what waits for its lease waits for 30 s.
_SETTLE_SECONDS: Final = 60.0
# The end of a job is told before the last steps of its daemons.
_LAST_STEPS_SECONDS: Final = 1.0
# A short-lived certificate has expired by then.
_LIFE_SECONDS: Final = 2
_SHOWN: Final = frozenset({common_pb2.PHASE_COMPLETED, common_pb2.PHASE_PARTIALLY_FAILED})
# These begin with a start of the coordinator; the others go on, one after the other, in one site.
_FRESH: Final = frozenset({Scene.FOUND, Scene.JOIN, Scene.START, Scene.UPGRADE, Scene.RENEWAL})
# Read by itself.
_LARGE_BYTES: Final = SMALL_BYTES_MAX + 100_000
# A repository that grows makes each verification longer.
_RUNS_MAX: Final = 25
# Their snapshots are of the tree as it is afterwards.
_MAKING: Final = frozenset({Scene.START, Scene.BACKUP, Scene.LOST_STATE})


class Templates:
    """Sites to copy. The tree has changed since the snapshot of those that have joined."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tree = directory / "volume"
        trees.build(self.tree, files=30)
        self.before = trees.snapshot_of(self.tree)
        self.founded = Site(directory / "founded", self.tree)
        with running(self.founded) as site:
            site.start_coordinator()
            assert site.serving(), site.logs()
            site.end()
        self.joined = self.founded.copy(directory / "joined")
        with running(self.joined) as site:
            site.bring_up()
            self.snapshot_id = str(site.backup().snapshot_id)
            site.end()
        trees.change(self.joined.tree)

    @cached_property
    def interrupted(self) -> Site:
        """A coordinator that was killed between both steps of a commit."""
        with running(self.joined.copy(self.directory / "interrupted")) as site:
            site.start_coordinator("coordinator.commit.root_stored=kill")
            assert site.serving(), site.logs()
            site.bring_up()
            with suppress(DiedError):
                site.ended(site.order_backup())
            site.kill()
        return site

    @cached_property
    def older(self) -> Site:
        """A catalog of the first revision."""
        site = self.joined.copy(self.directory / "older")
        to_first_revision(site.data / "catalog.db")
        return site

    @cached_property
    def expired(self) -> Site:
        """A node whose certificate has expired."""
        with running(self.founded.copy(self.directory / "expired")) as site:
            site.start_coordinator(options=("--certificate-life", f"{_LIFE_SECONDS}s"))
            site.bring_up()
            site.end()
        pause(_LIFE_SECONDS)
        return site

    def of(self, scene: Scene) -> Site:
        """Where a scene begins."""
        match scene:
            case Scene.FOUND:
                return Site(self.directory / "empty", self.tree)
            case Scene.JOIN:
                return self.founded
            case Scene.START:
                return self.interrupted
            case Scene.UPGRADE:
                return self.older
            case Scene.RENEWAL:
                return self.expired
            case _:
                return self.joined


class Bench:
    """One site, and the runs in it. Its tree changes with every run."""

    def __init__(self, templates: Templates, scene: Scene, directory: Path, seed: int = 0) -> None:
        self.site = templates.of(scene).copy(directory)
        self.runs = 0
        self._directory = directory
        self._source = random.Random(seed)
        # What is there for certain, the newest last, and what that one holds.
        has_snapshot = scene not in _FRESH or scene in {Scene.START, Scene.UPGRADE}
        self._acknowledged = [templates.snapshot_id] if has_snapshot else []
        self._content: Mapping[bytes, Any] = templates.before
        # A volume before it was restored in place.
        self._damaged: Mapping[bytes, Any] = {}

    # ---- a run ----------------------------------------------------------------------------------

    def run(self, case: Case) -> str:
        """One run; AssertionError for whatever does not hold. "passed", or "not reached"."""
        acted = self._provoke(case)
        self._check(case.scene)
        return "passed" if acted else "not reached"

    def count(self, scene: Scene) -> Counter[str]:
        """How often each failpoint is passed when nothing fails."""
        if scene not in _FRESH:
            # The first backup of a copied tree reads all of it; those of the runs do not.
            self._up()
            self.site.backup()
            self._check_listed(None)
            self._content = trees.snapshot_of(self.site.tree)
        self._prepare(scene)
        for module, names in (("agent", AGENT), ("coordinator", (*COORDINATOR, *STORE))):
            self.site.arm(module, ";".join(f"{name}=note" for name in names))
        self._operate(scene)
        pause(_LAST_STEPS_SECONDS)
        passed = Counter(self.site.acted("agent") + self.site.acted("coordinator"))
        for module in ("agent", "coordinator"):
            self.site.arm(module, "")
        self._check(scene)
        return passed

    def _provoke(self, case: Case) -> bool:
        """Do what passes the place; whether it was passed so often."""
        site = self.site
        self._prepare(case.scene)
        go = self._directory / f"go-{self.runs}"
        reached = Path(f"{go}.reached")
        site.halt = reached
        module = "agent" if case.by_agent else "coordinator"
        action = f"pause:{go}" if case.action == "pause" else case.action
        site.arm(module, f"{case.name}={action}@{case.at}")
        with suppress(DiedError):
            self._operate(case.scene)

        def has_acted() -> bool:
            return bool(site.acted(module))

        with suppress(AssertionError):
            wait_until(has_acted, _LAST_STEPS_SECONDS)
        acted = has_acted()
        if acted and case.action == "kill":
            wait_until(lambda: self._is_dead(module), 5.0, site.logs)
        if acted and case.action == "pause":
            wait_until(reached.exists, 5.0, site.logs)
        site.halt = None
        if acted and case.action == "pause":
            self._replace_other(module)
        go.touch()
        site.arm(module, "")
        return acted

    def _is_dead(self, module: str) -> bool:
        daemon = self._daemon(module)
        return daemon is not None and daemon.died

    def _daemon(self, module: str) -> Daemon | None:
        return self.site.agent if module == "agent" else self.site.coordinator

    def _replace_other(self, module: str) -> None:
        """Kill the daemon that does not wait, if it runs, and start it again."""
        site = self.site
        if module == "agent":
            assert site.coordinator is not None
            site.coordinator.kill()
            site.start_coordinator(site.script("coordinator"))
            assert site.serving(), site.logs()
        elif site.agent is not None:
            site.agent.kill()
            site.start_agent(site.script("agent"))

    # ---- scenes ---------------------------------------------------------------------------------

    def _prepare(self, scene: Scene) -> None:
        """Everything that must not be disturbed."""
        self.runs += 1
        if scene in _FRESH:
            return
        self._up()
        self._change()
        if scene is Scene.IN_PLACE:
            self._damage()
        if scene in {Scene.CONNECT, Scene.LOST_STATE}:
            assert self.site.agent is not None
            self.site.agent.end()
        if scene is Scene.LOST_STATE:
            for path in self.site.state.glob("state.db*"):
                path.unlink()

    def _operate(self, scene: Scene) -> None:
        """What is disturbed; DiedError where it was."""
        if scene in _FRESH:
            self._begin(with_agent=scene is not Scene.FOUND)
        elif scene in {Scene.CONNECT, Scene.LOST_STATE}:
            self._begin_agent()
        match scene:
            case Scene.BACKUP | Scene.LOST_STATE:
                job = self.site.ended(self.site.order_backup())
                assert (job.phase in _SHOWN) == bool(job.snapshots[0].snapshot_id), job
            case Scene.RESTORE:
                self._told(self.site.order_restore(self._acknowledged[-1], self._target))
            case Scene.IN_PLACE:
                self._told(self.site.order_restore(self._acknowledged[-1], None))
            case Scene.VERIFY:
                self._told(self.site.order_verify())
            case _:
                pass

    def _told(self, job_id: str) -> None:
        """The end of a job, and if all is not well, why."""
        job = self.site.ended(job_id)
        if job.phase == common_pb2.PHASE_PARTIALLY_FAILED:
            assert job.restore.errors_total or job.verify.damaged_total, job
        elif job.phase != common_pb2.PHASE_COMPLETED:
            assert job.message, job

    def _begin(self, *, with_agent: bool) -> None:
        self.site.start_coordinator(self.site.script("coordinator"))
        if not self.site.serving():
            raise DiedError
        if not with_agent:
            return
        if not (self.site.state / "identity").exists():
            self.site.make_token()
        self._begin_agent()

    def _begin_agent(self) -> None:
        self.site.start_agent(self.site.script("agent"))
        if not self.site.connected():
            raise DiedError

    @property
    def _target(self) -> Path:
        return self._directory / f"interrupted-{self.runs}"

    def _change(self) -> None:
        """New names, and files that are read by themselves with others between them."""
        tree = self.site.tree
        (tree / f"d{self.runs % 3}").mkdir(exist_ok=True)
        (tree / f"d{self.runs % 3}/{self.runs}").write_bytes(self._source.randbytes(9_000))
        for number in range(4):
            (tree / f"grown-{number}").write_bytes(self._source.randbytes(_LARGE_BYTES))
            (tree / f"grown-{number} small").write_bytes(self._source.randbytes(9_000))

    def _damage(self) -> None:
        """What a restore in place has to bring back, patch, and remove."""
        tree = self.site.tree
        with (tree / "large").open("r+b") as file:
            file.seek(1_200_000)
            file.write(self._source.randbytes(4_000))
        (tree / "a" / "extra").write_bytes(b"not in the snapshot")
        (tree / "a" / "moved text").unlink(missing_ok=True)
        for path in sorted(tree.glob("file-*"))[:3]:
            path.unlink()
        (tree / "a" / "link here").unlink(missing_ok=True)
        (tree / "a" / "link here").symlink_to("nowhere")
        (tree / "a" / "b").chmod(0o711)
        self._damaged = trees.snapshot_of(tree)

    # ---- what must hold -------------------------------------------------------------------------

    def _up(self) -> None:
        """Start, as an operator does, what does not run."""
        scripts = {module: self.site.script(module) for module in ("coordinator", "agent")}
        self.site.bring_up(**scripts)

    def _check(self, scene: Scene) -> None:
        site = self.site
        self._up()
        wait_until(lambda: not site.unfinished_jobs(), _SETTLE_SECONDS, site.logs)
        now = trees.snapshot_of(site.tree)
        self._check_listed(now if scene in _MAKING else None)
        if scene is Scene.RESTORE:
            self._check_target()
        if scene is Scene.IN_PLACE:
            self._check_in_place(now)
        known = site.known_chunks()
        made = site.backup()
        after = site.known_chunks()
        again = [chunk.hex() for chunk, place in known.items() if after.get(chunk) != place]
        assert not again, f"stored again: {again}"
        self._check_listed(None)
        assert self._acknowledged[-1] == made.snapshot_id
        self._content = trees.snapshot_of(site.tree)
        self._restored(made.snapshot_id, self._content)
        site.verify()
        assert not list((site.repository / ".tmp").iterdir()), "temporary files stay"

    def _check_listed(self, expected: Mapping[bytes, Any] | None) -> None:
        """Nothing acknowledged is gone, nothing unfinished shows, what is new is as expected."""
        listed = self.site.snapshots()
        ids = [str(each.snapshot_id) for each in listed]
        assert {each.phase for each in listed} <= _SHOWN, listed
        assert ids[: len(self._acknowledged)] == self._acknowledged, "a snapshot is gone"
        for snapshot in listed[len(self._acknowledged) :]:
            if snapshot.phase == common_pb2.PHASE_PARTIALLY_FAILED:
                # What could not be read is not there, and is named.
                assert snapshot.errors_total, snapshot
            elif expected is not None:
                self._restored(snapshot.snapshot_id, expected)
                self._content = dict(expected)
        self._acknowledged = ids

    def _restored(self, snapshot_id: str, expected: Mapping[bytes, Any]) -> None:
        target = self._directory / "restored"
        self.site.restore(snapshot_id, target)
        trees.assert_same(dict(expected), trees.snapshot_of(target))
        shutil.rmtree(target)

    def _check_target(self) -> None:
        """It is untouched, or marked, or whole; and can be finished."""
        target, newest = self._target, self._acknowledged[-1]
        if target.exists() and any(target.iterdir()):
            if (target / MARKER).exists():
                job = self.site.ended(self.site.order_restore(newest, target))
                assert job.phase == common_pb2.PHASE_FAILED, job
                assert "not finished" in job.message, job
            else:
                trees.assert_same(_below(self._content), _below(trees.snapshot_of(target)))
        self.site.restore(newest, target, overwrite=True)
        trees.assert_same(dict(self._content), trees.snapshot_of(target))
        shutil.rmtree(target)

    def _check_in_place(self, found: Mapping[bytes, Any]) -> None:
        """The volume is marked, or whole, or as it was; and can be finished."""
        below = _below(found)
        if MARKER.encode() not in found and below != _below(self._damaged):
            trees.assert_same(_below(self._content), below)
        self.site.restore(self._acknowledged[-1], None)
        trees.assert_same(dict(self._content), trees.snapshot_of(self.site.tree))


def _below(found: Mapping[bytes, Any]) -> dict[bytes, Any]:
    """All but the top: its metadata comes last, since taking the mark away changes it."""
    return {name: entry for name, entry in found.items() if name}


class Runner:
    """Runs cases one after the other, those of most scenes in one site until one fails."""

    def __init__(self, templates: Templates, directory: Path) -> None:
        self._templates = templates
        self._directory = directory
        self._bench: Bench | None = None
        self._benches = 0

    def run(self, case: Case) -> str:
        """One run; AssertionError for whatever does not hold. The site of a failed run stays."""
        bench = self._bench_of(case.scene)
        try:
            result = bench.run(case)
        except BaseException:
            self._bench = None
            with running(bench.site):
                raise
        self._let_go(bench, case.scene)
        return result

    def count(self, scene: Scene) -> Counter[str]:
        """How often each failpoint is passed in a scene."""
        bench = self._bench_of(scene)
        with running(bench.site):
            passed = bench.count(scene)
            bench.site.end()
        self._bench = None
        return passed

    def end(self) -> None:
        """End what still runs."""
        if self._bench is not None:
            with running(self._bench.site) as site:
                site.end()
            self._bench = None

    def _bench_of(self, scene: Scene) -> Bench:
        if scene not in _FRESH and self._bench is not None:
            return self._bench
        self._benches += 1
        directory = self._directory / f"site-{self._benches}"
        bench = Bench(self._templates, scene, directory, self._benches)
        if scene not in _FRESH:
            self._bench = bench
        return bench

    def _let_go(self, bench: Bench, scene: Scene) -> None:
        if scene not in _FRESH and bench.runs < _RUNS_MAX:
            return
        with running(bench.site) as site:
            site.end()
        shutil.rmtree(site.directory)
        if bench is self._bench:
            self._bench = None
