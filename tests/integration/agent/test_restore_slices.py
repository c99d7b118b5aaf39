"""Restores of files whose extents are slices of chunks, in a new place and over what stands."""

import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from agent.services import Phase
from agent.state import State
from repository.content import ContentWriter
from repository.entries import ChunkClass, Entry, Extent
from repository.frames import Location
from repository.ids import ObjectType
from tests.hostile.forge import DIRECTORY, FILE, Forge
from tests.integration.agent.test_restore import Node

pytestmark = pytest.mark.asyncio


@pytest.fixture
def node() -> Iterator[Node]:
    """In memory: each restore waits until all is on the disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        top = Path(path)
        with State(top / "state.db") as state, ThreadPoolExecutor(2) as workers:
            yield Node(top, state, workers)


def sliced(forge: Forge, draw: random.Random) -> tuple[Entry, bytes]:
    """A file of slices of a few chunks, some of them named again and again, and of holes."""
    chunks = [draw.randbytes(draw.randrange(1, 50_000)) for _ in range(4)]
    places = []
    for chunk in chunks:
        at = forge.chunk(ObjectType.DATA, chunk)
        places.append(Extent.at(at.id, Location(at.nonce, at.frame, at.chunk, at.length)))
    extents: list[Extent] = []
    content = b""
    for _ in range(draw.choice([1, 5, 40])):
        if draw.random() < 0.2:
            extents.append(Extent.hole(draw.randrange(1, 30_000)))
            content += bytes(extents[-1].length)
            continue
        number = draw.randrange(len(chunks))
        skip = draw.choice([0, draw.randrange(len(chunks[number]))])
        length = draw.randrange(1, len(chunks[number]) - skip + 1)
        extents.append(msgspec.structs.replace(places[number], skip=skip, length=length))
        content += chunks[number][skip : skip + length]
    writer = ContentWriter(ChunkClass.GENERAL, lambda node: forge.chunk(ObjectType.LIST, node))
    for extent in extents:
        writer.add(extent)
    return msgspec.structs.replace(FILE, size=len(content), content=writer.finish()), content


@pytest.mark.parametrize("seed", range(6))
async def test_slices_are_restored_where_nothing_and_where_something_else_stands(
    node: Node, seed: int
) -> None:
    draw = random.Random(seed)
    forge = Forge(node.coordinator)
    made = {b"f%d" % number: sliced(forge, draw) for number in range(8)}
    forge.commit(
        forge.node((b"", DIRECTORY), *((key, entry) for key, (entry, _) in sorted(made.items())))
    )

    fresh = await node.restore()
    contents = {name: (node.target / name.decode()).read_bytes() for name in made}
    # Some bytes differ, one file is shorter and one longer; the rest is kept as it stands.
    for name in list(made)[:5]:
        path = node.target / name.decode()
        changed = bytearray(path.read_bytes())
        changed[draw.randrange(len(changed))] ^= 1
        path.write_bytes(bytes(changed))
    (node.target / "f5").write_bytes(contents[b"f5"][: len(contents[b"f5"]) // 2])
    (node.target / "f6").write_bytes(contents[b"f6"] + b"more")
    over = await node.restore(overwrite=True)

    for outcome in (fresh, over):
        assert (outcome.error, outcome.phase) == (None, Phase.COMPLETED)
        assert outcome.statistics.errors_total == 0
    assert contents == {name: content for name, (_, content) in made.items()}
    for name, (_, content) in made.items():
        assert (node.target / name.decode()).read_bytes() == content


@pytest.mark.parametrize("change", [{"skip": 1}, {"skip": 4_294_967_295}, {"length": 1 << 63}])
async def test_a_slice_beyond_its_chunk_fails_its_file_and_no_other(
    node: Node, change: dict[str, int]
) -> None:
    forge = Forge(node.coordinator)
    content = forge.content(b"hostile", **change)
    size = content.extents[0].length
    bad = msgspec.structs.replace(FILE, size=size, content=content)
    forge.commit(forge.node((b"", DIRECTORY), (b"bad", bad), (b"good", forge.file(b"good"))))

    outcome = await node.restore()

    assert outcome.phase is not Phase.COMPLETED
    assert [error.path for error in outcome.statistics.errors] == [b"bad"]
    assert not (node.target / "bad").exists()
    assert (node.target / "good").read_bytes() == b"good"
