"""The manifest's tree: a prolly tree from keys to encoded entries.

Which key starts a node is decided by a keyed hash of the key alone, salted per level, so the tree
depends on what it holds and not on how it came about: editing (`editing.py`) gives the very nodes
that building anew would give, and two trees share all nodes in which they do not differ. A value
never moves a boundary. Nobody who chooses names can steer it, the key being secret; what chance
leaves too large is cut at NODE_BYTES_MAX, a rule that begins afresh at every node's start.

After Dolt's prolly trees (keySplitter), with boundaries at a node's first key and no size term.
"""

from itertools import pairwise
from typing import Final

import msgspec
from blake3 import blake3

from repository.entries import KEY_BYTES_MAX, Pointer
from repository.errors import UNDECODABLE, FormatError

# Entries a node on average: about 8 KiB with the usual 130 bytes an entry (key and value).
FANOUT: Final = 64
NODE_BYTES_MAX: Final = 32 * 1024
# Above the leaves a node holds so many items before its size cuts it: else names that are longer
# than a node (a program may nest directories that deep) would make levels that never get fewer.
INNER_ITEMS_MIN: Final = 4
# 64 ** 8 entries: deeper than any honest tree by far.
LEVEL_MAX: Final = 16

_BOUNDARY: Final = (1 << 32) // FANOUT
_BOUNDARY_CONTEXT: Final = "tidemark 0 tree boundary"

Item = tuple[bytes, bytes]


class Node(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node as stored: its level (0 holds entries) and its items in strictly rising order."""

    level: int
    items: list[tuple[bytes, msgspec.Raw]]


_encode = msgspec.msgpack.Encoder().encode
_decode_node = msgspec.msgpack.Decoder(Node).decode
_decode_pointer = msgspec.msgpack.Decoder(Pointer).decode


class Boundaries:
    """Tells which keys start a node, per level."""

    def __init__(self, secret: bytes) -> None:
        self._keys = [
            blake3(secret + bytes([level]), derive_key_context=_BOUNDARY_CONTEXT).digest()
            for level in range(LEVEL_MAX + 1)
        ]

    def starts(self, level: int, key: bytes) -> bool:
        """Whether this key begins a node of this level."""
        digest = blake3(key, key=self._keys[level]).digest(4)
        return int.from_bytes(digest, "big") < _BOUNDARY


def encode_node(level: int, items: list[Item]) -> bytes:
    """The one encoding of a node; FormatError for a key that no reader would take."""
    if any(len(key) > KEY_BYTES_MAX for key, _ in items):
        raise FormatError(
            f"a path is longer than {KEY_BYTES_MAX} bytes",
            hint="directories are nested thousands deep; exclude or remove them",
        )
    return _encode((level, [(key, msgspec.Raw(value)) for key, value in items]))


def decode_node(encoded: bytes | memoryview, level: int | None = None) -> Node:
    """A node (of this level, if given); FormatError for anything else."""
    try:
        node = _decode_node(encoded)
    except UNDECODABLE as error:
        raise FormatError("a manifest node does not decode") from error
    keys = [key for key, _ in node.items]
    rising = all(left < right for left, right in pairwise(keys))
    if not keys or not rising or max(map(len, keys)) > KEY_BYTES_MAX:
        raise FormatError("a manifest node's keys are not in order")
    if not 0 <= node.level <= LEVEL_MAX or (level is not None and node.level != level):
        raise FormatError("a manifest node stands at the wrong level")
    is_large = len(encoded) > NODE_BYTES_MAX and _size(node) > NODE_BYTES_MAX
    if is_large and len(keys) > items_min(node.level):
        raise FormatError("a manifest node is larger than nodes are")
    if _encode(node) != bytes(encoded):
        raise FormatError("a manifest node is not encoded as nodes are")
    return node


def items_min(level: int) -> int:
    """With so many items a node may have any size."""
    return INNER_ITEMS_MIN if level else 1


def _size(node: Node) -> int:
    return sum(len(key) + len(bytes(value)) for key, value in node.items)


def encode_pointer(pointer: Pointer) -> bytes:
    """The value of an item above level 0."""
    return _encode(pointer)


def decode_pointer(value: msgspec.Raw | bytes) -> Pointer:
    """What `encode_pointer` made; FormatError for anything else."""
    try:
        return _decode_pointer(value)
    except UNDECODABLE as error:
        raise FormatError("a pointer in a manifest node does not decode") from error


def children(node: Node) -> list[Pointer]:
    """The pointers of a node above level 0."""
    return [decode_pointer(value) for _, value in node.items]
