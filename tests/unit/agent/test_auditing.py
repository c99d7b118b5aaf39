"""An audit misses what a rescan of what was told would have missed, and nothing else."""

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.auditing import Audit, candidates_of
from agent.beneath import Tree
from agent.rescan import rescan
from agent.sweep import Batch, sweep
from agent.tracking.audit import Candidate
from agent.tracking.dirty import Dirty
from agent.tracking.epochs import Way, Why
from agent.tracking.suspects import Suspects
from agent.tracking.tracker import Mode, Since, Taken
from agent.whereabouts import Whereabouts
from repository.entries import Entry
from tests.unit.agent import trees
from tests.unit.agent.test_rescan import last_of, totals_of
from tests.unit.agent.touching import Toucher

NOBODY = Suspects({}, None, 0)
Manifest = list[tuple[bytes, Entry]]


def taken(dirty: Dirty, suspects: Suspects = NOBODY) -> Taken:
    way = Way(dirty, "asked for", Why.AUDIT, audits=True)
    return Taken(b"V", Mode("fanotify", ""), way, "e", suspects, Whereabouts())


class Story:
    """An audit of a volume: what each look at what came since brings."""

    def __init__(self, volume: Path, manifest: Manifest) -> None:
        self.volume = volume
        self.manifest = manifest
        self.since: list[Since] = []
        self.looks = 0
        self.pauses: list[float] = []
        self.canceled = False
        self.on_look: Callable[[], object] = lambda: None

    def tell(self, dirty: Dirty, suspects: Suspects = NOBODY, lost: str | None = None) -> None:
        self.since.append(Since(dirty, suspects, lost))

    def _look(self) -> Since:
        self.looks += 1
        self.on_look()
        return self.since.pop(0) if self.since else Since(Dirty(), NOBODY, None)

    def audit(self, dirty: Dirty, suspects: Suspects = NOBODY) -> Audit:
        last = last_of(self.manifest)
        with Tree.of_volume(os.fsencode(self.volume)) as tree:
            audit = Audit(
                taken(dirty, suspects),
                tree,
                self._look,
                let_go=contextlib.nullcontext,
                wait=self.pauses.append,
            )
            for _ in audit.beside(sweep(tree, last.leaves()), last, lambda: self.canceled):
                pass
        return audit


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    volume = tmp_path / "volume"
    volume.mkdir()
    trees.make(volume, {b"d": {b"x": b"1", b"e": {b"y": b"2"}}, b"file": b"3", b"other": b"4"})
    os.link(volume / "other", volume / "zz")
    return volume


@pytest.fixture
def story(volume: Path) -> Story:
    return Story(volume, trees.manifest(volume))


def keys_of(batches: Iterator[Batch]) -> set[bytes]:
    return {
        item.key for batch in batches for items in (batch.found, batch.removed) for item in items
    }


@pytest.mark.parametrize("seed", range(24))
def test_what_is_no_miss_a_rescan_finds(tmp_path: Path, seed: int) -> None:
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    volume.mkdir()
    outside.mkdir()
    chance = random.Random(seed)
    toucher = Toucher(volume, outside, chance)
    toucher.touch(25)
    toucher.take()
    for _ in range(3):
        story = Story(volume, trees.manifest(volume))
        toucher.touch(chance.choice([1, 3, 8]))
        told = toucher.take()
        some = Dirty(half(chance, told.names), half(chance, told.subtrees), set(told.inodes))

        whole, part = story.audit(told), story.audit(some)

        assert (whole.missed, whole.missed_keys) == (0, [])
        last, totals = last_of(story.manifest), totals_of(story.manifest)
        with Tree.of_volume(os.fsencode(volume)) as tree:
            found = keys_of(sweep(tree, last.leaves()))
            seen = keys_of(rescan(tree, some, last, totals))
        unseen = found - seen
        named = part.missed_keys
        assert all(is_beneath(key, named) for key in unseen)
        assert len(unseen) <= part.missed <= len(found)
        assert part.candidates == len(found)


def half(chance: random.Random, keys: set[bytes]) -> set[bytes]:
    return set(chance.sample(sorted(keys), len(keys) // 2))


def is_beneath(key: bytes, tops: list[bytes]) -> bool:
    return any(key == top or key.startswith(top + b"\0") for top in tops)


def test_candidates_say_what_became_of_a_name(volume: Path) -> None:
    last = last_of(trees.manifest(volume))
    old = {
        key: os.lstat(volume / key.replace(b"\0", b"/").decode()).st_ino
        for key in (b"", b"d", b"d\0x", b"file", b"other")
    }
    (volume / "d" / "x").unlink()
    (volume / "new").mkdir()
    (volume / "file").rename(volume / "old-file")
    (volume / "file").mkdir()
    (volume / "zz").unlink()

    with Tree.of_volume(os.fsencode(volume)) as tree:
        found = [each for batch in sweep(tree, last.leaves()) for each in candidates_of(batch)]

    assert found == [
        Candidate(b"", old[b""], is_dated=True),
        Candidate(b"d", old[b"d"], is_dated=True),
        Candidate(b"d\0x", old[b"d\0x"], is_replaced=True),
        Candidate(b"file", old[b"file"], is_replaced=True),
        Candidate(b"new", None, is_replaced=True),
        Candidate(b"old-file", None, is_replaced=True),
        Candidate(b"other", old[b"other"], linked=(old[b"other"],)),
        Candidate(b"zz", old[b"other"], is_replaced=True, linked=(old[b"other"],)),
    ]


def test_a_directory_whose_mode_changed_is_more_than_dated(story: Story) -> None:
    (story.volume / "d").chmod(0o711)
    (story.volume / "d" / "new").touch()

    audit = story.audit(Dirty(names={b"d\0new"}))

    assert audit.missed_keys == [b"d"]


def test_where_all_is_told_nobody_looks_again(story: Story) -> None:
    (story.volume / "file").write_bytes(b"changed")

    audit = story.audit(Dirty(names={b"file"}))

    assert (audit.void, audit.missed, audit.candidates, audit.places) == ("", 0, 1, 1)
    assert story.looks == 0


def test_what_changes_while_the_sweep_goes_on_is_told_behind_it(story: Story) -> None:
    (story.volume / "file").write_bytes(b"changed")
    story.tell(Dirty())
    story.tell(Dirty(names={b"file"}))

    audit = story.audit(Dirty())

    assert (audit.void, audit.missed) == ("", 0)
    assert story.looks == 2


def test_what_nothing_tells_of_is_missed_after_some_more_looks(story: Story) -> None:
    (story.volume / "file").write_bytes(b"changed")

    audit = story.audit(Dirty(names={b"d"}))

    assert (audit.void, audit.missed, audit.missed_keys) == ("", 1, [b"file"])
    assert story.looks == len(story.pauses) > 1
    assert sum(story.pauses) > 1


@pytest.mark.parametrize("when", ["before", "since"])
def test_a_suspect_needs_no_event(story: Story, when: str) -> None:
    (story.volume / "file").write_bytes(b"changed")
    found = os.stat(story.volume / "file")
    suspects = Suspects({found.st_dev: frozenset({found.st_ino})}, None, 0)
    story.tell(Dirty(), suspects)

    audit = story.audit(Dirty(), suspects if when == "before" else NOBODY)

    assert audit.missed == 0


def test_a_name_that_moved_with_its_directory_is_told_by_that_one(story: Story) -> None:
    (story.volume / "d" / "e" / "y").write_bytes(b"changed")
    elsewhere = story.volume / "elsewhere"
    story.on_look = lambda: elsewhere.exists() or (story.volume / "d").rename(elsewhere)
    story.tell(Dirty(names={b"elsewhere\0e\0y"}))
    story.tell(Dirty(names={b"d", b"elsewhere"}, subtrees={b"elsewhere"}))

    audit = story.audit(Dirty())

    assert (audit.void, audit.missed) == ("", 0)


def test_where_events_were_lost_meanwhile_nothing_is_said(story: Story) -> None:
    (story.volume / "file").write_bytes(b"changed")
    story.tell(Dirty(), lost="the queue overflowed")

    audit = story.audit(Dirty())

    assert (audit.void, audit.missed) == ("the queue overflowed", 0)


def test_of_a_canceled_sweep_nothing_is_said(story: Story) -> None:
    (story.volume / "file").write_bytes(b"changed")
    story.canceled = True

    audit = story.audit(Dirty())

    assert (story.looks, audit.missed) == (0, 0)


def test_another_name_that_comes_later_explains_one_without_a_look(story: Story) -> None:
    (story.volume / "other").chmod(0o600)

    audit = story.audit(Dirty(names={b"zz"}))

    assert (audit.missed, audit.candidates, story.looks) == (0, 2, 0)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many are kept."""
    for module in ("agent.auditing", "agent.tracking.audit"):
        monkeypatch.setattr(f"{module}.KEPT_MAX", 100)


@pytest.mark.usefixtures("few")
def test_where_very_much_was_missed_nobody_waits_for_the_rest(story: Story) -> None:
    for number in range(300):
        (story.volume / f"n{number:04}").touch()

    audit = story.audit(Dirty(names={b""}))

    assert (audit.missed, len(audit.missed_keys)) == (300, 100)
    assert len(story.pauses) == 4 + 1 + 1


@pytest.mark.usefixtures("few")
def test_many_changes_are_looked_for_in_between(story: Story) -> None:
    for number in range(250):
        (story.volume / f"n{number:03}").touch()
    told = {b"n%03d" % number for number in range(250)}
    story.tell(Dirty(names={each for each in told if each < b"n100"} | {b""}))
    story.tell(Dirty(names=told - {b"n240"}))

    audit = story.audit(Dirty())

    assert (audit.void, audit.missed_keys) == ("", [b"n240"])
    assert audit.candidates == 251
