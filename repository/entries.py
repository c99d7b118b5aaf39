"""Entries: what a manifest says of one name in a volume.

An entry's key is its path's components joined by zero bytes, the volume's top being the empty key:
byte order of keys is then the order of a walk that visits sorted names before it goes on. Entries
are msgpack arrays with their fields in fixed order, each with one encoding only.
"""

from enum import IntEnum
from itertools import pairwise
from typing import Annotated, Final

import msgspec

from repository.errors import UNDECODABLE, FormatError
from repository.frames import Location
from repository.ids import CHUNK_ID_BYTES, ID_BYTES, ChunkId, PackNonce

SEPARATOR: Final = b"\x00"
ROOT_KEY: Final = b""
# PATH_MAX is a limit of system calls, not of trees; this one bounds what a reader accepts.
KEY_BYTES_MAX: Final = 1024 * 1024


# All ones, as of uid -1, means "unchanged" to the kernel, and nobody.
_OWNERS_END: Final = (1 << 32) - 1
_TIMES_END: Final = 1 << 63
_GENERATIONS_END: Final = 1 << 64
# Extended attributes that stand in the entry itself; longer ones would bloat the manifest's leaves.
INLINE_ATTRIBUTES_BYTES_MAX: Final = 1024
# Names and values of all attributes of one entry together.
ATTRIBUTES_BYTES_MAX: Final = 256 * 1024

_NO_NAMES: Final = frozenset({b"", b".", b".."})

Attributes = list[tuple[bytes, bytes]]


class EntryType(IntEnum):
    """What kind of thing a name stands for."""

    DIRECTORY = 1
    FILE = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER_DEVICE = 6
    BLOCK_DEVICE = 7


class ChunkClass(IntEnum):
    """How a file's content is cut into chunks; sticky, since another cut would store it anew."""

    SMALL = 1
    GENERAL = 2
    PAGED = 3


class Flag(IntEnum):
    """Bits of `Entry.flags`: what must be known of a content that isn't one moment's."""

    FUZZY = 1  # it kept changing while it was read
    STALE = 2  # it could not be read; this is its previous content


# Numbers of frames and chunks, lengths of chunks: what fits into a frame's header.
_Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class Pointer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a manifest node or list node lies: its id, frame, place in the frame, and length."""

    id: Annotated[ChunkId, msgspec.Meta(min_length=CHUNK_ID_BYTES, max_length=CHUNK_ID_BYTES)]
    nonce: Annotated[PackNonce, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
    frame: _Number
    chunk: _Number
    length: _Number

    @staticmethod
    def at(chunk_id: ChunkId, place: Location) -> "Pointer":
        """A pointer to a chunk that lies there."""
        return Pointer(chunk_id, place.nonce, place.frame, place.chunk, place.length)


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`length` bytes of a file: a chunk from `skip` on, or a hole where the nonce is empty."""

    nonce: PackNonce
    frame: _Number
    chunk: _Number
    skip: _Number
    length: Annotated[int, msgspec.Meta(gt=0)]
    id: ChunkId

    @property
    def is_hole(self) -> bool:
        """Whether these bytes are zero and stored nowhere."""
        return not self.nonce

    @staticmethod
    def at(chunk_id: ChunkId, place: Location) -> "Extent":
        """The whole of a chunk that lies there."""
        return Extent(place.nonce, place.frame, place.chunk, 0, place.length, chunk_id)

    @staticmethod
    def hole(length: int) -> "Extent":
        """Zeros."""
        return Extent(PackNonce(b""), 0, 0, 0, length, ChunkId(b""))


class Content(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A file's bytes in order: extents here, or a tree of list nodes where there are many."""

    chunking: ChunkClass
    extents: list[Extent]
    list: Pointer | None


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name. Times in nanoseconds since the epoch, sizes in bytes; inode 0 means unknown.

    Names with more than one link, one inode and one generation are names of one thing.
    """

    type: EntryType
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    inode: int
    ctime_ns: int
    links: int
    flags: int
    device: int
    target: bytes | None
    xattrs: Attributes | None
    long_xattrs: Pointer | None
    content: Content | None
    generation: int = 0


class EntryStat(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The beginning of an entry: what a stat can be compared with, decoded without the rest.

    Its fields are the first ones of Entry. The type is a bare number: an enumeration's member
    takes longer to find than all of this to decode.
    """

    type: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    inode: int
    ctime_ns: int
    links: int
    flags: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode
_decode_attributes = msgspec.msgpack.Decoder(Attributes).decode


def encode_entry(entry: Entry) -> bytes:
    """The one encoding of an entry."""
    return _encode(entry)


def decode_entry(encoded: bytes | memoryview | msgspec.Raw) -> Entry:
    """An entry; FormatError where the bytes are not one, or not its one encoding."""
    try:
        entry = _decode(encoded)
    except UNDECODABLE as error:
        raise FormatError("an entry does not decode") from error
    if _encode(entry) != bytes(encoded):
        raise FormatError("an entry is not encoded as entries are")
    _check(entry)
    return entry


def _check(entry: Entry) -> None:
    """FormatError for what no writer of ours makes, whoever signed it."""
    _check_metadata(entry)
    if entry.xattrs is not None:
        _check_attributes(entry.xattrs)
        if entry.long_xattrs is not None:
            raise FormatError("an entry has its extended attributes twice")
    if entry.content is None:
        return
    if entry.type is not EntryType.FILE:
        raise FormatError("an entry has content and is no file")
    if entry.content.extents and entry.content.list is not None:
        raise FormatError("an entry has its content twice")
    for extent in entry.content.extents:
        check_extent(extent)


def _check_metadata(entry: Entry) -> None:
    if not 0 <= entry.mode <= 0o7777 or entry.size < 0:
        raise FormatError("an entry has an impossible mode or size")
    if not 0 <= entry.uid < _OWNERS_END or not 0 <= entry.gid < _OWNERS_END:
        raise FormatError("an entry has an impossible owner")
    if not -_TIMES_END <= entry.mtime_ns < _TIMES_END:
        raise FormatError("an entry has an impossible time")
    if not 0 <= entry.generation < _GENERATIONS_END:
        raise FormatError("an entry has an impossible generation")
    if (entry.type is EntryType.SYMLINK) != (entry.target is not None):
        raise FormatError("an entry is a symbolic link without a target, or the reverse")
    if entry.target is not None and (not entry.target or b"\0" in entry.target):
        raise FormatError("an entry is a symbolic link to an impossible path")


def _check_attributes(attributes: Attributes) -> None:
    names = [name for name, _ in attributes]
    if any(b"\0" in name for name in names):
        raise FormatError("an extended attribute has an impossible name")
    if not names or not names[0] or any(left >= right for left, right in pairwise(names)):
        raise FormatError("an entry's extended attributes are not in order")
    if sum(len(name) + len(value) for name, value in attributes) > ATTRIBUTES_BYTES_MAX:
        raise FormatError("an entry's extended attributes are too long")


def are_long(attributes: Attributes) -> bool:
    """Whether attributes are kept outside of the entry."""
    size = sum(len(name) + len(value) for name, value in attributes)
    return size > INLINE_ATTRIBUTES_BYTES_MAX


def encode_attributes(attributes: Attributes) -> bytes:
    """The one encoding of attributes that are kept outside of their entry."""
    return _encode(attributes)


def decode_attributes(encoded: bytes | memoryview) -> Attributes:
    """What `encode_attributes` made; FormatError for anything else."""
    try:
        attributes = _decode_attributes(encoded)
    except UNDECODABLE as error:
        raise FormatError("extended attributes do not decode") from error
    _check_attributes(attributes)
    if _encode(attributes) != bytes(encoded):
        raise FormatError("extended attributes are not encoded as they should be")
    return attributes


def check_extent(extent: Extent) -> None:
    """FormatError for an extent that can't be read."""
    lengths = (len(extent.nonce), len(extent.id))
    if lengths not in {(ID_BYTES, CHUNK_ID_BYTES), (0, 0)}:
        raise FormatError("an extent is impossible")
    if extent.is_hole and (extent.frame or extent.chunk or extent.skip):
        raise FormatError("a hole has a place")


def key_of(path: bytes) -> bytes:
    """The key of a path relative to the volume, `/` between components."""
    return path.strip(b"/").replace(b"/", SEPARATOR)


def is_plain(key: bytes) -> bool:
    """Whether a key leads nowhere but down, by names that files may have."""
    return not key or (b"/" not in key and _NO_NAMES.isdisjoint(key.split(SEPARATOR)))


def path_of(key: bytes) -> bytes:
    """The path of a key; FormatError for one that would leave the place where it belongs."""
    if not is_plain(key):
        raise FormatError("an entry's name is not one that a file may have")
    return key.replace(SEPARATOR, b"/")


def subtree(key: bytes) -> tuple[bytes, bytes | None]:
    """[first, end) of the keys at and beneath a key; end is None where nothing follows."""
    return (key, key + b"\x01") if key else (key, None)
