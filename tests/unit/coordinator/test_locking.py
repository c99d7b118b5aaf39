"""Until when objects are locked."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.locking import Held, Lock

SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR
NOW = 1_790_000_000 * SECOND

lengths = st.integers(1, 3650).map(lambda days: Lock(days * DAY))
moments = st.integers(NOW, NOW + 10 * 365 * DAY)


@pytest.mark.parametrize(
    ("days", "slack"), [(1, 6 * HOUR), (4, DAY), (28, 7 * DAY), (30, 7 * DAY), (3650, 7 * DAY)]
)
def test_the_slack_is_a_quarter_of_the_length_and_a_week_at_most(days: int, slack: int) -> None:
    assert Lock(days * DAY).slack_ns == slack


@given(lengths, moments)
def test_a_lock_ends_with_a_whole_second_and_never_too_early(lock: Lock, now: int) -> None:
    needed, granted = lock.needed_until(now), lock.granted_until(now)

    assert needed % SECOND == granted % SECOND == 0
    assert 0 <= needed - (now + lock.length_ns) < SECOND
    assert 0 <= granted - (now + lock.length_ns + lock.slack_ns) < SECOND


@given(lengths, moments, st.integers(-2 * SECOND, 2 * SECOND))
def test_what_ends_before_the_promise_lapses_and_nothing_else(
    lock: Lock, now: int, away: int
) -> None:
    needed = lock.needed_until(now)
    held = [Held("packs/a", needed + away), Held("packs/b"), Held("packs/c", needed)]

    assert lock.lapsing(held, now) == (["packs/a", "packs/b"] if away < 0 else ["packs/b"])


@given(lengths, moments, st.lists(st.integers(1, 40 * DAY), max_size=60))
def test_whatever_the_times_of_snapshots_each_may_promise_and_few_extend(
    lock: Lock, first: int, gaps: list[int]
) -> None:
    until, now, extended = lock.granted_until(first), first, [first]
    for gap in gaps:
        now += gap
        if lock.lapsing([Held("packs/a", until)], now):
            assert lock.granted_until(now) > until
            until = lock.granted_until(now)
            extended.append(now)
        assert until >= now + lock.length_ns

    waits = [later - earlier for earlier, later in pairwise(extended)]
    assert all(wait > lock.slack_ns - SECOND for wait in waits)


def test_hourly_snapshots_of_a_month_extend_a_pack_of_thirty_days_every_week() -> None:
    lock = Lock(30 * DAY)
    until, extended = lock.granted_until(NOW), []
    for hour in range(1, 30 * 24):
        now = NOW + hour * HOUR
        if lock.lapsing([Held("packs/a", until)], now):
            until = lock.granted_until(now)
            extended.append(hour)

    assert extended == [169, 338, 507, 676]


def test_a_longer_lock_extends_and_a_shorter_one_takes_nothing_away() -> None:
    month, week = Lock(30 * DAY), Lock(7 * DAY)
    held = [Held("packs/a", month.granted_until(NOW))]

    assert week.lapsing(held, NOW + 29 * DAY) == []
    assert month.lapsing([Held("packs/a", week.granted_until(NOW))], NOW) == ["packs/a"]
