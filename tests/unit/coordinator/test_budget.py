"""Sharing a line: fair, within every cap, and with nothing left over that somebody wants."""

import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.budget import BACKUP_PART, Demand, max_min, share

Demands = list[Demand[int]]
FLEET = "fleet"


@st.composite
def shared_lines(draw: st.DrawFn) -> tuple[Demands, dict[object, float]]:
    """Demands of nodes, each under the fleet, one of two repositories, and itself."""
    rate = st.one_of(st.just(math.inf), st.integers(1, 10**9).map(float))
    count = draw(st.integers(1, 12))
    demands = [
        Demand(
            number,
            draw(rate),
            (FLEET, f"repository {draw(st.integers(0, 1))}", f"node {number}"),
            draw(st.sampled_from([0.5, 1.0, 2.0])),
        )
        for number in range(count)
    ]
    caps: dict[object, float] = {FLEET: draw(st.integers(1, 10**9).map(float))}
    for name in ("repository 0", "repository 1", *(f"node {number}" for number in range(count))):
        if draw(st.booleans()):
            caps[name] = float(draw(st.integers(1, 10**9)))
    return demands, caps


def used(demands: Sequence[Demand[int]], rates: Mapping[int, float], cap: object) -> float:
    return sum(rates[each.key] for each in demands if cap in each.caps)


def is_full(
    demands: Demands, rates: Mapping[int, float], caps: Mapping[object, float]
) -> set[object]:
    return {cap for cap in caps if used(demands, rates, cap) >= caps[cap] * (1 - 1e-6)}


@given(shared_lines())
def test_no_cap_is_exceeded_and_nobody_gets_more_than_they_want(
    line: tuple[Demands, dict[object, float]],
) -> None:
    demands, caps = line

    rates = max_min(demands, caps)

    assert all(used(demands, rates, cap) <= caps[cap] * (1 + 1e-6) for cap in caps)
    assert all(0 <= rates[each.key] <= each.wanted for each in demands)


@given(shared_lines())
def test_nobody_could_get_more_without_taking_it_from_one_who_has_no_more(
    line: tuple[Demands, dict[object, float]],
) -> None:
    demands, caps = line

    rates = max_min(demands, caps)

    full = is_full(demands, rates, caps)
    for each in demands:
        if rates[each.key] >= each.wanted * (1 - 1e-6):
            continue
        mine = rates[each.key] / each.weight
        # The cap that holds it back is full, and nobody under that has more for their weight.
        assert any(
            mine >= max(rates[o.key] / o.weight for o in demands if cap in o.caps) * (1 - 1e-6)
            for cap in full.intersection(each.caps)
        )


@given(shared_lines())
def test_who_joins_takes_nothing_that_anybody_gains(
    line: tuple[Demands, dict[object, float]],
) -> None:
    demands, caps = line

    before = max_min(demands[1:], caps)
    after = max_min(demands, caps)

    assert all(after[key] <= rate * (1 + 1e-6) + 1e-6 for key, rate in before.items())


@given(shared_lines(), st.integers(0, 12))
def test_restores_go_first_and_backups_keep_a_part(
    line: tuple[Demands, dict[object, float]], restoring: int
) -> None:
    demands, caps = line
    restores, backups = demands[:restoring], demands[restoring:]

    rates = share(restores, backups, caps)

    assert all(used(demands, rates, cap) <= caps[cap] * (1 + 1e-6) for cap in caps)
    kept = max_min(backups, {cap: rate * BACKUP_PART for cap, rate in caps.items()})
    assert used(backups, rates, FLEET) >= sum(kept.values()) * (1 - 1e-6) if restores else True
    room = {cap: rate * (1 - BACKUP_PART) for cap, rate in caps.items()}
    alone = max_min(restores, room)
    full = is_full(restores, alone, room)
    # Whom nothing held back alone gets as much beside backups.
    for each in restores:
        if not full.intersection(each.caps):
            assert rates[each.key] == pytest.approx(alone[each.key])


def test_what_one_does_not_want_goes_to_the_others() -> None:
    demands = [
        Demand(1, 10.0, (FLEET,)),
        Demand(2, math.inf, (FLEET,)),
        Demand(3, math.inf, (FLEET,)),
    ]

    assert max_min(demands, {FLEET: 100.0}) == {1: 10.0, 2: 45.0, 3: 45.0}


def test_weights_count() -> None:
    demands = [Demand(1, math.inf, (FLEET,), 1.0), Demand(2, math.inf, (FLEET,), 3.0)]

    assert max_min(demands, {FLEET: 100.0}) == {1: 25.0, 2: 75.0}


def test_what_is_under_no_cap_gets_all_that_it_wants() -> None:
    assert max_min([Demand(1, math.inf, (FLEET,))], {}) == {1: math.inf}


def test_a_restore_leaves_backups_a_twentieth() -> None:
    rates = share([Demand(1, math.inf, (FLEET,))], [Demand(2, math.inf, (FLEET,))], {FLEET: 100.0})

    assert rates == {1: pytest.approx(95.0), 2: pytest.approx(5.0)}


def test_a_restore_that_wants_little_leaves_the_rest() -> None:
    rates = share([Demand(1, 10.0, (FLEET,))], [Demand(2, math.inf, (FLEET,))], {FLEET: 100.0})

    assert rates == {1: pytest.approx(10.0), 2: pytest.approx(90.0)}


def test_hundreds_are_shared_in_little_time() -> None:
    demands = [Demand(n, float(1 + n % 7), (FLEET, "repository", f"node {n}")) for n in range(500)]
    caps: dict[object, float] = {f"node {n}": 3.0 for n in range(500)}
    caps[FLEET] = 900.0

    rates = max_min(demands, caps)

    assert sum(rates.values()) == pytest.approx(900.0)
