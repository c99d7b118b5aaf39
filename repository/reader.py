"""Reading a snapshot: manifest nodes, list nodes and contents, by way of frames.

Whoever reads says where sealed frames and their keys come from (`FrameSource`) and where to open
them (`run`, a thread pool's). Opened frames are kept as long as they fit into a fixed number of
bytes: manifest nodes that lie together are asked for together. Nothing unchecked leaves here.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

from repository.content import read_extents
from repository.entries import (
    Attributes,
    ChunkClass,
    Content,
    Entry,
    EntryType,
    Extent,
    Pointer,
    decode_attributes,
    key_of,
    subtree,
)
from repository.errors import DamagedError, FormatError
from repository.frames import FrameIdentity, FrameReader, PlainChunk
from repository.ids import ChunkId, ObjectType
from repository.keys import FrameKey
from repository.layout import ReaderKeys
from repository.needs import drive_async
from repository.rereading import read_soundly
from repository.walking import Batch, lookup, scan

Chunks = list[PlainChunk]
Run = Callable[[Callable[[], list[Chunks]]], Awaitable[list[Chunks]]]

# Opened frames kept for the next look: a few dozen metadata frames, or eight of data.
CACHE_BYTES: Final = 16 * 1024 * 1024
# Sealed frames asked for at once.
_FETCH_FRAMES: Final = 8


class SealedFrame(NamedTuple):
    """A frame as it lies in a pack, and its key."""

    sealed: bytes | memoryview
    key: FrameKey


class FrameSource(Protocol):
    """Where sealed frames come from."""

    async def read(self, identities: Sequence[FrameIdentity]) -> list[SealedFrame]:
        """These frames, in this order.

        DamagedError where the store does not hold one as it should, KeyMaterialError where its key
        is not to be had.
        """
        ...


class SnapshotReader:
    """Reads entries and contents of one repository's snapshots."""

    def __init__(self, source: FrameSource, keys: ReaderKeys, run: Run) -> None:
        self._source = source
        self._keys = keys
        self._run = run
        self._opened: OrderedDict[tuple[FrameIdentity, ObjectType], Chunks] = OrderedDict()
        self._opened_bytes = 0

    async def nodes(self, pointers: list[Pointer]) -> list[bytes | memoryview]:
        """The manifest nodes at these places."""
        return await self._pointed(pointers, ObjectType.NODE)

    async def lists(self, pointers: list[Pointer]) -> list[bytes | memoryview]:
        """The list nodes at these places."""
        return await self._pointed(pointers, ObjectType.LIST)

    async def entry(self, manifest: Pointer, path: bytes) -> Entry | None:
        """The entry of a path, None where the snapshot has none."""
        async for found in drive_async(lookup(manifest, key_of(path)), self.nodes):
            return found
        return None

    async def entries(self, manifest: Pointer, path: bytes = b"") -> AsyncIterator[Batch]:
        """Entries at and beneath a path, in order of keys."""
        async for batch in drive_async(scan(manifest, *subtree(key_of(path))), self.nodes):
            yield batch

    async def extents(self, content: Content) -> AsyncIterator[list[Extent]]:
        """A file's extents in order."""
        async for batch in drive_async(read_extents(content), self.lists):
            yield batch

    async def attributes(self, entry: Entry) -> Attributes:
        """An entry's extended attributes, wherever they stand."""
        if entry.long_xattrs is None:
            return entry.xattrs or []
        (encoded,) = await self.lists([entry.long_xattrs])
        return decode_attributes(encoded)

    async def content(self, entry: Entry) -> AsyncIterator[bytes | memoryview]:
        """A file's bytes in order; DamagedError where they are not as long as the entry says."""
        remaining = entry.size
        if entry.type is not EntryType.FILE:
            return
        # Without content a file is empty, or its entry lies.
        content = entry.content or Content(ChunkClass.SMALL, [], None)
        async for batch in self.extents(content):
            for extent in batch:
                remaining -= extent.length
                if remaining < 0:
                    raise DamagedError("a file's content is longer than its entry says")
                async for piece in self._bytes(extent):
                    yield piece
        if remaining:
            raise DamagedError("a file's content is shorter than its entry says")

    async def _bytes(self, extent: Extent) -> AsyncIterator[bytes | memoryview]:
        if not extent.is_hole:
            yield await self.extent(extent)
            return
        zeros = bytes(min(extent.length, 1 << 20))
        left = extent.length
        while left:
            yield zeros[:left]
            left -= len(zeros[:left])

    async def extent(self, extent: Extent) -> memoryview:
        """The bytes of an extent that is no hole."""
        identity = FrameIdentity(extent.nonce, extent.frame)
        (chunks,) = await self._frames([identity], ObjectType.DATA)
        return slice_extent(extent, chunks)

    async def _pointed(
        self, pointers: Sequence[Pointer], kind: ObjectType
    ) -> list[bytes | memoryview]:
        found: list[bytes | memoryview] = []
        for start in range(0, len(pointers), 64):
            some = pointers[start : start + 64]
            identities = [FrameIdentity(pointer.nonce, pointer.frame) for pointer in some]
            frames = await self._frames(identities, kind)
            for pointer, chunks in zip(some, frames, strict=True):
                found.append(pointed_chunk(pointer.id, pointer.chunk, chunks))
        return found

    async def _frames(self, identities: Sequence[FrameIdentity], kind: ObjectType) -> list[Chunks]:
        """The chunks of these frames, each fetched and opened once."""
        wanted = dict.fromkeys(identities)
        # A frame that was opened as one type is not held as another: its tag says which it is.
        held = {
            identity: self._opened[identity, kind]
            for identity in wanted
            if (identity, kind) in self._opened
        }
        missing = [identity for identity in wanted if identity not in held]
        for start in range(0, len(missing), _FETCH_FRAMES):
            some = missing[start : start + _FETCH_FRAMES]
            opened = await read_soundly(partial(self._open, some, kind))
            held.update(zip(some, opened, strict=True))
        for identity in wanted:
            self._keep((identity, kind), held[identity])
        return [held[identity] for identity in identities]

    async def _open(self, identities: list[FrameIdentity], kind: ObjectType) -> list[Chunks]:
        sealed = await self._source.read(identities)
        return await self._run(self._opening(identities, sealed, kind))

    def _opening(
        self, identities: list[FrameIdentity], sealed: list[SealedFrame], kind: ObjectType
    ) -> Callable[[], list[Chunks]]:
        def work() -> list[Chunks]:
            reader = FrameReader(self._keys.repository, self._keys.ids)
            return [
                reader.open(frame.sealed, frame.key, identity, kind)
                for identity, frame in zip(identities, sealed, strict=True)
            ]

        return work

    def _keep(self, key: tuple[FrameIdentity, ObjectType], chunks: Chunks) -> None:
        if key not in self._opened:
            self._opened_bytes += _size(chunks)
            self._opened[key] = chunks
        self._opened.move_to_end(key)
        while self._opened_bytes > CACHE_BYTES and len(self._opened) > 1:
            _, dropped = self._opened.popitem(last=False)
            self._opened_bytes -= _size(dropped)


def slice_extent(extent: Extent, chunks: Chunks) -> memoryview:
    """The bytes of an extent out of its opened frame; DamagedError where it holds other ones."""
    chunk = pointed_chunk(extent.id, extent.chunk, chunks)
    if extent.skip + extent.length > len(chunk):
        raise FormatError("an extent is longer than its chunk")
    return chunk[extent.skip : extent.skip + extent.length]


def pointed_chunk(chunk_id: ChunkId, number: int, chunks: Chunks) -> memoryview:
    """A chunk by its number in a frame; DamagedError where another one stands there."""
    if number >= len(chunks):
        raise FormatError("a chunk's number is higher than its frame has chunks")
    chunk = chunks[number]
    if chunk.id != chunk_id:
        raise DamagedError(
            f"a frame does not hold chunk {chunk_id.hex()[:16]} where it should",
            hint="run tidemark verify to see what it affects",
        )
    return memoryview(chunk.data)


def _size(chunks: Chunks) -> int:
    return sum(len(chunk.data) for chunk in chunks)
