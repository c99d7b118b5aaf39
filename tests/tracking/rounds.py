"""Rounds: a burst of changes while backups follow each other, a quiet moment, one more backup.

A seed makes a volume and some rounds of it, one after the other. After each round the last snapshot
is the volume, and after the last one a restore of it is, too.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import override

from repository.snapshot import Detection
from tests.tracking.operations import OPERATIONS
from tests.tracking.plan import Burst, beginning, left_out, plan
from tests.tracking.site import Clock, Site, site, track
from tests.tracking.worker import Worker

# Rounds of one seed.
ROUNDS_EACH = 4


@dataclass
class Tally:
    """What some rounds came to."""

    rounds: int = 0
    told: int = 0
    """Of which the last backup looked where events told it to."""
    ways: Counter[Detection] = field(default_factory=Counter)
    """Of all backups."""
    done: Counter[str] = field(default_factory=Counter)
    """Steps by kind, of those that did something."""

    def add(self, other: "Tally") -> None:
        """Add what others came to."""
        self.rounds += other.rounds
        self.told += other.told
        self.ways += other.ways
        self.done += other.done

    @override
    def __str__(self) -> str:
        never = ", ".join(sorted(OPERATIONS.keys() - self.done.keys())) or "none"
        steps = f"{self.done.total()} steps (never: {never})"
        told = self.ways[Detection.EVENTS]
        backups = f"{self.ways.total()} backups ({told} by events)"
        return f"{self.rounds} rounds ({self.told} by events), {backups}, {steps}"


class Bench:
    """One source on one disk."""

    def __init__(self, source: str, disk: Path, state: Path) -> None:
        self._source = source
        self._disk = disk
        self._state = state
        self._clock = Clock()
        self._tracker = track(source, state / "agent", self._clock)
        self._worker = Worker()
        self.tally = Tally()

    def close(self) -> None:
        """End."""
        self._worker.close()
        self._tracker.close()

    def run(self, seed: int, rounds: int = ROUNDS_EACH) -> None:
        """All rounds of one seed. Raises AssertionError where something was missed."""
        try:
            with site(self._tracker, self._disk, self._state, self._clock) as one:
                self._fill(one, seed)
                for number, burst in enumerate(plan(seed, rounds, left_out(self._source))):
                    try:
                        self._round(one, burst)
                    except AssertionError as error:
                        raise AssertionError(f"seed {seed}, round {number}: {error}") from error
                one.check_restore()
                self.tally.ways.update(one.ways)
        finally:
            self._tracker.keep_only(())

    def _fill(self, site: Site, seed: int) -> None:
        _make_old(site.outside / "old")
        self._worker.begin(site.volume, site.outside, beginning(seed))
        self._worker.end()
        site.backup()

    def _round(self, site: Site, burst: Burst) -> None:
        self._worker.begin(site.volume, site.outside, burst)
        try:
            while not self._worker.is_done():
                site.backup()
        finally:
            self.tally.done.update(self._worker.end())
        # It is quiet now.
        site.backup()
        site.check()
        self.tally.rounds += 1
        self.tally.told += site.detection is Detection.EVENTS


def _make_old(directory: Path) -> None:
    """What a copy takes with it: times that were before any backup."""
    (directory / "a").mkdir(parents=True)
    for name in ("f", "a/f"):
        (directory / name).write_bytes(name.encode())
        os.utime(directory / name, (1, 1))
    os.utime(directory / "a", (1, 1))
