"""Audits of real events: a source that misses one is found out, and one that does not is not."""

import mmap
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from typing_extensions import override

from agent.beneath import Tree
from agent.errors import StateError
from agent.services import AuditOutcome, BackupOutcome
from agent.state import State
from agent.tracking.dirty import Dirty
from agent.tracking.epochs import AUDIT_EVERY
from agent.tracking.fanotify import FanotifySource
from agent.tracking.source import Source, Swapped
from agent.tracking.suspects import SuspectScanner, scan
from agent.tracking.tracker import Mode, Tracker
from repository.errors import StoreFullError
from repository.snapshot import Detection
from tests.faults.disks import LoopDisk, loop_disk
from tests.integration.agent.test_backup import VOLUME_ID, Agent
from tests.unit.agent.touching import Toucher

pytestmark = pytest.mark.asyncio


class ForgetfulSource(Source):
    """Does not tell of some names."""

    name: ClassVar[str] = "forgetful"

    def __init__(self, source: Source) -> None:
        self._source = source
        self.forgets: set[bytes] = set()

    @override
    def watch(self, volume_id: bytes, path: bytes) -> None:
        self._source.watch(volume_id, path)

    @override
    def forget(self, volume_id: bytes) -> None:
        self._source.forget(volume_id)

    @override
    def barrier(self, timeout_seconds: float) -> bool:
        return self._source.barrier(timeout_seconds)

    @override
    def swap(self, volume_id: bytes, tree: Tree) -> Swapped:
        dirty, lost = self._source.swap(volume_id, tree)
        return Swapped(Dirty(dirty.names - self.forgets, dirty.subtrees, dirty.inodes), lost)

    @override
    def close(self) -> None:
        self._source.close()


class Node:
    """An agent whose volume is watched."""

    def __init__(self, agent: Agent, source: ForgetfulSource) -> None:
        self.agent = agent
        self.volume = agent.volume
        self.source = source
        self._scanner = SuspectScanner(partial(scan, vouched_for={1}))
        self.tracker: Tracker
        self.start()

    def start(self) -> None:
        """Begin as an agent does, for the first time or again."""
        self.tracker = Tracker([lambda: self.source], self._scanner, self.agent.state)
        self.agent.tracking = self.tracker

    async def backup(self, *, audit: bool = False) -> BackupOutcome:
        outcome = await self.agent.backup(audit=audit)
        assert outcome.error is None
        return outcome

    async def audit(self) -> AuditOutcome:
        outcome = (await self.backup(audit=True)).statistics.audit
        assert outcome is not None
        return outcome

    def mode(self) -> Mode:
        return self.tracker.watch(VOLUME_ID, os.fsencode(self.volume))

    def missed(self) -> int:
        return self.tracker.figures().missed.get(VOLUME_ID, 0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """For real misses, which no pause helps."""
    monkeypatch.setattr("agent.auditing._PAUSES_SECONDS", (0.0, 0.0))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopDisk]:
    with loop_disk("ext4", tmp_path_factory.mktemp("disk")) as disk:
        yield disk


@pytest.fixture
def node(disk: LoopDisk, tmp_path: Path) -> Iterator[Node]:
    volume = disk.path / os.urandom(8).hex() / "volume"
    volume.mkdir(parents=True)
    for name in ("one", "two", "three"):
        (volume / name).write_bytes(b"at first")
    # What has just changed is looked at again, told or not.
    threading.Event().wait(0.03)
    (tmp_path / "state").mkdir()
    source = ForgetfulSource(FanotifySource(tmp_path / "state"))
    with State(tmp_path / "state.db") as state, ThreadPoolExecutor(2) as workers:
        node = Node(Agent(volume, state, workers), source)
        try:
            yield node
        finally:
            node.tracker.close()


async def test_an_audit_of_all_that_was_told_misses_nothing(node: Node) -> None:
    await node.backup()
    (node.volume / "one").write_bytes(b"changed")

    outcome = await node.backup(audit=True)

    audit = outcome.statistics.audit
    assert audit is not None
    assert (audit.audited, audit.missed, audit.missed_paths) == (True, 0, [])
    assert audit.candidates >= 1
    assert audit.places >= 1
    assert outcome.statistics.detection is Detection.SWEEP
    assert "an audit was asked for; events missed 0 of" in outcome.statistics.proof
    assert node.mode().source == "forgetful"
    assert (await node.backup()).statistics.detection is Detection.EVENTS


@pytest.mark.usefixtures("hasty")
async def test_a_miss_is_counted_warned_of_and_makes_the_volume_swept(node: Node) -> None:
    await node.backup()
    node.source.forgets = {b"two"}
    (node.volume / "two").write_bytes(b"changed")
    (node.volume / "one").write_bytes(b"changed")
    assert (await node.backup()).statistics.files_changed == 1

    outcome = await node.backup(audit=True)

    audit = outcome.statistics.audit
    assert audit is not None
    assert (audit.audited, audit.missed, audit.missed_paths) == (True, 1, [b"two"])
    assert [warning.path for warning in outcome.statistics.warnings] == [b"two"]
    assert ("error", "events did not tell of this change: two") in node.agent.logged
    assert node.missed() == 1
    await node.agent.check()
    reason = node.mode().reason
    assert reason.startswith("events missed a change on 2")
    later = await node.backup()
    assert later.statistics.detection is Detection.SWEEP
    assert later.statistics.proof == f"sweep: {reason}"
    assert later.statistics.audit is None
    assert node.tracker.figures().sweeps == {"first": 1, "audit": 1, "missed": 1}


@pytest.mark.usefixtures("hasty")
async def test_a_clean_audit_makes_events_trusted_again(node: Node) -> None:
    await node.backup()
    node.source.forgets = {b"two"}
    (node.volume / "two").write_bytes(b"changed")
    assert (await node.audit()).missed == 1
    # Of what was read right after it changed, nobody needs to be told to look again.
    node.source.forgets = {b"three"}
    (node.volume / "three").write_bytes(b"changed")
    assert (await node.audit()).missed == 1
    assert node.mode().source == "sweep"
    node.source.forgets = set()
    (node.volume / "one").write_bytes(b"changed")

    audit = await node.audit()

    assert (audit.audited, audit.missed) == (True, 0)
    assert node.missed() == 2
    assert node.mode().source == "forgetful"
    (node.volume / "one").write_bytes(b"told")
    assert (await node.backup()).statistics.detection is Detection.EVENTS
    await node.agent.check()


@pytest.mark.usefixtures("hasty")
async def test_a_miss_stays_found_where_its_backup_fails(node: Node) -> None:
    await node.backup()
    node.source.forgets = {b"two"}
    (node.volume / "two").write_bytes(b"changed")
    (node.volume / "one").write_bytes(b"changed")
    node.agent.coordinator.uploads_left = 0

    failed = await node.agent.backup(audit=True)

    assert failed.error is not None
    assert node.missed() == 1
    assert node.mode().source == "sweep"
    node.agent.coordinator.uploads_left = None
    await node.backup()
    await node.agent.check()


@pytest.mark.usefixtures("hasty")
async def test_a_miss_stays_found_where_its_backup_ends_while_it_reads(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.backup()
    node.source.forgets = {b"two"}
    (node.volume / "two").write_bytes(b"changed")

    def full(*_: object) -> None:
        raise StoreFullError("no room")

    monkeypatch.setattr("agent.storing.Storer.save_batch", full)
    failed = await node.agent.backup(audit=True)

    assert isinstance(failed.error, StoreFullError)
    assert failed.statistics.audit is not None
    assert failed.statistics.audit.missed_paths == [b"two"]
    assert node.missed() == 1
    assert node.mode().source == "sweep"


@pytest.mark.usefixtures("hasty")
async def test_a_miss_outlives_the_agent_until_an_audit_finds_none(node: Node) -> None:
    await node.backup()
    node.source.forgets = {b"two"}
    (node.volume / "two").write_bytes(b"changed")
    assert (await node.audit()).missed == 1
    mode, node.source.forgets = node.mode(), set()

    node.start()

    assert node.mode() == mode
    assert node.missed() == 0
    for _ in range(2):
        swept = await node.backup()
        assert swept.statistics.proof == f"sweep: {mode.reason}"
    assert (await node.audit()).audited
    assert node.mode().source == "forgetful"
    node.start()
    assert node.mode().source == "forgetful"
    await node.backup()
    assert (await node.backup()).statistics.detection is Detection.EVENTS


@pytest.mark.usefixtures("hasty")
async def test_events_are_not_trusted_again_where_that_cannot_be_kept(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.backup()
    node.source.forgets = {b"two"}
    (node.volume / "two").write_bytes(b"changed")
    assert (await node.audit()).missed == 1
    node.source.forgets = set()

    def full(*_: object) -> None:
        raise StateError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("agent.state.State.keep_missed", full)
        failed = await node.agent.backup(audit=True)

    assert isinstance(failed.error, StateError)
    assert node.mode().source == "sweep"
    assert (await node.audit()).audited
    assert node.mode().source == "forgetful"


async def test_an_audit_without_a_base_says_why_there_is_none(node: Node) -> None:
    audit = await node.audit()

    assert not audit.audited
    assert audit.reason == "it is watched since just now"
    assert node.mode().source == "forgetful"


@pytest.mark.usefixtures("hasty")
async def test_an_audit_that_cannot_be_one_says_why_though_events_are_not_trusted(
    node: Node,
) -> None:
    await node.backup()
    node.source.forgets = {b"two"}
    (node.volume / "two").write_bytes(b"changed")
    assert (await node.audit()).missed == 1
    node.tracker.keep_only([])

    audit = await node.audit()

    assert not audit.audited
    assert audit.reason.startswith("it is watched since just now; events missed a change on 2")
    assert node.mode().source == "sweep"
    assert (await node.audit()).audited
    assert node.mode().source == "forgetful"


async def test_an_audit_without_the_last_manifest_says_so(node: Node) -> None:
    await node.backup()
    head = node.agent.state.head(VOLUME_ID)
    assert head is not None
    await node.agent.state.commit(VOLUME_ID, head, {}, [], replace=True)

    audit = await node.audit()

    assert (audit.audited, audit.missed) == (False, 0)
    assert audit.reason == "the last manifest is not all here"


async def test_what_is_told_while_an_audit_runs_stays_for_the_next_backup(node: Node) -> None:
    await node.backup()
    files = iter(["two", "three"])

    def change(_: object) -> None:
        if (name := next(files, None)) is not None:
            (node.volume / name).write_bytes(b"changed meanwhile")

    node.agent.on_progress = change
    audit = await node.audit()

    assert (audit.audited, audit.missed) == (True, 0)
    later = await node.backup()
    assert later.statistics.detection is Detection.EVENTS
    await node.agent.check()


async def test_every_so_many_backups_are_audits(node: Node) -> None:
    await node.backup()
    watched = node.tracker._watched[VOLUME_ID]
    watched.epoch.since_sweep = AUDIT_EVERY

    audits = [(await node.backup()).statistics.audit for _ in range(2)]

    assert audits[0] is not None
    assert (audits[0].audited, audits[0].missed) == (True, 0)
    assert audits[1] is None


def work(volume: Path, outside: Path, stop: threading.Event) -> None:
    """Change things all the time, in all ways, some of which raise no event before they end."""
    # Whoever truncates what is mapped ends this process.
    toucher = Toucher(volume / "touched", outside, random.Random(7))
    mapped = volume / "mapped"
    with mapped.open("w+b", buffering=0) as file:
        file.write(bytes(8192))
        with mmap.mmap(file.fileno(), 8192) as page:
            number = 0
            while not stop.is_set():
                number += 1
                with suppress(OSError):  # it is taken away beneath the toucher
                    toucher.touch(1)
                page[number % 8192] = number % 256
                if number % 20 == 0:
                    page.flush()


async def test_no_change_by_a_writer_that_never_stops_is_called_a_miss(node: Node) -> None:
    outside = node.volume.with_name("outside")
    outside.mkdir()
    (node.volume / "touched").mkdir()
    await node.agent.backup()
    stop = threading.Event()
    writer = threading.Thread(target=work, args=(node.volume, outside, stop))
    writer.start()
    try:
        outcomes = [await node.agent.backup(audit=True) for _ in range(20)]
    finally:
        stop.set()
        writer.join()

    audits = [outcome.statistics.audit for outcome in outcomes]
    assert [outcome.error for outcome in outcomes] == [None] * 20
    assert [audit.missed for audit in audits if audit is not None] == [0] * 20
    assert [audit.reason for audit in audits if audit is not None] == [""] * 20
    assert sum(audit.candidates for audit in audits if audit is not None) > 100
    assert node.mode().source == "forgetful"
    await node.backup()
    await node.agent.check()
