"""The manifest's tree: editing equals building anew, and every reader agrees with a dict."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from repository import editing
from repository.editing import Edited, Editor, _Ahead
from repository.entries import (
    KEY_BYTES_MAX,
    Entry,
    EntryStat,
    EntryType,
    Pointer,
    encode_entry,
    subtree,
)
from repository.errors import FormatError
from repository.ids import ChunkId, IdKeys, ObjectType, PackNonce
from repository.needs import drive
from repository.tree import (
    NODE_BYTES_MAX,
    Boundaries,
    children,
    decode_node,
    encode_node,
    encode_pointer,
)
from repository.walking import Leaf, diff, lookup, node_pointers, own_leaves, scan

BOUNDARIES = Boundaries(b"secret")
IDS = IdKeys(b"d" * 32, b"n" * 32, b"l" * 32)


class Nodes:
    """Nodes in memory; each lies where its content says, so equal nodes have equal pointers."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}
        self.loaded: list[Pointer] = []

    def put(self, encoded: bytes) -> Pointer:
        chunk_id = IDS.chunk_id(ObjectType.NODE, encoded)
        self.nodes[chunk_id] = encoded
        return Pointer(chunk_id, PackNonce(chunk_id[:16]), 0, 0, len(encoded))

    def load(self, pointer: Pointer) -> bytes:
        self.loaded.append(pointer)
        return self.nodes[pointer.id]

    def edit(self, root: Pointer | None, edits: dict[bytes, bytes | None]) -> Edited:
        self.loaded.clear()
        return Editor(BOUNDARIES, self.load, self.put).edit(root, sorted(edits.items()))

    def build(self, items: dict[bytes, bytes]) -> Pointer | None:
        return self.edit(None, dict(items)).root

    def items(self, root: Pointer | None) -> dict[bytes, Entry]:
        if root is None:
            return {}
        return dict(pair for batch in drive(scan(root), self.load) for pair in batch)

    def pointers(self, root: Pointer | None) -> set[Pointer]:
        if root is None:
            return set()
        return {pointer for batch in drive(node_pointers(root), self.load) for pointer in batch}


def entry(size: int, padding: int = 0) -> bytes:
    return encode_entry(
        Entry(
            EntryType.SYMLINK,
            0,
            0,
            0,
            0,
            size,
            0,
            0,
            1,
            0,
            0,
            b"x" * (padding + 1),
            None,
            None,
            None,
        )
    )


# Few letters, so that keys collide, share prefixes and delete one another's neighbours.
KEYS = st.binary(min_size=0, max_size=3).map(lambda raw: bytes(byte % 12 + 97 for byte in raw))
# Some entries are so large that size cuts a node.
ENTRIES = st.builds(entry, st.integers(0, 3), st.sampled_from([0, 0, 0, 40, NODE_BYTES_MAX // 3]))
TREES = st.dictionaries(KEYS, ENTRIES, max_size=60)


@given(TREES, st.dictionaries(KEYS, st.none() | ENTRIES, max_size=40))
def test_editing_gives_the_tree_that_building_anew_gives(
    before: dict[bytes, bytes], edits: dict[bytes, bytes | None]
) -> None:
    nodes = Nodes()
    old = nodes.build(before)
    after = {key: value for key, value in (before | edits).items() if value is not None}

    edited = nodes.edit(old, edits)

    assert edited.root == nodes.build(after)
    old_pointers, new_pointers = nodes.pointers(old), nodes.pointers(edited.root)
    assert set(edited.removed) == old_pointers - new_pointers
    assert set(edited.added) == new_pointers - old_pointers


def test_editing_remembers_a_bounded_number_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editing, "_INNER_NODES_MAX", 1)
    nodes = Nodes()
    items = {b"%06d" % number: entry(1) for number in range(20_000)}
    old = nodes.build(items)

    edited = nodes.edit(old, {b"%06d" % number: entry(2) for number in range(0, 20_000, 900)})

    changed = {key: entry(2) if int(key) % 900 == 0 else value for key, value in items.items()}
    assert edited.root == nodes.build(changed)


@pytest.mark.parametrize("seed", range(12))
def test_editing_a_deep_tree_gives_the_tree_that_building_anew_gives(seed: int) -> None:
    chance = random.Random(seed)
    before = {b"%06d" % chance.randrange(10**6): entry(chance.randrange(9)) for _ in range(9000)}
    edits: dict[bytes, bytes | None] = {
        key: chance.choice([None, entry(99), entry(5, NODE_BYTES_MAX // 2)])
        for key in chance.sample(sorted(before), chance.choice([1, 30, 3000]))
    }
    edits |= {b"%06d" % chance.randrange(10**6): entry(7) for _ in range(chance.randrange(500))}
    nodes = Nodes()
    old = nodes.build(before)
    after = {key: value for key, value in (before | edits).items() if value is not None}

    edited = nodes.edit(old, edits)

    new = nodes.build(after)
    assert edited.root == new
    assert set(edited.removed) == nodes.pointers(old) - nodes.pointers(new)
    assert set(edited.added) == nodes.pointers(new) - nodes.pointers(old)


def test_removing_nearly_everything_from_a_deep_tree_leaves_no_tower() -> None:
    nodes = Nodes()
    items = {b"%06d" % number: entry(1) for number in range(20000)}
    old = nodes.build(items)

    edited = nodes.edit(old, dict.fromkeys(sorted(items)[1:]))

    assert edited.root == nodes.build({b"000000": entry(1)})
    assert nodes.edit(old, dict.fromkeys(items)).root is None


def test_changing_one_entry_reads_and_writes_one_path() -> None:
    nodes = Nodes()
    items = {b"%06d" % number: entry(1) for number in range(50000)}
    old = nodes.build(items)

    edited = nodes.edit(old, {b"025000": entry(2)})

    assert len(edited.added) == len(edited.removed) <= 5
    assert len(set(nodes.loaded)) <= 6


@given(TREES, TREES)
def test_diff_is_the_difference_of_the_two_sets(
    left: dict[bytes, bytes], right: dict[bytes, bytes]
) -> None:
    nodes = Nodes()
    before, after = nodes.build(left), nodes.build(right)

    found = [each for batch in drive(diff(before, after), nodes.load) for each in batch]

    assert [each.key for each in found] == sorted(
        key for key in left.keys() | right.keys() if left.get(key) != right.get(key)
    )
    for each in found:
        assert each.before == nodes.items(before).get(each.key)
        assert each.after == nodes.items(after).get(each.key)


def test_diff_reads_no_more_than_what_differs() -> None:
    nodes = Nodes()
    items = {b"%06d" % number: entry(1) for number in range(50000)}
    before = nodes.build(items)
    after = nodes.build(items | {b"025000": entry(2)})
    nodes.loaded.clear()

    found = [each.key for batch in drive(diff(before, after), nodes.load) for each in batch]

    assert found == [b"025000"]
    assert len(nodes.loaded) <= 12


@given(TREES, KEYS, KEYS)
def test_scan_gives_the_keys_of_a_range_and_lookup_each_of_them(
    items: dict[bytes, bytes], first: bytes, end: bytes
) -> None:
    nodes = Nodes()
    root = nodes.build(items)
    if root is None:
        return

    found = [key for batch in drive(scan(root, first, end), nodes.load) for key, _ in batch]

    assert found == sorted(key for key in items if first <= key < end)
    for key in [*items, first]:
        entries = list(drive(lookup(root, key), nodes.load))
        assert [encode_entry(each) for each in entries] == ([items[key]] if key in items else [])


@given(TREES)
def test_the_leaves_of_an_own_tree_are_its_entries_in_order(items: dict[bytes, bytes]) -> None:
    nodes = Nodes()
    root = nodes.build(items)
    if root is None:
        return

    leaves = list(drive(own_leaves(root), nodes.load))

    kept = [(key, leaf.entry(key), stat) for leaf in leaves for key, stat in leaf.stats]
    assert [(key, encode_entry(whole)) for key, whole, _ in kept] == sorted(items.items())
    assert all(
        getattr(stat, name) == getattr(whole, name)
        for _, whole, stat in kept
        for name in EntryStat.__struct_fields__
    )


def test_a_leaf_that_does_not_decode_is_the_declared_error() -> None:
    with pytest.raises(FormatError, match="does not decode"):
        Leaf(encode_node(0, [(b"a", POINTER)])[:-1])
    with pytest.raises(FormatError, match="does not decode"):
        Leaf(encode_node(0, [(b"a", entry(1).replace(b"\xc4", b"\xc3"))])).entry(b"a")


def test_a_subtree_holds_what_lies_beneath_a_directory_and_not_its_neighbours() -> None:
    names = [b"a", b"a\x00b", b"a\x00b\x00c", b"a-b", b"a\x01", b"ab", b"b"]
    nodes = Nodes()
    root = nodes.build({name: entry(1) for name in names})
    assert root is not None

    found = [key for batch in drive(scan(root, *subtree(b"a")), nodes.load) for key, _ in batch]

    assert found == [b"a", b"a\x00b", b"a\x00b\x00c"]


LONG = st.integers(0, 40).map(lambda number: b"d" * (NODE_BYTES_MAX // 2) + b"%02d" % number)


@given(st.sets(LONG, max_size=30), st.dictionaries(LONG, st.none() | ENTRIES, max_size=10))
def test_names_longer_than_a_node_edit_as_they_build(
    names: set[bytes], edits: dict[bytes, bytes | None]
) -> None:
    nodes = Nodes()
    before = dict.fromkeys(names, entry(1))
    after = {key: value for key, value in (before | edits).items() if value is not None}

    edited = nodes.edit(nodes.build(before), edits)

    assert edited.root == nodes.build(after)
    assert sorted(nodes.items(edited.root)) == sorted(after)


def test_names_longer_than_a_node_make_no_tower() -> None:
    nodes = Nodes()
    root = nodes.build({b"d" * 20_000 + b"%04d" % number: entry(1) for number in range(1500)})
    assert root is not None

    assert decode_node(nodes.load(root)).level <= 8


class Chosen(Boundaries):
    """Boundaries that the last byte of a key tells: at so many levels it starts a node."""

    @override
    def starts(self, level: int, key: bytes) -> bool:
        return level < key[-1]


def test_a_tree_that_is_left_with_one_old_branch_keeps_no_tower_of_only_children() -> None:
    nodes = Nodes()
    edit = Editor(Chosen(b""), nodes.load, nodes.put).edit
    old = edit(None, [(b"a\x00", entry(1)), (b"b\x03", entry(1))])
    assert len(old.added) == 7  # two leaves, two towers upon them, and the root

    edited = Editor(Chosen(b""), nodes.load, nodes.put).edit(old.root, [(b"a\x00", None)])

    assert edited.root is not None
    assert decode_node(nodes.load(edited.root)).level == 0
    assert nodes.items(edited.root).keys() == {b"b\x03"}
    assert not edited.added
    assert set(edited.removed) == nodes.pointers(old.root) - {edited.root}


def test_a_node_that_loses_its_start_joins_the_last_node_of_the_branch_before() -> None:
    nodes = Nodes()
    items = {key: entry(1) for key in (b"a\x00", b"b\x01", b"c\x02", b"d\x00")}
    old = Editor(Chosen(b""), nodes.load, nodes.put).edit(None, sorted(items.items()))

    edited = Editor(Chosen(b""), nodes.load, nodes.put).edit(old.root, [(b"c\x02", None)])

    del items[b"c\x02"]
    built = Editor(Chosen(b""), nodes.load, nodes.put).edit(None, sorted(items.items()))
    assert edited.root == built.root


def test_a_tree_that_never_gets_narrower_is_given_up() -> None:
    nodes = Nodes()
    editor = Editor(Chosen(b""), nodes.load, nodes.put)

    with pytest.raises(AssertionError, match="depth"):
        editor.edit(None, [(b"a\xff", entry(1)), (b"b\xff", entry(1))])


@pytest.mark.parametrize("seed", range(6))
def test_diff_of_trees_of_different_shapes_is_the_difference_of_the_two_sets(seed: int) -> None:
    chance = random.Random(seed)
    left = {b"%05d" % chance.randrange(10**5): entry(1) for _ in range(chance.randrange(8000))}
    right = {b"%05d" % chance.randrange(10**5): entry(1) for _ in range(chance.randrange(300))}
    right |= {key: entry(chance.randrange(1, 3)) for key in sorted(left)[2000:4000]}
    nodes = Nodes()

    batches = drive(diff(nodes.build(left), nodes.build(right)), nodes.load)

    assert [each.key for batch in batches for each in batch] == sorted(
        key for key in left.keys() | right.keys() if left.get(key) != right.get(key)
    )


def test_more_differences_than_a_batch_come_in_several() -> None:
    nodes = Nodes()
    items = {b"%06d" % number: entry(1) for number in range(1000)}

    batches = list(drive(diff(None, nodes.build(items)), nodes.load))

    assert [each.key for batch in batches for each in batch] == sorted(items)
    assert len(batches) > 1


def test_edits_that_are_not_in_order_are_a_mistake_of_the_caller() -> None:
    nodes = Nodes()
    root = nodes.build({b"a": entry(1)})
    editor = Editor(BOUNDARIES, nodes.load, nodes.put)

    with pytest.raises(AssertionError, match="rising"):
        editor.edit(root, [(b"c", entry(1)), (b"b", entry(1))])
    assert list(_Ahead([(b"a", None), (b"b", None)])) == [(b"a", None), (b"b", None)]


def test_a_first_tree_of_entries_that_are_not_in_order_is_a_mistake_of_the_caller() -> None:
    nodes = Nodes()
    editor = Editor(BOUNDARIES, nodes.load, nodes.put)

    with pytest.raises(AssertionError, match="rising"):
        editor.edit(None, [(b"b", VALUE), (b"a", VALUE)])
    assert nodes.nodes == {}


def test_editing_nothing_changes_nothing() -> None:
    nodes = Nodes()
    root = nodes.build({b"%06d" % number: entry(1) for number in range(1000)})

    assert nodes.edit(root, {}) == Edited(root, [], [])


@pytest.mark.parametrize("wrong", ["first key", "last key", "a node that stands twice"])
def test_a_node_that_does_not_hold_what_the_one_above_says_is_refused(wrong: str) -> None:
    nodes = Nodes()
    names = {"first key": [b"b", b"c"], "last key": [b"a", b"m"]}.get(wrong, [b"a", b"c"])
    left = nodes.put(encode_node(0, [(name, VALUE) for name in names]))
    right = nodes.put(encode_node(0, [(b"m", VALUE)]))
    second = left if wrong == "a node that stands twice" else right
    root = nodes.put(encode_node(1, [(b"a", encode_pointer(left)), (b"m", encode_pointer(second))]))
    above = nodes.put(encode_node(2, [(b"a", encode_pointer(root))]))

    with pytest.raises(FormatError, match="above it says"):
        list(drive(scan(root), nodes.load))
    with pytest.raises(FormatError, match="above it says"):
        list(drive(diff(None, root), nodes.load))
    with pytest.raises(FormatError, match="above it says"):
        list(drive(lookup(root, b"b" if wrong != "a node that stands twice" else b"n"), nodes.load))
    top = nodes.put(encode_node(3, [(b"b", encode_pointer(above))]))
    with pytest.raises(FormatError, match="above it says"):
        list(drive(node_pointers(top), nodes.load))


VALUE = entry(1)
POINTER = encode_pointer(Pointer(ChunkId(b"i" * 32), PackNonce(b"p" * 16), 0, 0, 1))


@pytest.mark.parametrize(
    ("raw", "level", "reason"),
    [
        (encode_node(0, []), None, "order"),
        (encode_node(0, [(b"a", VALUE), (b"a", VALUE)]), None, "order"),
        (encode_node(0, [(b"b", VALUE), (b"a", VALUE)]), None, "order"),
        (
            encode_node(0, [(b"a" * KEY_BYTES_MAX, VALUE)]).replace(
                b"\xc6\x00\x10\x00\x00", b"\xc6\x00\x10\x00\x01a"
            ),
            None,
            "order",
        ),
        (encode_node(-1, [(b"a", VALUE)]), None, "level"),
        (encode_node(17, [(b"a", VALUE)]), None, "level"),
        (encode_node(0, [(b"a", VALUE)]), 1, "level"),
        (encode_node(1, [(b"a", POINTER)]), 0, "level"),
        (encode_node(0, [(b"a", entry(1, 20_000)), (b"b", entry(1, 20_000))]), 0, "larger"),
        (encode_node(1, [(b"%d" % n + b"a" * 9000, POINTER) for n in range(5)]), 1, "larger"),
        (b"\x92\xcc\x00" + encode_node(0, [(b"a", VALUE)])[2:], None, "encoded"),
        (b"\x92\x00\x91\x92\xc4\x01a" + b"\x91" * 100_000, None, "decode"),
    ],
)
def test_a_node_that_can_be_none_is_refused(raw: bytes, level: int | None, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        decode_node(raw, level)


def test_a_path_that_no_reader_would_take_is_not_written() -> None:
    assert encode_node(0, [(b"a" * KEY_BYTES_MAX, VALUE)])
    with pytest.raises(FormatError, match="longer than"):
        encode_node(0, [(b"a" * (KEY_BYTES_MAX + 1), VALUE)])


def test_a_node_of_one_large_entry_is_a_node() -> None:
    assert decode_node(encode_node(0, [(b"a", entry(1, 100_000))])).level == 0
    names = [b"%d" % number + b"a" * 20_000 for number in range(4)]
    assert decode_node(encode_node(1, [(name, POINTER) for name in names])).level == 1


def test_a_pointer_that_can_be_none_is_refused() -> None:
    node = decode_node(encode_node(1, [(b"a", VALUE)]))

    with pytest.raises(FormatError, match="pointer"):
        children(node)


def test_a_scan_of_an_empty_range_reads_the_root_only() -> None:
    nodes = Nodes()
    root = nodes.build({b"%06d" % number: entry(1) for number in range(1000)})
    assert root is not None
    nodes.loaded.clear()

    assert list(drive(scan(root, b"5", b""), nodes.load)) == []
    assert nodes.loaded == [root]


@given(st.binary(max_size=200))
def test_any_bytes_decode_to_a_node_or_to_the_declared_error(raw: bytes) -> None:
    try:
        node = decode_node(raw)
    except FormatError:
        return
    assert encode_node(node.level, [(key, bytes(value)) for key, value in node.items]) == raw


def test_nodes_are_of_the_size_that_was_meant() -> None:
    nodes = Nodes()
    root = nodes.build({b"%030d" % number: entry(number, 70) for number in range(20000)})
    assert root is not None

    leaves = [pointer for pointer in nodes.pointers(root) if pointer.length > 0]
    mean = sum(pointer.length for pointer in leaves) / len(leaves)

    assert 6000 < mean < 12000
    assert max(pointer.length for pointer in leaves) < 1.1 * NODE_BYTES_MAX
    assert len(children(decode_node(nodes.load(root)))) > 1
