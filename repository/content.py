"""A file's extents: a few in its entry, many in a tree of list nodes.

List nodes are cut where a chunk's id says so (ids are keyed, so no content can steer it), between
bounds, so that a change within a large file rewrites the list nodes it touches and no others.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from repository.entries import ChunkClass, Content, Extent, Pointer, check_extent
from repository.errors import UNDECODABLE, FormatError
from repository.needs import Need, Reading

# So many extents lie in the entry itself: larger entries would bloat the manifest's leaves.
INLINE_MAX: Final = 16
# Items of a list node: 256 on average between these bounds, about 18 KiB.
_ITEMS_MIN: Final = 64
_ITEMS_MAX: Final = 1024
_ITEMS_MEAN_MASK: Final = 0xFF
LEVEL_MAX: Final = 8

_encode = msgspec.msgpack.Encoder().encode


class _List(msgspec.Struct, frozen=True, array_like=True):
    """A list node: extents at level 0, pointers to list nodes above."""

    level: int
    items: list[msgspec.Raw]


_decode_list = msgspec.msgpack.Decoder(_List).decode
_decode_extent = msgspec.msgpack.Decoder(Extent).decode
_decode_pointer = msgspec.msgpack.Decoder(Pointer).decode


class ContentWriter:
    """Collects a file's extents in order, in bounded memory."""

    def __init__(self, chunking: ChunkClass, put: Callable[[bytes], Pointer]) -> None:
        """`put` stores a list node and says where it lies."""
        self._chunking = chunking
        self._put = put
        self._levels: list[list[bytes]] = [[]]
        self._inline: list[Extent] = []
        self._inline_only = True
        self.pointers: list[Pointer] = []

    def add(self, extent: Extent) -> None:
        """Append the next bytes of the file."""
        if self._inline_only:
            self._inline.append(extent)
            if len(self._inline) <= INLINE_MAX:
                return
            self._inline_only = False
            for held in self._inline:
                self._append(0, _encode(held), held.id)
            self._inline.clear()
            return
        self._append(0, _encode(extent), extent.id)

    def finish(self) -> Content:
        """The content; nothing may be added after it."""
        if self._inline_only:
            return Content(self._chunking, self._inline, None)
        level = 0
        while True:
            if level == len(self._levels) - 1 and len(self._levels[level]) == 1 and level > 0:
                return Content(self._chunking, [], _decode_pointer(self._levels[level][0]))
            self._cut(level)
            level += 1

    def _append(self, level: int, item: bytes, chunk_id: bytes) -> None:
        items = self._levels[level]
        items.append(item)
        at_mark = bool(chunk_id) and chunk_id[-1] & _ITEMS_MEAN_MASK == 0
        if (at_mark and len(items) >= _ITEMS_MIN) or len(items) >= _ITEMS_MAX:
            self._cut(level)

    def _cut(self, level: int) -> None:
        items = self._levels[level]
        if not items:
            return
        pointer = self._put(_encode((level, [msgspec.Raw(item) for item in items])))
        self.pointers.append(pointer)
        items.clear()
        if level + 1 == len(self._levels):
            self._levels.append([])
        self._append(level + 1, _encode(pointer), pointer.id)


def read_extents(content: Content) -> Reading[list[Extent]]:
    """Extents in order, in batches."""
    if content.extents:
        yield content.extents
    if content.list is None:
        return
    pending: list[tuple[int | None, Pointer]] = [(None, content.list)]
    while pending:
        level, pointer = pending.pop()
        answer = yield Need([pointer])
        assert answer is not None
        node = _decode(answer[0], level)
        if node.level == 0:
            yield [_extent(item) for item in node.items]
        else:
            below = [(node.level - 1, _list_pointer(item)) for item in node.items]
            pending += reversed(below)


def _decode(encoded: bytes | memoryview, level: int | None) -> _List:
    try:
        node = _decode_list(encoded)
    except UNDECODABLE as error:
        raise FormatError("a list node does not decode") from error
    if not 0 < len(node.items) <= _ITEMS_MAX:
        raise FormatError("a list node holds nothing, or too much")
    if not 0 <= node.level <= LEVEL_MAX or level not in {None, node.level}:
        raise FormatError("a list node stands at the wrong level")
    if _encode(node) != bytes(encoded):
        raise FormatError("a list node is not encoded as list nodes are")
    return node


def _extent(item: msgspec.Raw) -> Extent:
    try:
        extent = _decode_extent(item)
    except UNDECODABLE as error:
        raise FormatError("an extent does not decode") from error
    check_extent(extent)
    return extent


def _list_pointer(item: msgspec.Raw) -> Pointer:
    try:
        return _decode_pointer(item)
    except UNDECODABLE as error:
        raise FormatError("a pointer in a list node does not decode") from error
