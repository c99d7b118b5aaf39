"""Random changes under backups that follow each other: `make campaign-tracking`.

For each source of changes on each filesystem: seeds, one after the other, each with a volume of its
own and some rounds (rounds.py). Prints each seed whose snapshots missed something, with how to
repeat it, and a line for each source and filesystem. Needs root and loop devices. Exit code 1 if
anything was missed, or a source was never asked.
"""

import argparse
import secrets
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.faults.disks import loop_disk
from tests.tracking.rounds import ROUNDS_EACH, Bench, Tally
from tests.tracking.site import FILESYSTEMS, SOURCES

# A disk is made anew after so many seeds, lest a filesystem that fills up is what is tested.
_SEEDS_PER_DISK = 200


def _run(source: str, filesystem: str, seeds: range) -> tuple[Tally, list[int]]:
    """All seeds of a pair; what they came to, and those that missed something."""
    tally, failed = Tally(), list[int]()
    for start in range(0, len(seeds), _SEEDS_PER_DISK):
        with (
            tempfile.TemporaryDirectory(prefix="tidemark-tracking-", dir="/var/tmp") as directory,
            loop_disk(filesystem, Path(directory)) as disk,
        ):
            bench = Bench(source, disk.path, Path(directory))
            try:
                for seed in seeds[start : start + _SEEDS_PER_DISK]:
                    if (missed := _missed(bench, seed)) is not None:
                        failed.append(seed)
                        print(f"FAILED {source} {filesystem}: {missed}", flush=True)
                        arguments = f"--source {source} --filesystem {filesystem} --seed {seed}"
                        print(f"  again: {arguments} --rounds {ROUNDS_EACH}", flush=True)
            finally:
                bench.close()
            tally.add(bench.tally)
    return tally, failed


def _missed(bench: Bench, seed: int) -> str | None:
    try:
        bench.run(seed)
    except AssertionError as error:
        return str(error)
    except Exception:  # noqa: BLE001 - each seed is told of, whatever it met
        return f"seed {seed}: {traceback.format_exc()}"
    return None


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="tests.tracking", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, help="the first one; default: drawn")
    parser.add_argument("--rounds", type=int, default=2000, help="for each pair")
    parser.add_argument("--source", choices=SOURCES, action="append", help="default: all")
    parser.add_argument("--filesystem", choices=FILESYSTEMS, action="append", help="default: all")
    options = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    seeds = range(seed, seed + max(1, options.rounds // ROUNDS_EACH))
    print(f"seeds {seeds[0]} to {seeds[-1]}, {ROUNDS_EACH} rounds each", flush=True)
    is_good = True
    for source in options.source or SOURCES:
        for filesystem in options.filesystem or FILESYSTEMS:
            began = time.monotonic()
            tally, failed = _run(source, filesystem, seeds)
            seconds = time.monotonic() - began
            is_good &= not failed and bool(tally.told or source == "sweep")
            words = f"{tally}, {len(failed)} of {len(seeds)} seeds failed"
            print(f"{source:9} {filesystem:6} {words}, {seconds:.0f} s", flush=True)
    return 0 if is_good else 1


sys.exit(main())
