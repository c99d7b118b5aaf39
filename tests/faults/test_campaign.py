"""The short form of the campaign: some failpoints of each daemon, drawn anew each time.

`make campaign-core` runs all of them. TIDEMARK_TEST_SEED repeats a run.
"""

from pathlib import Path

import pytest

from repository.failpoints import NAMES
from tests.faults.campaign import Runner, Templates
from tests.faults.cases import (
    NOTHING_FAILS,
    Case,
    Scene,
    first_hits,
    ordered,
    plan,
    sample,
    scene_of,
    unreached,
)

_RUNS = 6


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_campaign_knows_what_to_do_at_each_failpoint(name: str) -> None:
    scene_of(name)


def test_the_campaign_has_each_failpoint_with_each_action() -> None:
    cases = {(case.name, case.action) for case in first_hits()}

    assert {(name, action) for name in NAMES for action in ("kill", "pause")} <= cases
    assert {(name, "error") for name in NAMES - NOTHING_FAILS} <= cases
    assert NOTHING_FAILS <= NAMES


def test_a_failpoint_nobody_thought_of_is_refused() -> None:
    with pytest.raises(KeyError):
        scene_of("nowhere.at.all")


def test_the_first_hits_and_the_last_are_planned_and_elsewhere_first_and_last() -> None:
    passed = {Scene.BACKUP: {"store.linked": 9}, Scene.LOST_STATE: {"store.linked": 3}}

    planned = plan(passed)

    assert {case.at for case in planned if case.scene is Scene.BACKUP} == {1, 2, 3, 4, 9}
    elsewhere = [case for case in planned if case.scene is Scene.LOST_STATE]
    assert {case.at for case in elsewhere} == {1, 3}
    assert len(planned) == 5 * 3 + 2 * 2


def test_a_failpoint_that_its_own_scene_does_not_pass_is_missed() -> None:
    everything = {scene: dict.fromkeys(NAMES, 1) for scene in Scene}
    without = {**everything, Scene.BACKUP: {**everything[Scene.BACKUP], "store.linked": 0}}

    assert (unreached(everything), unreached(without)) == ([], ["store.linked"])


def test_first_hits_come_first() -> None:
    late = Case(Scene.BACKUP, "store.linked", "kill", 2)
    elsewhere = Case(Scene.LOST_STATE, "store.linked", "kill")
    first = Case(Scene.BACKUP, "store.linked", "kill")

    assert ordered([late, elsewhere, first], 1) == [first, late, elsewhere]


def test_a_daemon_that_dies_half_way_loses_nothing(seed: int, tmp_path: Path) -> None:
    runner = Runner(Templates(tmp_path / "templates"), tmp_path)
    for case in sample(first_hits(), _RUNS, seed):
        try:
            assert runner.run(case) == "passed"
        except BaseException as error:
            error.add_note(f"TIDEMARK_TEST_SEED={seed}, at {case}")
            raise
    runner.end()
