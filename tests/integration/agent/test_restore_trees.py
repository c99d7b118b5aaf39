"""Whatever a tree is: what was backed up comes back, and in place over whatever stands there."""

import asyncio
import functools
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase as Step
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.services import Phase, RestoreOutcome
from agent.state import State
from tests.integration.agent.test_restore import Node, picture

KIB = 1024
# Some that sort oddly, one that makes its file paged, one that is the longest there can be.
NAMES = st.sampled_from(
    [b"a", b"a-b", b"a\n", b"\xff\xfe", "ключ".encode(), b"x.db", b".", b"n" * 255, b"-rf", b"b"]
).map(lambda name: name if name != b"." else b". ")
# Before 1970, single nanoseconds, and far away.
TIMES = st.sampled_from(
    [-1_500_000_001, -1, 0, 1, 1_600_000_000_123_456_789, 4_000_000_000 * 10**9]
)
OWNERS = st.sampled_from([(0, 0), (1234, 4321)]) if os.geteuid() == 0 else st.just((-1, -1))
# Lengths, and what fills them: a seed, or None for a hole.
SEGMENTS = st.one_of(
    st.tuples(st.sampled_from([1, 100, 64 * KIB, 300 * KIB]), st.integers(0, 2)),
    st.tuples(st.sampled_from([1, 8192 * KIB]), st.none()),
)
# Nothing here is to outlive the test, and syncing a disk would take most of its time.
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - made anew in it


# A smaller example takes longer to be found than its reader to understand the first.
EXAMPLES = settings(
    max_examples=30, deadline=None, phases=[Step.explicit, Step.reuse, Step.generate]
)


@dataclass(frozen=True)
class Meta:
    mode: int
    mtime_ns: int
    owner: tuple[int, int]
    attributes: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class File:
    meta: Meta
    segments: tuple[tuple[int, int | None], ...]


@dataclass(frozen=True)
class Symlink:
    meta: Meta
    target: bytes


@dataclass(frozen=True)
class Pipe:
    meta: Meta


@dataclass(frozen=True)
class Link:
    """Another name of what was made that many steps before, if that many were."""

    before: int


@dataclass(frozen=True)
class Directory:
    meta: Meta
    names: dict[bytes, Any]


# An ACL for user 7, as the kernel keeps it: version; (tag, permissions, id) of user::, user:7:,
# group::, mask::, other::.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, who)
    for tag, permissions, who in (
        *((1, 6, 0xFFFFFFFF), (2, 7, 7), (4, 4, 0xFFFFFFFF)),
        *((16, 7, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)),
    )
)
ATTRIBUTES = st.lists(
    st.sampled_from(
        [
            ("user.a", b""),
            ("user.a", b"\0\xff"),
            ("user.long", b"v" * 2000),
            ("system.posix_acl_access", ACL),
            ("system.posix_acl_default", ACL),
        ]
    ),
    unique_by=lambda each: each[0],
    max_size=2,
).map(tuple)
META = st.builds(
    Meta, st.sampled_from([0o600, 0o644, 0o4755, 0o1777, 0o000]), TIMES, OWNERS, ATTRIBUTES
)
LEAVES = st.one_of(
    st.builds(File, META, st.lists(SEGMENTS, max_size=4).map(tuple)),
    st.builds(Symlink, META, st.sampled_from([b"a", b"/nowhere", b"../..", b"\xff"])),
    st.builds(Pipe, META),
    st.builds(Link, st.integers(1, 3)),
)
TREES = st.builds(
    Directory,
    META,
    st.dictionaries(
        NAMES,
        st.recursive(
            LEAVES,
            lambda lower: st.builds(Directory, META, st.dictionaries(NAMES, lower, max_size=4)),
            max_leaves=8,
        ),
        max_size=6,
    ),
)


@functools.lru_cache(maxsize=16)
def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def build(path: bytes, thing: object, files: list[bytes]) -> None:
    match thing:
        case Link(before):
            if len(files) >= before:
                os.link(files[-before], path, follow_symlinks=False)
            return
        case Directory(_, names):
            os.makedirs(path, exist_ok=True)
            for name, lower in names.items():
                build(path + b"/" + name, lower, files)
        case File(_, segments):
            write(path, segments)
        case Symlink(_, target):
            os.symlink(target, path)
        case _:
            os.mkfifo(path)
    if not isinstance(thing, Directory):
        files.append(path)
    assert isinstance(thing, Directory | File | Symlink | Pipe)
    set_meta(path, thing)


def write(path: bytes, segments: tuple[tuple[int, int | None], ...]) -> None:
    with open(path, "wb") as file:
        for length, seed in segments:
            if seed is None:
                file.seek(length, os.SEEK_CUR)
            else:
                file.write(content(seed, length))
        file.truncate(sum(length for length, _ in segments))


def set_meta(path: bytes, thing: Directory | File | Symlink | Pipe) -> None:
    os.chown(path, *thing.meta.owner, follow_symlinks=False)
    if not isinstance(thing, Symlink):
        keep = 0o700 if os.geteuid() and isinstance(thing, Directory) else 0
        os.chmod(path, thing.meta.mode | keep)
        if not isinstance(thing, Pipe):
            for name, value in thing.meta.attributes:
                if name != "system.posix_acl_default" or isinstance(thing, Directory):
                    os.setxattr(path, name, value)
    os.utime(path, ns=(0, thing.meta.mtime_ns), follow_symlinks=False)


def mixed(one: Directory, other: Directory, source: random.Random) -> Directory:
    """A tree with names of both, of either, and of neither."""
    names = {}
    for name in sorted(one.names.keys() | other.names.keys()):
        left, right = one.names.get(name), other.names.get(name)
        if isinstance(left, Directory) and isinstance(right, Directory):
            names[name] = mixed(left, right, source)
        elif (chosen := source.choice([left, left, right, None])) is not None:
            names[name] = chosen
    return Directory(source.choice([one, other]).meta, names)


def on_a_node(work: Callable[[Node], Any]) -> None:
    with (
        tempfile.TemporaryDirectory(dir=SCRATCH) as root,
        State(Path(root) / "state.db") as state,
        ThreadPoolExecutor(2) as workers,
    ):
        work(Node(Path(root), state, workers))


def restore(node: Node, **options: bool) -> RestoreOutcome:
    return asyncio.run(node.restore(target=node.target, **options))


def assert_whole(outcome: RestoreOutcome) -> None:
    assert outcome.error is None
    assert outcome.phase is Phase.COMPLETED, outcome.statistics.errors
    assert not outcome.statistics.warnings


@pytest.mark.timeout(60)
@EXAMPLES
@given(tree=TREES)
def test_a_restore_of_a_backup_of_a_tree_is_the_tree(tree: Directory) -> None:
    def work(node: Node) -> None:
        build(os.fsencode(node.source), tree, [])
        asyncio.run(node.back_up())

        assert_whole(restore(node))

        assert picture(node.target) == picture(node.source)
        # Short holes are stored as the zeros they are.
        assert _blocks(node.target) <= _blocks(node.source) + 6 * KIB

    on_a_node(work)


@pytest.mark.timeout(60)
@EXAMPLES
@given(tree=TREES, other=TREES, seed=st.integers(0, 1000))
def test_in_place_over_any_other_tree_gives_the_tree(
    tree: Directory, other: Directory, seed: int
) -> None:
    def work(node: Node) -> None:
        build(os.fsencode(node.source), tree, [])
        asyncio.run(node.back_up())
        wanted = picture(node.source)
        shutil.rmtree(node.source)
        build(os.fsencode(node.source), mixed(tree, other, random.Random(seed)), [])
        before = picture(node.source)

        rehearsed = restore(node, in_place=True, delete_extra=True, dry_run=True)
        untouched = picture(node.source)
        run = restore(node, in_place=True, delete_extra=True)
        again = restore(node, in_place=True, delete_extra=True)

        assert_whole(run)
        assert untouched == before
        assert picture(node.source) == wanted
        assert counts(rehearsed) == counts(run)
        assert again.statistics.bytes_written == again.statistics.files_removed == 0
        assert again.statistics.files_unchanged == again.statistics.files_restored

    on_a_node(work)


def counts(outcome: RestoreOutcome) -> dict[str, int]:
    statistics = outcome.statistics
    return {
        name: value
        for name, value in vars(statistics).items()
        if isinstance(value, int) and name not in {"dry_run", "changes_total"}
    }


def _blocks(root: Path) -> int:
    """What the files of a tree take, in half KiB."""
    return sum(path.lstat().st_blocks for path in root.rglob("*"))
