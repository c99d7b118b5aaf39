"""Packs under construction: worker threads put sealed frames in, whole packs come out.

A frame gets its identity (pack nonce, number) before it is sealed, and is sealed straight into the
pack's buffer. Buffers are few, and a thread that needs one waits until an upload returns it: that
is the back-pressure of the whole pipeline, and with it the bound on its memory. A pack that
nobody will finish, because its session failed, is just dropped.
"""

import mmap
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from typing_extensions import Buffer

from repository.errors import TidemarkError
from repository.failpoints import failpoint
from repository.frames import (
    TAG_BYTES,
    FrameCipher,
    FrameIdentity,
    Location,
    PlainChunk,
)
from repository.ids import (
    CHUNK_ID_BYTES,
    ChunkId,
    NodeId,
    ObjectType,
    PackNonce,
    RepositoryId,
    SessionId,
)
from repository.keys import KEY_BYTES, SigningKey, frame_key, pack_key
from repository.layout import pack_name
from repository.pack import (
    DATA_PACK_BYTES,
    METADATA_PACK_BYTES,
    FrameEntry,
    PackKind,
    PackSeal,
    encode_head,
    parse_tail,
)

# One that is filled and one on its way hide each other; memory stays bounded.
_BUFFERS: Final[Mapping[PackKind, int]] = {PackKind.DATA: 2, PackKind.METADATA: 2}
# A store behind a network takes a pack longer than it takes to fill one, and has to be asked before
# and after: with two, nothing is filled or nothing is sent for a third of the time.
BUFFERS_FAR: Final[Mapping[PackKind, int]] = {PackKind.DATA: 3, PackKind.METADATA: 2}
_TARGETS: Final = {PackKind.DATA: DATA_PACK_BYTES, PackKind.METADATA: METADATA_PACK_BYTES}
# The smallest files fill a pack with hundreds of thousands of chunks, and each of them is a row in
# tables here and at the coordinator. A million files of a few bytes took 254 to 260 MiB of an agent
# with twice as many to a pack, and 242 with these: so many chunks end a pack, too.
_CHUNKS_MAX: Final = 16_384
# What a frame may be longer than its chunks: for each a length and an id, then header and tag.
_CHUNK_OVERHEAD: Final = 4 + CHUNK_ID_BYTES
_FRAME_OVERHEAD: Final = 64


class FinishedPack(NamedTuple):
    """A pack ready for upload."""

    kind: PackKind
    name: str
    blake3: bytes
    """Of all of it."""
    buffers: tuple[Buffer, ...]
    size_bytes: int
    end_bytes: int
    """Of footer, origins and tail, with which it ends."""
    chunks: list[tuple[ChunkId, Location]]
    release: Callable[[], None]
    """To be called when the buffers are no longer needed, however that came about."""


class Reservation(NamedTuple):
    """The promise of a place for one frame in a pack."""

    pack: "_Pack"
    identity: FrameIdentity
    size_max: int


class PackIdentity(NamedTuple):
    """Whose packs these are, and what they are sealed with."""

    repository: RepositoryId
    session: SessionId
    node: NodeId
    data_key: bytes
    sealed_data_key: bytes
    metadata_public: bytes
    signing: SigningKey


class _Pack:
    """A buffer that fills up."""

    def __init__(self, kind: PackKind, buffer: mmap.mmap, identity: PackIdentity) -> None:
        self.kind = kind
        self.buffer = buffer
        self.random = secrets.token_bytes(16)
        nonce = PackNonce(secrets.token_bytes(16))
        self.seal = PackSeal(
            repository=identity.repository,
            nonce=nonce,
            session=identity.session,
            node=identity.node,
            sealed_data_key=identity.sealed_data_key,
            pack_key=pack_key(identity.data_key, nonce),
            metadata_public=identity.metadata_public,
            signing=identity.signing,
        )
        head = encode_head(kind, self.random)
        buffer[: len(head)] = head
        self.used = len(head)
        self.promised = 0
        self.promised_chunks = 0
        self.reserved = 0
        self.closed = False
        self.frames: list[FrameEntry] = []
        self.chunks: list[tuple[ChunkId, Location]] = []


class Packs:
    """The packs of one session, filled by any number of threads."""

    def __init__(
        self,
        identity: PackIdentity,
        deliver: Callable[[FinishedPack], None],
        buffers: Mapping[PackKind, int] = _BUFFERS,
    ) -> None:
        """`deliver` is called with each finished pack, from the thread that finished it.

        `buffers` is how many packs of a kind there are at once, on their way included.
        """
        self._identity = identity
        self._cipher = FrameCipher(identity.repository)
        self._deliver = deliver
        self._changed = threading.Condition()
        self._open: dict[PackKind, _Pack] = {}
        self._free = dict(buffers)
        self._spare: dict[PackKind, list[mmap.mmap]] = {kind: [] for kind in PackKind}
        self._error: TidemarkError | None = None

    @property
    def failure(self) -> TidemarkError | None:
        """What the session failed with, if it did."""
        return self._error

    def fail(self, error: TidemarkError) -> None:
        """Let everybody who waits for a place, or comes for one, end with this error."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def reserve(self, kind: PackKind, raw_bytes: int, chunks: int) -> Reservation:
        """A place for a frame of at most so many bytes and chunks; waits for a buffer if need be.

        Raises the error that the session failed with, if it did.
        """
        size_max = raw_bytes + chunks * _CHUNK_OVERHEAD + _FRAME_OVERHEAD
        while True:
            with self._changed:
                pack = self._opened(kind)
                fits = pack.used + pack.promised + size_max <= len(pack.buffer)
                if fits and pack.promised_chunks + chunks <= _CHUNKS_MAX:
                    pack.promised += size_max
                    pack.promised_chunks += chunks
                    pack.reserved += 1
                    identity = FrameIdentity(pack.seal.nonce, pack.reserved - 1)
                    return Reservation(pack, identity, size_max)
                complete = self._close(kind)
            if complete is not None:
                self._finish(complete)

    def fill(
        self,
        place: Reservation,
        kind: ObjectType,
        plaintext: bytes | bytearray,
        chunks: Sequence[PlainChunk],
    ) -> list[tuple[ChunkId, Location]]:
        """Seal a frame into its place; its chunks and where each lies from now on."""
        pack, identity = place.pack, place.identity
        length = len(plaintext) + TAG_BYTES
        with self._changed:
            offset = pack.used
            pack.used += length
            pack.promised += length - place.size_max
        key = frame_key(pack.seal.pack_key, identity.number)
        with memoryview(pack.buffer)[offset : offset + length] as out:
            self._cipher.seal_into(out, plaintext, key, identity, kind)
        failpoint("agent.frame.sealed", TidemarkError)
        table = [(len(chunk.data), chunk.id) for chunk in chunks]
        entry = FrameEntry(0, identity.number, kind, offset, length, table)
        nonce, number = identity
        placed = [
            (chunk_id, Location(nonce, number, index, chunk_bytes))
            for index, (chunk_bytes, chunk_id) in enumerate(table)
        ]
        with self._changed:
            pack.frames.append(entry)
            pack.chunks += placed
            pack.promised -= length
            complete = pack.closed and not pack.promised
        if complete:
            self._finish(pack)
        return placed

    def flush(self) -> None:
        """Finish the packs that are open. Nobody may hold a reservation any more."""
        for kind in PackKind:
            with self._changed:
                complete = self._close(kind) if kind in self._open else None
            if complete is not None:
                self._finish(complete)

    def _opened(self, kind: PackKind) -> _Pack:
        """The pack being filled; a new one as soon as a buffer is free. The lock is held."""
        while True:
            if self._error is not None:
                raise self._error
            if kind in self._open:
                return self._open[kind]
            if self._free[kind]:
                break
            self._changed.wait()
        self._free[kind] -= 1
        spare = self._spare[kind]
        # Mapped, and not a bytearray: that would clear all of it, also for a pack of one frame.
        buffer = spare.pop() if spare else mmap.mmap(-1, _TARGETS[kind], mmap.MAP_PRIVATE)
        pack = self._open[kind] = _Pack(kind, buffer, self._identity)
        return pack

    def _close(self, kind: PackKind) -> _Pack | None:
        """Take no more frames; the pack if it is complete already. The lock is held."""
        pack = self._open.pop(kind)
        pack.closed = True
        return pack if not pack.promised else None

    def _finish(self, pack: _Pack) -> None:
        """Footer, signature, name; then deliver. Without the lock: it hashes the whole pack."""
        if not pack.frames:
            self._release(pack)
            return
        body = memoryview(pack.buffer)[: pack.used]
        trailer, digest = pack.seal.finish(body, pack.frames, secrets.token_bytes(KEY_BYTES))
        failpoint("agent.pack.finished", TidemarkError)
        size_bytes = pack.used + len(trailer)
        self._deliver(
            FinishedPack(
                kind=pack.kind,
                name=pack_name(pack.random, digest),
                blake3=digest,
                buffers=(body, trailer),
                size_bytes=size_bytes,
                end_bytes=size_bytes - parse_tail(trailer, size_bytes).footer_offset,
                chunks=pack.chunks,
                release=lambda: self._release(pack),
            )
        )

    def _release(self, pack: _Pack) -> None:
        with self._changed:
            self._spare[pack.kind].append(pack.buffer)
            self._free[pack.kind] += 1
            self._changed.notify_all()
