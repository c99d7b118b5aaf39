"""A pack made by hand, and the keys around it."""

from typing import NamedTuple

from repository.frames import (
    TAG_BYTES,
    FrameCipher,
    FrameEncoder,
    FrameIdentity,
    Location,
    PlainChunk,
)
from repository.ids import IdKeys, NodeId, ObjectType, PackNonce, RepositoryId, SessionId
from repository.keys import SigningKey, UnsealingKey, frame_key, pack_key, seal
from repository.layout import DATA_KEY_INFO, pack_name
from repository.pack import FrameEntry, PackKind, PackSeal, encode_head

REPOSITORY = RepositoryId(b"R" * 16)
NODE = NodeId(b"N" * 16)
SESSION = SessionId(b"S" * 16)
NONCE = PackNonce(b"p" * 16)
IDS = IdKeys(b"d" * 32, b"n" * 32, b"l" * 32)
DATA_KEY = b"k" * 32
FOOTER_KEY = b"f" * 32
SIGNING = SigningKey(b"s" * 32)
RECOVERY = UnsealingKey(b"u" * 32)
METADATA = UnsealingKey(b"m" * 32)


class Made(NamedTuple):
    """A whole pack, its name, and where the chunks in it lie."""

    name: str
    raw: bytes
    locations: list[Location]
    frames: list[FrameEntry]


def pack_seal(nonce: PackNonce = NONCE) -> PackSeal:
    return PackSeal(
        repository=REPOSITORY,
        nonce=nonce,
        session=SESSION,
        node=NODE,
        sealed_data_key=seal(RECOVERY.public, DATA_KEY, DATA_KEY_INFO + REPOSITORY),
        pack_key=pack_key(DATA_KEY, nonce),
        metadata_public=METADATA.public,
        signing=SIGNING,
    )


def make_pack(
    frames: list[tuple[ObjectType, list[bytes]]], kind: PackKind, nonce: PackNonce = NONCE
) -> Made:
    """A pack of these frames of chunks."""
    random = b"r" * 16
    body = bytearray(encode_head(kind, random))
    entries: list[FrameEntry] = []
    locations: list[Location] = []
    for number, (chunk_kind, contents) in enumerate(frames):
        chunks = [PlainChunk(IDS.chunk_id(chunk_kind, each), each) for each in contents]
        plaintext = FrameEncoder().encode(chunks)
        sealed = bytearray(len(plaintext) + TAG_BYTES)
        key = frame_key(pack_key(DATA_KEY, nonce), number)
        identity = FrameIdentity(nonce, number)
        FrameCipher(REPOSITORY).seal_into(sealed, plaintext, key, identity, chunk_kind)
        table = [(len(chunk.data), chunk.id) for chunk in chunks]
        entries.append(FrameEntry(0, number, chunk_kind, len(body), len(sealed), table))
        locations += [
            Location(nonce, number, index, length) for index, (length, _) in enumerate(table)
        ]
        body += sealed
    trailer, digest = pack_seal(nonce).finish(body, entries, FOOTER_KEY)
    return Made(pack_name(random, digest), bytes(body) + trailer, locations, entries)
