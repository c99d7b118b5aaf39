"""Which volumes are due."""

from dataclasses import replace

from coordinator import schedule
from coordinator.model import Volume
from repository.ids import NodeId, VolumeId

HOUR = 3600 * 10**9


def volume(number: int, first_seen_at: int = 0) -> Volume:
    return Volume(
        volume_id=VolumeId(bytes([number]) * 16),
        node_id=NodeId(bytes(16)),
        name=f"v{number}",
        source="path",
        path=b"/v",
        verdict="protected",
        reason="",
        first_seen_at=first_seen_at,
    )


def test_a_new_volume_is_due_one_whole_interval_after_it_was_first_seen() -> None:
    new = volume(1, first_seen_at=HOUR)
    assert schedule.due([new], busy=(), interval_ns=HOUR, now=2 * HOUR - 1) == []
    assert schedule.due([new], busy=(), interval_ns=HOUR, now=2 * HOUR) == [new]


def test_the_next_run_is_due_one_interval_after_the_last_was_asked_for() -> None:
    ran = replace(volume(1), scheduled_at=5 * HOUR)
    assert schedule.due_at(ran, HOUR) == 6 * HOUR


def test_missed_runs_coalesce_into_one() -> None:
    assert len(schedule.due([volume(1)], busy=(), interval_ns=HOUR, now=100 * HOUR)) == 1


def test_a_volume_that_is_being_backed_up_is_not_due() -> None:
    busy = volume(1)
    assert schedule.due([busy], busy={busy.volume_id}, interval_ns=HOUR, now=9 * HOUR) == []


def test_volumes_that_are_gone_or_not_protected_are_never_due() -> None:
    gone = replace(volume(1), present=False)
    excluded = replace(volume(2), verdict="excluded")
    assert schedule.due([gone, excluded], busy=(), interval_ns=HOUR, now=9 * HOUR) == []


def test_whoever_has_waited_longest_comes_first() -> None:
    late, later = volume(2, first_seen_at=0), volume(1, first_seen_at=HOUR)
    assert schedule.due([later, late], busy=(), interval_ns=HOUR, now=9 * HOUR) == [late, later]


def test_only_what_is_ever_due_is_waited_for() -> None:
    gone = replace(volume(1), present=False)
    excluded = replace(volume(2), verdict="excluded")
    later = volume(3, first_seen_at=5 * HOUR)

    assert schedule.soonest([gone, excluded, later], interval_ns=HOUR) == 6 * HOUR
    assert schedule.soonest([gone, excluded], interval_ns=HOUR) is None
