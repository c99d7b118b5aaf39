"""Identities: what names a thing for ever.

A chunk's identity is its content under a key: BLAKE3-256 keyed per repository and per type of
object, so that the bytes of a file can never pass for a manifest node, and so that nobody without
the keys can tell whether a known file is stored.
"""

from enum import IntEnum
from typing import NewType

import msgspec
from blake3 import blake3

RepositoryId = NewType("RepositoryId", bytes)
NodeId = NewType("NodeId", bytes)
VolumeId = NewType("VolumeId", bytes)
SessionId = NewType("SessionId", bytes)
PackNonce = NewType("PackNonce", bytes)
SnapshotId = NewType("SnapshotId", bytes)
ChunkId = NewType("ChunkId", bytes)

ID_BYTES = 16  # 128 random or hashed bits: no collision in any fleet
CHUNK_ID_BYTES = 32

# What any reader of the repository relies on being different from all other uses of BLAKE3.
_VOLUME_CONTEXT = "tidemark 0 volume identity"
_STATED_CONTEXT = "tidemark 0 stated volume identity"


class ObjectType(IntEnum):
    """Which kind of object a chunk holds; part of a frame's associated data and of its id's key."""

    DATA = 1
    NODE = 2
    LIST = 3


class IdKeys(msgspec.Struct, frozen=True, array_like=True):
    """The keys, 32 bytes each, under which chunks of each type get their ids."""

    data: bytes
    node: bytes
    list: bytes

    def chunk_id(self, kind: ObjectType, content: bytes | memoryview | bytearray) -> ChunkId:
        """The id of a chunk of this type and content."""
        # The types number the fields from 1; a look-up by position is what many small files take.
        key = (self.data, self.node, self.list)[kind - 1]
        return ChunkId(blake3(content, key=key).digest())


def volume_id(node: NodeId, engine: str, name: str) -> VolumeId:
    """Identity of a volume outside Kubernetes: the node, what provides it, and its name there."""
    hasher = blake3(derive_key_context=_VOLUME_CONTEXT)
    for part in (node, engine.encode(), name.encode()):
        hasher.update(len(part).to_bytes(4, "big"))
        hasher.update(part)
    return VolumeId(hasher.digest(ID_BYTES))


def stated_volume_id(uid: str) -> VolumeId:
    """Identity of a volume whose own uid is known, the same on whatever node it is."""
    return VolumeId(blake3(uid.encode(), derive_key_context=_STATED_CONTEXT).digest(ID_BYTES))
