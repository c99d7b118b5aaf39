"""Whatever happens to a volume under backups, the snapshot of a quiet moment is the volume."""

from pathlib import Path

import pytest

from agent.tracking.dirty import Dirty
from tests.fakes.tracking import ToldTracking
from tests.faults.disks import loop_disk
from tests.tracking.operations import OPERATIONS
from tests.tracking.plan import left_out, plan
from tests.tracking.rounds import ROUNDS_EACH, Bench
from tests.tracking.site import FILESYSTEMS, SOURCES, site

# 20 rounds. `make campaign-tracking` runs thousands.
SEEDS = 5


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
@pytest.mark.parametrize("source", SOURCES)
def test_the_snapshot_of_a_quiet_moment_is_the_volume(
    source: str, filesystem: str, tmp_path: Path, seed: int
) -> None:
    print(f"seeds from {seed}: TIDEMARK_TEST_SEED={seed} repeats them")
    with loop_disk(filesystem, tmp_path) as disk:
        bench = Bench(source, disk.path, tmp_path)
        try:
            for number in range(SEEDS):
                bench.run(seed + number)
        finally:
            bench.close()

    assert bench.tally.rounds == SEEDS * ROUNDS_EACH
    # Now and then a process of somebody else's cannot be looked at, and then a backup sweeps.
    assert bench.tally.told >= (0 if source == "sweep" else SEEDS * ROUNDS_EACH // 2)


def test_a_plan_is_the_same_for_the_same_seed() -> None:
    without = left_out("fanotify")

    assert plan(7, 2, without) == plan(7, 3, without)[:2] != plan(8, 2, without)


def test_of_one_source_or_another_every_operation_is_drawn() -> None:
    drawn = {
        step.kind
        for burst in plan(1, 20, left_out("fanotify"))
        for steps in burst.threads
        for step in steps
    }

    assert drawn == OPERATIONS.keys()


def test_what_was_not_told_is_noticed(tmp_path: Path) -> None:
    told = ToldTracking()
    with site(told, tmp_path, tmp_path) as quiet:
        (quiet.volume / "file").write_bytes(b"one")
        quiet.backup()
        quiet.check()
        (quiet.volume / "file").write_bytes(b"two")
        told.dirty = Dirty()
        quiet.backup()

        with pytest.raises(AssertionError, match=r"1 differ:\nb'file': mtime_ns is .* content is"):
            quiet.check()
