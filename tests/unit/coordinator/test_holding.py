"""Who holds a volume: the cases by name, and any sequence of what nodes tell and operators move."""

from dataclasses import replace

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coordinator.errors import NotFoundError, UsageError
from coordinator.holding import Holding, Named, attribute, move
from repository.ids import NodeId, VolumeId, stated_volume_id, volume_id

NODES = [NodeId(bytes([number]) * 16) for number in range(1, 4)]
HERE, THERE, ELSEWHERE = NODES
NAMES = ["data", "logs", "media"]
UID = stated_volume_id("a disk of its own")


def own(node: NodeId, name: str = "data") -> VolumeId:
    """What a node calls a volume of its own."""
    return volume_id(node, "path", name)


def held(node: NodeId = HERE, name: str = "data", *, snapshots: bool = True) -> Holding:
    return Holding(own(node, name), node, name, own(node, name), has_snapshots=snapshots)


def moved(*holdings: Holding, name: str = "data", replacing: bool = False) -> list[Holding]:
    """All holdings after the first of them was moved there."""
    changed = move(holdings[0].volume_id, THERE, name, holdings, replacing=replacing)
    by_id = {each.volume_id: each for each in changed}
    return [by_id.get(each.volume_id, each) for each in holdings]


def told(node: NodeId, *names: str) -> list[Named]:
    return [Named(own(node, name), name) for name in names]


def test_what_nobody_holds_is_a_new_volume() -> None:
    assert attribute(HERE, told(HERE, "data"), []) == {own(HERE): own(HERE)}


def test_what_another_node_holds_is_a_claim() -> None:
    assert attribute(THERE, told(HERE, "data"), [held()]) == {own(HERE): None}


def test_a_name_of_another_nodes_volume_means_nothing() -> None:
    assert attribute(THERE, told(THERE, "data"), [held()]) == {own(THERE): own(THERE)}


def test_a_moved_volume_is_found_by_its_name() -> None:
    after = moved(held())

    assert attribute(THERE, told(THERE, "logs", "data"), after) == {
        own(THERE, "logs"): own(THERE, "logs"),
        own(THERE): own(HERE),
    }
    assert attribute(HERE, told(HERE, "data"), after) == {own(HERE): None}
    assert attribute(ELSEWHERE, told(ELSEWHERE, "data"), after)[own(ELSEWHERE)] == own(ELSEWHERE)


def test_a_moved_volume_is_found_by_its_uid_before_its_name() -> None:
    volume = Holding(UID, HERE, "data", UID)
    names = [Named(own(THERE), "data"), Named(UID, "pgdata")]

    assert attribute(THERE, names, moved(volume)) == {own(THERE): own(THERE), UID: UID}


def test_a_name_that_was_asked_for_comes_before_the_uid() -> None:
    volume = Holding(UID, HERE, "data", UID)
    names = [Named(UID, "data"), Named(own(THERE, "logs"), "logs")]

    assert attribute(THERE, names, moved(volume, name="logs")) == {
        UID: None,
        own(THERE, "logs"): UID,
    }


def test_a_name_that_two_volumes_have_is_not_guessed() -> None:
    after = moved(held())
    names = [Named(own(THERE), "data"), Named(own(THERE, "x"), "data")]

    assert own(HERE) not in attribute(THERE, names, after).values()


def test_a_volume_without_snapshots_gives_way() -> None:
    _, retired = moved(held(), held(THERE, snapshots=False))

    assert (retired.local_id, retired.awaits) == (None, None)


def test_a_volume_with_snapshots_gives_way_only_if_that_is_asked_for() -> None:
    with pytest.raises(UsageError, match="snapshots of its own"):
        moved(held(), held(THERE))

    after = moved(held(), held(THERE), replacing=True)
    assert attribute(THERE, told(THERE, "data"), after) == {own(THERE): own(HERE)}


def test_what_gave_way_goes_on_when_the_other_has_left_again() -> None:
    volume, retired = moved(held(), held(THERE), replacing=True)
    bound = replace(volume, local_id=own(THERE), awaits=None)
    back = move(own(HERE), HERE, "data", [bound, retired], replacing=False)

    assert attribute(HERE, told(HERE, "data"), [*back, retired]) == {own(HERE): own(HERE)}
    assert attribute(THERE, told(THERE, "data"), [*back, retired]) == {own(THERE): own(THERE)}


def test_two_that_wait_for_one_name_are_one_too_many() -> None:
    first = moved(held())
    with pytest.raises(UsageError, match="snapshots of its own"):
        moved(held(ELSEWHERE), *first)


def test_nothing_moves_to_where_it_is() -> None:
    with pytest.raises(UsageError, match="already"):
        move(own(THERE), THERE, "data", [held(THERE)], replacing=False)


def test_what_is_gone_meanwhile_does_not_move() -> None:
    with pytest.raises(NotFoundError):
        move(own(HERE), THERE, "data", [], replacing=False)


def test_a_move_may_be_asked_for_again_while_it_waits() -> None:
    after = moved(held(), held(THERE), replacing=True)

    assert moved(*after) == after


def test_one_that_waits_for_a_wrong_name_may_wait_for_another() -> None:
    waiting = Holding(own(HERE), THERE, "data", None, "dada")
    (changed,) = move(own(HERE), THERE, "data", [waiting], replacing=False)

    assert changed.awaits == "data"


class Holdings(RuleBasedStateMachine):
    """Nodes tell what they like, thieves among them; operators move; snapshots are made."""

    def __init__(self) -> None:
        super().__init__()
        self.holdings: dict[VolumeId, Holding] = {}
        # By the operators' words alone.
        self.holders: dict[VolumeId, NodeId] = {}

    # Their own names, those of others, and a uid.
    named = st.builds(
        Named,
        st.sampled_from([UID, *(own(node, name) for node in NODES for name in NAMES)]),
        st.sampled_from(NAMES),
    )

    @rule(
        node=st.sampled_from(NODES),
        names=st.lists(named, max_size=5, unique_by=lambda each: each.local_id),
    )
    def tell(self, node: NodeId, names: list[Named]) -> None:
        before = dict(self.holdings)
        meant = attribute(node, names, self.holdings.values())
        assert set(meant) == {each.local_id for each in names}
        volumes = [each for each in meant.values() if each is not None]
        assert len(set(volumes)) == len(volumes)
        for each in names:
            volume = meant[each.local_id]
            if volume is None:
                continue
            known = before.get(volume)
            assert known is None or known.node_id == node
            # One that was moved goes under nothing but what it waited for or is bound to.
            if known is not None and known.local_id is not None:
                assert known.local_id == each.local_id
            elif known is not None and known.awaits is not None:
                assert each.local_id == volume or each.name == known.awaits
            else:
                assert each.local_id == volume
            self.holders.setdefault(volume, node)
            kept = known or Holding(volume, node, each.name, None)
            self.holdings[volume] = replace(
                kept, name=each.name, local_id=each.local_id, awaits=None
            )

    @rule(
        data=st.data(),
        to=st.sampled_from(NODES),
        name=st.sampled_from(NAMES),
        replacing=st.booleans(),
    )
    def move(self, data: st.DataObject, to: NodeId, name: str, replacing: bool) -> None:
        assume(self.holdings)
        volume = data.draw(st.sampled_from(sorted(self.holdings)))
        before = dict(self.holdings)
        try:
            changed = move(volume, to, name, self.holdings.values(), replacing=replacing)
        except UsageError:
            return
        self.holders[volume] = to
        self.holdings.update({each.volume_id: each for each in changed})
        assert changed[0] == replace(before[volume], node_id=to, local_id=None, awaits=name)
        for retired in changed[1:]:
            assert retired.node_id == before[retired.volume_id].node_id == to
            assert replacing or not retired.has_snapshots
        # A volume that is new there and has that name is this one.
        told_id = own(to, "never told of before")
        meant = attribute(to, [Named(told_id, name)], self.holdings.values())
        assert meant[told_id] == volume

    @rule(data=st.data())
    def make_a_snapshot(self, data: st.DataObject) -> None:
        assume(self.holdings)
        volume = data.draw(st.sampled_from(sorted(self.holdings)))
        self.holdings[volume] = replace(self.holdings[volume], has_snapshots=True)

    @invariant()
    def only_operators_change_who_holds_what(self) -> None:
        assert {each.volume_id: each.node_id for each in self.holdings.values()} == self.holders

    @invariant()
    def no_two_volumes_go_under_one_local_id_of_a_node(self) -> None:
        bound = [(each.node_id, each.local_id) for each in self.holdings.values() if each.local_id]
        assert len(set(bound)) == len(bound)

    @invariant()
    def no_two_volumes_wait_for_one_name_on_a_node(self) -> None:
        waiting = [(each.node_id, each.awaits) for each in self.holdings.values() if each.awaits]
        assert len(set(waiting)) == len(waiting)


TestHoldings = Holdings.TestCase
TestHoldings.settings = settings(max_examples=50, stateful_step_count=15, deadline=None)
