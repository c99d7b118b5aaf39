"""Entries: one encoding each, nothing impossible, and no name that leads elsewhere."""

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from repository.entries import (
    ATTRIBUTES_BYTES_MAX,
    INLINE_ATTRIBUTES_BYTES_MAX,
    ROOT_KEY,
    Attributes,
    ChunkClass,
    Content,
    Entry,
    EntryStat,
    EntryType,
    Extent,
    Pointer,
    are_long,
    decode_attributes,
    decode_entry,
    encode_attributes,
    encode_entry,
    key_of,
    path_of,
    subtree,
)
from repository.errors import FormatError
from repository.frames import Location
from repository.ids import ChunkId, PackNonce
from tests.unit.repository.damage import altered

ID = ChunkId(b"i" * 32)
NONCE = PackNonce(b"p" * 16)
POINTER = Pointer(ID, NONCE, 1, 2, 3)
EXTENT = Extent(NONCE, 1, 2, 3, 4, ID)
FILE = Entry(
    type=EntryType.FILE,
    mode=0o644,
    uid=1000,
    gid=1000,
    mtime_ns=-1,
    size=4,
    inode=5,
    ctime_ns=6,
    links=1,
    flags=0,
    device=0,
    target=None,
    xattrs=[(b"user.a", b"1"), (b"user.b", b"")],
    long_xattrs=None,
    content=Content(ChunkClass.SMALL, [EXTENT], None),
)

SIZES = st.integers(0, 1 << 63)
NUMBERS = st.integers(0, (1 << 32) - 1)
EXTENTS = st.builds(
    Extent.at,
    st.just(ID),
    st.builds(Location, st.just(NONCE), NUMBERS, NUMBERS, st.integers(1, 1 << 22)),
) | st.builds(Extent.hole, st.integers(1, 1 << 62))
CONTENTS = st.builds(
    Content, st.sampled_from(ChunkClass), st.lists(EXTENTS, max_size=3), st.none()
) | st.just(Content(ChunkClass.PAGED, [], POINTER))
ATTRIBUTES = st.dictionaries(
    st.binary(min_size=1, max_size=4).map(lambda name: name.replace(b"\0", b"0")),
    st.binary(max_size=4),
    min_size=1,
).map(lambda names: sorted(names.items()))
ENTRIES = st.builds(
    msgspec.structs.replace,
    st.just(FILE),
    mode=st.integers(0, 0o7777),
    size=SIZES,
    mtime_ns=st.integers(-(1 << 62), 1 << 62),
    inode=SIZES,
    xattrs=st.none() | ATTRIBUTES,
    long_xattrs=st.none(),
    content=st.none() | CONTENTS,
) | st.builds(
    msgspec.structs.replace, st.just(FILE), xattrs=st.none(), long_xattrs=st.just(POINTER)
)


@given(ENTRIES)
def test_an_entry_comes_back_from_its_encoding(entry: Entry) -> None:
    encoded = encode_entry(entry)

    assert decode_entry(encoded) == entry
    assert decode_entry(msgspec.Raw(encoded)) == decode_entry(memoryview(encoded)) == entry


def test_the_fields_compared_with_a_stat_are_the_first_of_an_entry() -> None:
    compared = EntryStat.__struct_fields__

    assert Entry.__struct_fields__[: len(compared)] == compared


@given(st.binary(max_size=120))
@example(b"\x9f" * 10_000)
@example(b"\x91" * 100_000)
def test_any_bytes_decode_to_an_entry_or_to_the_declared_error(raw: bytes) -> None:
    try:
        entry = decode_entry(raw)
    except FormatError:
        return
    assert encode_entry(entry) == raw


@given(ENTRIES, st.data())
def test_an_altered_encoding_is_another_entry_or_the_declared_error(
    entry: Entry, data: st.DataObject
) -> None:
    encoded = encode_entry(entry)
    changed = data.draw(altered(encoded))
    assume(changed != encoded)

    try:
        found = decode_entry(changed)
    except FormatError:
        return
    assert found != entry


def test_an_entry_that_is_encoded_otherwise_is_refused() -> None:
    encoded = encode_entry(FILE)
    assert encoded[:4] == b"\xdc\x00\x10\x02"

    for other in (
        b"\xdd\x00\x00\x00\x10" + encoded[3:],  # a longer header of the same array
        b"\xdc\x00\x10\xcc\x02" + encoded[4:],  # a longer form of the same number
        b"\xdc\x00\x10\xcb\x40\x00\x00\x00\x00\x00\x00\x00" + encoded[4:],  # as a float
        b"\xdc\x00\x11" + encoded[3:] + b"\x00",  # one field more
        b"\x9f" + encoded[3:-1],  # one field less
    ):
        with pytest.raises(FormatError):
            decode_entry(other)


@pytest.mark.parametrize(
    "impossible",
    [
        {"mode": 0o10000},
        {"mode": -1},
        {"size": -1},
        {"uid": -1},
        {"gid": 0xFFFF_FFFF},
        {"mtime_ns": 1 << 63},
        {"type": EntryType.SYMLINK, "target": b"", "content": None},
        {"type": EntryType.SYMLINK, "target": b"a\0b", "content": None},
        {"xattrs": [(b"user.a\0", b"")]},
        {"target": b"elsewhere"},
        {"type": EntryType.SYMLINK},
        {"type": EntryType.DIRECTORY},
        {"type": EntryType.FIFO},
        {"xattrs": [(b"b", b""), (b"a", b"")]},
        {"xattrs": [(b"a", b"1"), (b"a", b"2")]},
        {"xattrs": []},
        {"xattrs": [(b"", b"1")]},
        {"xattrs": [(b"a", bytes(ATTRIBUTES_BYTES_MAX))]},
        {"xattrs": [(b"a", b"1")], "long_xattrs": POINTER},
        {"content": Content(ChunkClass.SMALL, [EXTENT], POINTER)},
        {"long_xattrs": msgspec.structs.replace(POINTER, nonce=PackNonce(b"short"))},
        {"long_xattrs": msgspec.structs.replace(POINTER, id=ChunkId(b"short"))},
        {"long_xattrs": msgspec.structs.replace(POINTER, chunk=-1)},
        {"long_xattrs": msgspec.structs.replace(POINTER, frame=1 << 32)},
    ],
)
def test_an_entry_that_no_writer_makes_is_refused(impossible: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        decode_entry(encode_entry(msgspec.structs.replace(FILE, **impossible)))


@pytest.mark.parametrize(
    "impossible",
    [
        {"nonce": PackNonce(b"short")},
        {"id": ChunkId(b"short")},
        {"id": ChunkId(b"")},
        {"nonce": PackNonce(b"")},
        {"nonce": PackNonce(b""), "id": ChunkId(b"")},
        {"length": 0},
        {"length": -4},
        {"skip": -1},
        {"skip": 1 << 32},
        {"chunk": -1},
        {"frame": 1 << 32},
    ],
)
def test_an_extent_that_can_not_be_read_is_refused(impossible: dict[str, object]) -> None:
    content = Content(ChunkClass.SMALL, [msgspec.structs.replace(EXTENT, **impossible)], None)

    with pytest.raises(FormatError):
        decode_entry(encode_entry(msgspec.structs.replace(FILE, content=content)))


def test_a_symbolic_link_has_a_target() -> None:
    link = msgspec.structs.replace(FILE, type=EntryType.SYMLINK, target=b"x", content=None)

    assert decode_entry(encode_entry(link)) == link


def test_places_turn_into_pointers_and_extents() -> None:
    place = Location(NONCE, 1, 2, 3)

    assert Pointer.at(ID, place) == POINTER
    assert Extent.at(ID, place) == Extent(NONCE, 1, 2, 0, 3, ID)
    assert not EXTENT.is_hole
    assert Extent.hole(9).is_hole


NAMES = st.binary(min_size=1, max_size=5).filter(
    lambda name: name not in {b".", b".."} and not set(name) & set(b"/\x00")
)


@given(st.lists(NAMES, max_size=5))
def test_a_path_comes_back_from_its_key(names: list[bytes]) -> None:
    path = b"/".join(names)

    assert path_of(key_of(path)) == path
    assert key_of(b"/" + path + b"/") == key_of(path)


def test_the_top_of_a_volume_has_the_empty_path() -> None:
    assert path_of(ROOT_KEY) == b""


@pytest.mark.parametrize(
    "key",
    [
        b"..",
        b".",
        b"a\x00..",
        b"..\x00a",
        b"a\x00.\x00b",
        b"\x00",
        b"\x00a",
        b"a\x00",
        b"a\x00\x00b",
        b"/",
        b"/etc",
        b"a\x00../b",
        b"a/b",
    ],
)
def test_a_key_that_leads_elsewhere_has_no_path(key: bytes) -> None:
    with pytest.raises(FormatError):
        path_of(key)


@given(st.binary(max_size=12))
def test_any_key_has_a_path_within_the_volume_or_none(key: bytes) -> None:
    try:
        path = path_of(key)
    except FormatError:
        return
    assert not path.startswith(b"/")
    assert not {b"", b".", b".."} & set(path.split(b"/")) or path == b""


@given(st.lists(st.lists(NAMES, max_size=4), max_size=12), st.lists(NAMES, max_size=3))
def test_a_subtree_is_what_lies_at_and_beneath_a_path(
    paths: list[list[bytes]], top: list[bytes]
) -> None:
    first, end = subtree(b"\x00".join(top))

    for names in paths:
        key = b"\x00".join(names)
        inside = names[: len(top)] == top
        assert (first <= key and (end is None or key < end)) == inside


@given(ATTRIBUTES)
def test_attributes_come_back_from_their_encoding(attributes: Attributes) -> None:
    assert decode_attributes(encode_attributes(attributes)) == attributes


@given(st.binary(max_size=40))
@example(encode_attributes([]))
@example(encode_attributes([(b"b", b""), (b"a", b"")]))
@example(encode_attributes([(b"a", b"")]) + b"\x00")
@example(b"\xdc\x00\x01" + encode_attributes([(b"a", b"")])[1:])
def test_any_bytes_are_attributes_or_the_declared_error(encoded: bytes) -> None:
    try:
        assert encode_attributes(decode_attributes(encoded)) == encoded
    except FormatError:
        return


def test_only_long_attributes_stand_outside_of_an_entry() -> None:
    assert not are_long([(b"user.a", bytes(INLINE_ATTRIBUTES_BYTES_MAX - 6))])
    assert are_long([(b"user.a", bytes(INLINE_ATTRIBUTES_BYTES_MAX - 5))])
