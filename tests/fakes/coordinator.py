"""A coordinator in memory: takes packs and commits, and reads snapshots back with its own keys."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from operator import attrgetter
from typing import Final

from typing_extensions import override

from agent.errors import UnreachableError
from agent.packing import FinishedPack
from agent.services import (
    BackupStatistics,
    Committed,
    CoordinatorClient,
    Phase,
    Session,
    StoredChunks,
)
from repository.content import read_extents
from repository.entries import Attributes, Entry, EntryType, Extent, Pointer
from repository.errors import FencedError, StoreFullError, TidemarkError
from repository.frames import FrameIdentity, FrameReader, Location
from repository.ids import ChunkId, IdKeys, NodeId, ObjectType, PackNonce, RepositoryId
from repository.keys import (
    PackKey,
    RecoverySecret,
    Secret,
    SigningKey,
    UnsealingKey,
    frame_key,
    pack_key,
)
from repository.layout import DATA_KEY_INFO, ReaderKeys, WriterKeys
from repository.needs import drive
from repository.pack import FrameTable, PackKind, read_index
from repository.reader import Chunks, FrameSource, SealedFrame, SnapshotReader
from repository.refs import decode_refs, refs_hash
from repository.snapshot import (
    Countersigning,
    RootBody,
    Verdict,
    check_countersigned,
    check_signed_root,
    countersign,
    root_hash,
    snapshot_id,
)
from repository.walking import node_pointers, scan

REPOSITORY: Final = RepositoryId(b"R" * 16)
NODE: Final = NodeId(b"N" * 16)


class Packs(FrameSource):
    """Packs by name, opened with the recovery key."""

    def __init__(self, recovery: UnsealingKey, metadata: UnsealingKey) -> None:
        self._recovery = recovery
        self._metadata = metadata
        self.packs: dict[str, bytes] = {}
        self._tables: dict[PackNonce, tuple[str, FrameTable, PackKey]] = {}
        self.chunks: dict[FrameIdentity, list[tuple[int, ChunkId]]] = {}

    def add(self, name: str, pack: bytes) -> list[PackNonce]:
        """Take a pack in; its nonces."""
        _, index = read_index(pack, self._metadata)
        self.packs[name] = pack
        self.chunks.update((index.identity(entry), entry.chunks) for entry in index.frames)
        for origin in index.origins:
            info = DATA_KEY_INFO + REPOSITORY
            data_key = self._recovery.unseal(origin.sealed_data_key, info)
            key = pack_key(data_key, origin.nonce)
            self._tables[origin.nonce] = (name, index.table(), key)
        return [origin.nonce for origin in index.origins]

    @override
    async def read(self, identities: Sequence[FrameIdentity]) -> list[SealedFrame]:
        return [self.frame(identity) for identity in identities]

    def frame(self, identity: FrameIdentity) -> SealedFrame:
        name, table, key = self._tables[identity.nonce]
        place = table.find(identity)
        assert place is not None
        offset, length = place
        sealed = self.packs[name][offset : offset + length]
        return SealedFrame(sealed, frame_key(key, identity.number))


class MemoryCoordinator(CoordinatorClient):
    """Takes what an agent sends, as strictly as the real one where a test rests on it."""

    def __init__(self) -> None:
        self.recovery = RecoverySecret(Secret(b"s" * 32)).unsealing_key()
        self.metadata = UnsealingKey(b"m" * 32)
        self.node = SigningKey(b"n" * 32)
        self._signing = SigningKey(b"c" * 32)
        self.ids = IdKeys(b"1" * 32, b"2" * 32, b"3" * 32)
        self.store = Packs(self.recovery, self.metadata)
        self.roots: list[bytes] = []
        self.live: dict[FrameIdentity, int] = {}
        self.uploads_left: int | None = None
        """How many more packs fit, None for any number."""
        self.commit_error: TidemarkError | None = None
        self.base_error: TidemarkError | None = None
        self.answers_left: int | None = None
        """After how many packs one is stored and not answered; None for never."""
        self.since_head: list[PackNonce] = []
        self.borrowed = False
        """Whether what is stored counts as stored by another node."""

    @property
    def writer_keys(self) -> WriterKeys:
        return WriterKeys(
            REPOSITORY, self.ids, b"4" * 32, b"5" * 32, self.recovery.public, self.metadata.public
        )

    @override
    async def open_session(self, task_id: str, sealed_data_key: bytes) -> Session:
        self.recovery.unseal(sealed_data_key, DATA_KEY_INFO + REPOSITORY)
        head = self.roots[-1] if self.roots else b""
        keys = self.writer_keys.encode()
        session_id = secrets.token_bytes(16)
        told = list(self.since_head)
        return Session(session_id, 1, keys, head, len(self.roots), 60, packs_since_head=told)

    @override
    async def read_base(
        self, session: Session, since_head: Sequence[bytes] = ()
    ) -> AsyncIterator[StoredChunks]:
        if self.base_error is not None:
            raise self.base_error
        assert set(since_head) <= set(self.since_head)
        since = [identity for identity in self.store.chunks if identity.nonce in since_head]
        for identity in since if since_head else self.live:
            chunks = [
                (chunk_id, Location(*identity, number, length))
                for number, (length, chunk_id) in enumerate(self.store.chunks[identity])
            ]
            yield StoredChunks(chunks, self.borrowed)

    @override
    async def upload_pack(self, session: Session, pack: FinishedPack) -> None:
        if self.uploads_left is not None:
            if self.uploads_left == 0:
                raise StoreFullError("the repository's disk is full")
            self.uploads_left -= 1
        content = b"".join(bytes(buffer) for buffer in pack.buffers)
        assert len(content) == pack.size_bytes
        self.since_head += self.store.add(pack.name, content)
        if self.answers_left is not None:
            if self.answers_left == 0:
                raise UnreachableError("the connection was cut")
            self.answers_left -= 1

    @override
    async def commit(
        self,
        session: Session,
        signed_root: bytes,
        refs: Iterable[bytes],
        statistics: BackupStatistics,
    ) -> Committed:
        if self.commit_error is not None:
            raise self.commit_error
        encoded = b"".join(refs)
        body = check_signed_root(signed_root, self.node.public)
        assert body.refs_hash == refs_hash(encoded)
        if body.parent != (root_hash(self.roots[-1]) if self.roots else b""):
            raise FencedError("another snapshot came before")
        changes = decode_refs(encoded)
        if changes.base:
            self.live.clear()
        self.live.update(changes.live())
        self.live = {at: live for at, live in self.live.items() if live}
        for identity in self.live:
            self.store.frame(identity)
        verdict = Verdict.PARTIALLY_FAILED if body.errors_total else Verdict.COMPLETED
        addition = Countersigning(len(self.roots) + 1, 0, 1, verdict)
        root = countersign(signed_root, addition, self._signing)
        self.roots.append(root)
        self.since_head.clear()
        phase = Phase.PARTIALLY_FAILED if body.errors_total else Phase.COMPLETED
        return Committed(snapshot_id(signed_root).hex(), len(self.roots), phase, root)

    # Reading back.

    def body(self, snapshot: int = -1) -> RootBody:
        return check_countersigned(self.roots[snapshot], self._signing.public).body

    def reader(self) -> SnapshotReader:
        async def run(work: Callable[[], list[Chunks]]) -> list[Chunks]:
            return work()

        return SnapshotReader(self.store, ReaderKeys(REPOSITORY, self.ids), run)

    async def tree(self, snapshot: int = -1) -> dict[bytes, tuple[Entry, bytes]]:
        """Every key of a snapshot with its entry and content."""
        manifest = self.body(snapshot).manifest
        assert manifest is not None
        reader, found = self.reader(), {}
        async for batch in reader.entries(manifest):
            for key, entry in batch:
                pieces = [bytes(piece) async for piece in reader.content(entry)]
                found[key] = (entry, b"".join(pieces))
                assert entry.type is not EntryType.FILE or len(found[key][1]) == entry.size
        return found

    async def attributes(self, snapshot: int = -1) -> dict[bytes, Attributes]:
        """The extended attributes of every key that has some."""
        manifest = self.body(snapshot).manifest
        assert manifest is not None
        reader, found = self.reader(), {}
        async for batch in reader.entries(manifest):
            for key, entry in batch:
                if attributes := await reader.attributes(entry):
                    found[key] = attributes
        return found

    def used(self, snapshot: int = -1) -> dict[FrameIdentity, int]:
        """Bytes that a snapshot uses of each frame, by walking all of it."""
        manifest = self.body(snapshot).manifest
        assert manifest is not None
        used: dict[FrameIdentity, int] = {}

        def count(use: Extent | Pointer) -> None:
            identity = FrameIdentity(use.nonce, use.frame)
            used[identity] = used.get(identity, 0) + use.length

        def load_list(pointer: Pointer) -> bytes:
            count(pointer)
            return self._chunk(pointer, ObjectType.LIST)

        def load_node(pointer: Pointer) -> bytes:
            return self._chunk(pointer, ObjectType.NODE)

        for pointers in drive(node_pointers(manifest), load_node):
            for pointer in pointers:
                count(pointer)
        entries = [entry for batch in drive(scan(manifest), load_node) for _, entry in batch]
        for pointer in filter(None, (entry.long_xattrs for entry in entries)):
            count(pointer)
        for content in filter(None, (entry.content for entry in entries)):
            for extents in drive(read_extents(content), load_list):
                for extent in filter(attrgetter("nonce"), extents):  # no hole
                    count(extent)
        return used

    def _chunk(self, pointer: Pointer, kind: ObjectType) -> bytes:
        identity = FrameIdentity(pointer.nonce, pointer.frame)
        sealed, key = self.store.frame(identity)
        opened = FrameReader(REPOSITORY, self.ids).open(sealed, key, identity, kind)
        return bytes(opened[pointer.chunk].data)


def finished_pack(*buffers: bytes) -> FinishedPack:
    """Some bytes as a pack to be sent, whatever they are."""
    size = sum(map(len, buffers))
    return FinishedPack(PackKind.DATA, "packs/x", bytes(32), buffers, size, 0, [], lambda: None)
