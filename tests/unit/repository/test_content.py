"""Contents: any list of extents comes back, in bounded memory, and a change stays local."""

import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from repository.content import INLINE_MAX, LEVEL_MAX, ContentWriter, read_extents
from repository.entries import ChunkClass, Content, Extent, Pointer
from repository.errors import FormatError
from repository.ids import ChunkId, IdKeys, ObjectType, PackNonce
from repository.needs import Need, drive

IDS = IdKeys(b"d" * 32, b"n" * 32, b"l" * 32)
NONCE = PackNonce(b"p" * 16)


class Lists:
    """List nodes in memory; each lies where its content says."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}

    def put(self, encoded: bytes) -> Pointer:
        chunk_id = IDS.chunk_id(ObjectType.LIST, encoded)
        self.nodes[chunk_id] = encoded
        return Pointer(chunk_id, PackNonce(chunk_id[:16]), 0, 0, len(encoded))

    def write(self, extents: Sequence[Extent]) -> Content:
        writer = ContentWriter(ChunkClass.GENERAL, self.put)
        for extent in extents:
            writer.add(extent)
        content = writer.finish()
        self.pointers = writer.pointers
        return content

    def read(self, content: Content) -> list[Extent]:
        batches = drive(read_extents(content), lambda pointer: self.nodes[pointer.id])
        return [extent for batch in batches for extent in batch]


def extent(number: int) -> Extent:
    return Extent(NONCE, number, 0, 0, 65536, ChunkId(random.Random(number).randbytes(32)))


# Few different ones and holes, so that runs without a mark, and runs of marks, come about.
MARKED = Extent(NONCE, 1, 0, 0, 1, ChunkId(b"m" * 31 + b"\x00"))
EXTENTS = st.one_of(
    st.lists(st.integers(0, 50).map(extent), max_size=40),
    st.builds(
        lambda each, count: [each] * count,
        st.sampled_from([Extent.hole(1), MARKED, extent(1)]),
        st.integers(0, 2100),
    ),
    st.builds(lambda count: [extent(number) for number in range(count)], st.integers(0, 1500)),
)


@given(EXTENTS)
@example([extent(1)] * 1024)
@example([extent(1)] * 2048)
@example([MARKED] * 64 * 64)
def test_any_list_of_extents_comes_back(extents: list[Extent]) -> None:
    lists = Lists()

    content = lists.write(extents)

    assert lists.read(content) == extents
    assert (content.list is None) == (len(extents) <= INLINE_MAX)
    assert set(lists.nodes) == {pointer.id for pointer in lists.pointers}


def test_list_nodes_are_bounded_whatever_they_hold() -> None:
    for extents in ([Extent.hole(1)] * 5000, [MARKED] * 5000, [extent(n) for n in range(5000)]):
        lists = Lists()
        lists.write(extents)

        sizes = [len(msgspec.msgpack.decode(node)[1]) for node in lists.nodes.values()]
        assert max(sizes) <= 1024
        assert max(map(len, lists.nodes.values())) < 100_000


@pytest.mark.parametrize("change", ["replaced", "inserted", "removed"])
def test_a_change_in_the_middle_rewrites_few_list_nodes(change: str) -> None:
    extents = [extent(number) for number in range(30_000)]
    lists = Lists()
    lists.write(extents)
    before = set(lists.nodes)
    middle = {
        "replaced": [extent(1_000_000)],
        "inserted": [extent(1_000_000), extents[15_000]],
        "removed": [],
    }

    content = lists.write([*extents[:15_000], *middle[change], *extents[15_001:]])

    assert lists.read(content)[15_000] != extents[15_000] or change == "inserted"
    assert len(before) > 90
    assert len(set(lists.nodes) - before) <= 5


def test_of_very_many_extents_few_are_held_at_a_time() -> None:
    count = 100_000
    ids = random.Random(5).randbytes(32 * count)
    lists = Lists()
    writer = ContentWriter(ChunkClass.PAGED, lists.put)

    held = []
    for number in range(count):
        digest = ChunkId(ids[32 * number : 32 * number + 32])
        writer.add(Extent(NONCE, number, 0, 0, 65536, digest))
        if number % 1000 == 0:
            held.append(sum(map(len, writer._levels)))
    read = list(drive(read_extents(writer.finish()), lambda pointer: lists.nodes[pointer.id]))

    assert [each.frame for batch in read for each in batch] == list(range(count))
    assert max(held) <= 2048
    assert max(map(len, read)) <= 1024
    assert len(writer.pointers) < count / 64


def test_a_reader_asks_for_one_list_node_at_a_time() -> None:
    lists = Lists()
    content = lists.write([extent(number) for number in range(3000)])
    reading = read_extents(content)
    step = next(reading)

    while True:
        if isinstance(step, Need):
            assert len(step.pointers) == 1
            answer: list[bytes | memoryview] | None = [lists.nodes[step.pointers[0].id]]
        else:
            answer = None
        try:
            step = reading.send(answer)
        except StopIteration:
            return


ITEM = msgspec.msgpack.encode(extent(1))
ROOT = Content(ChunkClass.GENERAL, [], Pointer(ChunkId(b"i" * 32), NONCE, 0, 0, 1))


def answered(*nodes: bytes) -> list[Extent]:
    """What a reader makes of these list nodes, the first one being the root."""
    given_nodes = iter(nodes)
    return [
        each for batch in drive(read_extents(ROOT), lambda _: next(given_nodes)) for each in batch
    ]


def node(level: int, *items: object) -> bytes:
    return msgspec.msgpack.encode((level, items))


POINTER_ITEM = msgspec.Raw(msgspec.msgpack.encode(ROOT.list))


@pytest.mark.parametrize(
    "nodes",
    [
        [b""],
        [node(0)],
        [node(-1, msgspec.Raw(ITEM))],
        [node(LEVEL_MAX + 1, POINTER_ITEM)],
        [node(1, msgspec.Raw(ITEM))],
        [node(1, POINTER_ITEM), node(1, POINTER_ITEM)],
        [node(2, POINTER_ITEM), node(0, msgspec.Raw(ITEM))],
        [node(0, POINTER_ITEM)],
        [node(0, Extent(NONCE, 0, 0, 0, 0, ChunkId(b"i" * 32)))],
        [node(0, Extent(NONCE, 0, 0, 0, 1, ChunkId(b"short")))],
        [node(0, *[msgspec.Raw(ITEM)] * 1025)],
        [b"\x92\xcc\x00" + node(0, msgspec.Raw(ITEM))[2:]],
        [node(0, msgspec.Raw(b"\x91" * 100_000 + b"\x00"))],
    ],
    ids=[
        "nothing",
        "empty",
        "level below zero",
        "level too high",
        "an extent for a pointer",
        "a node below itself",
        "a level left out",
        "a pointer for an extent",
        "an empty extent",
        "a short id",
        "too many",
        "another encoding",
        "nested",
    ],
)
def test_a_list_node_that_can_be_none_is_refused(nodes: list[bytes]) -> None:
    with pytest.raises(FormatError):
        answered(*nodes)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_list_node_or_the_declared_error(raw: bytes) -> None:
    try:
        answered(raw)
    except (FormatError, StopIteration, RuntimeError):
        return
