"""Packs end when they are full of bytes, and when they are full of chunks."""

import secrets

import pytest

from agent import packing as module
from agent.packing import FinishedPack, PackIdentity, Packs
from repository.frames import FrameEncoder, PlainChunk
from repository.ids import ChunkId, NodeId, ObjectType, RepositoryId, SessionId
from repository.keys import SigningKey, UnsealingKey
from repository.pack import PackKind

IDENTITY = PackIdentity(
    repository=RepositoryId(b"r" * 16),
    session=SessionId(b"s" * 16),
    node=NodeId(b"n" * 16),
    data_key=b"k" * 32,
    sealed_data_key=b"sealed",
    metadata_public=UnsealingKey(b"m" * 32).public,
    signing=SigningKey(b"i" * 32),
)


def store(packs: Packs, chunks: int, chunk_bytes: int) -> None:
    """One frame of so many chunks."""
    frame = [
        PlainChunk(ChunkId(secrets.token_bytes(32)), secrets.token_bytes(chunk_bytes))
        for _ in range(chunks)
    ]
    place = packs.reserve(PackKind.DATA, chunks * chunk_bytes, chunks)
    packs.fill(place, ObjectType.DATA, FrameEncoder().encode(frame), frame)


def finished(frames: int, *, chunks: int, chunk_bytes: int) -> list[FinishedPack]:
    found: list[FinishedPack] = []

    def take(pack: FinishedPack) -> None:
        found.append(pack)
        pack.release()

    packs = Packs(IDENTITY, take)
    for _ in range(frames):
        store(packs, chunks, chunk_bytes)
    packs.flush()
    return found


def test_a_pack_ends_when_its_bytes_are_full() -> None:
    packs = finished(5, chunks=1, chunk_bytes=8 * 1024 * 1024 - 1024)

    assert [len(pack.chunks) for pack in packs] == [4, 1]


def test_a_pack_ends_when_it_has_as_many_chunks_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CHUNKS_MAX", 100)

    packs = finished(7, chunks=30, chunk_bytes=5)

    assert [len(pack.chunks) for pack in packs] == [90, 90, 30]


def test_every_chunk_is_where_its_pack_says() -> None:
    (pack,) = finished(2, chunks=3, chunk_bytes=10)

    places = [(place.frame, place.chunk, place.length) for _, place in pack.chunks]

    assert places == [(0, 0, 10), (0, 1, 10), (0, 2, 10), (1, 0, 10), (1, 1, 10), (1, 2, 10)]
