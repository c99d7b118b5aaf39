"""Walking manifests: scan a range, look one key up, compare two trees.

Readers do no I/O themselves (`needs.py`) and look at no more nodes than the answer takes.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Generator
from typing import Final, NamedTuple

import msgspec

from repository.entries import Entry, EntryStat, Pointer, decode_entry
from repository.errors import UNDECODABLE, FormatError
from repository.needs import Answer, Need, Reading
from repository.tree import Node, children, decode_node, decode_pointer

Batch = list[tuple[bytes, Entry]]


def _read(pointers: list[Pointer], level: int | None) -> Generator[Need, Answer | None, list[Node]]:
    encoded = yield Need(pointers)
    assert encoded is not None
    return [decode_node(node, level) for node in encoded]


def _check_keys(node: Node, first: bytes, end: bytes | None) -> None:
    """FormatError unless a node holds the keys that the one above it says.

    With this no node can stand twice in one tree, so a walk of it ends, whoever made it.
    """
    if node.items[0][0] != first or (end is not None and node.items[-1][0] >= end):
        raise FormatError("a manifest node does not hold the keys that the one above it says")


def _read_below(
    node: Node, end: bytes | None, low: int, high: int
) -> Generator[Need, Answer | None, list[tuple[Node, bytes | None]]]:
    """Children low to high of a node whose keys are below `end`, each with its own such end."""
    keys = [key for key, _ in node.items]
    ends = [*keys[1:], end][low:high]
    pointers = [decode_pointer(raw) for _, raw in node.items[low:high]]
    below = yield from _read(pointers, node.level - 1)
    for child, first, its_end in zip(below, keys[low:high], ends, strict=True):
        _check_keys(child, first, its_end)
    return list(zip(below, ends, strict=True))


class _StatNode(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node of level 0, and of each entry only its beginning."""

    level: int
    items: list[tuple[bytes, EntryStat]]


class _EntryNode(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node of level 0 with its entries decoded."""

    level: int
    items: list[tuple[bytes, Entry]]


_decode_stats = msgspec.msgpack.Decoder(_StatNode).decode
_decode_entries = msgspec.msgpack.Decoder(_EntryNode).decode


class Leaf:
    """A node of level 0 from the reader's own state, which vouches for it: no second look.

    Of most entries nobody needs more than `stats`, so the rest is decoded when it is asked for.
    """

    __slots__ = ("_encoded", "_entries", "stats")

    def __init__(self, encoded: bytes | memoryview) -> None:
        self._encoded = encoded
        self._entries: dict[bytes, Entry] | None = None
        try:
            self.stats: list[tuple[bytes, EntryStat]] = _decode_stats(encoded).items
            """Key and stat of each entry, in order."""
        except UNDECODABLE as error:
            raise FormatError("a manifest node does not decode") from error

    def entry(self, key: bytes) -> Entry:
        """The whole of one of its entries; FormatError where that does not decode."""
        if self._entries is None:
            try:
                self._entries = dict(_decode_entries(self._encoded).items)
            except UNDECODABLE as error:
                raise FormatError("an entry does not decode") from error
        return self._entries[key]


def own_leaves(root: Pointer) -> Reading[Leaf]:
    """All leaves in order of keys, of a tree that the reader itself has kept."""
    encoded = yield Need([root])
    assert encoded is not None
    pending = [(decode_node(encoded[0]).level, encoded[0])]
    while pending:
        level, node = pending.pop()
        if level == 0:
            yield Leaf(node)
            continue
        below = yield Need(children(decode_node(node, level)))
        assert below is not None
        pending += [(level - 1, each) for each in reversed(below)]


def scan(root: Pointer, first: bytes = b"", end: bytes | None = None) -> Reading[Batch]:
    """Entries with first <= key < end in order, a batch per node."""
    (top,) = yield from _read([root], None)
    pending: list[tuple[Node, bytes | None]] = [(top, None)]
    while pending:
        node, its_end = pending.pop()
        keys = [key for key, _ in node.items]
        low = bisect_left(keys, first)
        high = len(keys) if end is None else bisect_left(keys, end)
        if node.level == 0:
            if low < high:
                yield [(key, decode_entry(raw)) for key, raw in node.items[low:high]]
            continue
        # The child before the first key that is not below `first` may hold it too.
        low = max(0, bisect_right(keys, first) - 1)
        if low < high:
            pending += reversed((yield from _read_below(node, its_end, low, high)))


def lookup(root: Pointer, key: bytes) -> Reading[Entry]:
    """The entry of a key; nothing where there is none."""
    (node,) = yield from _read([root], None)
    while True:
        index = bisect_right(node.items, key, key=lambda item: item[0]) - 1
        if index < 0:
            return
        found, raw = node.items[index]
        if node.level == 0:
            if found == key:
                yield decode_entry(raw)
            return
        ((node, _),) = yield from _read_below(node, None, index, index + 1)


def node_pointers(root: Pointer) -> Reading[list[Pointer]]:
    """The pointers of all nodes, a batch per node of the level above, the root first."""
    yield [root]
    (top,) = yield from _read([root], None)
    pending: list[tuple[Node, bytes | None]] = [(top, None)]
    while pending:
        node, end = pending.pop()
        if node.level > 0:
            yield children(node)
            if node.level > 1:
                pending += yield from _read_below(node, end, 0, len(node.items))


class Difference(NamedTuple):
    """A key whose entry differs: None on the side that has none."""

    key: bytes
    before: Entry | None
    after: Entry | None


class _Subtree(NamedTuple):
    """What comes next on one side of a comparison, unread."""

    key: bytes
    level: int
    pointer: Pointer


_Side = list["_Subtree | tuple[bytes, msgspec.Raw]"]


def diff(before: Pointer | None, after: Pointer | None) -> Reading[list[Difference]]:
    """What differs, in order of keys. Subtrees that both sides share are never read."""
    if before is not None and after is not None and before.id == after.id:
        return
    left = [] if before is None else _stacked((yield from _read([before], None))[0])
    right = [] if after is None else _stacked((yield from _read([after], None))[0])
    found: list[Difference] = []
    while left or right:
        unread = _to_read(left, right)
        for side in unread:
            subtree = side.pop()
            assert isinstance(subtree, _Subtree)
            (node,) = yield from _read([subtree.pointer], subtree.level)
            _check_keys(node, subtree.key, side[-1][0] if side else None)
            side.extend(_stacked(node))
        if unread:
            continue
        difference = _step(left, right)
        if difference is not None:
            found.append(difference)
        if len(found) >= _DIFFERENCES_BATCH:
            yield found
            found = []
    if found:
        yield found


_DIFFERENCES_BATCH: Final = 256


def _stacked(node: Node) -> _Side:
    """A node's items with the first on top."""
    if node.level == 0:
        return list(reversed(node.items))
    below = node.level - 1
    return [_Subtree(key, below, decode_pointer(raw)) for key, raw in reversed(node.items)]


def _to_read(left: _Side, right: _Side) -> list[_Side]:
    """Which sides must be read before the next step can be taken."""
    if not left or not right:
        return [side for side in (left, right) if side and isinstance(side[-1], _Subtree)]
    mine, theirs = left[-1], right[-1]
    if isinstance(mine, _Subtree) and isinstance(theirs, _Subtree):
        return _unshared(left, mine, right, theirs)
    # An entry that comes before an unread subtree needs no look into it.
    if isinstance(mine, _Subtree) and mine.key <= theirs[0]:
        return [left]
    if isinstance(theirs, _Subtree) and theirs.key <= mine[0]:
        return [right]
    return []


def _unshared(left: _Side, mine: _Subtree, right: _Side, theirs: _Subtree) -> list[_Side]:
    if mine.pointer.id == theirs.pointer.id:
        return []
    if (mine.level, mine.key) == (theirs.level, theirs.key):
        return [left, right]
    # The higher one, since the other may be part of it; of equals the one that comes first.
    first = mine.level > theirs.level or (mine.level == theirs.level and mine.key < theirs.key)
    return [left if first else right]


def _step(left: _Side, right: _Side) -> Difference | None:
    """Take what comes next: an entry from one side, or the same key or subtree from both."""
    if left and right and left[-1][0] == right[-1][0]:
        mine, theirs = left.pop(), right.pop()
        if isinstance(mine, _Subtree) or isinstance(theirs, _Subtree) or mine[1] == theirs[1]:
            return None
        return Difference(mine[0], decode_entry(mine[1]), decode_entry(theirs[1]))
    if not right or (left and left[-1][0] < right[-1][0]):
        key, raw = _entry(left.pop())
        return Difference(key, decode_entry(raw), None)
    key, raw = _entry(right.pop())
    return Difference(key, None, decode_entry(raw))


def _entry(item: "_Subtree | tuple[bytes, msgspec.Raw]") -> tuple[bytes, msgspec.Raw]:
    assert not isinstance(item, _Subtree)
    return item
