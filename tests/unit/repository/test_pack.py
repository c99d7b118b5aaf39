"""Packs: they come back whole, show no exact size, and let nothing altered pass."""

import struct
from collections.abc import Callable

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from repository.errors import (
    DamagedError,
    FormatError,
    TidemarkError,
    UnsupportedFormatError,
    WrongKeyError,
)
from repository.frames import CHUNKS_MAX, RAW_BYTES_MAX, FrameIdentity, FrameReader
from repository.ids import ChunkId, ObjectType, PackNonce, RepositoryId
from repository.keys import PackKey, SigningKey, UnsealingKey, frame_key, pack_key, wrap
from repository.layout import parse_pack_name
from repository.pack import (
    DATA_PACK_BYTES,
    FOOTER_BYTES_MAX,
    HEAD_BYTES,
    PACK_BYTES_MAX,
    TAIL_BYTES,
    FrameEntry,
    FrameTable,
    PackEnd,
    PackIndex,
    PackKind,
    decode_head,
    encode_head,
    identities,
    padded,
    parse_tail,
    read_index,
)
from tests.unit.repository.damage import altered, flipped
from tests.unit.repository.packs import (
    DATA_KEY,
    FOOTER_KEY,
    IDS,
    METADATA,
    NONCE,
    REPOSITORY,
    SIGNING,
    Made,
    make_pack,
    pack_seal,
)

MADE = make_pack(
    [(ObjectType.DATA, [b"one", b"two" * 50]), (ObjectType.DATA, [b"three" * 100])], PackKind.DATA
)
CONTENTS = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), max_size=5)


def end_of(raw: bytes) -> PackEnd:
    tail = parse_tail(raw[-TAIL_BYTES:], len(raw))
    return PackEnd(tail, raw[tail.footer_offset :])


def open_whole(raw: bytes, name: str) -> list[bytes]:
    """Everything a reader does with a pack: hash, name, signature, footer, each frame."""
    kind, index = read_index(raw, METADATA)
    parse_tail(raw, len(raw)).check_signature(REPOSITORY, SIGNING.public)
    random, digest = parse_pack_name(name)
    if (kind, random) != decode_head(raw) or blake3(raw).digest(16) != digest:
        raise DamagedError("a pack does not have the hash in its name")
    contents = []
    for identity, entry in identities(index):
        key = frame_key(pack_key(DATA_KEY, identity.nonce), identity.number)
        sealed = raw[entry.offset : entry.offset + entry.length]
        chunks = FrameReader(REPOSITORY, IDS).open(sealed, key, identity, entry.kind)
        assert entry.chunks == [(len(chunk.data), chunk.id) for chunk in chunks]
        contents += [bytes(chunk.data) for chunk in chunks]
    return contents


@given(CONTENTS, st.sampled_from(PackKind))
def test_chunks_come_back_from_a_pack(contents: list[list[bytes]], kind: PackKind) -> None:
    chunk_kind = ObjectType.DATA if kind is PackKind.DATA else ObjectType.NODE
    made = make_pack([(chunk_kind, chunks) for chunks in contents], kind)

    assert open_whole(made.raw, made.name) == [chunk for chunks in contents for chunk in chunks]
    assert read_index(made.raw, METADATA)[0] is kind


def test_no_byte_of_a_pack_can_change_unnoticed() -> None:
    for position in range(len(MADE.raw)):
        with pytest.raises(TidemarkError):
            open_whole(flipped(MADE.raw, position), MADE.name)


@given(st.data())
def test_nothing_of_a_pack_can_be_cut_off_or_appended_unnoticed(data: st.DataObject) -> None:
    with pytest.raises(TidemarkError):
        open_whole(data.draw(altered(MADE.raw)), MADE.name)


def test_a_pack_re_hashed_after_a_change_fails_its_signature() -> None:
    raw = flipped(MADE.raw, HEAD_BYTES)
    at = len(raw) - TAIL_BYTES + struct.calcsize(">QIIB16s")
    raw = raw[:at] + blake3(raw[:-TAIL_BYTES]).digest() + raw[at + 32 :]

    read_index(raw, METADATA)
    with pytest.raises(DamagedError, match="signature"):
        parse_tail(raw, len(raw)).check_signature(REPOSITORY, SIGNING.public)


def test_a_pack_is_signed_for_one_repository_by_one_key() -> None:
    tail = parse_tail(MADE.raw, len(MADE.raw))

    tail.check_signature(REPOSITORY, SIGNING.public)
    with pytest.raises(DamagedError, match="signature"):
        tail.check_signature(RepositoryId(b"X" * 16), SIGNING.public)
    with pytest.raises(DamagedError, match="signature"):
        tail.check_signature(REPOSITORY, SigningKey(b"t" * 32).public)


@given(st.binary(max_size=400))
def test_any_bytes_parse_to_a_pack_or_to_the_declared_error(raw: bytes) -> None:
    with pytest.raises((FormatError, UnsupportedFormatError)):
        parse_tail(raw, len(raw))
    with pytest.raises((FormatError, UnsupportedFormatError)):
        decode_head(raw)


TAIL = parse_tail(MADE.raw, len(MADE.raw))


def rehashed(footer: bytes, origins: bytes) -> PackEnd:
    """An end with these, its hash set right by whoever exchanged them."""
    tail = msgspec.structs.replace(
        TAIL,
        footer_length=len(footer),
        origins_length=len(origins),
        end_digest=blake3(footer + origins).digest(),
    )
    return PackEnd(tail, footer + origins + bytes(TAIL_BYTES))


@given(st.binary(max_size=600))
def test_an_end_of_any_bytes_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        rehashed(b"", raw)
    with pytest.raises(FormatError, match="length it claims"):
        PackEnd(TAIL, raw[:100])


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (encode_head(PackKind.DATA, b"r" * 16)[:-1], FormatError),
        (b"X" + encode_head(PackKind.DATA, b"r" * 16)[1:], FormatError),
        (b"TIDEMARK\x00\x01\x01" + bytes(21), UnsupportedFormatError),
        (b"TIDEMARK\x00\x00\x03" + bytes(21), FormatError),
    ],
    ids=["short", "magic", "newer", "kind"],
)
def test_a_head_that_is_none_is_refused(head: bytes, error: type[TidemarkError]) -> None:
    with pytest.raises(error):
        decode_head(head)


def tail_of(body: int, footer: int, origins: int, signer: int, magic: bytes = b"TMPKEND0") -> bytes:
    fields = (body, footer, origins, signer, bytes(16), bytes(32), bytes(32), bytes(64), magic)
    return struct.pack(">QIIB16s32s32s64s8s", *fields)


@pytest.mark.parametrize(
    ("tail", "size", "reason"),
    [
        (tail_of(0, 0, 0, 1)[1:], HEAD_BYTES + TAIL_BYTES, "shorter"),
        (tail_of(0, 0, 0, 1), HEAD_BYTES + TAIL_BYTES - 1, "shorter"),
        (tail_of(0, 0, 0, 1, b"TMPKEND1"), HEAD_BYTES + TAIL_BYTES, "does not end"),
        (tail_of(1, 0, 0, 1), HEAD_BYTES + TAIL_BYTES, "length it claims"),
        (tail_of(2**64 - 1, 2, 0, 1), HEAD_BYTES + TAIL_BYTES, "length it claims"),
        (tail_of(0, 0, 0, 3), HEAD_BYTES + TAIL_BYTES, "signer 3 is unknown"),
        (
            tail_of(0, FOOTER_BYTES_MAX + 1, 0, 1),
            HEAD_BYTES + FOOTER_BYTES_MAX + 1 + TAIL_BYTES,
            "exceeds what a footer",
        ),
        (
            tail_of(0, 0, FOOTER_BYTES_MAX + 1, 1),
            HEAD_BYTES + FOOTER_BYTES_MAX + 1 + TAIL_BYTES,
            "exceeds what a footer",
        ),
        (
            tail_of(PACK_BYTES_MAX, 0, 0, 1),
            HEAD_BYTES + PACK_BYTES_MAX + TAIL_BYTES,
            "exceeds what a pack",
        ),
    ],
)
def test_a_tail_that_can_be_none_is_refused(tail: bytes, size: int, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_tail(tail, size)


def with_origins(change: Callable[[list[object]], object]) -> Made:
    """The pack with its origins' msgpack changed and the lengths set right again."""
    tail = parse_tail(MADE.raw, len(MADE.raw))
    at = tail.footer_offset + tail.footer_length
    decoded = msgspec.msgpack.decode(MADE.raw[at : at + tail.origins_length])
    change(decoded)
    origins = msgspec.msgpack.encode(decoded)
    end = struct.pack(">QII", tail.body_length, tail.footer_length, len(origins))
    old = MADE.raw[-TAIL_BYTES:]
    digest = blake3(MADE.raw[tail.footer_offset : at] + origins).digest()
    changed = end + old[16 : 16 + 17 + 32] + digest + old[16 + 17 + 64 :]
    return Made("", MADE.raw[:at] + origins + changed, [], [])


@pytest.mark.parametrize(
    "change",
    [
        lambda origins: origins[1].append(origins[1][0]),
        lambda origins: origins[1][0].__setitem__(0, b"short"),
        lambda origins: origins[1][0].__setitem__(0, 17),
        lambda origins: origins.pop(),
    ],
    ids=["twice", "short nonce", "no bytes", "none"],
)
def test_origins_that_can_be_none_are_refused(change: Callable[[list[object]], object]) -> None:
    with pytest.raises(FormatError, match="origins"):
        end_of(with_origins(change).raw)


def test_a_footer_opens_with_the_key_of_its_pack_nonce_or_the_metadata_key() -> None:
    end = end_of(MADE.raw)
    key = pack_key(DATA_KEY, NONCE)

    keys = {PackNonce(b"o" * 16): PackKey(b"x" * 32), NONCE: key}
    index = end.open_with_pack_keys(keys, b"r" * 16)

    assert index == end.open_with_metadata_key(METADATA)
    assert index.frames == MADE.frames
    with pytest.raises(WrongKeyError):
        end.open_with_pack_keys({}, b"r" * 16)
    with pytest.raises(WrongKeyError):
        end.open_with_pack_keys({NONCE: PackKey(b"x" * 32)}, b"r" * 16)
    with pytest.raises(WrongKeyError):
        end.open_with_metadata_key(UnsealingKey(b"x" * 32))


def with_footer(footer: bytes) -> PackEnd:
    """The end of a pack whose footer is this plaintext."""
    tail = TAIL
    sealed = wrap(FOOTER_KEY, footer, b"tidemark pack footer")
    origins = MADE.raw[tail.footer_offset + tail.footer_length : -TAIL_BYTES]
    return rehashed(sealed, origins)


ID = ChunkId(b"i" * 32)


def entry(
    origin: int = 0,
    number: int = 0,
    offset: int = HEAD_BYTES,
    length: int = 100,
    chunks: list[tuple[int, ChunkId]] | None = None,
) -> FrameEntry:
    table = [(1, ID)] if chunks is None else chunks
    return FrameEntry(origin, number, ObjectType.DATA, offset, length, table)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([entry(origin=1)], "without an origin"),
        ([entry(origin=-1)], "without an origin"),
        ([entry(), entry(offset=HEAD_BYTES + 100)], "names a frame twice"),
        ([entry(), entry(number=1, offset=HEAD_BYTES + 99)], "overlap"),
        ([entry(number=1, offset=HEAD_BYTES + 50), entry()], "overlap"),
        ([entry(offset=HEAD_BYTES - 1)], "overlap"),
        ([entry(offset=-5)], "overlap"),
        ([entry(length=15)], "overlap"),
        ([entry(number=-1)], "overlap"),
        ([entry(number=1 << 32)], "overlap"),
        ([entry(chunks=[])], "no chunks"),
        ([entry(chunks=[(0, ID)] * (CHUNKS_MAX + 1))], "too many"),
        ([entry(chunks=[(1, ChunkId(b"short"))])], "wrong length"),
        ([entry(chunks=[(-1, ID), (2, ID)])], "claims more"),
        ([entry(chunks=[(RAW_BYTES_MAX, ID), (1, ID)])], "claims more"),
        ([entry(length=TAIL.body_length + 1)], "exceed its body"),
        ([entry(offset=1 << 40)], "exceed its body"),
    ],
)
def test_a_footer_whose_frames_can_be_none_is_refused(
    frames: list[FrameEntry], reason: str
) -> None:
    with pytest.raises(FormatError, match=reason):
        with_footer(msgspec.msgpack.encode(frames)).open_with_metadata_key(METADATA)


@given(st.binary(max_size=100))
def test_a_footer_of_any_bytes_is_frames_or_the_declared_error(raw: bytes) -> None:
    try:
        index = with_footer(raw).open_with_metadata_key(METADATA)
    except FormatError:
        return
    assert index.frames == []


def test_a_footer_exchanged_for_another_is_damage() -> None:
    end = MADE.raw[TAIL.footer_offset :]
    footer, origins = end[: TAIL.footer_length], end[TAIL.footer_length : -TAIL_BYTES]
    exchanged = rehashed(flipped(footer, 0), origins)

    with pytest.raises(DamagedError, match="the hash it was stored with"):
        PackEnd(TAIL, flipped(end, 0))
    with pytest.raises(DamagedError, match="footer does not open"):
        exchanged.open_with_metadata_key(METADATA)


def test_no_byte_of_the_end_can_change_unnoticed_by_whoever_reads_no_more() -> None:
    """The provider can re-hash what it changed, and cannot sign it."""
    start = TAIL.footer_offset
    for position in range(start, len(MADE.raw)):
        raw = flipped(MADE.raw, position)
        digest = blake3(raw[start:-TAIL_BYTES]).digest()
        at = len(raw) - TAIL_BYTES + struct.calcsize(">QIIB16s32s")
        if position < len(raw) - TAIL_BYTES:
            raw = raw[:at] + digest + raw[at + 32 :]
        with pytest.raises(DamagedError):
            read_signed_end(raw)


def read_signed_end(raw: bytes) -> None:
    tail = parse_tail(raw[-TAIL_BYTES:], len(raw))
    tail.check_signature(REPOSITORY, SIGNING.public)
    PackEnd(tail, raw[tail.footer_offset :])


@pytest.mark.parametrize(
    ("kind", "chunk_kind"),
    [
        (PackKind.DATA, ObjectType.NODE),
        (PackKind.DATA, ObjectType.LIST),
        (PackKind.METADATA, ObjectType.DATA),
    ],
)
def test_data_and_metadata_never_share_a_pack(kind: PackKind, chunk_kind: ObjectType) -> None:
    made = make_pack([(chunk_kind, [b"x"])], kind)

    with pytest.raises(FormatError, match="other kind"):
        read_index(made.raw, METADATA)


@given(st.integers(1, PACK_BYTES_MAX))
def test_padding_hides_the_size_and_costs_little(size: int) -> None:
    total = padded(size)

    assert size <= total
    assert total - size < max(512, size / 64 + 1)
    assert total % 512 == 0
    assert padded(total) == total


@pytest.mark.parametrize("length", [1, 100, 5_000, 70_000])
def test_packs_of_similar_sizes_look_alike(length: int) -> None:
    made = make_pack([(ObjectType.DATA, [bytes(range(256)) * (length // 256 + 1)])], PackKind.DATA)

    assert padded(len(made.raw)) == len(made.raw)


def test_a_pack_of_the_smallest_chunks_has_a_footer_that_is_accepted() -> None:
    # Chunks of one byte: a length, an id and the byte in the frame, which adds its header and tag.
    frame_bytes = 7 + CHUNKS_MAX * 37 + 16
    frame = entry(length=frame_bytes, offset=1 << 24, number=1 << 16, chunks=[(1, ID)] * CHUNKS_MAX)

    footer_bytes = len(msgspec.msgpack.encode(frame)) * (DATA_PACK_BYTES // frame_bytes + 1)

    assert footer_bytes < FOOTER_BYTES_MAX
    assert padded(DATA_PACK_BYTES + footer_bytes + 4096) < PACK_BYTES_MAX


def test_a_table_says_where_each_frame_lies() -> None:
    index = end_of(MADE.raw).open_with_metadata_key(METADATA)
    table = FrameTable.decode(index.table().encode())

    assert table == index.table()
    for identity, frame in identities(index):
        assert table.find(identity) == (frame.offset, frame.length)
    assert table.find(FrameIdentity(NONCE, 99)) is None
    assert table.find(FrameIdentity(PackNonce(b"o" * 16), 0)) is None


@given(st.binary(max_size=60))
def test_any_bytes_decode_to_a_table_or_to_the_declared_error(raw: bytes) -> None:
    try:
        FrameTable.decode(raw)
    except FormatError:
        return


def test_an_empty_pack_is_a_pack() -> None:
    made = make_pack([], PackKind.METADATA)

    assert read_index(made.raw, METADATA)[1] == PackIndex(end_of(made.raw).origins, [])
    assert pack_seal().nonce == NONCE
