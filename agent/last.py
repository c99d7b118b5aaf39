"""The last manifest of a volume, read from the agent's own state: all of it, or what lies at a key.

Keys that are asked for in order lie in the same few nodes, so those last used stay decoded.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from operator import itemgetter
from typing import Final

from agent.state import State
from repository.entries import Entry, EntryStat, Pointer, subtree
from repository.needs import Answer, drive_batches
from repository.tree import Node, decode_node, decode_pointer
from repository.walking import Leaf, own_leaves

# Decoded nodes that are kept, each about 20 KiB: most of those above the leaves for a million
# entries, and the leaves of the directory at hand and of those that lead there.
_INNER_MAX: Final = 512
_LEAVES_MAX: Final = 16

Stats = list[tuple[bytes, EntryStat]]
_key_of = itemgetter(0)


class LostStateError(Exception):
    """The agent's own copy of the last manifest is incomplete: begin without it."""


class LastManifest:
    """Reads nodes; used by one thread. Every method may raise LostStateError."""

    def __init__(self, state: State, volume_id: bytes, root: Pointer | None) -> None:
        """`root` is None where there was no manifest; then there is nothing at any key."""
        self.root = root
        self._state = state
        self._volume_id = volume_id
        self._inner: dict[bytes, Node | Leaf] = {}
        self._leaves: dict[bytes, Node | Leaf] = {}

    def load(self, pointer: Pointer) -> bytes:
        """One node as it is stored, or a list node of an entry."""
        return self._load([pointer])[0]

    def leaves(self) -> Iterator[Leaf]:
        """All leaves in order of keys."""
        return iter(()) if self.root is None else drive_batches(own_leaves(self.root), self._answer)

    def some_leaves(self, begin: bytes, is_chosen: Callable[[bytes], bool]) -> Iterator[Leaf]:
        """Leaves of which some key is not below `begin`, chosen by the key that each begins with.

        Others are not read.
        """
        pending: list[tuple[bytes, Pointer, int | None]] = []
        if self.root is not None:
            pending.append((b"", self.root, None))
        while pending:
            first, pointer, level = pending.pop()
            if level == 0 and not is_chosen(first):
                continue
            node = _decoded(self.load(pointer), level)
            if isinstance(node, Leaf):
                if level == 0 or is_chosen(first):
                    yield node
                continue
            low = max(0, bisect_right(node.items, begin, key=_key_of) - 1)
            pending += [
                (key, decode_pointer(raw), node.level - 1)
                for key, raw in reversed(node.items[low:])
            ]

    def within(self, key: bytes) -> Iterator[tuple[Leaf, Stats]]:
        """What there is at the key, by itself, and then what is beneath it: parts of leaves.

        Nothing beneath is read before it is asked for.
        """
        beneath = key + b"\0"
        yield from self._parts(key, beneath)
        yield from self._parts(beneath, subtree(key)[1])

    def entry(self, key: bytes) -> Entry | None:
        """The entry of a key."""
        for leaf, _ in self._parts(key, key + b"\0"):
            return leaf.entry(key)
        return None

    def of_inodes(self, inodes: Collection[int]) -> Iterator[tuple[bytes, EntryStat]]:
        """All keys of these inodes. Looks through the whole of the manifest, unless there are none.

        The generation is not compared: a number that was given away again is found, too.
        """
        for leaf in self.leaves() if inodes else ():
            for item in leaf.stats:
                if item[1].inode in inodes:
                    yield item

    def _parts(self, first: bytes, end: bytes | None) -> Iterator[tuple[Leaf, Stats]]:
        """What there is with first <= key < end, never an empty part."""
        pending = [] if self.root is None else self._read([self.root], None)
        while pending:
            node = pending.pop()
            items = _items(node)
            high = len(items) if end is None else bisect_left(items, end, key=_key_of)
            if isinstance(node, Leaf):
                low = bisect_left(items, first, key=_key_of)
                if low < high:
                    yield node, node.stats[low:high]
                continue
            # The child before the first key that is not below `first` may hold it too.
            low = max(0, bisect_right(items, first, key=_key_of) - 1)
            below = [decode_pointer(raw) for _, raw in node.items[low:high]]
            pending += reversed(self._read(below, node.level - 1))

    def _read(self, pointers: list[Pointer], level: int | None) -> list[Node | Leaf]:
        """Nodes of a level; None for the root, which may have any."""
        if len(pointers) > 1:  # a stretch, and not the way to another key
            return [_decoded(encoded, level) for encoded in self._load(pointers)]
        pointer = pointers[0]
        kept, most = (self._inner, _INNER_MAX) if level != 0 else (self._leaves, _LEAVES_MAX)
        if pointer.id not in kept:
            if len(kept) >= most:
                kept.clear()
            kept[pointer.id] = _decoded(self.load(pointer), level)
        return [kept[pointer.id]]

    def _answer(self, pointers: list[Pointer]) -> Answer:
        return [*self._load(pointers)]

    def _load(self, pointers: list[Pointer]) -> list[bytes]:
        nodes = self._state.load_nodes(self._volume_id, [pointer.id for pointer in pointers])
        if any(pointer.id not in nodes for pointer in pointers):
            raise LostStateError
        return [nodes[pointer.id] for pointer in pointers]


def _items(node: Node | Leaf) -> Sequence[tuple[bytes, object]]:
    return node.stats if isinstance(node, Leaf) else node.items


def _decoded(encoded: bytes, level: int | None) -> Node | Leaf:
    if level == 0:
        return Leaf(encoded)
    node = decode_node(encoded, level)
    return node if node.level else Leaf(encoded)
