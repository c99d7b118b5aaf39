"""Sealed frames in memory."""

from collections.abc import Sequence

from typing_extensions import override

from repository.errors import DamagedError
from repository.frames import (
    TAG_BYTES,
    FrameCipher,
    FrameEncoder,
    FrameIdentity,
    Location,
    PlainChunk,
)
from repository.ids import ChunkId, IdKeys, ObjectType, PackNonce, RepositoryId
from repository.keys import frame_key, pack_key
from repository.reader import FrameSource, SealedFrame


class MemoryFrames(FrameSource):
    """Takes chunks, one frame for each call of `add`, and notes what was asked for."""

    def __init__(self, repository: RepositoryId, ids: IdKeys, nonce: PackNonce) -> None:
        self._repository = repository
        self._ids = ids
        self._nonce = nonce
        self._key = pack_key(b"k" * 32, nonce)
        self.frames: list[SealedFrame] = []
        self.asked: list[list[FrameIdentity]] = []

    def add(self, kind: ObjectType, *contents: bytes) -> list[tuple[ChunkId, Location]]:
        """Where the chunks of a new frame lie."""
        number = len(self.frames)
        chunks = [PlainChunk(self._ids.chunk_id(kind, each), each) for each in contents]
        plaintext = FrameEncoder().encode(chunks)
        key = frame_key(self._key, number)
        sealed = bytearray(len(plaintext) + TAG_BYTES)
        identity = FrameIdentity(self._nonce, number)
        FrameCipher(self._repository).seal_into(sealed, plaintext, key, identity, kind)
        self.frames.append(SealedFrame(bytes(sealed), key))
        return [
            (chunk.id, Location(self._nonce, number, index, len(chunk.data)))
            for index, chunk in enumerate(chunks)
        ]

    @override
    async def read(self, identities: Sequence[FrameIdentity]) -> list[SealedFrame]:
        self.asked.append(list(identities))
        if any(identity.number >= len(self.frames) for identity in identities):
            raise DamagedError("the store does not hold a frame")
        return [self.frames[identity.number] for identity in identities]
