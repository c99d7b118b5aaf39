"""Packs on their way in: nothing is acknowledged that was not found whole.

They come in two ways. Where the store can be signed for, the agent sends a pack to the store
itself, by a request that is good for this name, length and content alone; then the store is asked
what it has, and the pack's end is read from it. Elsewhere the pack streams through here, and is
hashed on its way: before it gets its name its length and the hash in that name must agree.

Either way the node's signature must be right, and the footer must open with the coordinator's key
and describe frames that can be, before the pack gets into the catalog. The first pack of a session
is opened through custody as well, so that a broken agent cannot fill a repository with what nobody
can read. What is refused after it got its name stays in the store unreferenced.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from coordinator.catalog import Catalog
from coordinator.custody import Custody
from coordinator.dispatch import Clock
from coordinator.errors import (
    CatalogError,
    DamagedError,
    FormatError,
    KeyMaterialError,
    ObjectExistsError,
    ObjectMissingError,
    RejectedError,
    StoreUnavailableError,
)
from coordinator.founding import SIGNED_SECONDS, Repository
from coordinator.locks import nanoseconds
from coordinator.metrics import Metrics
from coordinator.model import Node, Pack, PackOrigin, Session
from coordinator.repositories import Opened
from coordinator.sessions import Sessions
from repository.failpoints import failpoint
from repository.footers import END_BYTES, read_pack_end
from repository.frames import FrameReader
from repository.ids import ID_BYTES, ChunkId, SessionId
from repository.keys import frame_key
from repository.layout import parse_pack_name
from repository.pack import (
    HEAD_BYTES,
    PACK_BYTES_MAX,
    TAIL_BYTES,
    PackEnd,
    PackIndex,
    PackKind,
    PackTail,
    Signer,
    decode_head,
    parse_tail,
)
from repository.rereading import read_soundly
from repository.store.counting import charged
from repository.store.interface import SignedRequest, Signing, Store, StoredObject

# BLAKE3 of a whole pack; its name holds the first half.
DIGEST_BYTES: Final = 32
# What is hashed and written in one go: of each upload at most so much waits in memory.
_BATCH_BYTES: Final = 4 * 1024 * 1024
# Reading back a pack that was stored before its answer was lost.
_REREAD_BYTES: Final = 4 * 1024 * 1024
_HINT: Final = "the agent made or sent a broken pack; see its log, and check its memory"


@dataclass(frozen=True, slots=True)
class PackHeader:
    """What an agent says of the pack that it sends."""

    session_id: SessionId
    fencing_token: int
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PackDigest:
    """A pack that an agent sends to the store itself."""

    header: PackHeader
    checksum: bytes
    """Of the kind that the store compares."""
    blake3: bytes
    end_bytes: int = 0
    """Of footer, origins and tail, as the agent says; 0 if it does not."""


class _Digest:
    """Hashes a pack piece by piece, holding back its tail, which has a hash of its own."""

    def __init__(self) -> None:
        self._hasher = blake3()
        self._held = b""
        self.head = b""
        self.size = 0

    def update(self, pieces: Iterable[memoryview]) -> None:
        """Take the next pieces into account, which may be slow: call it in a thread."""
        for piece in pieces:
            self._update(piece)

    def _update(self, piece: memoryview) -> None:
        if len(self.head) < HEAD_BYTES:
            self.head += bytes(piece[: HEAD_BYTES - len(self.head)])
        self.size += len(piece)
        if len(piece) < TAIL_BYTES:
            piece = memoryview(self._held + bytes(piece))
        else:
            self._hasher.update(self._held)
        self._hasher.update(piece[:-TAIL_BYTES])
        self._held = bytes(piece[-TAIL_BYTES:])

    def finish(self) -> tuple[bytes, bytes, bytes]:
        """(tail, hash of all before it, hash of everything)."""
        before = self._hasher.digest()
        self._hasher.update(self._held)
        return self._held, before, self._hasher.digest()


class Intake:
    """Takes packs in."""

    def __init__(
        self,
        catalog: Catalog,
        custody: Custody,
        sessions: Sessions,
        metrics: Metrics,
        *,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._custody = custody
        self._sessions = sessions
        self._metrics = metrics
        self._clock = clock

    async def take(self, header: PackHeader, node: Node, pieces: AsyncIterator[memoryview]) -> None:
        """Store one pack. RejectedError, FencedError or StoreError; the same pack twice is once."""
        session = await self._sessions.writing(header.session_id, header.fencing_token, node)
        with self._counting_refused(), charged(self._sessions.tally(session)):
            digest = _name_digest(header)
            if await self._catalog.ledger.pack(header.name) is None:
                mine = self._while_writing(session, pieces)
                there = self._sessions.of(session)
                whole, kind, tail = await self._receive(there, header, digest, node, mine)
                failpoint("coordinator.pack.stored", StoreUnavailableError)
                index = await self._index(there.repository, header.name, tail)
                # Asked for: what an earlier try has stored is locked since then.
                until = await there.locks.locked_until(header.name)
                await self._record(header, session, index, whole, kind, until)

    async def sign(self, pack: PackDigest, node: Node) -> SignedRequest | None:
        """A request to the store for this pack; None where it was taken in before.

        RejectedError where the store cannot be signed for, or FencedError.
        """
        header = pack.header
        session = await self._sessions.writing(header.session_id, header.fencing_token, node)
        self._sessions.still_writing(session)
        with self._counting_refused():
            there = self._sessions.of(session)
            signing = _signing(there)
            _check_said(pack)
            if await self._catalog.ledger.pack(header.name) is not None:
                return None
            return await signing.sign_put(
                header.name,
                size_bytes=header.size_bytes,
                checksum=pack.checksum,
                seconds=SIGNED_SECONDS,
                retain_until=there.locks.upload_until(),
            )

    async def confirm(self, pack: PackDigest, node: Node) -> None:
        """Take in what was sent by a signed request; the same pack twice is once.

        RejectedError, FencedError or StoreError: StoreUnavailableError where it is not there.
        """
        header = pack.header
        session = await self._sessions.writing(header.session_id, header.fencing_token, node)
        with self._counting_refused(), charged(self._sessions.tally(session)):
            there = self._sessions.of(session)
            signing = _signing(there)
            _check_said(pack)
            if await self._catalog.ledger.pack(header.name) is None:
                found = await _stored(signing, pack)
                index = await self._end(there.repository, header, node, found.part)
                kind, until = _kind_of(index), nanoseconds(found.locked_until)
                await self._record(header, session, index, pack.blake3, kind, until)

    @contextmanager
    def _counting_refused(self) -> Iterator[None]:
        try:
            yield
        except RejectedError:
            self._metrics.pack_refused()
            raise

    async def _record(
        self,
        header: PackHeader,
        session: Session,
        index: PackIndex,
        whole: bytes,
        kind: PackKind,
        locked_until: int,
    ) -> None:
        """Write a pack into the catalog, once it proves to be readable."""
        failpoint("coordinator.pack.indexed", StoreUnavailableError)
        origins = _origins(index, session)
        await self._prove(header.name, session, index)
        failpoint("coordinator.pack.proven", StoreUnavailableError)
        pack = Pack(
            name=header.name,
            kind=kind.name.lower(),
            size_bytes=header.size_bytes,
            blake3=whole,
            session_id=session.session_id,
            node_id=session.node_id,
            volume_id=session.volume_id,
            repository_id=session.repository_id,
            stored_at=self._clock(),
            frame_table=index.table().encode(),
            origins=origins,
            locked_until=locked_until,
        )
        await self._catalog.ledger.record_pack(pack, header.fencing_token)
        failpoint("coordinator.pack.recorded", CatalogError)
        self._metrics.pack_stored(header.size_bytes)

    async def _end(
        self, repository: Repository, header: PackHeader, node: Node, end: bytes
    ) -> PackIndex:
        """Footer and origins of a pack in the store, signed by this node; `end` came already."""
        came = [end]

        async def read() -> PackIndex:
            tail, end = await read_pack_end(
                repository.store, header.name, header.size_bytes, came.pop() if came else b""
            )
            _check_tail(tail, repository, node)
            return await asyncio.to_thread(end.open_with_metadata_key, repository.metadata_key)

        with _refusing("a pack"):
            return await read_soundly(read)

    async def _while_writing(
        self, session: Session, pieces: AsyncIterator[memoryview]
    ) -> AsyncIterator[memoryview]:
        """The pieces, up to the moment when the session is fenced; FencedError from then on."""
        async for piece in pieces:
            self._sessions.still_writing(session)
            yield piece
        self._sessions.still_writing(session)

    async def _receive(
        self,
        there: Opened,
        header: PackHeader,
        name_digest: bytes,
        node: Node,
        pieces: AsyncIterator[memoryview],
    ) -> tuple[bytes, PackKind, PackTail]:
        digest = _Digest()
        store = there.locks.store(there.locks.upload_until())
        async with store.writer(header.name) as writer:
            failpoint("coordinator.pack.begun", StoreUnavailableError)
            async for batch in _batches(pieces, header.size_bytes):
                await asyncio.to_thread(digest.update, batch)
                await writer.write(*batch)
                failpoint("coordinator.pack.batch_written", StoreUnavailableError)
            checked = self._check(there.repository, header, name_digest, node, digest)
            failpoint("coordinator.pack.checked", StoreUnavailableError)
            try:
                await writer.commit()
            except ObjectExistsError:
                await _check_existing(there.repository.store, header, checked[0])
        return checked

    def _check(
        self,
        repository: Repository,
        header: PackHeader,
        name_digest: bytes,
        node: Node,
        digest: _Digest,
    ) -> tuple[bytes, PackKind, PackTail]:
        if digest.size != header.size_bytes:
            raise RejectedError("a pack is shorter than was said", hint=_HINT)
        end, before, whole = digest.finish()
        if whole[:ID_BYTES] != name_digest:
            raise RejectedError("a pack does not have the hash in its name", hint=_HINT)
        with _refusing("a pack"):
            kind, _ = decode_head(digest.head)
            tail = parse_tail(end, digest.size)
            _check_tail(tail, repository, node)
            if tail.digest != before:
                raise RejectedError("a pack does not have the hash in its tail", hint=_HINT)
        return whole, kind, tail

    async def _index(self, repository: Repository, name: str, tail: PackTail) -> PackIndex:
        """Footer and origins, read back from the store as any reader would."""

        async def read() -> PackIndex:
            offset = tail.footer_offset
            end = await repository.store.get_range(name, offset, tail.size - offset)
            return await asyncio.to_thread(
                PackEnd(tail, end).open_with_metadata_key, repository.metadata_key
            )

        with _refusing("a pack's footer"):
            return await read_soundly(read)

    async def _prove(self, name: str, session: Session, index: PackIndex) -> None:
        """Open one frame of the session's first pack. Without custody the session goes unproven."""
        if session.proven or not self._custody.unlocked or not index.frames:
            return
        repository = self._sessions.of(session).repository
        entry = min(index.frames, key=lambda frame: frame.length)
        origin = index.origins[entry.origin]

        def open_frame(sealed: bytes) -> list[tuple[int, ChunkId]]:
            key = self._custody.pack_key(
                session.repository_id, origin.sealed_data_key, origin.nonce
            )
            reader = FrameReader(session.repository_id, repository.keys.ids)
            identity = index.identity(entry)
            chunks = reader.open(sealed, frame_key(key, entry.number), identity, entry.kind)
            return [(len(chunk.data), chunk.id) for chunk in chunks]

        async def read() -> list[tuple[int, ChunkId]]:
            sealed = await repository.store.get_range(name, entry.offset, entry.length)
            return await asyncio.to_thread(open_frame, sealed)

        try:
            found = await read_soundly(read)
        except (DamagedError, KeyMaterialError) as error:
            raise RejectedError(
                f"a pack could not be opened again: {error.message}", hint=_HINT
            ) from error
        if found != [(length, chunk_id) for length, chunk_id in entry.chunks]:
            raise RejectedError("a pack's footer does not describe its frames", hint=_HINT)
        await self._catalog.ledger.mark_proven(session.session_id)


def _signing(there: Opened) -> Signing:
    if there.repository.signing_store is None:
        raise RejectedError("this repository's store cannot be signed for")
    return there.repository.signing_store


async def _stored(signing: Signing, pack: PackDigest) -> StoredObject:
    """What the store says of a pack, which is what was signed for, and the pack's end.

    Whoever sent it had to send the lock as well, but it is the store that keeps it.
    """
    name, size_bytes = pack.header.name, pack.header.size_bytes
    end_bytes = min(pack.end_bytes or END_BYTES, END_BYTES, size_bytes)
    try:
        found = await signing.stored(name, size_bytes - end_bytes, end_bytes)
    except ObjectMissingError as error:
        raise StoreUnavailableError(
            f"{name} did not come to the store", hint="the agent sends it again"
        ) from error
    # A store that does not tell has compared it when it took the pack.
    same = found.checksum is None or found.checksum == pack.checksum
    if not same or found.size != size_bytes:
        raise DamagedError(
            f"the repository holds {name}, and with other content than was signed for",
            hint="run tidemark verify; the next backup stores its data under other names",
        )
    return found


def _check_tail(tail: PackTail, repository: Repository, node: Node) -> None:
    """RejectedError or DamagedError unless this node signed it."""
    if tail.signer is not Signer.NODE or tail.signer_id != node.node_id:
        raise RejectedError("a pack is signed by another than the node that sent it")
    tail.check_signature(repository.config.repository, node.signing_public_key)


async def _check_existing(store: Store, header: PackHeader, whole: bytes) -> None:
    """The name is taken: by the same bytes, if an earlier answer was lost; else by damage."""
    hasher = blake3()
    info = await store.head(header.name)
    for offset in range(0, info.size, _REREAD_BYTES):
        length = min(_REREAD_BYTES, info.size - offset)
        hasher.update(await store.get_range(header.name, offset, length))
    if hasher.digest() != whole:
        raise DamagedError(
            f"the repository holds {header.name} already, and with other content",
            hint="run tidemark verify; the next backup stores its data under other names",
        )


async def _batches(
    pieces: AsyncIterator[memoryview], size_bytes: int
) -> AsyncIterator[list[memoryview]]:
    """Gather pieces, since each trip to a thread costs; RejectedError beyond this size."""
    batch: list[memoryview] = []
    held = taken = 0
    async for piece in pieces:
        taken += len(piece)
        if taken > size_bytes:
            raise RejectedError("a pack is longer than was said", hint=_HINT)
        batch.append(piece)
        held += len(piece)
        if held >= _BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """What is wrong with it is the agent's doing."""
    try:
        yield
    except (DamagedError, KeyMaterialError) as error:
        raise RejectedError(f"{what} does not check out: {error.message}", hint=_HINT) from error


def _check_said(pack: PackDigest) -> None:
    if pack.blake3[:ID_BYTES] != _name_digest(pack.header) or len(pack.blake3) != DIGEST_BYTES:
        raise RejectedError("a pack does not have the hash in its name", hint=_HINT)


def _kind_of(index: PackIndex) -> PackKind:
    """What all frames of a pack are."""
    for kind in PackKind:
        if index.frames and all(kind.holds(frame.kind) for frame in index.frames):
            return kind
    raise RejectedError("a pack holds nothing, or data and metadata together", hint=_HINT)


def _name_digest(header: PackHeader) -> bytes:
    if not 0 < header.size_bytes <= PACK_BYTES_MAX:
        raise RejectedError("a pack is larger than a pack may be", hint=_HINT)
    try:
        return parse_pack_name(header.name)[1]
    except FormatError as error:
        raise RejectedError(error.message, hint=_HINT) from error


def _origins(index: PackIndex, session: Session) -> tuple[PackOrigin, ...]:
    """A node writes only what its own session seals."""
    for origin in index.origins:
        if origin.session != session.session_id or origin.node != session.node_id:
            raise RejectedError("a pack names another session or node as its origin", hint=_HINT)
        if session.sealed_data_key != origin.sealed_data_key:
            raise RejectedError("a pack carries another session key than its session", hint=_HINT)
    return tuple(
        PackOrigin(
            pack_nonce=origin.nonce,
            session_id=session.session_id,
            node_id=session.node_id,
            volume_id=session.volume_id,
            sealed_data_key=origin.sealed_data_key,
        )
        for origin in index.origins
    )
