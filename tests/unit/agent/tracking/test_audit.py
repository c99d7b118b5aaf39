"""Which changes that a sweep found were told by events."""

from itertools import chain, combinations, product

import pytest

from agent.tracking import audit
from agent.tracking.audit import KEPT_MAX, Candidate, Judgement, covered, misses
from agent.tracking.dirty import Dirty

NOTHING = Dirty()
KEYS = [b"", b"a", b"a\0b", b"a\0b\0c", b"a-b", b"ab"]


def names(*keys: bytes) -> Dirty:
    return Dirty(names=set(keys))


def missed(candidates: list[Candidate], *told: Dirty) -> list[bytes]:
    """Keys that are missed, whatever was told before the sweep and what behind it."""
    before, after = [*told, NOTHING, NOTHING][:2]
    results = {
        tuple(each.key for each in misses(candidates, *order))
        for order in ((before, after), (after, before))
    }
    assert len(results) == 1
    return list(results.pop())


@pytest.mark.parametrize("key", KEYS)
def test_a_name_is_covered_by_itself_a_subtree_above_or_its_inode_and_nothing_else(
    key: bytes,
) -> None:
    for told in KEYS:
        above = not told or key == told or key.startswith(told + b"\0")
        assert covered(key, 7, names(told)) == (key == told)
        assert covered(key, 7, Dirty(subtrees={told})) == above
    assert covered(key, 7, Dirty(inodes={7}))
    assert not covered(key, 7, Dirty(inodes={8}))
    assert not covered(key, None, Dirty(inodes={7}))


def test_every_combination_of_what_is_told_covers_what_one_of_it_covers() -> None:
    parts = [names(b"a"), names(b"a\0b"), Dirty(subtrees={b"a\0b"}), Dirty(inodes={7})]
    every = chain.from_iterable(combinations(parts, size) for size in range(len(parts) + 1))
    for told, key, inode in product(every, KEYS, [None, 7, 8]):
        whole = Dirty()
        for part in told:
            whole.merge(part)

        assert covered(key, inode, whole) == any(covered(key, inode, part) for part in told)
        for before, after in ((told[:1], told[1:]), (told[:2], told[2:])):
            both = [Dirty(), Dirty()]
            for dirty, half in zip(both, (before, after), strict=True):
                for part in half:
                    dirty.merge(part)
            found = misses([Candidate(key, inode)], *both)
            assert bool(found) != covered(key, inode, whole)


def test_what_is_told_before_or_behind_the_sweep_is_no_miss() -> None:
    found = [Candidate(b"a", 1), Candidate(b"b", 2), Candidate(b"c", 3)]

    assert missed(found, names(b"a"), names(b"b")) == [b"c"]


def test_what_is_beneath_a_told_name_that_is_something_else_now_was_told() -> None:
    found = [
        Candidate(b"d", 1, is_replaced=True),
        Candidate(b"d\0x", 2, is_replaced=True),
        Candidate(b"d\0x\0y", 3, is_replaced=True),
        Candidate(b"d-other", 4, is_replaced=True),
    ]

    assert missed(found, names(b"d")) == [b"d-other"]


def test_what_is_beneath_a_told_directory_that_is_the_same_was_not_told() -> None:
    found = [Candidate(b"d", 1), Candidate(b"d\0x", 2)]

    assert missed(found, names(b"d")) == [b"d\0x"]


def test_of_what_came_or_went_as_a_whole_the_top_is_named_and_all_are_counted() -> None:
    judged = Judgement(names(b"d\0y"))
    for key in (b"d", b"d\0x", b"d\0y", b"d\0z"):
        judged.note(Candidate(key, None, is_replaced=True))

    judged.close()

    assert [each.key for each in judged.missed] == [b"d"]
    assert judged.missed_total == 3
    assert judged.candidates == 4


def test_all_names_of_an_inode_are_told_with_one_of_them_in_whatever_order() -> None:
    found = [Candidate(key, 7, linked=(7,)) for key in (b"a", b"b", b"c")]

    for told in (b"a", b"b", b"c"):
        assert missed(found, names(told)) == []
    assert missed(found, names(b"other")) == [b"a", b"b", b"c"]


def test_a_new_name_of_an_inode_tells_of_its_old_one() -> None:
    found = [
        Candidate(b"old", 7, linked=(7,)),
        Candidate(b"z", None, is_replaced=True, linked=(7,)),
    ]

    assert missed(found, names(b"z")) == []
    assert missed(found, names(b"old")) == [b"z"]


def test_a_directory_whose_names_changed_is_told_by_one_of_them() -> None:
    dated = Candidate(b"d", 1, is_dated=True)

    assert missed([dated], names(b"d\0x")) == []
    assert missed([dated], Dirty(subtrees={b"d\0x"})) == []
    assert missed([Candidate(b"", 1, is_dated=True)], names(b"x")) == []
    assert missed([dated], names(b"d\0e\0x")) == [b"d"]
    assert missed([Candidate(b"d", 1)], names(b"d\0x")) == [b"d"]
    assert missed([Candidate(b"", 1, is_dated=True)], names(b"")) == []


def test_of_very_many_misses_the_first_are_kept_and_all_counted() -> None:
    judged = Judgement(NOTHING)
    for number in range(3 * KEPT_MAX + 5):
        judged.note(Candidate(b"%06d" % number, number))
        if judged.is_full:
            judged.sentence()
    judged.close()

    assert judged.missed_total == judged.candidates == 3 * KEPT_MAX + 5
    assert [each.key for each in judged.missed] == [b"%06d" % each for each in range(KEPT_MAX)]


def test_what_goes_as_a_whole_takes_no_room_and_is_settled_with_its_top() -> None:
    judged = Judgement(NOTHING)
    judged.note(Candidate(b"d", 1, is_replaced=True))
    for number in range(5 * KEPT_MAX):
        judged.note(Candidate(b"d\0%06d" % number, number, is_replaced=True))
        assert not judged.is_full

    judged.tell(names(b"d"))
    judged.note(Candidate(b"d\0z", 9, is_replaced=True))
    judged.close()

    assert judged.missed_total == 0


def test_what_is_beneath_a_miss_that_was_settled_already_is_missed_too() -> None:
    judged = Judgement(NOTHING)
    judged.note(Candidate(b"d", 1, is_replaced=True))
    judged.sentence()
    judged.note(Candidate(b"d\0x", 2, is_replaced=True))
    judged.close()

    assert (judged.missed_total, len(judged.missed)) == (2, 1)


def test_a_name_of_a_linked_inode_is_not_settled_before_the_end() -> None:
    judged = Judgement(names(b"z"))
    judged.note(Candidate(b"a", 7, linked=(7,)))
    judged.sentence()
    judged.note(Candidate(b"z", 7, linked=(7,)))
    judged.close()

    assert judged.missed_total == 0


def test_more_linked_names_than_a_rescan_looks_for_are_not_held_against_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "_LINKED_MAX", 3)
    told = [Candidate(b"a%d" % number, number, linked=(number,)) for number in range(4)]
    other = Candidate(b"b", 99)

    assert missed([*told[:3], other], Dirty(subtrees={b"a0", b"a1", b"a2"})) == [b"b"]
    assert misses([*told, other], names(b"a0", b"a1", b"a2", b"a3"), NOTHING) == []
    judged = Judgement(NOTHING)
    for candidate in told:
        judged.note(candidate)
    judged.close()
    assert judged.missed_total == 3
