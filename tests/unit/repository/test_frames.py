"""Frames: what was sealed comes back, checked; anything else is refused before it costs memory."""

import random
import struct
import tracemalloc

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from repository.errors import DamagedError, FormatError
from repository.frames import (
    CHUNKS_MAX,
    RAW_BYTES_MAX,
    TAG_BYTES,
    FrameCipher,
    FrameDecoder,
    FrameEncoder,
    FrameIdentity,
    FrameReader,
    PlainChunk,
)
from repository.ids import ChunkId, IdKeys, ObjectType, PackNonce, RepositoryId
from repository.keys import frame_key, pack_key
from tests.unit.repository.damage import altered

REPOSITORY = RepositoryId(b"R" * 16)
IDS = IdKeys(b"d" * 32, b"n" * 32, b"l" * 32)
NONCE = PackNonce(b"p" * 16)
IDENTITY = FrameIdentity(NONCE, 7)
KEY = frame_key(pack_key(b"k" * 32, NONCE), 7)
RAW, ZSTD = 0, 1

CONTENTS = st.lists(
    st.binary(max_size=60) | st.builds(lambda piece: piece * 3000, st.binary(max_size=40)),
    min_size=1,
    max_size=8,
)


def chunks_of(contents: list[bytes], kind: ObjectType = ObjectType.DATA) -> list[PlainChunk]:
    return [PlainChunk(IDS.chunk_id(kind, content), content) for content in contents]


def sealed(plaintext: bytes | bytearray, kind: ObjectType = ObjectType.DATA) -> bytes:
    out = bytearray(len(plaintext) + TAG_BYTES)
    FrameCipher(REPOSITORY).seal_into(out, plaintext, KEY, IDENTITY, kind)
    return bytes(out)


def opened(frame: bytes, kind: ObjectType = ObjectType.DATA) -> list[PlainChunk]:
    return FrameReader(REPOSITORY, IDS).open(frame, KEY, IDENTITY, kind)


def plain(codec: int, lengths: list[int], raw_length: int, payload: bytes) -> bytes:
    table = b"".join(struct.pack(">I32s", length, b"i" * 32) for length in lengths)
    return struct.pack(">BHI", codec, len(lengths), raw_length) + table + payload


@given(CONTENTS, st.sampled_from(ObjectType))
def test_chunks_come_back_from_a_sealed_frame(contents: list[bytes], kind: ObjectType) -> None:
    chunks = chunks_of(contents, kind)

    found = opened(sealed(FrameEncoder().encode(chunks), kind), kind)

    assert [PlainChunk(chunk.id, bytes(chunk.data)) for chunk in found] == chunks


@pytest.mark.parametrize("kind", ["random", "text", "text after a random start"])
def test_large_chunks_come_back_however_well_they_compress(kind: str) -> None:
    content = {
        "random": random.Random(1).randbytes(300_000),
        "text": b"all work and no play " * 50_000,
        "text after a random start": random.Random(1).randbytes(70_000) + bytes(400_000),
    }[kind]

    plaintext = FrameEncoder().encode(chunks_of([content]))

    assert bytes(FrameDecoder().decode(bytes(plaintext))[0].data) == content
    assert plaintext[0] == (ZSTD if kind == "text" else RAW)


@pytest.mark.parametrize("content", [b"well " * 60_000, random.Random(3).randbytes(300_000)])
def test_a_view_makes_the_frame_that_its_bytes_make(content: bytes) -> None:
    (chunk,) = chunks_of([content])
    within = memoryview(b"before" + content + b"behind")[6:-6]

    found = FrameEncoder().encode([PlainChunk(chunk.id, within)])

    assert found == FrameEncoder().encode([chunk])


def test_what_shrinks_at_its_start_and_not_as_a_whole_is_stored_as_it_is() -> None:
    class Growing:
        def compress(self, data: bytes) -> bytes:
            return data + b"!"

    encoder = FrameEncoder()
    encoder._compressor = Growing()  # type: ignore[assignment]

    assert encoder.encode(chunks_of([bytes(1000)]))[0] == RAW


def test_a_compressor_that_errs_is_found_out_before_anything_is_stored() -> None:
    class Forgetful:
        def compress(self, data: bytes) -> bytes:
            return zstandard.compress(bytes(data[:-1]) + b"!")

    encoder = FrameEncoder()
    encoder._compressor = Forgetful()  # type: ignore[assignment]

    with pytest.raises(DamagedError, match="compressor"):
        encoder.encode(chunks_of([bytes(1000)]))


def test_a_frame_is_made_of_no_more_than_a_reader_takes() -> None:
    encoder = FrameEncoder()
    few = chunks_of([b""] * CHUNKS_MAX)

    assert len(FrameDecoder().decode(bytes(encoder.encode(few)))) == CHUNKS_MAX
    for too_much in ([], [*few, few[0]], chunks_of([bytes(RAW_BYTES_MAX + 1)])):
        with pytest.raises(AssertionError):
            encoder.encode(too_much)


@given(st.binary(max_size=300))
@example(b"")
def test_any_bytes_decode_to_chunks_or_to_the_declared_error(raw: bytes) -> None:
    try:
        chunks = FrameDecoder().decode(raw)
    except FormatError:
        return
    assert sum(len(chunk.data) for chunk in chunks) <= RAW_BYTES_MAX


@given(CONTENTS, st.data())
def test_an_altered_plaintext_decodes_to_chunks_or_to_the_declared_error(
    contents: list[bytes], data: st.DataObject
) -> None:
    plaintext = bytes(FrameEncoder().encode(chunks_of(contents)))

    try:
        FrameDecoder().decode(data.draw(altered(plaintext)))
    except FormatError:
        return


@pytest.mark.parametrize(
    ("plaintext", "reason"),
    [
        (b"\x00" * 6, "shorter than its header"),
        (plain(RAW, [], 0, b""), "no chunks"),
        (plain(RAW, [0] * (CHUNKS_MAX + 1), 0, b""), "too many"),
        (struct.pack(">BHI", RAW, 65535, 0), "too many"),
        (struct.pack(">BHI", RAW, 2, 0), "exceeds"),
        (plain(RAW, [RAW_BYTES_MAX + 1], RAW_BYTES_MAX + 1, b""), "exceeds"),
        (plain(2, [1], 1, b"x"), "codec 2 is unknown"),
        (plain(RAW, [3], 3, b"ab"), "length it claims"),
        (plain(RAW, [3], 2, b"ab"), "longer than the frame"),
        (plain(RAW, [1], 2, b"ab"), "shorter than the frame"),
        (plain(RAW, [2**32 - 1, 3], 2, b"ab"), "longer than the frame"),
        (plain(ZSTD, [2], 2, b"ab"), "not decompress"),
        (plain(ZSTD, [2], 2, b""), "not decompress"),
        (plain(ZSTD, [2], 2, zstandard.compress(b"abc")), "length it claims"),
        (plain(ZSTD, [2], 2, zstandard.compress(b"ab") + b"more"), "not decompress"),
        (plain(ZSTD, [2], 2, zstandard.compress(b"ab") * 2), "not decompress"),
        (plain(ZSTD, [2], 2, zstandard.compress(b"ab")[:-1]), "not decompress"),
    ],
)
def test_a_plaintext_that_claims_what_it_does_not_hold_is_refused(
    plaintext: bytes, reason: str
) -> None:
    with pytest.raises(FormatError, match=reason):
        FrameDecoder().decode(plaintext)


def test_a_compressed_frame_without_a_content_size_is_refused() -> None:
    payload = zstandard.ZstdCompressor(write_content_size=False).compress(b"ab")

    with pytest.raises(FormatError, match="length it claims"):
        FrameDecoder().decode(plain(ZSTD, [2], 2, payload))


def lying(claimed: int, content: bytes) -> bytes:
    """A zstd frame whose header claims another content size than it has."""
    honest = zstandard.ZstdCompressor(write_checksum=False).compress(content)
    size = zstandard.frame_header_size(honest)
    # Magic, a descriptor for one segment with a size of 8 bytes, the size, then the blocks.
    return honest[:4] + b"\xe0" + struct.pack("<Q", claimed) + honest[size:]


@pytest.mark.parametrize("claimed", [1, 99_999, 100_001, RAW_BYTES_MAX])
def test_a_content_size_that_lies_is_refused(claimed: int) -> None:
    payload = lying(claimed, bytes(100_000))
    assert zstandard.frame_content_size(payload) == claimed

    with pytest.raises(FormatError):
        FrameDecoder().decode(plain(ZSTD, [claimed], claimed, payload))


@pytest.mark.parametrize("claimed", [RAW_BYTES_MAX + 1, 1 << 40, (1 << 64) - 3])
def test_a_bomb_is_refused_before_it_takes_memory(claimed: int) -> None:
    bombs = [
        plain(ZSTD, [10], 10, lying(claimed, bytes(1 << 20))),
        plain(ZSTD, [10], 10, zstandard.compress(bytes(256 << 20), 1)),
        plain(ZSTD, [2**32 - 1], 2**32 - 1, lying(claimed, b"x")),
        plain(RAW, [2**32 - 1], 2**32 - 1, b"x"),
    ]
    decoder = FrameDecoder()

    tracemalloc.start()
    for bomb in bombs:
        with pytest.raises(FormatError):
            decoder.decode(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 1 << 20


@given(st.data())
def test_a_sealed_frame_opens_with_nothing_altered(data: st.DataObject) -> None:
    frame = sealed(FrameEncoder().encode(chunks_of([b"some", b"bytes"])))

    with pytest.raises(DamagedError):
        opened(data.draw(altered(frame)))


@given(st.binary(max_size=100))
def test_any_other_bytes_are_no_sealed_frame(raw: bytes) -> None:
    with pytest.raises(DamagedError):
        opened(raw)


@pytest.mark.parametrize(
    "identity", [FrameIdentity(NONCE, 8), FrameIdentity(PackNonce(b"q" * 16), 7)]
)
def test_a_frame_does_not_pass_for_another_one(identity: FrameIdentity) -> None:
    frame = sealed(FrameEncoder().encode(chunks_of([b"some"])))
    reader = FrameReader(REPOSITORY, IDS)

    with pytest.raises(DamagedError, match="does not open"):
        reader.open(frame, KEY, identity, ObjectType.DATA)
    own_key = frame_key(pack_key(b"k" * 32, identity.nonce), identity.number)
    with pytest.raises(DamagedError, match="does not open"):
        reader.open(frame, own_key, IDENTITY, ObjectType.DATA)


def test_a_frame_of_another_repository_does_not_open() -> None:
    frame = sealed(FrameEncoder().encode(chunks_of([b"some"])))

    with pytest.raises(DamagedError, match="does not open"):
        FrameReader(RepositoryId(b"S" * 16), IDS).open(frame, KEY, IDENTITY, ObjectType.DATA)


@pytest.mark.parametrize("stored", ObjectType)
@pytest.mark.parametrize("asked", ObjectType)
def test_a_frame_opens_as_its_own_type_only(stored: ObjectType, asked: ObjectType) -> None:
    frame = sealed(FrameEncoder().encode(chunks_of([b"some"], stored)), stored)

    if stored is asked:
        assert bytes(opened(frame, asked)[0].data) == b"some"
    else:
        with pytest.raises(DamagedError):
            opened(frame, asked)


@pytest.mark.parametrize("claimed", [kind for kind in ObjectType if kind is not ObjectType.DATA])
def test_a_chunk_does_not_pass_for_one_of_another_type_by_its_id(claimed: ObjectType) -> None:
    data = PlainChunk(IDS.chunk_id(ObjectType.DATA, b"some"), b"some")

    with pytest.raises(DamagedError, match="content it was stored with"):
        opened(sealed(FrameEncoder().encode([data]), claimed), claimed)


def test_a_chunk_that_is_not_what_its_id_says_is_refused() -> None:
    wrong = [*chunks_of([b"right"]), PlainChunk(ChunkId(b"i" * 32), b"wrong")]

    with pytest.raises(DamagedError, match="content it was stored with"):
        opened(sealed(FrameEncoder().encode(wrong)))
