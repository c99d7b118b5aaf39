"""When to try again, how long to wait, and when to give up."""

from hypothesis import given
from hypothesis import strategies as st

from repository.store.interface import Operation
from repository.store.patience import Patience

PATIENCE = Patience()
DRAWS = st.floats(0, 1, exclude_max=True)
SIZES = st.none() | st.integers(0, 1 << 40)
OPERATIONS = st.sampled_from(Operation)


@given(tries=st.integers(1, 10**6), left=st.floats(-1e6, 1e6), draw=DRAWS)
def test_a_wait_is_below_its_ceiling_and_ends_before_the_deadline(
    tries: int, left: float, draw: float
) -> None:
    wait = PATIENCE.next_wait_seconds(tries, left, draw)

    if wait is not None:
        assert 0 <= wait <= PATIENCE.wait_ceiling_seconds(tries) <= PATIENCE.wait_seconds_max
        assert wait < left


@given(tries=st.integers(1, 10**6), draw=DRAWS)
def test_time_enough_is_never_given_up(tries: int, draw: float) -> None:
    left = PATIENCE.wait_seconds_max + 0.1

    assert PATIENCE.next_wait_seconds(tries, left, draw) is not None


@given(tries=st.integers(1, 10**6))
def test_the_ceiling_doubles_up_to_its_end(tries: int) -> None:
    now, next_one = map(PATIENCE.wait_ceiling_seconds, (tries, tries + 1))

    assert next_one in {2 * now, PATIENCE.wait_seconds_max}
    assert PATIENCE.wait_ceiling_seconds(1) == PATIENCE.wait_seconds_first


@given(draws=st.lists(DRAWS, min_size=200, max_size=200), operation=OPERATIONS, size=SIZES)
def test_an_operation_that_fails_at_once_ends_by_its_deadline(
    draws: list[float], operation: Operation, size: int | None
) -> None:
    deadline = PATIENCE.deadline_seconds(operation, size)
    passed = 0.0

    for tries, draw in enumerate(draws, start=1):
        wait = PATIENCE.next_wait_seconds(tries, deadline - passed, draw)
        if wait is None:
            break
        passed += wait

    assert passed < deadline


@given(operation=OPERATIONS, size=st.integers(0, 1 << 40))
def test_a_try_has_time_for_its_bytes_on_a_slow_line(operation: Operation, size: int) -> None:
    limit = PATIENCE.limit_seconds(operation, size, 0)

    assert limit >= size / PATIENCE.bytes_per_second_min + PATIENCE.answer_seconds[operation]
    assert limit == PATIENCE.limit_seconds(operation, size, 7)
    assert PATIENCE.deadline_seconds(operation, size) >= limit + PATIENCE.total_seconds


@given(operation=OPERATIONS, tries=st.integers(0, 10**6))
def test_what_nobody_knows_the_size_of_gets_more_time_each_try(
    operation: Operation, tries: int
) -> None:
    first, second = (PATIENCE.limit_seconds(operation, None, each) for each in (tries, tries + 1))

    assert first <= second
    if tries < 20:
        answer = PATIENCE.answer_seconds[operation]
        assert second - answer == 2 * (first - answer)
