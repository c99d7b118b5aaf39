"""Pieces at a rate: no second has too much, and no time is lost that could be used."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.pacing import Pace
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
