"""The whole campaign, which `make campaign-core` runs.

points   every failpoint with every action, and later hits of those that are passed often
store    every call of the store in a backup, failing in every manner
power    a power cut at every moment of a backup, on every filesystem (needs root, loop devices)

Prints its seed, which decides the order of the runs and what they write, each run with its result,
and what did not hold. Exit code 1 if anything did not.
"""

import argparse
import asyncio
import logging
import random
import secrets
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import structlog

from tests.faults import campaign, power, store_calls
from tests.faults.disks import FILESYSTEMS, loop_disk

_PARTS = ("points", "store", "power")


class Ledger:
    """What each run came to. Used from several threads."""

    def __init__(self, only: str, count: int) -> None:
        self._only = only
        self._count = count
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self.results: list[tuple[str, str]] = []

    def wants(self, name: str) -> bool:
        """Whether this run was asked for."""
        return self._only in name

    def record(self, name: str, work: Callable[[], str]) -> None:
        """Do one run."""
        if self._count and len(self.results) >= self._count:
            return
        try:
            what = work()
        except Exception:  # noqa: BLE001 - each run is told of, whatever it met
            what = f"FAILED\n{traceback.format_exc()}"
        with self._lock:
            self.results.append((name, what))
            print(f"{time.monotonic() - self._began:6.0f} s  {name}: {what}", flush=True)

    def failed(self) -> list[str]:
        """Those that did not hold, by name."""
        return [
            f"{name}: {what.splitlines()[0]}" for name, what in self.results if what != "passed"
        ]


def points(ledger: Ledger, top: Path, seed: int, jobs: int) -> None:
    """Each failpoint with each action, several runs at once."""
    cases = [case for case in campaign.all_cases() if ledger.wants(f"points {case}")]
    random.Random(seed).shuffle(cases)
    if not cases:
        return
    templates = campaign.Templates(top / "templates")
    templates.interrupted()
    with ThreadPoolExecutor(jobs) as pool:
        for number, case in enumerate(cases):
            work = partial(campaign.run, case, templates, top / f"run-{number}")
            pool.submit(ledger.record, f"points {case}", work)


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
    return "passed" if asyncio.run(bench.run(manner, number)) else "not reached"


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
    return "passed"


def _lists(items: list[str], size: int) -> Iterator[list[str]]:
    """A disk holds so many snapshots; then there is a new one."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--jobs", type=int, default=2, help="runs of `points` at once")
    parser.add_argument("--part", choices=_PARTS, action="append", help="default: all of them")
    parser.add_argument("--only", default="", help="runs whose name has this in it")
    parser.add_argument("--count", type=int, default=0, help="at most so many runs")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    ledger = Ledger(options.only, options.count)
    parts = {"points": points, "store": store, "power": cuts}
    with tempfile.TemporaryDirectory(prefix="tidemark-campaign-", dir="/var/tmp") as directory:
        for name in options.part or _PARTS:
            (Path(directory) / name).mkdir()
            parts[name](ledger, Path(directory) / name, options.seed, options.jobs)
    failed = ledger.failed()
    passed = len(ledger.results) - len(failed)
    print("\n".join(["", f"seed {options.seed}: {passed} runs passed", *failed]))
    return 1 if failed or not ledger.results else 0


sys.exit(main())
