"""The whole campaign, which `make campaign-core` runs.

points   every failpoint with every action, at its first hits and its last, in all that passes it
store    every call of the store in a backup, failing in every manner
eio      input/output errors of a volume, a target, the store and either database (strace), and
         disks that die as a whole (needs root, loop devices)
power    a power cut at every moment of a backup, on every filesystem (needs root, loop devices)
flips    a million exchanges of names in volumes and targets, by a process of its own, in each test
entries  a directory of a million entries

Prints its seed, which decides the order of the runs, each run with its result, what did not hold,
and a table. Exit code 1 if anything did not hold. What it printed is also where it can go on:
`--from LOG` leaves out what has passed there, and takes the seed from it.
"""

import argparse
import asyncio
import logging
import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from tests.faults import campaign, cases, dead_disks, eio, power, store_calls
from tests.faults.disks import FILESYSTEMS, loop_disk
from tests.faults.site import running

_PASSED = "passed"
# A later hit that is passed in most runs, and was not in this one, proves nothing and harms nobody.
_NOT_REACHED = "not reached"
_LINE = re.compile(r"\s*\d+ s  (?P<name>.+): passed$")
_SEED = re.compile(r"seed (\d+)$")


class Ledger:
    """What each run came to. Used from several threads."""

    def __init__(self, only: str, count: int, done: frozenset[str]) -> None:
        self._only = only
        self._count = count
        self._done = done
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self.results: list[tuple[str, str, float]] = []

    def wants(self, name: str) -> bool:
        """Whether this run was asked for, and was not done before."""
        return self._only in name and name not in self._done

    def record(self, name: str, work: Callable[[], str]) -> None:
        """Do one run."""
        if self._count and len(self.results) >= self._count:
            return
        began = time.monotonic()
        try:
            what = work()
        except Exception:  # noqa: BLE001 - each run is told of, whatever it met
            what = f"FAILED\n{traceback.format_exc()}"
        now = time.monotonic()
        with self._lock:
            self.results.append((name, what, now - began))
            print(f"{now - self._began:6.0f} s  {name}: {what}", flush=True)

    def failed(self) -> list[str]:
        """Those that did not hold, by name."""
        return [
            f"{name}: {what.splitlines()[0]}"
            for name, what, _ in self.results
            if what not in {_PASSED, _NOT_REACHED}
        ]

    def table(self) -> str:
        """What each kind of run came to: a name's first words, up to what is failing."""
        rows: list[tuple[str, ...]] = [("", "runs", "passed", "not reached", "failed", "seconds")]
        groups: dict[str, list[tuple[str, float]]] = {}
        for name, what, seconds in self.results:
            groups.setdefault(" ".join(name.split()[:2]), []).append((what, seconds))
        for group, found in sorted(groups.items()):
            counts = [sum(what == each for what, _ in found) for each in (_PASSED, _NOT_REACHED)]
            spent = f"{sum(seconds for _, seconds in found):.0f}"
            numbers = (len(found), *counts, len(found) - sum(counts), spent)
            rows.append((group, *map(str, numbers)))
        return "\n".join(
            f"{row[0]:22}" + "".join(f"{column:>13}" for column in row[1:]) for row in rows
        )


def points(ledger: Ledger, top: Path, seed: int, jobs: int) -> None:
    """Each failpoint with each action, in each scene that passes it."""
    templates = campaign.Templates(top / "templates")
    counting = campaign.Runner(templates, top / "counting")
    passed = {scene: counting.count(scene) for scene in cases.Scene}
    for name in cases.unreached(passed):
        ledger.record(f"points never {name}", lambda: "no run passes it")
    wanted = [
        case for case in cases.ordered(cases.plan(passed), seed) if ledger.wants(f"points {case}")
    ]
    print(f"{len(wanted)} runs of points", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        for number in range(jobs):
            runner = campaign.Runner(templates, top / f"worker-{number}")
            pool.submit(_points_of, ledger, runner, wanted[number::jobs])


def _points_of(ledger: Ledger, runner: campaign.Runner, some: Sequence[cases.Case]) -> None:
    for case in some:
        ledger.record(f"points {case}", partial(runner.run, case))
    runner.end()


def store(ledger: Ledger, top: Path, seed: int, _jobs: int) -> None:
    """Each call of the store, failing in each manner."""
    # Both daemons are in this process, and would tell here how they fail.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    bench = store_calls.Bench(top)
    calls = asyncio.run(bench.count_calls())
    runs = [(manner, number) for manner in store_calls.MANNERS for number in range(1, calls + 1)]
    random.Random(seed).shuffle(runs)
    for manner, number in runs:
        name = f"store call {number} of {calls}, {manner.name}"
        if ledger.wants(name):
            ledger.record(name, partial(_fail_call, bench, manner, number))


def _fail_call(bench: store_calls.Bench, manner: store_calls.Manner, number: int) -> str:
    return _PASSED if asyncio.run(bench.run(manner, number)) else _NOT_REACHED


def errors(ledger: Ledger, top: Path, seed: int, _jobs: int) -> None:
    """Each call that fails with EIO."""
    faults = [fault for fault in eio.FAULTS if ledger.wants(f"eio {fault}")]
    random.Random(seed).shuffle(faults)
    for number, some in enumerate(_lists(faults, 10)):
        bench = eio.Bench(top / f"bench-{number}")
        with running(bench.site):
            for fault in some:
                ledger.record(f"eio {fault}", partial(_fail_calls, bench, fault))
    for number, death in enumerate(dead_disks.DEATHS):
        if ledger.wants(name := f"eio dead disk, {death}"):
            ledger.record(name, partial(_kill_disk, death, top / f"disk-{number}"))


def _fail_calls(bench: eio.Bench, fault: eio.Fault) -> str:
    bench.run(fault)
    return _PASSED


def _kill_disk(death: dead_disks.Death, directory: Path) -> str:
    dead_disks.run(death, directory)
    return _PASSED


def cuts(ledger: Ledger, top: Path, seed: int, _jobs: int) -> None:
    """A power cut at each moment, on each filesystem."""
    for kind in FILESYSTEMS:
        moments = [cut.moment for cut in power.all_cuts() if cut.filesystem == kind]
        random.Random(seed).shuffle(moments)
        for number, some in enumerate(_lists(moments, 20)):
            directory = top / f"{kind}-{number}"
            directory.mkdir(parents=True)
            wanted = [moment for moment in some if ledger.wants(f"power {kind} {moment}")]
            if wanted:
                with loop_disk(kind, directory) as disk:
                    _cut_each(ledger, kind, power.Bench(disk, directory / "bench"), wanted)


def _cut_each(ledger: Ledger, kind: str, bench: power.Bench, moments: list[str]) -> None:
    for moment in moments:
        ledger.record(f"power {kind} {moment}", partial(_cut, bench, moment))


def _cut(bench: power.Bench, moment: str) -> str:
    bench.run(moment)
    return _PASSED


def suite(ledger: Ledger, top: Path, name: str, path: str, environment: dict[str, str]) -> None:
    """Tests that have a short form in the suite, in their long one."""
    if ledger.wants(name):
        ledger.record(name, partial(_tests, top / "log", path, os.environ | environment))


def _tests(log: Path, path: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "pytest", path, "--quiet", "--timeout=7200"]
    command += [f"--basetemp={log.parent}/tests", "--log-cli-level=INFO"]
    with log.open("wb") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
    return _PASSED if done.returncode == 0 else f"FAILED\n{log.read_text()}"


def flips(ledger: Ledger, top: Path, _seed: int, _jobs: int) -> None:
    """A million exchanges in each test of them."""
    for path in ("tests/hostile/test_flips.py", "tests/hostile/test_flips_daemons.py"):
        suite(ledger, top, f"flips {path}", path, {"TIDEMARK_FLIPS": "1000000"})


def entries(ledger: Ledger, top: Path, _seed: int, _jobs: int) -> None:
    """A million entries in a directory."""
    environment = {"TIDEMARK_ENTRIES": "1000000", "TIDEMARK_TEST_COMMAND_SECONDS": "3600"}
    suite(ledger, top, "entries", "tests/e2e/test_wide.py", environment)


_T = TypeVar("_T")


def _lists(items: list[_T], size: int) -> Iterator[list[_T]]:
    """A disk holds so many snapshots; then there is a new one."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


# In the order in which they run.
PARTS: dict[str, Callable[[Ledger, Path, int, int], None]] = {
    "points": points,
    "store": store,
    "eio": errors,
    "power": cuts,
    "flips": flips,
    "entries": entries,
}


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="runs of `points` at once")
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="default: all")
    parser.add_argument("--only", default="", help="runs whose name has this in it")
    parser.add_argument("--count", type=int, default=0, help="at most so many runs")
    parser.add_argument("--from", dest="log", type=Path, help="go on after what this log tells")
    options = parser.parse_args()
    seed, done = _told(options.log.read_text() if options.log is not None else "")
    if options.seed is not None:
        seed = options.seed
    print(f"seed {seed}", flush=True)
    ledger = Ledger(options.only, options.count, done)
    with tempfile.TemporaryDirectory(prefix="tidemark-campaign-", dir="/var/tmp") as directory:
        for name in options.part or PARTS:
            (Path(directory) / name).mkdir()
            PARTS[name](ledger, Path(directory) / name, seed, options.jobs)
    failed = ledger.failed()
    print("\n".join(["", f"seed {seed}", ledger.table(), *failed]))
    return 1 if failed or not ledger.results else 0


def _told(log: str) -> tuple[int, frozenset[str]]:
    """The seed of a log, and the runs that have passed; a new seed if there is none."""
    lines = log.splitlines()
    seeds = [int(found[1]) for found in map(_SEED.match, lines) if found is not None]
    found = (_LINE.match(line) for line in lines)
    done = frozenset(each["name"] for each in found if each is not None)
    return (seeds[0] if seeds else secrets.randbelow(1 << 32)), done


sys.exit(main())
