"""Chunks of a large file stay as they were read for as long as somebody looks at them."""

import random
from collections import deque
from typing import Final

import pytest

from agent import cutting
from agent.cutting import FileCutter
from repository.entries import ChunkClass
from tests.unit.agent.test_reuse import MIB, SECRET, File, MemoryFile

DATA: Final = random.Random(8).randbytes(50 * MIB)


@pytest.mark.parametrize("chunking", [ChunkClass.GENERAL, ChunkClass.PAGED])
@pytest.mark.parametrize("waiting", [0, 1, 8, 100_000])
def test_chunks_are_the_file_however_many_of_them_wait(chunking: ChunkClass, waiting: int) -> None:
    cutter, held = FileCutter(SECRET), deque[memoryview]()
    done = bytearray()

    for piece in cutter.pieces(MemoryFile(File(DATA)), chunking):
        assert isinstance(piece, memoryview)
        held.append(piece)
        while len(held) > waiting:
            done += held.popleft()

    assert done + b"".join(held) == DATA


def test_windows_are_few_and_used_again_once_nobody_looks_into_them() -> None:
    lent = cutting._Lent()
    first, second = lent.take(), lent.take()
    assert first is not None
    assert second is not None
    chunk = first[10:20]
    del first

    assert lent.take() is None
    chunk.release()

    again = lent.take()
    assert again is not None
    assert len(again) == len(second)


def test_the_next_file_leaves_chunks_of_the_last_one_alone() -> None:
    cutter = FileCutter(SECRET)
    chunks = list(cutter.pieces(MemoryFile(File(DATA[: 5 * MIB])), ChunkClass.GENERAL))

    for _ in cutter.pieces(MemoryFile(File(bytes(30 * MIB))), ChunkClass.GENERAL):
        pass

    assert b"".join(piece for piece in chunks if isinstance(piece, memoryview)) == DATA[: 5 * MIB]
