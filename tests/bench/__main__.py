"""Run it. Exits 1 where a command failed or a restore differs; goals missed are only shown."""

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

from tests.bench import bucket
from tests.bench.data import CASES, Case, differences, size_of, small_path
from tests.bench.results import (
    BUCKET,
    MIB,
    OURS,
    PLAIN,
    STEPS,
    SUMMED,
    ZSTD,
    Sample,
    Step,
    figures,
)
from tests.bench.table import failures, render
from tests.bench.tools import INSTALL_HINT, TIDEMARK, TOOLS, BenchError, Outcome, Tool, run
from tests.faults.disks import loop_disk

# As close as they come to each other: sealed, compressed by zstd, nothing kept from before.
SETTINGS = {
    OURS: "up --every off, fresh in each round",
    "restic": "repository version 2, --compression auto, fresh cache in each round",
    "borg": "repokey-blake2, --compression zstd,3, fresh cache in each round",
    PLAIN: "the same bytes in objects of 32 MiB, three at a time, by one process of Python",
    SUMMED: "the same with Content-MD5, which the server compares as it does for a pack",
    ZSTD: "-3 -T2 of a large file, without a sync",
}
# Source, a repository and a restore for each tool, with room to spare.
_SPACE_FACTOR = 4


class Machine(NamedTuple):
    """Where it was measured."""

    versions: dict[str, str]
    cores: int
    kernel: str
    python: str
    load_before: str


def main() -> int:
    """Measure, print, write."""
    options = _options()
    signal.signal(signal.SIGTERM, _interrupted)
    tools = _installed(options.tools)
    machine = _machine(tools)
    scratch = Path(tempfile.mkdtemp(prefix="tidemark-bench-", dir=options.scratch))
    samples: list[Sample] = []
    print(f"{machine.cores} cores, Linux {machine.kernel}, load {machine.load_before}")
    for tool, version in machine.versions.items():
        print(f"{tool} {version}: {SETTINGS[tool]}")
    try:
        for name in options.cases:
            if name == BUCKET:
                samples += bucket.measure(scratch, tools, options.rounds, options.scale)
            else:
                _measure_case(CASES[name], scratch, tools, options, samples)
    except KeyboardInterrupt:
        print("\ninterrupted; what follows is what was measured until then", file=sys.stderr)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _report(options, machine, tools, samples)
    return 1 if failures(samples) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each step (default 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the data (default 1)")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where to write")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--cases", nargs="+", choices=[*CASES, BUCKET], default=[*CASES, BUCKET])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    return parser.parse_args()


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _installed(wanted: Sequence[str]) -> list[str]:
    found = [tool for tool in wanted if tool == OURS or shutil.which(tool)]
    for tool in wanted:
        if tool not in found:
            print(f"{tool} is not installed and not measured; {INSTALL_HINT}", file=sys.stderr)
    return found


def _load() -> str:
    return " ".join(f"{average:.2f}" for average in os.getloadavg())


def _number(said: str) -> str:
    found = re.search(r"\d+(\.\d+)+\S*", said)
    return found[0].rstrip(",") if found else "?"


def _machine(tools: Sequence[str]) -> Machine:
    commands = {
        OURS: [TIDEMARK, "version"],
        "restic": ["restic", "version"],
        "borg": ["borg", "--version"],
        ZSTD: ["zstd", "--version"],
    }
    versions = {tool: _number(run(commands[tool], {}, Path.cwd()).output) for tool in tools}
    return Machine(
        versions=versions,
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=platform.python_version(),
        load_before=_load(),
    )


def _measure_case(
    case: Case,
    scratch: Path,
    tools: Sequence[str],
    options: argparse.Namespace,
    samples: list[Sample],
) -> None:
    with ExitStack() as stack:
        place = scratch
        if case.filesystem:
            place = stack.enter_context(_disk(case.filesystem, Path(tempfile.mkdtemp(dir=scratch))))
        source = place / case.name / "source"
        source.mkdir(parents=True)
        _measure_source(case, source, tools, options, samples)
        shutil.rmtree(source.parent)


@contextmanager
def _disk(filesystem: str, scratch: Path) -> Iterator[Path]:
    """A disk of that kind in a file, which takes what is written to it and may take all there is.

    Where nobody may mount one, the scratch directory itself: what clones save is not measured then.
    """
    with ExitStack() as stack:
        try:
            free = shutil.disk_usage(scratch).free
            disk = stack.enter_context(loop_disk(filesystem, scratch, free))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no {filesystem} in a loop device: {error}", file=sys.stderr)
            yield scratch
            return
        yield disk.path


def _measure_source(
    case: Case,
    source: Path,
    tools: Sequence[str],
    options: argparse.Namespace,
    samples: list[Sample],
) -> None:
    case.make(source, options.scale)
    size = size_of(source)
    needed = size * (1 + (_SPACE_FACTOR + options.rounds) * len(tools))
    if shutil.disk_usage(source).free < needed:
        sys.exit(
            f"error: {case.title} needs {needed // MIB} MiB of free space below {options.scratch}\n"
            "hint: name another directory with --scratch, or shrink the data with --scale"
        )
    print(f"{case.title}: {size / MIB:.0f} MiB", flush=True)
    for number in range(1, options.rounds + 1):
        # Whoever comes first may find caches colder: so it is another one in each round.
        shift = number % len(tools)
        order = [*tools[shift:], *tools[:shift]]
        _measure_round(case, source, order, number, samples)


def _measure_round(
    case: Case, source: Path, tools: Sequence[str], number: int, samples: list[Sample]
) -> None:
    place = source.parent / "round"
    place.mkdir()
    with ExitStack() as stack:
        opened: dict[str, Tool] = {}
        for name in tools:
            if name == ZSTD and not case.has_one_file:
                continue
            try:
                opened[name] = stack.enter_context(TOOLS[name](place / name, source))
            except BenchError as error:
                samples.append(
                    Sample(case.name, name, Step.FULL, number, None, 0, {}, {}, str(error))
                )
        for step in _steps(case):
            if step is Step.CHANGED:
                case.change(source, random.Random(number))
            for name, tool in opened.items():
                if step not in tool.steps:
                    continue
                _settle()
                sample = _measure_step(case, step, number, (name, tool), source)
                samples.append(sample)
                took = f"{sample.seconds:.2f} s" if sample.seconds is not None else sample.error
                print(f"  round {number}  {step:<9}  {name:<8}  {took}", flush=True)
    shutil.rmtree(place)


def _steps(case: Case) -> list[Step]:
    """A single file is as much as all of a case that has one."""
    return [step for step in STEPS if step is not Step.ONE or not case.has_one_file]


def _settle() -> None:
    """What one tool left to be written must not slow the next one down."""
    os.sync()


def _measure_step(
    case: Case, step: Step, number: int, tool: tuple[str, Tool], source: Path
) -> Sample:
    name, driven = tool
    # Removed with the case only: for half a minute ext4 passes over the inodes that were just
    # freed, one by one, and whoever creates files then pays for what another one removed.
    restored = source.parent / f"restored-{number}-{name}"
    try:
        if step is Step.RESTORE:
            restored.mkdir()
            outcome = driven.restore(restored)
            error = _compared(source, restored)
        elif step is Step.ONE:
            alone = source.parent / f"alone-{number}-{name}"
            alone.mkdir()
            path = small_path(Path(), 0)
            outcome = driven.restore(alone, str(path))
            error = _compared(source / path.parent, alone / path.parent, only=path.name)
        elif step is Step.OVER:
            case.change(restored, random.Random(1000 + number))
            os.sync()
            outcome = driven.restore(restored)
            error = _compared(source, restored)
        else:
            outcome, error = driven.back_up(), ""
    except BenchError as failed:
        outcome, error = Outcome(0, {}, {}), str(failed)
    return Sample(
        case=case.name,
        tool=name,
        step=step,
        round=number,
        seconds=None if error else outcome.seconds,
        stored_bytes=size_of(driven.repository),
        memory_bytes=outcome.memory_bytes,
        details=outcome.details,
        error=error,
    )


def _compared(source: Path, restored: Path, only: str = "") -> str:
    """What is not as it was, as an error; of all files, or of one."""
    different = differences(source, restored)
    if only:
        different = [path for path in different if os.path.basename(path) == only]
        different += [] if (restored / only).exists() else [only]
    return f"restored otherwise: {', '.join(different[:3])}" if different else ""


def _report(
    options: argparse.Namespace,
    machine: Machine,
    tools: Sequence[str],
    samples: Sequence[Sample],
) -> None:
    found = figures(samples)
    print(f"\nMedians of {options.rounds} rounds at scale {options.scale:g}.")
    print("`vs` is a peer's time over ours; for stored, added and read bytes ours over the peer's.")
    print("Memory is the highest of all rounds: agent+coordinator+command, or the peer's one.")
    print("CPU is seconds of all cores per GiB: the same, then radosgw+ceph-osd.\n")
    measured = {sample.tool for sample in samples}
    shown = [*tools, *[each for each in (PLAIN, SUMMED) if each in measured]]
    print(render(found, shown))
    for failure in failures(samples):
        print(f"failed: {failure}", file=sys.stderr)
    document = {
        "machine": machine._asdict() | {"load_after": _load()},
        "rounds": options.rounds,
        "scale": options.scale,
        "settings": {tool: SETTINGS[tool] for tool in shown},
        "figures": [figure._asdict() | {"failed": sorted(figure.failed)} for figure in found],
        "samples": [_as_json(sample) for sample in samples],
    }
    options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\nEvery sample is in {options.json}.")


def _as_json(sample: Sample) -> dict[str, object]:
    return sample._asdict() | {"cpu_seconds_per_gib": dict(sample.cpu_seconds_per_gib)}


if __name__ == "__main__":
    sys.exit(main())
