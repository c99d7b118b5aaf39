"""The short form of tests/faults/eio.py and dead_disks.py: some of them, drawn anew each time."""

import random
from pathlib import Path

import pytest

from repository.errors import StoreUnavailableError
from repository.store.local import LocalStore
from tests.faults import dead_disks
from tests.faults.disks import FILESYSTEMS, loop_disk
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


def test_a_disk_that_dies_during_a_backup_loses_nothing(seed: int, tmp_path: Path) -> None:
    # With the repository's, the backup waits for its lease: that is for the campaign.
    quick = [death for death in dead_disks.DEATHS if death.place != "repository"]
    dead_disks.run(random.Random(seed).choice(quick), tmp_path / "run")


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", sorted(FILESYSTEMS))
async def test_what_lies_on_a_dead_disk_is_away_and_not_damaged(kind: str, tmp_path: Path) -> None:
    with loop_disk(kind, tmp_path) as disk:
        (disk.path / "config").write_bytes(b"beside the objects")
        store = LocalStore(disk.path)
        await store.put("packs/a", b"content")
        disk.cut()

        with pytest.raises(StoreUnavailableError):
            await store.get_range("packs/a", 0, 7)
