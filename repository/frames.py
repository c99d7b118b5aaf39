"""Frames: the unit of compression and sealing. A frame holds one or more chunks of one type.

    sealed frame  = AES-256-GCM(key of the frame, nonce = number, plaintext, associated data)
    plaintext     = codec u8 | chunks u16 | raw length u32 | (length u32, id 32 bytes)* | payload
    payload       = the chunks one after the other, as they are (codec 0) or as one zstd frame (1)

A frame's identity (pack nonce, number) is constant for ever: key, nonce and associated data depend
on it and on the type, never on a name or place, so frames are copied between packs unopened. Ids
are checked after decryption, always. Nothing the header claims is believed before it is bounded.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from repository.errors import DamagedError, FormatError
from repository.ids import CHUNK_ID_BYTES, ChunkId, IdKeys, ObjectType, PackNonce, RepositoryId
from repository.keys import FrameKey

TAG_BYTES: Final = 16
# Together with the largest chunk (4 MiB) this bounds what a reader allocates for one frame.
RAW_BYTES_MAX: Final = 8 * 1024 * 1024
CHUNKS_MAX: Final = 8192
# A first full stores up to 1 MiB together: large enough for zstd, small enough for one file's read.
RAW_BYTES_TARGET: Final = 1024 * 1024

_RAW, _ZSTD = 0, 1
_HEADER: Final = struct.Struct(">BHI")
_CHUNK: Final = struct.Struct(f">I{CHUNK_ID_BYTES}s")
_ASSOCIATED: Final = struct.Struct(">4s16s16sIB")
_MAGIC: Final = b"TMF0"

# What does not shrink by 3 % in its first 64 KiB is stored as it is: reading it back is then free.
_PROBE_BYTES: Final = 64 * 1024
_PROBE_RATIO: Final = 0.97


class FrameIdentity(NamedTuple):
    """What names a frame, wherever it lies."""

    nonce: PackNonce
    number: int


class Location(msgspec.Struct, frozen=True, gc=False):
    """Where a chunk is: its frame, its place in it, and its plain length in bytes."""

    nonce: PackNonce
    frame: int
    chunk: int
    length: int


class PlainChunk(msgspec.Struct, frozen=True, gc=False):
    """A chunk on its way into a frame or out of it."""

    id: ChunkId
    data: bytes | memoryview


# Level 3, but for tables that stay in a core's own cache and no matches of 5 bytes: on frames of
# this size a tenth faster, and no larger for text (programs: 2 %).
_PARAMETERS: Final = zstandard.ZstdCompressionParameters.from_level(
    3, source_size=RAW_BYTES_TARGET, chain_log=14, min_match=6, write_content_size=True
)


class FrameEncoder:
    """Makes plaintexts of frames. Not for two threads at once: zstd contexts crash then."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
        self._probe = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, chunks: Sequence[PlainChunk]) -> bytes:
        """The plaintext of a frame, read back and compared: compressor bugs destroyed backups.

        At least one chunk, at most CHUNKS_MAX, together at most RAW_BYTES_MAX.
        """
        assert 0 < len(chunks) <= CHUNKS_MAX
        raw = chunks[0].data if len(chunks) == 1 else b"".join([chunk.data for chunk in chunks])
        assert len(raw) <= RAW_BYTES_MAX
        table = [_CHUNK.pack(len(chunk.data), chunk.id) for chunk in chunks]
        payload = self._compress(raw)
        codec = _RAW if payload is None else _ZSTD
        header = _HEADER.pack(codec, len(chunks), len(raw))
        return b"".join((header, *table, raw if payload is None else payload))

    def _compress(self, raw: bytes | memoryview) -> bytes | None:
        """The raw bytes as a zstd frame, or None where that is no smaller."""
        if len(raw) > _PROBE_BYTES:
            probe = self._probe.compress(memoryview(raw)[:_PROBE_BYTES])
            if len(probe) > _PROBE_RATIO * _PROBE_BYTES:
                return None
        payload = self._compressor.compress(raw)
        if len(payload) >= len(raw):
            return None
        # Views are compared byte by byte, which takes longer than all the rest.
        if self._decompressor.decompress(payload, max_output_size=len(raw)) != bytes(raw):
            raise DamagedError(
                "the compressor returned what does not decompress to its input",
                hint="check this machine's memory, then back up again",
            )
        return payload


class FrameDecoder:
    """Takes plaintexts of frames apart. Not for two threads at once: zstd contexts crash then."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def decode(self, plaintext: bytes | memoryview) -> list[PlainChunk]:
        """The chunks of a frame with the ids they claim; FormatError where it does not decode."""
        try:
            codec, count, raw_length = _HEADER.unpack_from(plaintext, 0)
        except struct.error as error:
            raise FormatError("a frame is shorter than its header") from error
        payload_offset = _HEADER.size + _CHUNK.size * count
        if not 0 < count <= CHUNKS_MAX:
            raise FormatError("a frame holds no chunks, or too many")
        if raw_length > RAW_BYTES_MAX or payload_offset > len(plaintext):
            raise FormatError("a frame's header exceeds what a frame may hold")
        raw = self._expand(codec, memoryview(plaintext)[payload_offset:], raw_length)
        chunks: list[PlainChunk] = []
        position = 0
        for index in range(count):
            length, chunk_id = _CHUNK.unpack_from(plaintext, _HEADER.size + _CHUNK.size * index)
            if position + length > raw_length:
                raise FormatError("a frame's chunks are longer than the frame")
            chunks.append(PlainChunk(ChunkId(chunk_id), raw[position : position + length]))
            position += length
        if position != raw_length:
            raise FormatError("a frame's chunks are shorter than the frame")
        return chunks

    def _expand(self, codec: int, payload: memoryview, raw_length: int) -> memoryview:
        if codec == _RAW:
            if len(payload) != raw_length:
                raise FormatError("a stored frame is not of the length it claims")
            return payload
        if codec != _ZSTD:
            raise FormatError(f"a frame's codec {codec} is unknown")
        raw = None
        try:
            # zstd would allocate what the payload claims; so the claim is compared first.
            if zstandard.frame_content_size(payload) == raw_length:
                raw = self._decompressor.decompress(
                    payload, max_output_size=raw_length, allow_extra_data=False
                )
        except zstandard.ZstdError as error:
            raise FormatError("a frame does not decompress") from error
        if raw is None or len(raw) != raw_length:
            raise FormatError("a compressed frame is not of the length it claims")
        return memoryview(raw)


class FrameCipher(msgspec.Struct, frozen=True):
    """Seals and opens the frames of one repository."""

    repository: RepositoryId

    def _associated(self, identity: FrameIdentity, kind: ObjectType) -> bytes:
        return _ASSOCIATED.pack(_MAGIC, self.repository, identity.nonce, identity.number, kind)

    def seal_into(
        self,
        out: bytearray | memoryview,
        plaintext: bytes | bytearray,
        key: FrameKey,
        identity: FrameIdentity,
        kind: ObjectType,
    ) -> None:
        """Seal into a buffer of exactly len(plaintext) + TAG_BYTES."""
        nonce = identity.number.to_bytes(12, "big")
        associated = self._associated(identity, kind)
        AESGCM(key).encrypt_into(nonce, plaintext, associated, out)

    def open_into(
        self,
        out: bytearray | memoryview,
        sealed: bytes | memoryview,
        key: FrameKey,
        identity: FrameIdentity,
        kind: ObjectType,
    ) -> None:
        """The plaintext into a buffer of exactly len(sealed) - TAG_BYTES.

        DamagedError if it is not this frame, whole and of this type; then the buffer holds nothing.
        """
        nonce = identity.number.to_bytes(12, "big")
        try:
            AESGCM(key).decrypt_into(nonce, sealed, self._associated(identity, kind), out)
        except (InvalidTag, ValueError) as error:
            raise DamagedError(
                f"frame {identity.nonce.hex()}/{identity.number} does not open",
                hint="it was damaged or exchanged; run tidemark verify to see what it affects",
            ) from error


def check_chunks(chunks: list[PlainChunk], kind: ObjectType, keys: IdKeys) -> None:
    """DamagedError unless each chunk has the content that its id was made of."""
    for chunk in chunks:
        if keys.chunk_id(kind, chunk.data) != chunk.id:
            raise DamagedError(
                f"chunk {chunk.id.hex()[:16]} does not have the content it was stored with",
                hint="run tidemark verify to see what it affects",
            )


class FrameReader:
    """Turns sealed frames into checked chunks. Not for two threads at once."""

    def __init__(
        self, repository: RepositoryId, id_keys: IdKeys, *, reuses_buffer: bool = False
    ) -> None:
        """`reuses_buffer`: what a frame held is only there until the next one is opened.

        Two threads that get a new megabyte from the kernel for every frame open a twelfth of what
        they open into one that they keep.
        """
        self._cipher = FrameCipher(repository)
        self._id_keys = id_keys
        self._decoder = FrameDecoder()
        self._buffer = bytearray() if reuses_buffer else None

    def open(
        self,
        sealed: bytes | memoryview,
        key: FrameKey,
        identity: FrameIdentity,
        kind: ObjectType,
    ) -> list[PlainChunk]:
        """The chunks of one frame in order; DamagedError if anything about them is wrong."""
        plaintext = self._room(max(0, len(sealed) - TAG_BYTES))
        self._cipher.open_into(plaintext, sealed, key, identity, kind)
        chunks = self._decoder.decode(plaintext)
        check_chunks(chunks, kind, self._id_keys)
        return chunks

    def _room(self, size: int) -> memoryview:
        """So many bytes to open a frame into."""
        if self._buffer is None:
            return memoryview(bytearray(size))
        if len(self._buffer) < size:
            # Not resized: whoever still looks at the former frame would forbid that.
            self._buffer = bytearray(size)
        return memoryview(self._buffer)[:size]
