"""Names of one inode come back as one inode, however they were read, and over whatever stands."""

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from typing_extensions import override

from agent.services import Phase
from agent.state import State
from repository.entries import ChunkClass, Entry
from tests.integration.agent.test_restore import Clock, Node, picture

pytestmark = pytest.mark.asyncio
KIB = 1024


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with State(tmp_path / "state.db") as state, ThreadPoolExecutor(1) as workers:
        yield Node(tmp_path, state, workers)


class Between(Clock):
    """Something done after so many files were read: each reads the clock once."""

    def __init__(self, calls: int, work: Callable[[], object]) -> None:
        self._left = calls
        self._work = work

    @override
    def now_ns(self) -> int:
        self._left -= 1
        if not self._left:
            self._work()
        return super().now_ns()


class Cycling(Clock):
    """Gives these times in turn."""

    def __init__(self, *times: int) -> None:
        self._times = itertools.cycle(times)

    @override
    def now_ns(self) -> int:
        return next(self._times)


def link(node: Node, *names: str, content: bytes = b"content") -> None:
    first, *others = (node.source / name for name in names)
    first.parent.mkdir(exist_ok=True)
    first.write_bytes(content)
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.hardlink_to(first)


async def entries(node: Node, *names: bytes) -> list[Entry]:
    tree = await node.coordinator.tree()
    return [tree[name][0] for name in names]


async def classes(node: Node, *names: bytes) -> list[ChunkClass]:
    return [each.content.chunking for each in await entries(node, *names) if each.content]


def inodes(top: Path, *names: str) -> set[int]:
    return {(top / name).stat().st_ino for name in names}


@pytest.mark.parametrize("size", [300 * KIB, 3000 * KIB])
async def test_names_that_are_cut_differently_are_one_file(node: Node, size: int) -> None:
    link(node, "a.bin", "b.db", "c/d.bin", content=os.urandom(size))
    await node.back_up()
    general, paged = ChunkClass.GENERAL, ChunkClass.PAGED
    assert await classes(node, b"a.bin", b"b.db", b"c\0d.bin") == [general, paged, general]

    await node.restore()
    assert picture(node.target) == picture(node.source)
    assert inodes(node.target, "a.bin", "b.db", "c/d.bin") == inodes(node.target, "b.db")

    wanted = picture(node.source)
    (node.source / "a.bin").write_bytes(b"other")
    (node.source / "b.db").unlink()
    (node.source / "b.db").write_bytes(b"alone")
    for _ in range(2):
        outcome = await node.restore(in_place=True)
        assert outcome.phase is Phase.COMPLETED
        assert picture(node.source) == wanted


async def test_a_name_whose_class_is_older_than_the_other_name(node: Node) -> None:
    link(node, "was.db", content=os.urandom(300 * KIB))
    await node.back_up()
    with (node.source / "was.db").open("r+b") as file:
        file.truncate(100 * KIB)
    (node.source / "new").hardlink_to(node.source / "was.db")
    await node.back_up()
    assert await classes(node, b"new", b"was.db") == [ChunkClass.SMALL, ChunkClass.PAGED]

    await node.restore()

    assert picture(node.target) == picture(node.source)


async def test_names_of_which_one_was_read_too_soon_to_trust_its_times(node: Node) -> None:
    link(node, "a", "b")
    young = (node.source / "a").stat().st_ctime_ns + 1
    node.services = replace(node.services, clock=Cycling(young, Clock().now_ns()))
    await node.back_up()
    ctimes = [each.ctime_ns for each in await entries(node, b"a", b"b")]
    assert sorted(bool(each) for each in ctimes) == [False, True]

    await node.restore()

    assert picture(node.target) == picture(node.source)


@pytest.mark.parametrize("in_place", [False, True])
async def test_a_change_between_two_names_reaches_both(node: Node, in_place: bool) -> None:
    link(node, "a", "z", content=b"before")
    (node.source / "m").write_bytes(b"")
    # The backup begins, the directory, a; then m.
    work = Between(4, lambda: (node.source / "z").write_bytes(b"after it"))
    node.services = replace(node.services, clock=work)
    await node.back_up()
    assert [each.size for each in await entries(node, b"a", b"z")] == [6, 8]
    wanted = picture(node.source)
    if in_place:
        (node.source / "a").unlink()
        (node.source / "a").write_bytes(b"before")

    outcome = await node.restore(in_place=in_place)

    assert picture(node.source if in_place else node.target) == wanted
    assert outcome.phase is Phase.COMPLETED
    (warning,) = outcome.statistics.warnings
    assert warning.path == b"a"
    assert "different moments" in warning.message


async def test_links_pipes_and_devices_keep_their_names_and_get_no_others(node: Node) -> None:
    for top in "ab":
        (node.source / f"{top}-link").symlink_to("same")
        os.mkfifo(node.source / f"{top}-pipe")
    for name in ("link", "pipe"):
        os.link(node.source / f"a-{name}", node.source / f"c-{name}", follow_symlinks=False)
    for path in node.source.iterdir():
        os.utime(path, ns=(0, 1), follow_symlinks=False)
    await node.back_up()
    wanted = picture(node.source)

    await node.restore()
    assert picture(node.target) == wanted

    # All names of each are one now, which they were not, and then each is alone.
    for name in ("link", "pipe"):
        for top in "bc":
            (node.source / f"{top}-{name}").unlink()
            at = node.source / f"{top}-{name}"
            os.link(node.source / f"a-{name}", at, follow_symlinks=False)
    await node.restore(in_place=True)
    assert picture(node.source) == wanted


async def test_names_that_come_and_go_between_backups(node: Node) -> None:
    link(node, "a", "b", "c.db", content=os.urandom(400 * KIB))
    await node.back_up()
    (node.source / "a").unlink()
    (node.source / "d").hardlink_to(node.source / "b")
    await node.back_up()
    (node.source / "b").unlink()
    link(node, "b", "e", content=b"another file by an old name")
    with (node.source / "d").open("ab") as file:
        file.write(b"grown by another name")
    await node.back_up()

    await node.restore()

    assert picture(node.target) == picture(node.source)
    assert len(inodes(node.target, "b", "c.db", "d", "e")) == 2


async def test_paths_that_are_names_of_one_inode(node: Node) -> None:
    link(node, "a", "b/x.db", "c", content=os.urandom(300 * KIB))
    await node.back_up()

    await node.restore(b"a", b"b")

    assert inodes(node.target, "a", "b/x.db") == inodes(node.target, "a")
    assert not (node.target / "c").exists()
    content = (node.source / "a").read_bytes()
    assert (node.target / "a").read_bytes() == content
    # The one that is restored later is whole, and leaves alone what it was not asked for.
    await node.restore(b"c", overwrite=True)
    assert (node.target / "c").read_bytes() == content
    assert inodes(node.target, "a", "b/x.db") == inodes(node.target, "a")


async def test_a_name_that_is_as_it_should_be_is_not_parted_from_the_others(node: Node) -> None:
    link(node, "a", "b", content=os.urandom(300 * KIB))
    os.mkfifo(node.source / "pipe")
    os.link(node.source / "pipe", node.source / "pipe again")
    await node.back_up()
    # The mark of the restore changes the time of the top, which is not restored.
    before = inodes(node.source, "a", "b", "pipe", "pipe again")

    rehearsed = await node.restore(b"a", b"pipe", in_place=True, dry_run=True)
    outcome = await node.restore(b"a", b"pipe", in_place=True)

    assert inodes(node.source, "a", "b", "pipe", "pipe again") == before
    assert len(before) == 2
    for each in (rehearsed, outcome):
        assert (each.statistics.files_restored, each.statistics.files_unchanged) == (2, 2)


async def test_a_name_that_is_restored_alone_does_not_change_the_others(node: Node) -> None:
    link(node, "a", "b", content=os.urandom(300 * KIB))
    await node.back_up()
    content = (node.source / "a").read_bytes()
    (node.source / "a").write_bytes(b"changed")

    await node.restore(b"a", in_place=True)

    assert (node.source / "a").read_bytes() == content
    assert (node.source / "b").read_bytes() == b"changed"


@pytest.mark.parametrize("groups", [["ac", "bd"], ["abcd"], ["a", "bcd"], ["c", "d", "ab"], ["bd"]])
@pytest.mark.parametrize("content", [b"one", b"something else"])
async def test_names_that_are_linked_otherwise_where_they_stand(
    node: Node, groups: list[str], content: bytes
) -> None:
    link(node, "a", "b", content=b"one")
    link(node, "c", "d.db", content=b"two")
    await node.back_up()
    wanted = picture(node.source)
    for path in node.source.iterdir():
        path.unlink()
    for group in groups:
        link(node, *("d.db" if name == "d" else name for name in group), content=content)

    rehearsed = await node.restore(in_place=True, dry_run=True)
    outcome = await node.restore(in_place=True)

    assert picture(node.source) == wanted
    assert outcome.statistics.files_unchanged == rehearsed.statistics.files_unchanged
    assert outcome.statistics.bytes_written == rehearsed.statistics.bytes_written
    again = await node.restore(in_place=True)
    assert again.statistics.files_unchanged == again.statistics.files_restored == 4
