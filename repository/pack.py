"""Packs: the unit of upload. A body of sealed frames, a sealed footer, and a tail of fixed length.

    head     "TIDEMARK" | format u16 | kind u8 | zeros[5] | random[16]          32 bytes
    body     sealed frames one after the other, then zeros up to the padded size
    footer   AES-GCM under a random key: where each frame lies, its chunks' lengths and ids
    origins  who wrote the frames, and the footer's key, wrapped to those who may open it
    tail     lengths, signer, BLAKE3 of all before it and of footer and origins alone, signature

Reading from the end, one or two reads index a pack. The footer opens with the key of any pack
nonce in it, or with the coordinator's metadata key; the signature says which node (or coordinator)
answers for it, and holds for the end alone, too: who reads no more than that still knows that
footer and origins are as they were written. Names hold random bits and a hash, so no name is ever
used for two contents.

A pack key opens its origin's footer key: that of the pack in which the origin's frames were first
stored, and so what it is wrapped to stays as the node made it. Who copies frames into a new pack
holds no pack key; the new pack's footer key is wrapped to the origin's footer key.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3

from repository.errors import (
    UNDECODABLE,
    DamagedError,
    FormatError,
    UnsupportedFormatError,
    WrongKeyError,
)
from repository.frames import CHUNKS_MAX, RAW_BYTES_MAX, TAG_BYTES, FrameIdentity
from repository.ids import (
    CHUNK_ID_BYTES,
    ID_BYTES,
    ChunkId,
    NodeId,
    ObjectType,
    PackNonce,
    RepositoryId,
    SessionId,
)
from repository.keys import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    PackKey,
    SigningKey,
    UnsealingKey,
    seal,
    unwrap,
    verify,
    wrap,
)

FORMAT: Final = 0
DATA_PACK_BYTES: Final = 32 * 1024 * 1024
METADATA_PACK_BYTES: Final = 8 * 1024 * 1024
# Nothing larger is accepted, whoever signs it: one full pack, its footer and padding fit twice.
PACK_BYTES_MAX: Final = 96 * 1024 * 1024
# A full pack of chunks of one byte has a footer larger than its body.
FOOTER_BYTES_MAX: Final = 40 * 1024 * 1024

_MAGIC: Final = b"TIDEMARK"
_END: Final = b"TMPKEND0"
_HEAD: Final = struct.Struct(">8sHB5x16s")
_TAIL: Final = struct.Struct(f">QIIB{ID_BYTES}s32s32s{SIGNATURE_BYTES}s8s")
_SIGNED_TAIL_BYTES: Final = 8 + 4 + 4 + 1 + ID_BYTES + 32 + 32
_DOMAIN: Final = b"tidemark pack"
_FOOTER_CONTEXT: Final = b"tidemark pack footer"
# The random bits of the pack follow: an origin's footer key wraps one key for each copy.
_RELAY_CONTEXT: Final = b"tidemark pack footer relayed"

HEAD_BYTES: Final = _HEAD.size
TAIL_BYTES: Final = _TAIL.size


class PackKind(IntEnum):
    """Data and metadata never share a pack, so that metadata can be kept near."""

    DATA = 1
    METADATA = 2

    def holds(self, kind: ObjectType) -> bool:
        """Whether chunks of this type belong into packs of this kind."""
        return (self is PackKind.DATA) == (kind is ObjectType.DATA)


class Signer(IntEnum):
    """Who answers for a pack: the node that wrote it, the coordinator for a repacked one."""

    NODE = 1
    COORDINATOR = 2


class FrameEntry(msgspec.Struct, frozen=True, array_like=True):
    """A frame in a footer: which, what type, where (bytes from the start), and its chunks."""

    origin: int
    number: int
    kind: ObjectType
    offset: int
    length: int
    chunks: list[tuple[int, ChunkId]]


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """Where frames of one pack nonce come from, and what opens them.

    `wrapped_footer_key` opens with the pack key to the origin's footer key. In a pack of copied
    frames that one opens `relayed_footer_key` to the pack's footer key; elsewhere it is the same.
    """

    nonce: PackNonce
    session: SessionId
    node: NodeId
    sealed_data_key: bytes
    wrapped_footer_key: bytes
    relayed_footer_key: bytes = b""

    def relayed(self, origin_key: bytes, footer_key: bytes, random: bytes) -> "Origin":
        """This origin in a pack with these random bits and this footer key."""
        relay = wrap(origin_key, footer_key, _RELAY_CONTEXT + random)
        return msgspec.structs.replace(self, relayed_footer_key=relay)


class FooterKeys(NamedTuple):
    """A pack's footer key, and the footer key of each of its origins, in their order."""

    pack: bytes
    origins: list[bytes]


class _Origins(msgspec.Struct, frozen=True, array_like=True):
    footer_keys_for_metadata: bytes
    origins: list[Origin]


# Public keys of those who may sign packs, by what they are and their id.
Signers = Mapping[tuple[Signer, bytes], bytes]


class PackTail(msgspec.Struct, frozen=True):
    """The fixed end of a pack: what to read next, and who signed.

    `digest` is of all before the tail, `end_digest` of footer and origins alone.
    """

    size: int
    body_length: int
    footer_length: int
    origins_length: int
    signer: Signer
    signer_id: bytes
    digest: bytes
    end_digest: bytes
    signature: bytes

    @property
    def footer_offset(self) -> int:
        """Bytes from the start of the pack to its footer; origins and tail follow it."""
        return HEAD_BYTES + self.body_length

    def check_signer(self, repository: RepositoryId, signers: "Signers") -> None:
        """DamagedError unless one of these signed the pack for this repository."""
        public = signers.get((self.signer, self.signer_id))
        if public is None:
            raise DamagedError(
                f"a pack is signed by an unknown {self.signer.name.lower()} {self.signer_id.hex()}",
                hint="its certificate is missing from the repository",
            )
        self.check_signature(repository, public)

    def check_signature(self, repository: RepositoryId, public: bytes) -> None:
        """DamagedError unless the holder of this key signed the pack for this repository."""
        fields = _TAIL.pack(
            self.body_length,
            self.footer_length,
            self.origins_length,
            self.signer,
            self.signer_id,
            self.digest,
            self.end_digest,
            self.signature,
            _END,
        )
        verify(public, _DOMAIN, repository + fields[:_SIGNED_TAIL_BYTES], self.signature)


class PackIndex(msgspec.Struct, frozen=True):
    """An opened footer."""

    origins: list[Origin]
    frames: list[FrameEntry]

    def identity(self, entry: FrameEntry) -> FrameIdentity:
        """The identity of a frame of this pack."""
        return FrameIdentity(self.origins[entry.origin].nonce, entry.number)

    def table(self) -> "FrameTable":
        """Where each frame lies, without its chunks."""
        places: dict[PackNonce, dict[int, tuple[int, int]]] = {
            origin.nonce: {} for origin in self.origins
        }
        for entry in self.frames:
            nonce = self.origins[entry.origin].nonce
            places[nonce][entry.number] = (entry.offset, entry.length)
        return FrameTable(places)


class FrameTable(msgspec.Struct, frozen=True, array_like=True):
    """Offset and length in bytes of each frame of a pack, by pack nonce and frame number."""

    places: dict[PackNonce, dict[int, tuple[int, int]]]

    def encode(self) -> bytes:
        """As the catalog and a grant carry it."""
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(encoded: bytes) -> "FrameTable":
        """What `encode` made; FormatError for anything else."""
        try:
            return _frame_tables.decode(encoded)
        except UNDECODABLE as error:
            raise FormatError("a frame table does not decode") from error

    def find(self, identity: FrameIdentity) -> tuple[int, int] | None:
        """(offset, length) of a frame, None where this pack does not hold it."""
        return self.places.get(identity.nonce, {}).get(identity.number)


_origins = msgspec.msgpack.Decoder(_Origins)
_footers = msgspec.msgpack.Decoder(list[FrameEntry])
_frame_tables = msgspec.msgpack.Decoder(FrameTable)


def padded(size: int) -> int:
    """The size to which a pack is padded: multiples of 512, and of 1/64 of its magnitude.

    Seven significant binary digits hide the exact length at a cost of at most 1.6 %, as in Padmé
    (PURBs, PETS 2019) with a fixed number of digits.
    """
    step = max(512, 1 << max(0, size.bit_length() - 7))
    return -(-size // step) * step


def encode_head(kind: PackKind, random: bytes) -> bytes:
    """The first HEAD_BYTES of a pack."""
    return _HEAD.pack(_MAGIC, FORMAT, kind, random)


def decode_head(head: bytes) -> tuple[PackKind, bytes]:
    """Kind and random bits; FormatError where this is no pack, or of a newer format."""
    try:
        magic, version, kind, random = _HEAD.unpack(head[:HEAD_BYTES])
    except struct.error as error:
        raise FormatError("a pack is shorter than its head") from error
    if magic != _MAGIC:
        raise FormatError("these bytes are not a pack")
    if version != FORMAT:
        raise UnsupportedFormatError(
            f"a pack has format {version}", hint="upgrade Tidemark to read it"
        )
    try:
        return PackKind(kind), random
    except ValueError as error:
        raise FormatError(f"a pack is of an unknown kind {kind}") from error


class PackSeal(msgspec.Struct, frozen=True):
    """What a session needs to finish packs of one pack nonce."""

    repository: RepositoryId
    nonce: PackNonce
    session: SessionId
    node: NodeId
    sealed_data_key: bytes
    pack_key: PackKey
    metadata_public: bytes
    signing: SigningKey

    def finish(
        self, head_and_body: bytearray | memoryview, frames: Sequence[FrameEntry], footer_key: bytes
    ) -> tuple[bytes, bytes]:
        """What follows the body (padding, footer, origins, tail), and the hash for the name.

        The footer key is 32 random bytes, used for this pack alone. The hash is BLAKE3 over the
        whole pack.
        """
        origin = Origin(
            nonce=self.nonce,
            session=self.session,
            node=self.node,
            sealed_data_key=self.sealed_data_key,
            wrapped_footer_key=wrap(self.pack_key, footer_key, _FOOTER_CONTEXT),
        )
        signing = PackSigning(self.repository, Signer.NODE, self.node, self.signing)
        for_metadata = seal(self.metadata_public, footer_key, _FOOTER_CONTEXT)
        origins = msgspec.msgpack.encode(_Origins(for_metadata, [origin]))
        return _finish(head_and_body, _sealed_footer(footer_key, frames), origins, signing)


class PackSigning(NamedTuple):
    """Who answers for a pack."""

    repository: RepositoryId
    signer: Signer
    signer_id: bytes
    key: SigningKey


def finish_copy(
    head_and_body: bytearray | memoryview,
    index: PackIndex,
    keys: FooterKeys,
    metadata_public: bytes,
    signing: PackSigning,
) -> tuple[bytes, bytes]:
    """As `PackSeal.finish` does for a pack of copied frames, whose origins are relayed already."""
    for_metadata = seal(metadata_public, b"".join((keys.pack, *keys.origins)), _FOOTER_CONTEXT)
    origins = msgspec.msgpack.encode(_Origins(for_metadata, index.origins))
    return _finish(head_and_body, _sealed_footer(keys.pack, index.frames), origins, signing)


def _sealed_footer(footer_key: bytes, frames: Sequence[FrameEntry]) -> bytes:
    return wrap(footer_key, msgspec.msgpack.encode(frames), _FOOTER_CONTEXT)


def _finish(
    head_and_body: bytearray | memoryview, footer: bytes, origins: bytes, signing: PackSigning
) -> tuple[bytes, bytes]:
    """What follows the body, and the hash for the name."""
    size = len(head_and_body) + len(footer) + len(origins) + TAIL_BYTES
    padding = bytes(padded(size) - size)
    digest = blake3(head_and_body)
    digest.update(padding)
    digest.update(footer)
    digest.update(origins)
    body_length = len(head_and_body) - HEAD_BYTES + len(padding)
    signer = (signing.signer, signing.signer_id)
    digests = (digest.digest(), blake3(footer + origins).digest())
    fields = (body_length, len(footer), len(origins), *signer, *digests)
    unsigned = _TAIL.pack(*fields, bytes(SIGNATURE_BYTES), _END)[:_SIGNED_TAIL_BYTES]
    signature = signing.key.sign(_DOMAIN, signing.repository + unsigned)
    tail = _TAIL.pack(*fields, signature, _END)
    digest.update(tail)
    return b"".join((padding, footer, origins, tail)), digest.digest()


def parse_tail(end: bytes, size: int) -> PackTail:
    """The tail from the last bytes of a pack of this size; FormatError where it can't be one."""
    if len(end) < TAIL_BYTES or size < HEAD_BYTES + TAIL_BYTES:
        raise FormatError("a pack is shorter than its head and tail")
    fields = _TAIL.unpack(end[-TAIL_BYTES:])
    body, footer, origins, signer, signer_id, digest, end_digest, signature, magic = fields
    if magic != _END:
        raise FormatError("a pack does not end as one: it is damaged or cut short")
    if HEAD_BYTES + body + footer + origins + TAIL_BYTES != size:
        raise FormatError("a pack is not of the length it claims")
    if size > PACK_BYTES_MAX:
        raise FormatError("a pack exceeds what a pack may be")
    if footer > FOOTER_BYTES_MAX or origins > FOOTER_BYTES_MAX:
        raise FormatError("a pack's footer exceeds what a footer may be")
    try:
        kind = Signer(signer)
    except ValueError as error:
        raise FormatError(f"a pack's signer {signer} is unknown") from error
    return PackTail(size, body, footer, origins, kind, signer_id, digest, end_digest, signature)


class PackEnd:
    """Footer and origins of a pack, still sealed, as read from `footer_offset` to the end."""

    def __init__(self, tail: PackTail, end: bytes) -> None:
        """`end` holds footer, origins and tail."""
        if len(end) != tail.footer_length + tail.origins_length + TAIL_BYTES:
            raise FormatError("the end of a pack is not of the length it claims")
        if blake3(end[:-TAIL_BYTES]).digest() != tail.end_digest:
            raise DamagedError("the end of a pack does not have the hash it was stored with")
        self._tail = tail
        self._footer = end[: tail.footer_length]
        encoded = end[tail.footer_length : tail.footer_length + tail.origins_length]
        try:
            decoded = _origins.decode(encoded)
        except UNDECODABLE as error:
            raise FormatError("a pack's origins do not decode") from error
        nonces = {origin.nonce for origin in decoded.origins}
        if len(nonces) != len(decoded.origins) or any(len(nonce) != ID_BYTES for nonce in nonces):
            raise FormatError("a pack's origins name an impossible pack nonce, or one twice")
        self._for_metadata = decoded.footer_keys_for_metadata
        self.origins = decoded.origins

    def open_with_metadata_key(self, key: UnsealingKey) -> PackIndex:
        """The index, opened by the coordinator."""
        return self._open(self.footer_keys(key).pack)

    def footer_keys(self, key: UnsealingKey) -> FooterKeys:
        """What the coordinator needs to copy frames; none of it opens a frame."""
        opened = key.unseal(self._for_metadata, _FOOTER_CONTEXT)
        keys = [opened[at : at + KEY_BYTES] for at in range(0, len(opened), KEY_BYTES)]
        if len(opened) == KEY_BYTES:
            return FooterKeys(opened, keys * len(self.origins))
        if len(opened) != KEY_BYTES * (1 + len(self.origins)):
            raise FormatError("a pack's footer keys are not of the length that its origins ask for")
        return FooterKeys(keys[0], keys[1:])

    def open_with_pack_keys(self, keys: Mapping[PackNonce, PackKey], random: bytes) -> PackIndex:
        """The index, opened with the key of any of its pack nonces; the random bits are its name's.

        WrongKeyError where none of them does.
        """
        for origin in self.origins:
            if origin.nonce in keys:
                opened = unwrap(keys[origin.nonce], origin.wrapped_footer_key, _FOOTER_CONTEXT)
                if origin.relayed_footer_key:
                    opened = unwrap(opened, origin.relayed_footer_key, _RELAY_CONTEXT + random)
                return self._open(opened)
        raise WrongKeyError("none of the keys at hand opens this pack's footer")

    def _open(self, footer_key: bytes) -> PackIndex:
        try:
            footer = unwrap(footer_key, self._footer, _FOOTER_CONTEXT)
            frames = _footers.decode(footer)
        except UNDECODABLE as error:
            raise FormatError("a pack's footer does not decode") from error
        except WrongKeyError as error:
            raise DamagedError("a pack's footer does not open with its own key") from error
        _check_frames(frames, self._tail, len(self.origins))
        return PackIndex(self.origins, frames)


def _check_frames(frames: Sequence[FrameEntry], tail: PackTail, origins: int) -> None:
    """FormatError unless the frames lie in the body side by side, each known once."""
    end = HEAD_BYTES
    seen: set[tuple[int, int]] = set()
    for entry in sorted(frames, key=lambda frame: frame.offset):
        if not 0 <= entry.origin < origins or (entry.origin, entry.number) in seen:
            raise FormatError("a pack's footer names a frame twice or without an origin")
        if entry.offset < end or entry.length < TAG_BYTES or not 0 <= entry.number < 1 << 32:
            raise FormatError("a pack's frames overlap")
        if not 0 < len(entry.chunks) <= CHUNKS_MAX:
            raise FormatError("a frame of a pack holds no chunks, or too many")
        if any(len(chunk_id) != CHUNK_ID_BYTES for _, chunk_id in entry.chunks):
            raise FormatError("a chunk id in a pack's footer has the wrong length")
        lengths = [length for length, _ in entry.chunks]
        if min(lengths) < 0 or sum(lengths) > RAW_BYTES_MAX:
            raise FormatError("a frame of a pack claims more than a frame may hold")
        seen.add((entry.origin, entry.number))
        end = entry.offset + entry.length
    if end > HEAD_BYTES + tail.body_length:
        raise FormatError("a pack's frames exceed its body")


def read_index(pack: bytes | memoryview, key: UnsealingKey) -> tuple[PackKind, PackIndex]:
    """Kind and index of a whole pack in memory, opened by the coordinator; hash checked."""
    kind, _ = decode_head(bytes(pack[:HEAD_BYTES]))
    tail = parse_tail(bytes(pack[-TAIL_BYTES:]), len(pack))
    if blake3(pack[:-TAIL_BYTES]).digest() != tail.digest:
        raise DamagedError("a pack does not have the hash it was stored with")
    index = PackEnd(tail, bytes(pack[tail.footer_offset :])).open_with_metadata_key(key)
    if not all(kind.holds(entry.kind) for entry in index.frames):
        raise FormatError("a pack holds frames that belong into the other kind")
    return kind, index


def identities(index: PackIndex) -> Iterator[tuple[FrameIdentity, FrameEntry]]:
    """Each frame of a pack with its identity."""
    for entry in index.frames:
        yield index.identity(entry), entry
