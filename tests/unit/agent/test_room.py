"""When there is room for clones: every case of a small filesystem."""

import itertools

from agent.room import Room, has_room


def test_there_is_room_above_a_fifth_and_above_twice_what_changes() -> None:
    for total, free, first, second in itertools.product(range(1, 21), range(21), range(8), (0, 3)):
        expected = free / total > 0.2 and free > 2 * (first + second)

        assert has_room(Room(total, free), (first, second)) == expected


def test_a_filesystem_that_does_not_say_how_large_it_is_has_room_for_nothing() -> None:
    assert not has_room(Room(0, 0), ())
