"""Whoever exchanges directories and links under our hands leads us nowhere.

The number of exchanges is TIDEMARK_FLIPS; each test also shows that a reader or writer who goes by
paths is led astray in the same run, or it would prove nothing.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from agent.state import State
from tests.hostile.conftest import Flipper
from tests.integration.agent.test_restore import Node

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(3600)]

FLIPS = int(os.environ.get("TIDEMARK_FLIPS", "50000"))
NAMES = [f"d{number % 3}/f{number:03d}" for number in range(150)]
SECRET = b"SECRET"
Flip = Callable[[Path, Path], AbstractContextManager[Flipper]]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with State(tmp_path / "state.db") as state, ThreadPoolExecutor(2) as workers:
        yield Node(tmp_path, state, workers)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What nobody may read or touch, under the names that we look for."""
    path = tmp_path / "outside"
    fill(path, SECRET)
    return path


def fill(top: Path, content: bytes) -> None:
    for name in NAMES:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content + name.encode())


def picture(top: Path) -> dict[str, tuple[object, ...]]:
    """All there is to see of a tree, access times apart."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        seen = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink, stat.st_mtime_ns, content)
        found[str(path.relative_to(top))] = (*seen, os.listxattr(path))
    return found


def read_naively(top: Path) -> int:
    """How many secrets a reader finds that goes by paths."""
    found = 0
    for name in NAMES:
        with contextlib.suppress(OSError):
            found += (top / name).read_bytes().startswith(SECRET)
    return found


async def test_a_backup_reads_nothing_outside(node: Node, outside: Path, flip: Flip) -> None:
    fill(node.source / "swap", b"inside")
    (node.source / "decoy").symlink_to(outside)
    leaks = backups = 0
    with flip(node.source / "swap", node.source / "decoy") as flipper:
        while flipper.flips < FLIPS or backups < 3:
            await node.back_up()
            backups += 1
            leaks += read_naively(node.source / "swap")
            for key, (_, content) in (await node.coordinator.tree()).items():
                assert not content.startswith(SECRET), key
        while not leaks:
            leaks += read_naively(node.source / "swap")
    await node.back_up()
    found = {content for _, content in (await node.coordinator.tree()).values()}
    assert len(found - {b""}) == len(NAMES)


async def test_a_restore_touches_nothing_outside(node: Node, outside: Path, flip: Flip) -> None:
    fill(node.source / "swap", b"inside")
    await node.back_up()
    before = picture(outside)
    trap, swap = node.root / "trap", node.target / "swap"
    leak = outside.with_name("leak")
    leak.mkdir()
    naive = 0
    node.target.mkdir(parents=True)
    with flip(swap, trap) as flipper:
        restores = 0
        while flipper.flips < FLIPS or restores < 4:
            with flipper.paused():
                set_up(node.target, trap, outside, restores)
            await node.restore(overwrite=restores % 2 == 1, delete_extra=restores % 2 == 1)
            restores += 1
            assert picture(outside) == before
        while not naive:
            with flipper.paused():
                set_up(node.target, trap, leak, 1)
            for name in NAMES:
                with contextlib.suppress(OSError):
                    (swap / name.replace("/", "-")).write_bytes(b"")
            naive = len(os.listdir(leak))
    assert naive
    with contextlib.suppress(FileNotFoundError):
        remove(trap)
    remove(node.target)
    assert (await node.restore()).statistics.files_restored == len(NAMES)
    assert picture(outside) == before


def set_up(target: Path, trap: Path, outside: Path, number: int) -> None:
    """An empty target, or one that has something to be replaced and removed; and the trap."""
    remove(target)
    target.mkdir()
    with contextlib.suppress(FileNotFoundError):
        remove(trap)
    trap.symlink_to(outside)
    if number % 2:
        for name in NAMES[::2]:
            (target / "swap" / name).parent.mkdir(parents=True, exist_ok=True)
            (target / "swap" / name).write_bytes(b"old")
            (target / "swap" / f"{name}-extra").write_bytes(b"extra")


def remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)
