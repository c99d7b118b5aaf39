from itertools import product

import pytest

from proto.versions import PROTOCOL, Side, Versions, agree, told

RANGES = [Versions(oldest, newest) for oldest in range(5) for newest in range(oldest, 5)]


@pytest.mark.parametrize(("agent", "coordinator"), list(product(RANGES, RANGES)))
def test_both_speak_the_newest_that_both_know_or_the_older_side_is_named(
    agent: Versions, coordinator: Versions
) -> None:
    common = set(range(agent.oldest, agent.newest + 1)) & set(
        range(coordinator.oldest, coordinator.newest + 1)
    )

    agreed = agree(agent, coordinator)

    if common:
        assert agreed == max(common)
    else:
        assert agreed is (Side.AGENT if agent < coordinator else Side.COORDINATOR)


def test_a_program_speaks_with_its_like() -> None:
    assert agree(PROTOCOL, PROTOCOL) == PROTOCOL.newest


@pytest.mark.parametrize(
    ("oldest", "newest", "versions"),
    [(1, 3, Versions(1, 3)), (0, 3, Versions(3, 3)), (0, 0, Versions(0, 0))],
)
def test_what_was_not_said_is_as_narrow_as_can_be(
    oldest: int, newest: int, versions: Versions
) -> None:
    assert told(oldest, newest) == versions


@pytest.mark.parametrize(("oldest", "newest"), [(2, 1), (1, 0)])
def test_a_range_that_ends_before_it_begins_is_none(oldest: int, newest: int) -> None:
    with pytest.raises(ValueError, match="not older"):
        told(oldest, newest)


def test_versions_read_well() -> None:
    assert (str(Versions(2, 2)), str(Versions(1, 3))) == ("2", "1 to 3")
