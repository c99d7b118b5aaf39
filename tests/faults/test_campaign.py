"""The short form of the campaign: a few failpoints of each daemon, drawn anew each time.

`make campaign-core` runs all of them. TIDEMARK_TEST_SEED repeats a run.
"""

from pathlib import Path

import pytest

from repository.failpoints import NAMES
from tests.faults.campaign import NOTHING_FAILS, Case, Templates, all_cases, run, sample, scene_of

_RUNS = 3


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_campaign_knows_what_to_do_at_each_failpoint(name: str) -> None:
    scene_of(name)


def test_the_campaign_has_each_failpoint_with_kill_and_error() -> None:
    cases = set(all_cases())

    assert {Case(name, "kill") for name in NAMES} <= cases
    assert {Case(name, "error") for name in NAMES - NOTHING_FAILS} <= cases
    assert NOTHING_FAILS <= NAMES


def test_a_failpoint_nobody_thought_of_is_refused() -> None:
    with pytest.raises(KeyError):
        scene_of("nowhere.at.all")


def test_a_daemon_that_dies_half_way_loses_nothing(seed: int, tmp_path: Path) -> None:
    templates = Templates(tmp_path / "templates")
    for number, case in enumerate(sample(all_cases(), _RUNS, seed)):
        try:
            assert run(case, templates, tmp_path / f"run-{number}") == "passed"
        except Exception as error:
            error.add_note(f"TIDEMARK_TEST_SEED={seed}, at {case}")
            raise
