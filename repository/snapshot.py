"""Roots: the object that makes a snapshot, signed by the node and countersigned by the coordinator.

    signed root  = node's signature | body
    root object  = coordinator's signature | countersigning | signed root

The node says what it saved; the coordinator says which place in the volume's history it has, when,
and whether all of it was there. Without the second signature a root does not exist.
"""

from enum import IntEnum
from typing import Final

import msgspec
from blake3 import blake3

from repository.entries import Pointer
from repository.errors import UNDECODABLE, FormatError, UnsupportedFormatError
from repository.ids import ID_BYTES, NodeId, RepositoryId, SessionId, SnapshotId, VolumeId
from repository.keys import SIGNATURE_BYTES, SigningKey, verify

FORMAT: Final = 0
# Files may claim more, together, than a database or a message holds; then this is told.
BYTES_MAX: Final = (1 << 63) - 1

_NODE_DOMAIN: Final = b"tidemark root"
_COORDINATOR_DOMAIN: Final = b"tidemark root countersigned"


class Detection(IntEnum):
    """What told the agent which files had changed."""

    EVENTS = 1
    SWEEP = 2


class Verdict(IntEnum):
    """What the coordinator found when the snapshot was committed."""

    COMPLETED = 1
    PARTIALLY_FAILED = 2


class RootBody(msgspec.Struct, frozen=True, array_like=True):
    """What the node signs. Counts in files and bytes, times in nanoseconds since the epoch.

    `parent` is the hash of the volume's previous root object, empty for the first; `manifest` is
    None for a volume that is empty of everything. `label` is sealed to the coordinator's metadata
    key: names of volume and node, and the errors, which the store must not learn.
    """

    format: int
    repository: RepositoryId
    volume: VolumeId
    node: NodeId
    session: SessionId
    parent: bytes
    manifest: Pointer | None
    refs_hash: bytes
    detection: Detection
    started_ns: int
    total_files: int
    total_bytes: int
    fuzzy_files: int
    errors_total: int
    label: bytes


class Countersigning(msgspec.Struct, frozen=True, array_like=True):
    """What the coordinator adds: place and time in the volume's history, and its own epoch."""

    sequence: int
    committed_ns: int
    incarnation: int
    verdict: Verdict


class Label(msgspec.Struct, frozen=True, array_like=True):
    """The sealed part of a root: what the snapshot is called, and what is missing from it."""

    volume_name: str
    node_name: str
    source: str
    path: bytes
    errors: list[tuple[bytes, str, str]]
    proof: str = ""
    """What told of the changes since the snapshot before, in words for a person."""

    def encode(self) -> bytes:
        """What is sealed."""
        return msgspec.msgpack.encode(self)


class Root(msgspec.Struct, frozen=True):
    """A root object, taken apart and checked."""

    id: SnapshotId
    body: RootBody
    countersigning: Countersigning


_bodies = msgspec.msgpack.Decoder(RootBody)
_labels = msgspec.msgpack.Decoder(Label)


def decode_label(encoded: bytes) -> Label:
    """What `Label.encode` made; FormatError for anything else."""
    try:
        return _labels.decode(encoded)
    except UNDECODABLE as error:
        raise FormatError("a snapshot's label does not decode") from error


def sign_root(body: RootBody, node: SigningKey) -> bytes:
    """The signed root."""
    encoded = msgspec.msgpack.encode(body)
    return node.sign(_NODE_DOMAIN, encoded) + encoded


def peek_signed_root(signed: bytes) -> RootBody:
    """The body, unverified: for the agent's own roots, and to learn whose key to check."""
    try:
        body = _bodies.decode(signed[SIGNATURE_BYTES:])
    except UNDECODABLE as error:
        raise FormatError("a root does not decode") from error
    if body.format != FORMAT:
        raise UnsupportedFormatError(
            f"a root has format {body.format}", hint="upgrade Tidemark to read it"
        )
    return body


def check_signed_root(signed: bytes, node_public: bytes) -> RootBody:
    """The body, if this node signed it."""
    body = peek_signed_root(signed)
    verify(node_public, _NODE_DOMAIN, signed[SIGNATURE_BYTES:], signed[:SIGNATURE_BYTES])
    return body


def snapshot_id(signed: bytes) -> SnapshotId:
    """The id of the snapshot that a signed root makes."""
    return SnapshotId(blake3(signed).digest(ID_BYTES))


def root_hash(root_object: bytes) -> bytes:
    """What the volume's next root holds of this one: 32 bytes."""
    return blake3(root_object).digest()


def countersign(signed: bytes, addition: Countersigning, coordinator: SigningKey) -> bytes:
    """The root object."""
    encoded = msgspec.msgpack.encode((addition, signed))
    return coordinator.sign(_COORDINATOR_DOMAIN, encoded) + encoded


_root_objects = msgspec.msgpack.Decoder(tuple[Countersigning, bytes])


def split_root(root_object: bytes) -> tuple[Countersigning, bytes]:
    """(countersigning, signed root), unverified; FormatError for anything else."""
    try:
        return _root_objects.decode(root_object[SIGNATURE_BYTES:])
    except UNDECODABLE as error:
        raise FormatError("a root object does not decode") from error


def check_countersigned(root_object: bytes, coordinator_public: bytes) -> Root:
    """The root, if this coordinator countersigned it. The node's signature was its to check."""
    addition, signed = split_root(root_object)
    encoded, signature = root_object[SIGNATURE_BYTES:], root_object[:SIGNATURE_BYTES]
    verify(coordinator_public, _COORDINATOR_DOMAIN, encoded, signature)
    return Root(snapshot_id(signed), peek_signed_root(signed), addition)
