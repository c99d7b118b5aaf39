"""Which limit counts when, also where clocks are put forward and back."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import UsageError
from coordinator.limits import EVERY_DAY, Limit, Rule, Scope, Window, check_rule, with_rule

BERLIN = "Europe/Berlin"
WORKDAYS = frozenset(range(5))
BASE = Rule(20_000_000)
NIGHT = Rule(100_000_000, Window(22 * 60, 6 * 60, BERLIN, WORKDAYS))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def limit(*rules: Rule) -> Limit:
    return Limit(Scope.FLEET, b"", rules)


@pytest.mark.parametrize(
    ("moment", "rate"),
    [
        ("2026-03-02T21:59:59+01:00", BASE.rate),  # a Monday
        ("2026-03-02T22:00:00+01:00", NIGHT.rate),
        ("2026-03-03T05:59:59+01:00", NIGHT.rate),
        ("2026-03-03T06:00:00+01:00", BASE.rate),
        ("2026-03-06T23:00:00+01:00", NIGHT.rate),  # Friday's window reaches into Saturday
        ("2026-03-07T05:00:00+01:00", NIGHT.rate),
        ("2026-03-07T22:30:00+01:00", BASE.rate),  # Saturday has none of its own
        ("2026-03-09T05:00:00+01:00", BASE.rate),  # nor does Sunday reach into Monday
        ("2026-07-06T22:00:00+02:00", NIGHT.rate),  # summer: as the clock on the wall shows
        ("2026-07-06T21:00:00+00:00", NIGHT.rate),
    ],
)
def test_a_window_counts_by_the_clock_on_the_wall(moment: str, rate: int) -> None:
    assert limit(BASE, NIGHT).rate(at(moment)) == rate


def test_of_two_open_windows_the_one_that_was_set_last_counts() -> None:
    all_day = Rule(1_000_000, Window(0, 0, "UTC"))
    noon = Rule(2_000_000, Window(12 * 60, 13 * 60, "UTC"))

    assert limit(BASE, all_day, noon).rate(at("2026-03-02T12:30+00:00")) == noon.rate
    assert limit(BASE, noon, all_day).rate(at("2026-03-02T12:30+00:00")) == all_day.rate


def test_off_in_a_window_means_no_limit_there() -> None:
    free = Rule(None, Window(22 * 60, 6 * 60, "UTC"))

    assert limit(BASE, free).rate(at("2026-03-02T23:00+00:00")) is None
    assert limit(BASE, free).rate(at("2026-03-02T12:00+00:00")) == BASE.rate


def test_a_window_in_the_hour_that_is_left_out_begins_with_the_jump() -> None:
    # In the night to 2026-03-29 the clock in Berlin goes from 02:00 to 03:00.
    found = limit(BASE, Rule(1_000_000, Window(2 * 60 + 30, 4 * 60, BERLIN)))

    before, after = at("2026-03-29T01:59:59+01:00"), at("2026-03-29T03:00:00+02:00")

    assert (found.rate(before), found.rate(after)) == (BASE.rate, 1_000_000)
    assert found.changes_at(before) == after


def test_a_window_wholly_in_that_hour_does_not_open() -> None:
    found = limit(BASE, Rule(1_000_000, Window(2 * 60, 3 * 60, BERLIN)))

    assert found.changes_at(at("2026-03-28T12:00:00+01:00")) == at("2026-03-30T02:00:00+02:00")


def test_an_hour_that_is_shown_twice_counts_twice() -> None:
    # In the night to 2026-10-25 it goes from 03:00 back to 02:00.
    found = limit(BASE, Rule(1_000_000, Window(2 * 60 + 30, 3 * 60, BERLIN)))
    moments = ["02:15+02:00", "02:45+02:00", "02:15+01:00", "02:45+01:00", "03:00+01:00"]

    rates = [found.rate(at(f"2026-10-25T{moment}")) for moment in moments]

    assert rates == [BASE.rate, 1_000_000, BASE.rate, 1_000_000, BASE.rate]
    assert found.changes_at(at("2026-10-25T02:45+02:00")) == at("2026-10-25T02:00+01:00")
    assert found.changes_at(at("2026-10-25T02:15+01:00")) == at("2026-10-25T02:30+01:00")


@given(
    st.integers(0, 365 * 24 * 60 * 60),
    st.integers(0, 1439),
    st.integers(0, 1439),
    st.sampled_from(["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    st.sets(st.integers(0, 6), min_size=1),
)
def test_nothing_changes_before_the_next_change_and_something_does_then(
    second: int, begin: int, end: int, zone: str, days: set[int]
) -> None:
    now = at("2026-01-01T00:00+00:00") + timedelta(seconds=second)
    found = limit(BASE, Rule(1_000_000, Window(begin, end, zone, frozenset(days))))

    change = found.changes_at(now)

    until = now + timedelta(days=6) if change is None else change
    steps = [now + (until - now) * part / 40 for part in range(40)]
    assert {found.rate(step) for step in steps} == {found.rate(now)}
    if change is not None:
        just_before = change - timedelta(microseconds=1)
        assert found.rate(just_before) == found.rate(now) != found.rate(change)


def test_without_windows_nothing_ever_changes() -> None:
    assert limit(BASE).changes_at(at("2026-03-02T12:00+00:00")) is None


def test_a_rule_replaces_the_one_of_its_window() -> None:
    other = Rule(5_000_000)
    another = Rule(7_000_000, NIGHT.window)

    assert with_rule((BASE, NIGHT), other) == (other, NIGHT)
    assert with_rule((BASE, NIGHT), another) == (BASE, another)


def test_off_takes_everything_away_and_off_alone_is_nothing() -> None:
    assert with_rule((BASE, NIGHT), Rule(None)) == ()
    assert with_rule((), Rule(None, NIGHT.window)) == ()
    assert with_rule((BASE,), Rule(None, NIGHT.window)) == (BASE, Rule(None, NIGHT.window))


def test_windows_are_not_without_end() -> None:
    rules: tuple[Rule, ...] = ()
    for minute in range(50):
        rules = with_rule(rules, Rule(1_000_000, Window(minute, 60, "UTC")))

    with pytest.raises(UsageError, match="50 windows"):
        with_rule(rules, Rule(1_000_000, Window(100, 200, "UTC")))


@pytest.mark.parametrize(
    "rule",
    [
        Rule(0),
        Rule(10**18),
        Rule(10**6, Window(-1, 5, "UTC")),
        Rule(10**6, Window(0, 1440, "UTC")),
        Rule(10**6, Window(0, 5, "Mars/Olympus")),
        Rule(10**6, Window(0, 5, "../../etc/passwd")),
        Rule(10**6, Window(0, 5, "UTC", frozenset())),
        Rule(10**6, Window(0, 5, "UTC", frozenset({7}))),
    ],
)
def test_what_cannot_be_is_refused(rule: Rule) -> None:
    with pytest.raises(UsageError):
        check_rule(rule)


def test_rules_are_shown_as_people_write_them() -> None:
    weekend = Rule(None, Window(0, 0, "UTC", frozenset({5, 6})))
    daily = Rule(BASE.rate, Window(60, 120, "UTC", EVERY_DAY))

    assert str(check_rule(BASE)) == "20 MB/s"
    assert str(NIGHT) == "100 MB/s 22:00-06:00 mon-fri Europe/Berlin"
    assert str(weekend) == "off 00:00-00:00 sat,sun UTC"
    assert str(daily) == "20 MB/s 01:00-02:00 daily UTC"
