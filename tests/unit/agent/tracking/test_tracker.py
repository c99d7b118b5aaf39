"""Which source tells of a volume, and what a backup is told, from one backup to the next."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from typing_extensions import override

from agent.beneath import Tree
from agent.errors import UntrackableError
from agent.tracking.dirty import Dirty
from agent.tracking.fanotify import FanotifySource
from agent.tracking.inotify import InotifySource
from agent.tracking.source import Source, Swapped
from agent.tracking.suspects import Suspects
from agent.tracking.tracker import Done, Mode, Taken, Tracker

VOLUME = b"V" * 16


class Scanner:
    """Sees nobody who may write without an event; or says what it cannot see."""

    def __init__(self) -> None:
        self.unseen: str | None = None

    def scan(self) -> Suspects:
        return Suspects({}, self.unseen, 0)


class Refusing(FanotifySource):
    """Told not to watch anything."""

    refuses = True

    @override
    def watch(self, volume_id: bytes, path: bytes) -> None:
        if self.refuses:
            raise UntrackableError("it is not allowed here")
        super().watch(volume_id, path)


class Late(FanotifySource):
    """Its events do not arrive."""

    is_late = True

    @override
    def barrier(self, timeout_seconds: float) -> bool:
        return not self.is_late and super().barrier(timeout_seconds)


class Losing(FanotifySource):
    """Loses what it is told, for ever; and counts how often it was asked to watch."""

    asked = 0

    @override
    def watch(self, volume_id: bytes, path: bytes) -> None:
        self.asked += 1
        super().watch(volume_id, path)

    @override
    def swap(self, volume_id: bytes, tree: Tree) -> Swapped:
        super().swap(volume_id, tree)
        return Swapped(Dirty(), "the queue overflowed")


class Node:
    """A tracker with one volume."""

    def __init__(self, root: Path, *sources: Callable[[], Source]) -> None:
        self.volume = root / "volume"
        self.volume.mkdir()
        self.scanner = Scanner()
        self.seconds = 0.0
        self.tracker = Tracker(sources, self.scanner, monotonic=lambda: self.seconds)
        self.head = b""

    def begin(self, head: bytes | None = None) -> Taken:
        with Tree.of_volume(os.fsencode(self.volume)) as tree:
            path = os.fsencode(self.volume)
            return self.tracker.begin(VOLUME, path, tree, self.head if head is None else head)

    def back_up(self, again: Dirty | None = None) -> Taken:
        taken = self.begin()
        self.head += b"+"
        done = Done(self.head, taken.way.dirty is None, again or Dirty())
        self.tracker.committed(taken, done)
        return taken


@contextmanager
def node_with(root: Path, *kinds: Callable[[Path], Source]) -> Iterator[Node]:
    state = root / "state"
    state.mkdir()
    node = Node(root, *(partial(kind, state) for kind in kinds))
    try:
        yield node
    finally:
        node.tracker.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with node_with(tmp_path, FanotifySource, InotifySource) as node:
        yield node


def names(taken: Taken) -> set[bytes]:
    assert taken.way.dirty is not None, taken.way.reason
    return taken.way.dirty.names


def test_after_a_sweep_was_committed_backups_are_told_where_to_look(node: Node) -> None:
    (node.volume / "before").touch()
    assert node.back_up().way.dirty is None
    (node.volume / "after").touch()

    assert names(node.back_up()) == {b"", b"after"}
    assert names(node.back_up()) == set()


def test_what_a_backup_did_not_commit_is_told_again(node: Node) -> None:
    node.back_up()
    (node.volume / "one").touch()
    node.begin()
    (node.volume / "two").touch()

    assert names(node.begin()) == {b"", b"one", b"two"}


def test_what_a_backup_could_not_read_comes_again(node: Node) -> None:
    node.back_up()
    node.back_up(again=Dirty(names={b"unreadable"}))

    assert names(node.back_up()) == {b"unreadable"}
    assert names(node.back_up()) == set()


def test_a_volume_is_swept_where_the_last_snapshot_is_not_ours(node: Node) -> None:
    node.back_up()

    assert node.begin(head=b"of another node").way.dirty is None


def test_a_tracker_that_cannot_see_the_hosts_processes_sweeps(node: Node) -> None:
    node.back_up()
    node.scanner.unseen = "the host's processes are hidden"

    assert node.back_up().way.reason == "the host's processes are hidden"

    node.scanner.unseen = None
    assert names(node.back_up()) == set()


def test_the_second_best_source_tells_where_the_best_one_may_not(tmp_path: Path) -> None:
    with node_with(tmp_path, Refusing, InotifySource) as node:
        node.back_up()
        (node.volume / "new").touch()

        taken = node.back_up()

        assert b"new" in names(taken)
        assert taken.mode == Mode("inotify", "fanotify: it is not allowed here")


def test_a_volume_that_nothing_tells_of_is_swept_and_says_why(tmp_path: Path) -> None:
    with node_with(tmp_path, Refusing) as node:
        node.back_up()

        assert node.back_up().way.reason == "fanotify: it is not allowed here"
        shown = node.tracker.watch(VOLUME, os.fsencode(node.volume))
        assert shown == Mode("sweep", "fanotify: it is not allowed here")


def test_a_source_that_refused_is_asked_again_after_some_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with node_with(tmp_path, Refusing) as node:
        node.back_up()
        monkeypatch.setattr(Refusing, "refuses", False)
        assert node.back_up().mode.source == "sweep"
        node.seconds += 3600

        assert node.back_up().mode == Mode("fanotify", "")
        assert names(node.back_up()) == set()


def test_events_that_arrive_late_make_a_backup_sweep_and_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with node_with(tmp_path, Late) as node:
        late = node.back_up()
        assert "in time" in late.way.reason
        monkeypatch.setattr(Late, "is_late", False)
        # What was committed then rests on the watch that began after the loss.
        (node.volume / "new").touch()

        assert names(node.back_up()) == {b"", b"new"}


def test_a_source_that_loses_again_and_again_is_asked_to_begin_from_nothing(
    tmp_path: Path,
) -> None:
    with node_with(tmp_path, Losing) as node:
        for asked in (1, 2, 2, 3):
            assert node.back_up().way.reason == "the queue overflowed"
            [source] = node.tracker.sources
            assert isinstance(source, Losing)
            assert source.asked == asked


def test_another_directory_in_the_volumes_place_is_swept(node: Node) -> None:
    node.back_up()
    node.volume.rename(node.volume.with_name("moved away"))
    node.volume.mkdir()
    (node.volume / "another").touch()

    assert node.back_up().way.dirty is None
    (node.volume / "new").touch()
    assert names(node.back_up()) == {b"", b"new"}


def test_a_volume_that_is_gone_is_forgotten(node: Node) -> None:
    node.back_up()
    assert VOLUME in node.tracker.figures().places
    node.tracker.keep_only([])
    assert VOLUME not in node.tracker.figures().places

    assert node.back_up().way.dirty is None


def test_a_volume_that_is_not_there_is_watched_once_it_is_back(node: Node) -> None:
    node.volume.rmdir()
    path = os.fsencode(node.volume)

    mode = node.tracker.watch(VOLUME, path)

    assert mode.source == "sweep"
    assert "is not there" in mode.reason
    node.volume.mkdir()
    node.seconds += 3600
    assert node.tracker.watch(VOLUME, path) == Mode("fanotify", "")
