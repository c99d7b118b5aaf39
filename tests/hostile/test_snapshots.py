"""Whatever a snapshot says, a restore stays in its target, ends, and says what was wrong.

The snapshots here are sealed and signed as they should be: somebody has a node's keys.
"""

import asyncio
import os
import resource
import struct
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from agent.services import Phase
from agent.state import State
from repository.entries import ChunkClass, Content, EntryType, Extent, Pointer
from repository.frames import Location, PlainChunk
from repository.ids import ChunkId, ObjectType, PackNonce
from tests.hostile.forge import DIRECTORY, FILE, Forge, encode, link
from tests.hostile.test_flips import fill, picture
from tests.integration.agent.test_restore import Node

replace = msgspec.structs.replace
Case = Callable[[Forge, bytes], Pointer]
CASES: dict[str, Case] = {}
HUGE = (1 << 63) - 1


def case(name: str) -> Callable[[Case], Case]:
    def add(make: Case) -> Case:
        assert name not in CASES
        CASES[name] = make
        return make

    return add


def add(name: str, *items: tuple[bytes, Any]) -> None:
    """A case that is one leaf; an item's value may be made with the forge."""

    def make(forge: Forge, outside: bytes) -> Pointer:
        made = [(key, value(forge, outside) if callable(value) else value) for key, value in items]
        return forge.node((b"", DIRECTORY), *made)

    CASES[name] = make


def small(**changes: Any) -> Callable[[Forge, bytes], Any]:
    """A file, perhaps changed."""
    return lambda forge, _: forge.file(b"hostile", **changes)


def with_extent(**changes: Any) -> Callable[[Forge, bytes], Any]:
    """A file whose only extent is changed."""
    return lambda forge, _: forge.file(b"hostile", content=forge.content(b"hostile", **changes))


def to_outside(suffix: bytes = b"", **changes: Any) -> Callable[[Forge, bytes], Any]:
    """A symbolic link to what is outside."""
    return lambda _, outside: link(outside + suffix, **changes)


# Names that lead elsewhere, or are none.
NAMES = [b"..", b".", b"a/b", b"/etc/passwd", b"../outside/d0/f000", b"/", b"a\0b/c"]
NAMES += [b"a\0..", b"a\0.", b"a\0\0b", b"a\0", b"a\0../../outside", b"..\0outside\0d0\0f000"]
for name in NAMES:
    add(f"a file named {name!r}", (name, small()))
    add(f"a link named {name!r}", (name, to_outside()))
add("a directory named ..", (b"..", DIRECTORY))
add("a name that is too long", (b"x" * 256, small()))
add("a name that is far too long", (b"x" * 70_000, small()))
add("a path of a MiB", (b"\0".join([b"d" * 200] * 5000), small()))
add("a path that is longer than paths may be", (b"d" * (1024 * 1024 + 1), small()))
add("the mark's own name", (b".tidemark-incomplete", small()))
add("a link with the mark's own name", (b".tidemark-incomplete", to_outside()))

# What stands below something that is no directory.
add("a file below a file", (b"a", small()), (b"a\0b", small()))
add("a file below a link", (b"a", to_outside()), (b"a\0d0\0f000", small()))
add("a directory below a link", (b"a", to_outside()), (b"a\0new", DIRECTORY))
add("a link below a link", (b"a", to_outside()), (b"a\0new", to_outside()))
add("a fifo below a link", (b"a", to_outside()), (b"a\0n", replace(FILE, type=EntryType.FIFO)))
add("a file below nothing", (b"no\0such\0directory\0a", small()))
add("a directory whose metadata goes to a link", (b"a", to_outside()),
    (b"a\0d0", replace(DIRECTORY, mode=0o777)))  # fmt: skip
add("a top that is a link", (b"", to_outside()), (b"d0\0f000", small()))

# One name twice, or out of order.
add(
    "a link and a directory of one name",
    (b"a", to_outside()),
    (b"a", DIRECTORY),
    (b"a\0b", small()),
)
add("a file twice", (b"a", small()), (b"a", small()))
add("names in the wrong order", (b"b", small()), (b"a", small()))

# Hard links that are none.
SHARED: dict[str, Any] = {"inode": 77, "links": 2}
add("another name of a link to outside", (b"a", to_outside(b"/d0/f000", **SHARED)),
    (b"b", small(**SHARED)))  # fmt: skip
add("another name that follows a link", (b"a", to_outside(**SHARED)), (b"a\0d0", small(**SHARED)),
    (b"b", small(**SHARED)))  # fmt: skip
add("another name of a directory", (b"a", replace(DIRECTORY, **SHARED)), (b"b", small(**SHARED)))
add("names of one inode that differ", (b"a", small(**SHARED)),
    (b"b", lambda forge, _: forge.file(b"other", **SHARED)))  # fmt: skip
add("another name through a link", (b"a", small(**SHARED)), (b"l", to_outside()),
    (b"l\0x", small(**SHARED)))  # fmt: skip

# Entries that cannot be.
add("a link without a target", (b"a", replace(link(b""), target=None)))
add("a link to nothing", (b"a", link(b"")))
add("a link to a zero byte", (b"a", link(b"a\0b")))
add("a link of 70,000 bytes", (b"a", link(b"x" * 70_000)))
add("a file with a target", (b"a", replace(FILE, target=b"/etc")))
for kind in (0, 8, -1, 99, 1 << 40):
    add(f"an entry of type {kind}", (b"a", [kind, *msgspec.structs.astuple(FILE)[1:]]))
add("an entry of too few fields", (b"a", [2, 0o644]))
add("an entry that is no record", (b"a", "hello"))
add("a mode with bits of a type", (b"a", small(mode=0o120777)))
add("a negative mode", (b"a", small(mode=-1)))
add("an owner that is none", (b"a", small(uid=-1, gid=-1)))
add("an owner beyond all owners", (b"a", small(uid=1 << 40, gid=1 << 62)))
add("a time beyond all times", (b"a", small(mtime_ns=HUGE + 1)))
add("the last of all times", (b"a", small(mtime_ns=HUGE)))
add("a time before all times", (b"a", small(mtime_ns=-HUGE)))
add("a device of an impossible number", (b"a", replace(FILE, type=6, device=HUGE)))
add("a directory with content", (b"a", lambda forge, _: replace(
    DIRECTORY, content=forge.content(b"x"))))  # fmt: skip
add("attributes of no namespace", (b"a", small(xattrs=[(b"nonsense", b"x")])))
add("an attribute with a zero byte", (b"a", small(xattrs=[(b"user.a\0b", b"x")])))
add("attributes out of order", (b"a", small(xattrs=[(b"user.b", b""), (b"user.a", b"")])))
add("attributes of a MiB", (b"a", small(xattrs=[(b"user.a", bytes(1 << 20))])))
add("attributes that are a node", (b"a", lambda forge, _: forge.file(
    b"x", long_xattrs=forge.node((b"", DIRECTORY)))))  # fmt: skip
add("attributes that are a file", (b"a", lambda forge, _: forge.file(
    b"x", long_xattrs=forge.chunk(ObjectType.DATA, encode([(b"user.a", b"x")])))))  # fmt: skip
add("attributes that are a list", (b"a", lambda forge, _: forge.file(
    b"x", long_xattrs=forge.list(*forge.content(b"x").extents))))  # fmt: skip

# Contents that cannot be.
add("a file without its content", (b"a", replace(FILE, size=5)))
add("a negative size", (b"a", small(size=-1)))
add("a size beyond all files", (b"a", small(size=HUGE)))
add("a size that is too small", (b"a", small(size=3)))
add("a size that is too large", (b"a", small(size=3000)))
add("a hole beyond all files", (b"a", replace(FILE, size=HUGE, content=Content(
    ChunkClass.GENERAL, [Extent.hole(HUGE)], None))))  # fmt: skip
add("holes that add up beyond all files", (b"a", replace(FILE, size=HUGE, content=Content(
    ChunkClass.GENERAL, [Extent.hole(HUGE), Extent.hole(HUGE)], None))))  # fmt: skip
add("an extent of no bytes", (b"a", with_extent(length=0)))
add("an extent longer than its chunk", (b"a", with_extent(length=100)))
add("an extent that begins behind its chunk", (b"a", with_extent(skip=100)))
add("a chunk that its frame has not", (b"a", with_extent(chunk=5)))
add("a chunk of another id", (b"a", with_extent(id=ChunkId(b"x" * 32))))
add("a frame that its pack has not", (b"a", with_extent(frame=4_000_000_000)))
add("a pack that nobody has", (b"a", with_extent(nonce=PackNonce(b"x" * 16))))
add("a nonce that is none", (b"a", with_extent(nonce=PackNonce(b"x"))))


@case("a content whose chunk is not what its id says")
def _(forge: Forge, _: bytes) -> Pointer:
    at = forge.chunk(ObjectType.DATA, b"hostile", chunk_id=b"x" * 32)
    extent = Extent.at(at.id, Location(at.nonce, at.frame, at.chunk, at.length))
    content = Content(ChunkClass.SMALL, [extent], None)
    return forge.node((b"", DIRECTORY), (b"a", replace(FILE, size=7, content=content)))


def _file_of_list(forge: Forge, pointer: Pointer, size: int = 7) -> Pointer:
    content = Content(ChunkClass.GENERAL, [], pointer)
    return forge.node((b"", DIRECTORY), (b"a", replace(FILE, size=size, content=content)))


@case("a list that is a node")
def _(forge: Forge, _: bytes) -> Pointer:
    return _file_of_list(forge, forge.node((b"", DIRECTORY)))


@case("a list that is a file")
def _(forge: Forge, _: bytes) -> Pointer:
    return _file_of_list(forge, forge.chunk(ObjectType.DATA, b"\x92\x00\x91\xc0"))


@case("a list of nothing")
def _(forge: Forge, _: bytes) -> Pointer:
    return _file_of_list(forge, forge.list())


@case("a list of a level beyond all levels")
def _(forge: Forge, _: bytes) -> Pointer:
    return _file_of_list(forge, forge.list(forge.list(level=5), level=200))


@case("lists that lie within each other without end")
def _(forge: Forge, _: bytes) -> Pointer:
    inner = forge.list(*forge.content(b"hostile").extents)
    for level in range(1, 12):
        inner = forge.list(inner, inner, level=level)
    return _file_of_list(forge, inner)


@case("lists that name the same list a million times")
def _(forge: Forge, _: bytes) -> Pointer:
    inner = forge.list(*[Extent.hole(1 << 40)] * 1000)
    for level in (1, 2):
        inner = forge.list(*[inner] * 1000, level=level)
    return _file_of_list(forge, inner, size=1 << 30)


@case("a manifest that is a file")
def _(forge: Forge, _: bytes) -> Pointer:
    return forge.chunk(ObjectType.DATA, encode((0, [(b"", DIRECTORY)])))


@case("a manifest that is a list")
def _(forge: Forge, _: bytes) -> Pointer:
    return forge.list(*forge.content(b"x").extents)


@case("a manifest that does not decode")
def _(forge: Forge, _: bytes) -> Pointer:
    return forge.chunk(ObjectType.NODE, b"\xc1 this is no msgpack")


@case("a manifest of nothing")
def _(forge: Forge, _: bytes) -> Pointer:
    return forge.chunk(ObjectType.NODE, encode((0, [])))


@case("a manifest of a level beyond all levels")
def _(forge: Forge, _: bytes) -> Pointer:
    return forge.node((b"", forge.node((b"", DIRECTORY))), level=60)


@case("a node that stands twice")
def _(forge: Forge, _: bytes) -> Pointer:
    leaf = forge.node((b"", DIRECTORY), (b"a", forge.file(b"x")))
    return forge.node((b"", leaf), (b"b", leaf), level=1)


@case("a node whose keys belong elsewhere")
def _(forge: Forge, outside: bytes) -> Pointer:
    first = forge.node((b"", DIRECTORY), (b"a", link(outside)))
    second = forge.node((b"a\0d0", forge.file(b"x")))
    return forge.node((b"", first), (b"c", second), level=1)


@case("nodes within each other, each named twice")
def _(forge: Forge, _: bytes) -> Pointer:
    node = forge.node((b"", DIRECTORY))
    for level in range(1, 16):
        node = forge.node((b"", node), (b"x", node), level=level)
    return node


def _bomb(claimed: int, actual: int, *, declares: bool = True) -> bytes:
    """A frame's plaintext whose payload expands to more than it should."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=declares)
    payload = compressor.compress(bytes(actual))
    return struct.pack(">BHI", 1, 1, claimed) + struct.pack(">I32s", claimed, b"x" * 32) + payload


@case("a frame that says it is small and expands to a GiB")
def _(forge: Forge, _: bytes) -> Pointer:
    chunk = PlainChunk(ChunkId(b"x" * 32), bytes(1000))
    at = forge.frame(ObjectType.DATA, _bomb(1000, 1 << 30), chunk)
    content = Content(ChunkClass.SMALL, [Extent(at.nonce, 0, 0, 0, 1000, at.id)], None)
    return forge.node((b"", DIRECTORY), (b"a", replace(FILE, size=1000, content=content)))


@case("a node that expands to a GiB")
def _(forge: Forge, _: bytes) -> Pointer:
    chunk = PlainChunk(ChunkId(b"x" * 32), bytes(1000))
    return forge.frame(ObjectType.NODE, _bomb(0xFFFF_FFFF, 1 << 30), chunk)


@case("a node that does not say to how much it expands")
def _(forge: Forge, _: bytes) -> Pointer:
    chunk = PlainChunk(ChunkId(b"x" * 32), bytes(1000))
    return forge.frame(ObjectType.NODE, _bomb(1000, 1 << 28, declares=False), chunk)


@pytest.fixture
def top() -> Iterator[Path]:
    """In memory: each restore waits until all is on the disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def node(top: Path) -> Iterator[Node]:
    with State(top / "state.db") as state, ThreadPoolExecutor(2) as workers:
        yield Node(top, state, workers)


@pytest.mark.asyncio
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("over", [False, True], ids=["fresh", "over"])
async def test_a_hostile_snapshot_touches_nothing_outside(
    node: Node, top: Path, name: str, over: bool
) -> None:
    outside = top / "restores" / "outside"
    fill(outside, b"precious")
    forge = Forge(node.coordinator)
    forge.commit(CASES[name](forge, os.fsencode(outside)))
    before = picture(outside), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if over:
        node.target.mkdir(parents=True)
        (node.target / "a").symlink_to(outside)

    async with asyncio.timeout(30):
        outcome = await node.restore(overwrite=over, delete_extra=over)

    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before[1]
    assert picture(outside) == before[0]
    assert sorted(path.name for path in (top / "restores").iterdir()) in (
        ["outside"],
        ["outside", "target"],
    )
    assert grown_kib < 150 * 1024
    problems = outcome.statistics.errors_total + len(outcome.statistics.warnings)
    harmless = outcome.phase is Phase.COMPLETED and name in HARMLESS
    assert outcome.error is not None or problems or harmless, "nobody was told"


# What may be as strange as it likes: it is restored as it says, within the target.
HARMLESS = {
    "a file below nothing",
    "names of one inode that differ",
    "another name of a link to outside",
    "another name of a directory",
    "a time before all times",
    "the last of all times",
    "a hole beyond all files",
}


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60
    assert set(CASES) >= HARMLESS
