"""What a backup looks at, from the events told and the life of an epoch."""

from agent.tracking.dirty import CAP, Dirty
from agent.tracking.epochs import AUDIT_EVERY, Epoch, Way, Why
from agent.tracking.source import Swapped

HEAD = b"root of the last snapshot"


def told(*names: bytes) -> Swapped:
    return Swapped(Dirty(names=set(names)), None)


def proven() -> Epoch:
    """An epoch whose first sweep was committed."""
    epoch = Epoch("e")
    epoch.begin(told(), b"", None)
    epoch.committed(HEAD, Dirty(), swept=True)
    return epoch


def looked_at(way: Way) -> set[bytes]:
    assert way.dirty is not None
    return set(way.dirty.names)


def test_the_first_backup_of_an_epoch_sweeps_whatever_was_told() -> None:
    way = Epoch("e").begin(told(b"a"), HEAD, None)

    assert way.dirty is None
    assert "since just now" in way.reason


def test_a_backup_on_the_committed_base_looks_at_what_was_told_since() -> None:
    epoch = proven()

    way = epoch.begin(told(b"a", b"b"), HEAD, None)

    assert looked_at(way) == {b"a", b"b"}
    assert way.reason == ""


def test_what_was_told_before_the_sweep_began_is_forgotten_with_its_commit() -> None:
    epoch = Epoch("e")

    epoch.begin(told(b"early"), b"", None)
    epoch.committed(HEAD, Dirty(), swept=True)

    assert looked_at(epoch.begin(told(), HEAD, None)) == set()


def test_a_backup_that_does_not_commit_leaves_all_to_the_next_one() -> None:
    epoch = proven()
    epoch.begin(told(b"a"), HEAD, None)

    assert looked_at(epoch.begin(told(b"b"), HEAD, None)) == {b"a", b"b"}


def test_a_commit_drops_what_it_looked_at_but_for_what_comes_again() -> None:
    epoch = proven()
    epoch.begin(told(b"a", b"unreadable"), HEAD, None)

    epoch.committed(b"next root", Dirty(names={b"unreadable"}), swept=False)

    assert looked_at(epoch.begin(told(b"c"), b"next root", None)) == {b"unreadable", b"c"}


def test_a_snapshot_made_elsewhere_in_between_makes_the_next_backup_sweep() -> None:
    epoch = proven()

    way = epoch.begin(told(b"a"), b"root of a snapshot by another node", None)

    assert way.dirty is None
    assert not way.is_lost


def test_a_sweep_that_fails_leaves_what_was_told_for_the_base() -> None:
    epoch = proven()
    epoch.begin(told(b"a"), b"another root", None)

    assert looked_at(epoch.begin(told(b"b"), HEAD, None)) == {b"a", b"b"}


def test_a_loss_ends_the_epoch() -> None:
    way = proven().begin(Swapped(Dirty(names={b"a"}), "the queue overflowed"), HEAD, None)

    assert way == Way(None, "the queue overflowed", Why.LOST, is_lost=True)


def test_writes_that_nobody_would_notice_make_a_backup_sweep() -> None:
    way = proven().begin(told(), HEAD, "the host's processes cannot be seen")

    assert way.dirty is None
    assert way.reason == "the host's processes cannot be seen"


def test_more_places_than_a_sweep_is_worth_make_a_backup_sweep() -> None:
    epoch = proven()
    many = Dirty(inodes=set(range(CAP)))
    assert epoch.begin(Swapped(many, None), HEAD, None).dirty is not None

    way = epoch.begin(told(b"one more"), HEAD, None)

    assert way.dirty is None
    assert str(CAP) in way.reason


def test_now_and_then_a_sweep_looks_beside_the_events() -> None:
    epoch = proven()
    audits = []
    for _ in range(2 * AUDIT_EVERY + 2):
        way = epoch.begin(told(b"a"), HEAD, None)
        audits.append(way.audits)
        epoch.committed(HEAD, Dirty(), swept=way.audits)

    assert [number for number, audit in enumerate(audits) if audit] == [
        AUDIT_EVERY,
        2 * AUDIT_EVERY + 1,
    ]
