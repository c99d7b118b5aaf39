"""The short form of tests/faults/eio.py: what was wrong once, and some more, drawn anew."""

import random
from pathlib import Path

from tests.faults.eio import FAULTS, Bench, Fault
from tests.faults.site import running

_RUNS = 4
# A restore waited two minutes for a bad sector to become good, and then gave all files up; and one
# that could not be flushed did not say where, or what to do.
_ONCE_WRONG = ("restore, pack", "restore, target flush")


def test_an_error_of_the_disk_is_told_and_loses_nothing(seed: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with running(bench.site) as site:
        for fault in drawn(seed):
            try:
                bench.run(fault)
            except BaseException as error:
                error.add_note(f"TIDEMARK_TEST_SEED={seed}, at {fault}")
                raise
        site.end()


def drawn(seed: int) -> list[Fault]:
    """Those that were wrong once, and some others."""
    always = [fault for fault in FAULTS if str(fault) in _ONCE_WRONG]
    assert len(always) == len(_ONCE_WRONG)
    others = [fault for fault in FAULTS if fault not in always]
    return always + random.Random(seed).sample(others, _RUNS)
