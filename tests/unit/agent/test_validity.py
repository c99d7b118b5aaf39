"""When a certificate is renewed."""

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from agent.validity import Validity, read_validity, retry_seconds, wait_seconds
from tests.unit.agent.certificates import make_certificate

SECOND = 10**9
DAY = 86400 * SECOND
BEGIN = 1_800_000_000 * SECOND
LIVES = [SECOND, 3 * SECOND, 60 * SECOND, 3600 * SECOND, DAY, 7 * DAY, 397 * DAY]
CHANCES = [number / 50 for number in range(51)]


def test_a_certificate_tells_its_validity() -> None:
    begin = datetime(2026, 11, 21, 6, 30, 1, tzinfo=UTC)
    validity = read_validity(make_certificate(begin, begin + timedelta(hours=24)))
    assert validity.begins_ns == int(begin.timestamp()) * SECOND
    assert validity.expires_ns - validity.begins_ns == DAY


def test_what_is_no_certificate_has_no_validity() -> None:
    with pytest.raises(ValueError, match="load PEM"):
        read_validity(b"nonsense")


@pytest.mark.parametrize(("life", "chance"), list(product(LIVES, CHANCES)))
def test_it_is_renewed_around_two_thirds_of_its_life(life: int, chance: float) -> None:
    validity = Validity(BEGIN, BEGIN + life)
    share = (validity.renew_at(chance) - BEGIN) / life
    assert 0.6 <= share <= 0.72


def test_nodes_that_joined_together_do_not_renew_together() -> None:
    moments = [Validity(BEGIN, BEGIN + DAY).renew_at(chance) for chance in CHANCES]
    assert moments == sorted(set(moments))
    assert moments[-1] - moments[0] > 2 * 3600 * SECOND


@pytest.mark.parametrize("life", LIVES)
def test_it_has_expired_from_its_last_moment_on(life: int) -> None:
    validity = Validity(BEGIN, BEGIN + life)
    moments = [BEGIN - DAY, BEGIN, BEGIN + life - 1, BEGIN + life, BEGIN + life + 7 * DAY]
    assert [validity.expired(now) for now in moments] == [False, False, False, True, True]


@pytest.mark.parametrize("life", LIVES)
def test_a_clock_that_only_ever_goes_on_finds_every_moment_to_renew(life: int) -> None:
    for chance in CHANCES:
        at = Validity(BEGIN, BEGIN + life).renew_at(chance)
        now, looks = max(BEGIN, at - 3 * 3600 * SECOND), 0
        while wait := wait_seconds(at, now):
            assert 0 < wait <= 60
            now += round(wait * SECOND) or 1
            looks += 1
        assert at <= now <= at + SECOND
        assert looks <= 182


@pytest.mark.parametrize("late", [0, 1, SECOND, 7 * DAY, 1000 * DAY])
def test_what_is_overdue_is_renewed_at_once(late: int) -> None:
    assert wait_seconds(BEGIN, BEGIN + late) == 0


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_a_coordinator_that_is_away_is_asked_ever_more_seldom_and_never_given_up(
    chance: float,
) -> None:
    waits = [retry_seconds(failures, chance) for failures in range(1, 5000)]
    assert waits == sorted(waits)
    assert 0.25 <= waits[0] <= 0.75
    assert 150 <= waits[-1] <= 450
