"""The circuit: closed, open, half open."""

from hypothesis import given
from hypothesis import strategies as st

from repository.store.circuit import Circuit, Limits, Outcome, Phase, Ticket

LIMITS = Limits(failures_max=3, open_seconds_first=5.0, open_seconds_max=20.0)


def settled(circuit: Circuit, outcome: Outcome, now: float, times: int = 1) -> Circuit:
    """Calls one after the other."""
    for _ in range(times):
        circuit, ticket = circuit.admit(now)
        assert ticket is not None
        circuit = circuit.settle(ticket, outcome, now, LIMITS)
    return circuit


def opened(now: float = 0.0) -> Circuit:
    return settled(Circuit(), Outcome.FAILED, now, LIMITS.failures_max)


def test_it_opens_after_failures_in_a_row_and_not_before() -> None:
    almost = settled(Circuit(), Outcome.FAILED, 1.0, LIMITS.failures_max - 1)

    assert almost.phase is Phase.CLOSED
    assert settled(almost, Outcome.FAILED, 2.0).phase is Phase.OPEN
    answered = settled(settled(almost, Outcome.ANSWERED, 2.0), Outcome.FAILED, 3.0)
    assert (answered.phase, answered.failures, answered.failing_since) == (Phase.CLOSED, 1, 3.0)


def test_a_call_that_came_to_nothing_changes_nothing() -> None:
    almost = settled(Circuit(), Outcome.FAILED, 1.0, LIMITS.failures_max - 1)

    assert settled(almost, Outcome.NOTHING, 2.0) == almost


def test_an_open_one_lets_nothing_through_until_its_time_and_then_one() -> None:
    circuit = opened(now=10.0)

    assert circuit.retry_at == 15.0
    assert circuit.admit(14.9) == (circuit, None)
    half_open, probe = circuit.admit(15.0)
    assert half_open.phase is Phase.HALF_OPEN
    assert probe is not None
    assert half_open.admit(1e9) == (half_open, None)


def test_a_probe_that_is_answered_closes_it() -> None:
    closed = settled(opened(), Outcome.ANSWERED, 5.0)

    assert (closed.phase, closed.failures, closed.openings) == (Phase.CLOSED, 0, 0)


def test_a_probe_that_fails_opens_it_for_twice_as_long_up_to_an_end() -> None:
    circuit, times = opened(), []
    for _ in range(4):
        times.append(circuit.retry_at)
        circuit = settled(circuit, Outcome.FAILED, circuit.retry_at)

    assert times == [5.0, 15.0, 35.0, 55.0]
    assert circuit.failing_since == 0.0


def test_a_probe_that_came_to_nothing_is_made_again_at_once() -> None:
    circuit = settled(opened(), Outcome.NOTHING, 6.0)

    assert circuit.phase is Phase.OPEN
    assert circuit.admit(6.0)[1] is not None


def test_what_was_asked_before_it_opened_says_nothing_of_what_is_now() -> None:
    circuit, early = Circuit().admit(0.0)
    assert early is not None
    circuit = settled(circuit, Outcome.FAILED, 1.0, LIMITS.failures_max)
    half_open, _ = circuit.admit(100.0)

    for outcome in Outcome:
        assert circuit.settle(early, outcome, 2.0, LIMITS) == circuit
        assert half_open.settle(early, outcome, 101.0, LIMITS) == half_open


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.sampled_from(["admit", *Outcome]), st.integers(0, 9)),
        max_size=60,
    )
)
def test_whatever_comes_never_more_than_one_probe_and_never_a_call_too_early(
    steps: list[tuple[float, str | Outcome, int]],
) -> None:
    circuit, now = Circuit(), 0.0
    under_way: list[Ticket] = []
    for seconds, step, which in steps:
        now += seconds
        before = circuit
        if isinstance(step, str):
            circuit, ticket = circuit.admit(now)
            under_way += [ticket] if ticket is not None else []
            if before.phase is Phase.OPEN:
                assert (ticket is not None) == (now >= before.retry_at)
            else:
                assert (ticket is not None) == (before.phase is Phase.CLOSED)
        elif under_way:
            ticket = under_way.pop(which % len(under_way))
            circuit = circuit.settle(ticket, step, now, LIMITS)
        assert circuit.period >= before.period
        assert (circuit.period == before.period) == (circuit.phase is before.phase)
        if circuit.phase is Phase.HALF_OPEN:
            assert sum(ticket.period == circuit.period for ticket in under_way) == 1
        if circuit.phase is Phase.CLOSED:
            assert circuit.failures < LIMITS.failures_max
