"""Snapshots that no agent of ours makes, sealed and signed as if one had."""

import os
import secrets
from typing import Any

import msgspec

from agent.packing import FinishedPack, PackIdentity, Packs
from repository.entries import ChunkClass, Content, Entry, EntryType, Extent, Pointer
from repository.frames import FrameEncoder, Location, PlainChunk
from repository.ids import ChunkId, ObjectType, SessionId, VolumeId
from repository.keys import KEY_BYTES, seal
from repository.layout import DATA_KEY_INFO, LABEL_INFO
from repository.pack import PackKind
from repository.refs import Refs, refs_hash
from repository.snapshot import (
    FORMAT,
    Countersigning,
    Detection,
    Label,
    RootBody,
    Verdict,
    countersign,
    sign_root,
)
from tests.fakes.agent import entry
from tests.fakes.coordinator import NODE, REPOSITORY, MemoryCoordinator

encode = msgspec.msgpack.encode
DIRECTORY = msgspec.structs.replace(
    entry(EntryType.DIRECTORY), uid=os.getuid(), gid=os.getgid(), mtime_ns=0, inode=1, ctime_ns=1
)
FILE = msgspec.structs.replace(DIRECTORY, type=EntryType.FILE, mode=0o644)


def link(target: bytes, **changes: Any) -> Entry:
    """A symbolic link."""
    changes = {"type": EntryType.SYMLINK, "target": target, "size": len(target)} | changes
    return msgspec.structs.replace(DIRECTORY, **changes)


class Forge:
    """Makes one snapshot of a coordinator's repository."""

    def __init__(self, coordinator: MemoryCoordinator) -> None:
        self._coordinator = coordinator
        data_key = secrets.token_bytes(KEY_BYTES)
        identity = PackIdentity(
            repository=REPOSITORY,
            session=SessionId(b"s" * 16),
            node=NODE,
            data_key=data_key,
            sealed_data_key=seal(coordinator.recovery.public, data_key, DATA_KEY_INFO + REPOSITORY),
            metadata_public=coordinator.metadata.public,
            signing=coordinator.node,
        )
        self._packs = Packs(identity, self._take)
        self._encoder = FrameEncoder()

    def _take(self, pack: FinishedPack) -> None:
        self._coordinator.store.add(pack.name, b"".join(map(bytes, pack.buffers)))
        pack.release()

    def chunk(self, kind: ObjectType, content: bytes, chunk_id: bytes | None = None) -> Pointer:
        """A chunk in a frame of its own, perhaps under an id that is not its."""
        found = ChunkId(chunk_id or self._coordinator.ids.chunk_id(kind, content))
        plaintext = self._encoder.encode([PlainChunk(found, content)])
        return self.frame(kind, plaintext, PlainChunk(found, content))

    def frame(self, kind: ObjectType, plaintext: bytes, chunk: PlainChunk) -> Pointer:
        """A frame of any plaintext, that says it holds this chunk."""
        pack = PackKind.DATA if kind is ObjectType.DATA else PackKind.METADATA
        place = self._packs.reserve(pack, len(plaintext), 1)
        [(chunk_id, at)] = self._packs.fill(place, kind, plaintext, [chunk])
        return Pointer.at(chunk_id, at)

    def content(self, data: bytes, **changes: Any) -> Content:
        """The content of a small file, one extent, perhaps changed."""
        pointer = self.chunk(ObjectType.DATA, data)
        extent = Extent.at(
            pointer.id, Location(pointer.nonce, pointer.frame, pointer.chunk, pointer.length)
        )
        return Content(ChunkClass.SMALL, [msgspec.structs.replace(extent, **changes)], None)

    def file(self, data: bytes, **changes: Any) -> Entry:
        """A file with this content, perhaps changed."""
        fields = {"size": len(data), "content": self.content(data)} | changes
        return msgspec.structs.replace(FILE, **fields)

    def node(self, *items: tuple[bytes, Any], level: int = 0) -> Pointer:
        """A manifest node of any items, in any order."""
        raw = [(key, msgspec.Raw(encode(value))) for key, value in items]
        return self.chunk(ObjectType.NODE, encode((level, raw)))

    def list(self, *items: Any, level: int = 0) -> Pointer:
        """A list node of any items."""
        return self.chunk(ObjectType.LIST, encode((level, list(items))))

    def commit(self, manifest: Pointer | None, **changes: Any) -> None:
        """Make it the coordinator's last snapshot."""
        self._packs.flush()
        label = Label("volume", "node", "path", b"/", [], "")
        body = RootBody(
            format=FORMAT,
            repository=REPOSITORY,
            volume=VolumeId(b"V" * 16),
            node=NODE,
            session=SessionId(b"s" * 16),
            parent=b"",
            manifest=manifest,
            refs_hash=refs_hash(Refs(base=True, packs=[]).encode()),
            detection=Detection.SWEEP,
            started_ns=0,
            total_files=1,
            total_bytes=1,
            fuzzy_files=0,
            errors_total=0,
            label=seal(self._coordinator.metadata.public, label.encode(), LABEL_INFO + REPOSITORY),
        )
        signed = sign_root(msgspec.structs.replace(body, **changes), self._coordinator.node)
        addition = Countersigning(1, 0, 1, Verdict.COMPLETED)
        self._coordinator.roots.append(countersign(signed, addition, self._coordinator.node))
