"""What change tracking costs and saves, on a volume of a million files. `make bench-tracking`.

No peer tells changes by events, so these are absolute; `make bench` has the peers' sweeps beside
ours. Exits 1 where a command failed; goals missed are only shown.
"""

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from tests.bench.results import MEMORY_BYTES_MAX, MIB
from tests.bench.tools import BenchError, Outcome, Tidemark

_FILES_PER_DIRECTORY: Final = 1000
_CHANGED: Final = 100
_CREATED: Final = 20_000
_REPEATS: Final = 5
_IDLE_SECONDS: Final = 30
# An entry settles once its last change is older than the scan that went before: a clock's tick.
_SETTLING_SECONDS: Final = 1


class Row(NamedTuple):
    """One line of the table."""

    what: str
    value: float
    unit: str
    goal: float | None = None

    def shown(self) -> str:
        """The line."""
        verdict = ""
        if self.goal is not None:
            verdict = f"at most {self.goal:g}: {'met' if self.value <= self.goal else 'MISSED'}"
        return f"{self.what:<44} {self.value:>9.3f} {self.unit:<6} {verdict}".rstrip()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tracking", description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="tidemark-tracking-", dir=options.scratch))
    try:
        volume = scratch / "volume"
        _make(volume, options.files)
        for row in _measure(Tidemark(scratch / "tidemark", volume), volume):
            print(row.shown(), flush=True)
    except BenchError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _make(volume: Path, files: int) -> None:
    for number in range(0, files, _FILES_PER_DIRECTORY):
        directory = volume / f"{number // 50_000:03}" / f"{number % 50_000 // 1000:02}"
        directory.mkdir(parents=True)
        for index in range(min(_FILES_PER_DIRECTORY, files - number)):
            (directory / f"{index:04}").write_bytes(b"%d %d " % (number, index) * 8)
    os.sync()


def _measure(tool: Tidemark, volume: Path) -> "list[Row]":
    peaks: list[int] = []

    def back_up(seen: str) -> tuple[float, float]:
        """Seconds of the job, and of the agent's CPU."""
        agent = psutil.Process(tool.daemons()["agent"])
        before = sum(agent.cpu_times()[:2])
        outcome = tool.back_up()
        peaks.append(outcome.memory_bytes["agent"])
        _expect(outcome, seen)
        return float(str(outcome.details["duration_seconds"])), (
            sum(agent.cpu_times()[:2]) - before
        )

    unwatched = _creating(volume / "created")
    with tool:
        rows = [Row("first backup", back_up("sweep")[0], "s")]
        time.sleep(_SETTLING_SECONDS)  # noqa: TID251 - the kernel's clock is meant
        quiet = [back_up("events") for _ in range(_REPEATS)]
        rows.append(Row("nothing changed: job", _median(quiet, 0), "s", 0.3))
        rows.append(Row("nothing changed: agent CPU", _median(quiet, 1), "s", 0.1))
        changed = [_changed(volume, number, back_up) for number in range(_REPEATS)]
        rows.append(Row(f"{_CHANGED} changed files: job", statistics.median(changed), "s", 0.5))
        rows.append(Row("idle: agent CPU", _idle_percent(tool), "%", 0.5))
        watched = _creating(volume / "created")
        slower = 100 * (watched / unwatched - 1)
        rows.append(Row(f"creating {_CREATED} files while watched: slower", slower, "%", 20))
    with tool:
        rows.append(Row("first backup after a restart: job", back_up("sweep")[0], "s", 6))
        rows.append(Row("nothing changed after it: job", back_up("events")[0], "s", 0.3))
    memory = max(peaks) / MIB
    return [*rows, Row("agent's memory at most", memory, "MiB", MEMORY_BYTES_MAX / MIB)]


def _expect(outcome: Outcome, detection: str) -> None:
    found = outcome.details["change_detection"]
    if found != detection:
        raise BenchError(f"a backup was made by {found} where {detection} should do")


def _median(samples: list[tuple[float, float]], index: int) -> float:
    return statistics.median(sample[index] for sample in samples)


def _changed(volume: Path, number: int, back_up: Callable[[str], tuple[float, float]]) -> float:
    chosen = random.Random(number)
    directories = sorted(volume.glob("[0-9]*/*"))
    for directory in chosen.sample(directories, min(_CHANGED, len(directories))):
        with (directory / f"{chosen.randrange(100):04}").open("ab") as file:
            file.write(b"changed")
    time.sleep(_SETTLING_SECONDS)  # noqa: TID251 - the kernel's clock is meant
    return back_up("events")[0]


def _idle_percent(tool: Tidemark) -> float:
    agent = psutil.Process(tool.daemons()["agent"])
    before = sum(agent.cpu_times()[:2])
    time.sleep(_IDLE_SECONDS)  # noqa: TID251 - the kernel's clock is meant
    return 100 * (sum(agent.cpu_times()[:2]) - before) / _IDLE_SECONDS


def _creating(directory: Path) -> float:
    """Seconds that it takes to create many files: the least of some tries."""
    tries = []
    for _ in range(_REPEATS):
        directory.mkdir()
        begun = time.perf_counter()
        for number in range(_CREATED):
            (directory / str(number)).touch()
        tries.append(time.perf_counter() - begun)
        shutil.rmtree(directory)
    return min(tries)


if __name__ == "__main__":
    sys.exit(main())
