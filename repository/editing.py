"""Editing the manifest's tree: a new tree out of an old one and sorted edits.

Only nodes that the edits change are read and written. The result is, node by node, the tree that
building from nothing would give; tests compare the two.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from typing_extensions import override

from repository.entries import Pointer
from repository.tree import (
    LEVEL_MAX,
    NODE_BYTES_MAX,
    Boundaries,
    Item,
    Node,
    decode_node,
    decode_pointer,
    encode_node,
    encode_pointer,
    items_min,
)

Edit = tuple[bytes, bytes | None]

# Nodes above the one being edited that are kept decoded: a path of any depth, and its neighbours.
_INNER_NODES_MAX: Final = 256


class Edited(NamedTuple):
    """The root after an edit (None: empty), and the nodes that came and went with it."""

    root: Pointer | None
    added: list[Pointer]
    removed: list[Pointer]


class _Cutter:
    """Cuts a rising sequence of items of one level into nodes."""

    def __init__(
        self, level: int, boundaries: Boundaries, emit: Callable[[list[Item]], None]
    ) -> None:
        self._level = level
        self._items_min = items_min(level)
        self._starts = boundaries.starts
        self._emit = emit
        self._items: list[Item] = []
        self._size = 0

    def add(self, key: bytes, value: bytes) -> None:
        size = len(key) + len(value)
        is_full = len(self._items) >= self._items_min and self._size + size > NODE_BYTES_MAX
        if is_full or (self._items and self._starts(self._level, key)):
            self.flush()
        self._items.append((key, value))
        self._size += size

    def flush(self) -> None:
        if self._items:
            self._emit(self._items)
            self._items, self._size = [], 0


def _first(_: Node) -> int:
    return 0


def _last(node: Node) -> int:
    return len(node.items) - 1


class _Cursor:
    """Walks the nodes of one level of a stored tree."""

    def __init__(self, load: Callable[[Pointer], bytes], root: Pointer) -> None:
        self._load = load
        self._root = root
        self._root_node = decode_node(load(root))
        # Nodes above the one that is being edited come again and again while edits go along.
        self._inner: dict[bytes, Node] = {}
        self.root_level = self._root_node.level
        self._path: list[tuple[Node, int]] = []
        self.level = 0
        self.pointer = root
        self.node = self._root_node

    def _read(self, pointer: Pointer, level: int) -> Node:
        node = self._inner.get(pointer.id)
        if node is None:
            node = decode_node(self._load(pointer), level)
            if level > self.level:
                if len(self._inner) >= _INNER_NODES_MAX:
                    self._inner.clear()
                self._inner[pointer.id] = node
        return node

    def _descend(self, pointer: Pointer, node: Node, pick: Callable[[Node], int]) -> None:
        while node.level > self.level:
            index = pick(node)
            self._path.append((node, index))
            pointer = decode_pointer(node.items[index][1])
            node = self._read(pointer, node.level - 1)
        self.pointer, self.node = pointer, node

    def seek(self, level: int, key: bytes) -> None:
        """To the node of this level that holds the key, or would."""
        if level != self.level:
            self.level = level
        self._path.clear()
        self._descend(
            self._root,
            self._root_node,
            lambda node: max(0, bisect_right(node.items, key, key=lambda item: item[0]) - 1),
        )

    def next_key(self) -> bytes | None:
        """The first key of the node after this one."""
        for node, index in reversed(self._path):
            if index + 1 < len(node.items):
                return node.items[index + 1][0]
        return None

    def move(self, step: int) -> bool:
        """To the next (1) or previous (-1) node of the level; False, and no move, at the end."""
        for depth in reversed(range(len(self._path))):
            node, index = self._path[depth]
            if 0 <= index + step < len(node.items):
                self._path[depth:] = [(node, index + step)]
                pointer = decode_pointer(node.items[index + step][1])
                inner = self._read(pointer, node.level - 1)
                self._descend(pointer, inner, _first if step > 0 else _last)
                return True
        return False

    @property
    def first_key(self) -> bytes:
        return self.node.items[0][0]


class _Ahead(Iterator[Edit]):
    """Edits with a look at the next one."""

    def __init__(self, edits: Iterable[Edit]) -> None:
        self._edits = iter(edits)
        self.head: Edit | None = next(self._edits, None)

    @override
    def __next__(self) -> Edit:
        if self.head is None:
            raise StopIteration
        taken, self.head = self.head, next(self._edits, None)
        if self.head is not None and self.head[0] <= taken[0]:
            raise AssertionError("edits must be in strictly rising order of keys")
        return taken


def _merge(node: Node, edits: _Ahead, end: bytes | None) -> Iterator[Item]:
    """The items of a node with the edits before `end` applied."""
    for key, raw in node.items:
        while edits.head is not None and edits.head[0] < key:
            inserted, value = next(edits)
            if value is not None:
                yield inserted, value
        if edits.head is not None and edits.head[0] == key:
            value = next(edits)[1]
            if value is not None:
                yield key, value
        else:
            yield key, bytes(raw)
    while edits.head is not None and (end is None or edits.head[0] < end):
        inserted, value = next(edits)
        if value is not None:
            yield inserted, value


class Editor:
    """Makes a new tree out of an old one and sorted edits, touching only what they change.

    `load` gives the bytes of an old node, `put` takes those of a new one and says where it lies.
    """

    def __init__(
        self,
        boundaries: Boundaries,
        load: Callable[[Pointer], bytes],
        put: Callable[[bytes], Pointer],
    ) -> None:
        self._boundaries = boundaries
        self._load = load
        self._put = put
        # Insertion-ordered sets.
        self._added: dict[Pointer, None] = {}
        self._removed: dict[Pointer, None] = {}
        # New nodes with one child only, which must not stay if they end up as the root.
        self._only_children: dict[Pointer, Pointer] = {}

    def edit(self, root: Pointer | None, edits: Iterable[Edit]) -> Edited:
        """Apply edits (a None value removes a key) in strictly rising order of keys."""
        if root is None:
            items = ((key, value) for key, value in _Ahead(edits) if value is not None)
            return self._result(self._build(0, items))
        cursor = _Cursor(self._load, root)
        ahead = _Ahead(edits)
        for level in range(cursor.root_level):
            ahead = _Ahead(self._edit_level(cursor, level, ahead))
        if ahead.head is None:
            return self._result(root)
        return self._result(self._edit_root(cursor, ahead))

    def _result(self, root: Pointer | None) -> Edited:
        for shared in self._added.keys() & self._removed.keys():
            del self._added[shared], self._removed[shared]
        return Edited(root, list(self._added), list(self._removed))

    def _store(self, level: int, items: list[Item]) -> Pointer:
        pointer = self._put(encode_node(level, items))
        self._added[pointer] = None
        if level > 0 and len(items) == 1:
            self._only_children[pointer] = decode_pointer(items[0][1])
        return pointer

    def _build(self, level: int, items: Iterable[Item]) -> Pointer | None:
        """A tree of these items, whose lowest level is `level`."""
        while True:
            pointers: list[Item] = []
            cutter = _Cutter(level, self._boundaries, self._storing(level, pointers))
            for key, value in items:
                cutter.add(key, value)
            cutter.flush()
            if len(pointers) <= 1:
                return decode_pointer(pointers[0][1]) if pointers else None
            level, items = level + 1, pointers
            if level > LEVEL_MAX:
                raise AssertionError("a tree of this depth cannot come about by chance")

    def _storing(self, level: int, pointers: list[Item]) -> Callable[[list[Item]], None]:
        def emit(items: list[Item]) -> None:
            pointers.append((items[0][0], encode_pointer(self._store(level, items))))

        return emit

    def _edit_level(self, cursor: _Cursor, level: int, edits: _Ahead) -> list[Edit]:
        """Edit one level below the root's; the edits that follow for the level above."""
        above: list[Edit] = []
        while edits.head is not None:
            cursor.seek(level, edits.head[0])
            if self._start_moves(level, cursor.first_key, edits.head):
                cursor.move(-1)
            above += self._edit_run(cursor, level, edits)
        return above

    def _start_moves(self, level: int, start: bytes, edit: Edit) -> bool:
        """Whether an edit may undo the cut before the node that starts with this key."""
        key, value = edit
        return key == start and (value is None or not self._boundaries.starts(level, key))

    def _edit_run(self, cursor: _Cursor, level: int, edits: _Ahead) -> list[Edit]:
        """Cut anew from the cursor's node on, until old and new boundaries meet."""
        old: dict[bytes, bytes] = {}
        new: list[Item] = []
        cutter = _Cutter(level, self._boundaries, self._storing(level, new))
        while True:
            self._removed[cursor.pointer] = None
            old[cursor.first_key] = encode_pointer(cursor.pointer)
            end = cursor.next_key()
            for key, value in _merge(cursor.node, edits, end):
                cutter.add(key, value)
            if end is None or self._meets(level, end, edits.head):
                break
            cursor.move(1)
        cutter.flush()
        changed: dict[bytes, bytes | None] = dict.fromkeys(old)
        changed.update(new)
        return sorted((key, value) for key, value in changed.items() if value != old.get(key))

    def _meets(self, level: int, start: bytes, head: Edit | None) -> bool:
        """Whether the node that starts there is cut as before, whatever went before it."""
        if not self._boundaries.starts(level, start):
            return False
        return head is None or not self._start_moves(level, start, head)

    def _edit_root(self, cursor: _Cursor, edits: _Ahead) -> Pointer | None:
        level = cursor.root_level
        cursor.seek(level, b"")
        self._removed[cursor.pointer] = None
        merged = _merge(cursor.node, edits, None)
        first = next(merged, None)
        if first is None:
            return None
        second = next(merged, None)
        if level == 0 or second is not None:
            rest = [first] if second is None else chain([first, second], merged)
            return self._build(level, rest)
        return self._collapse(decode_pointer(first[1]))

    def _collapse(self, root: Pointer) -> Pointer:
        """The lowest node that holds everything: an only child needs no parent."""
        while True:
            if root in self._added:
                child = self._only_children.get(root)
                if child is None:
                    return root
                del self._added[root]
            else:
                node = decode_node(self._load(root))
                if node.level == 0 or len(node.items) > 1:
                    return root
                self._removed[root] = None
                child = decode_pointer(node.items[0][1])
            root = child
