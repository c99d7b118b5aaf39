"""The manifest's tree: editing equals building anew, and every reader agrees with a dict."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.editing import Edited, Editor
from repository.entries import Entry, EntryType, Pointer, encode_entry, subtree
from repository.errors import FormatError
from repository.ids import IdKeys, ObjectType, PackNonce
from repository.needs import drive
from repository.tree import NODE_BYTES_MAX, Boundaries, children, decode_node, encode_node
from repository.walking import diff, lookup, node_pointers, scan

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
        Entry(EntryType.SYMLINK, 0, 0, 0, 0, size, 0, 0, 1, 0, 0, b"x" * padding, None, None, None)
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


def test_a_subtree_holds_what_lies_beneath_a_directory_and_not_its_neighbours() -> None:
    names = [b"a", b"a\x00b", b"a\x00b\x00c", b"a-b", b"a\x01", b"ab", b"b"]
    nodes = Nodes()
    root = nodes.build({name: entry(1) for name in names})
    assert root is not None

    found = [key for batch in drive(scan(root, *subtree(b"a")), nodes.load) for key, _ in batch]

    assert found == [b"a", b"a\x00b", b"a\x00b\x00c"]


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
