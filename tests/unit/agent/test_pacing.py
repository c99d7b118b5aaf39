"""Pieces at a rate: no second has too much, and no time is lost that could be used."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.pacing import Lag, Pace
from tests.fakes.virtual import busiest_second

RATE = 20_000_000
PIECE = RATE // 50


def send(
    pace: Pace, until: float, now: float, piece: int, late: float = 0.0
) -> tuple[float, list[tuple[float, int]]]:
    """Send pieces as soon as they may go, each time as late as that; until when, and what."""
    sent: list[tuple[float, int]] = []
    chance = random.Random(1)
    while now < until:
        delay = pace.delay(piece, now)
        if delay:
            now += min(delay, until - now) + chance.uniform(0, late)
            continue
        pace.spend(piece, now)
        sent.append((now, piece))
    return now, sent


def test_all_of_the_rate_is_used_and_no_second_has_more() -> None:
    _, sent = send(Pace(RATE, 0.0), 10.0, 0.0, PIECE)

    assert sum(size for _, size in sent) >= 10 * RATE - 2 * PIECE
    assert busiest_second(sent) <= RATE * 1.02


def test_a_late_riser_catches_up_within_the_same_second() -> None:
    _, sent = send(Pace(RATE, 0.0), 10.0, 0.0, PIECE, late=0.06)

    assert sum(size for _, size in sent) >= 10 * RATE * 0.98
    assert busiest_second(sent) <= RATE * 1.02


def test_what_was_not_used_for_long_is_lost() -> None:
    pace = Pace(RATE, 0.0)

    _, sent = send(pace, 61.0, 60.0, PIECE)

    assert sum(size for _, size in sent) <= RATE * 1.02 * 1.25
    assert busiest_second(sent) <= RATE * 1.02


def test_a_lower_rate_holds_from_the_moment_it_is_set() -> None:
    pace = Pace(RATE, 0.0)
    now, _ = send(pace, 3.0, 0.0, PIECE)
    pace.set_rate(RATE / 10, now)

    _, sent = send(pace, now + 2.0, now, PIECE // 10)

    assert busiest_second(sent) <= RATE / 10 * 1.02
    assert sum(size for _, size in sent) >= 2 * RATE / 10 * 0.98


@given(
    st.lists(st.tuples(st.floats(0.05, 1.5), st.integers(10_000, 10**8)), min_size=1, max_size=12),
    st.floats(0, 0.05),
)
def test_no_second_has_more_than_its_rates_add_up_to(
    rates: list[tuple[float, int]], late: float
) -> None:
    pace, now = Pace(0, 0.0), 0.0
    sent: list[tuple[float, int]] = []
    spans: list[tuple[float, float, int]] = []
    for seconds, rate in rates:
        pace.set_rate(rate, now)
        end, more = send(pace, now + seconds, now, rate // 50, late)
        spans.append((now, end, rate))
        sent, now = sent + more, end

    for end, _ in sent:
        # Waits below a microsecond are not waited.
        total = sum(size for at, size in sent if end - 1 + 2e-6 < at <= end)
        allowed = sum(r * max(0.0, min(e, end) - max(b, end - 1)) for b, e, r in spans)
        assert total <= allowed * 1.02 + 1


def test_nothing_goes_at_no_rate() -> None:
    assert Pace(0, 0.0).delay(1, 10.0) == math.inf


@pytest.mark.parametrize("rate", [16_000, 1_000_000, 10**9])
def test_what_is_larger_than_a_rate_saves_for_goes_all_the_same(rate: int) -> None:
    pace = Pace(rate, 0.0)

    now, sent = send(pace, 1.5, 0.0, rate)
    again = pace.delay(rate, now)

    assert len(sent) == 1
    assert again > 0.4


# So many pieces are asked for before the first of them has come.
IN_FLIGHT = 16


def ask(until: float, stalls: list[tuple[float, float]], line: float) -> list[tuple[float, int]]:
    """Ask for pieces as soon as they may come; when each came over a line that stalls."""
    pace, lag = Pace(RATE, 0.0), Lag()
    now, came, asked = 0.0, [], list[tuple[float, float]]()
    while now < until:
        while asked and asked[0][0] <= now:
            at, since = asked.pop(0)
            late = lag.of(at - since)
            if late > 0:
                pace.postpone(PIECE, since, since + late)
            came.append((at, PIECE))
        delay = pace.delay(PIECE, now)
        if delay or len(asked) == IN_FLIGHT:
            wake = asked[0][0] if asked else math.inf
            now = min(wake, now + delay) if delay and len(asked) < IN_FLIGHT else wake
            continue
        pace.spend(PIECE, now)
        at = now + line
        asked.append((max([at, *(end for begin, end in stalls if begin <= at < end)]), now))
    return came


@pytest.mark.parametrize("line", [0.01, 0.05, 0.2])
def test_what_was_held_up_on_its_way_counts_when_it_goes_on(line: float) -> None:
    came = ask(12.0, [(3.0, 3.1), (3.4, 3.6), (6.0, 6.3), (8.0, 9.5)], line)

    assert busiest_second(came) <= RATE * 1.05
    held_up = 0.1 + 0.2 + 0.3 + 1.5
    assert sum(size for _, size in came) >= (12.0 - held_up - 1.0) * RATE * 0.98


@pytest.mark.parametrize("line", [0.05, 0.2])
def test_a_line_that_is_always_slow_has_all_of_the_rate(line: float) -> None:
    came = ask(10.0, [], line)

    assert sum(size for _, size in came) >= (10.0 - line) * RATE * 0.99


def test_a_line_that_has_become_slower_is_known_before_long() -> None:
    lag = Lag()

    assert [lag.of(0.1), lag.of(0.11), lag.of(0.3)] == [0.0, 0.0, pytest.approx(0.22)]
    lag.begin_anew()
    assert lag.of(0.3) == pytest.approx(0.22)
    lag.begin_anew()
    assert lag.of(0.4) == pytest.approx(0.12)
