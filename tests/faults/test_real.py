"""Twenty runs of tests/faults/real.py: real daemons, a real gateway, and faults at three rates."""

import logging
from pathlib import Path

import pytest

from tests.e2e.test_bucket import new_bucket
from tests.faults.real import RATE, RATES, SUCCEED, bench, table
from tests.servers.shared import server

RUNS = 20


def test_a_store_that_misbehaves_loses_no_snapshot_and_nothing_false_is_completed(
    seed: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bucket = new_bucket(server("radosgw", tmp_path_factory), tmp_path)
    with bench(tmp_path / "site", bucket, volumes=1) as made:
        made.begin()
        try:
            for number in range(RUNS):
                made.run(seed + number, RATES[number % len(RATES)])
            made.check()
        except BaseException as error:
            error.add_note(f"TIDEMARK_TEST_SEED={seed}")
            raise
    sums = made.sums
    logging.getLogger(__name__).info("seed %d\n%s", seed, "\n".join(table(sums)))

    assert sum(each.runs for each in sums.values()) == RUNS
    assert sums[RATE].succeeded() >= SUCCEED, f"seed {seed}: {sums[RATE]}"
    # Some 40 are to be expected.
    assert sum(each.faults.total() for each in sums.values()) > 15
