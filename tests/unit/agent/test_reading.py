import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import reading
from agent.beneath import Tree
from agent.errors import SourceError
from agent.reading import TRIES, LargeFile, VanishedError, read_small

LIMIT = 1000
KEY = b"file"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def tree(file: Path) -> Iterator[Tree]:
    with Tree.of_volume(os.fsencode(file.parent)) as tree:
        yield tree


@pytest.fixture
def after_each_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let something happen to the file right after each read of it, before its second stat."""

    def install(happen: Callable[[], object]) -> None:
        real_read, real_preadv = os.read, os.preadv

        def read(descriptor: int, size: int) -> bytes:
            data = real_read(descriptor, size)
            happen()
            return data

        def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            count = real_preadv(descriptor, buffers, offset)
            happen()
            return count

        monkeypatch.setattr(os, "read", read)
        monkeypatch.setattr(os, "preadv", preadv)

    return install


Install = Callable[[Callable[[], object]], None]


def test_a_quiet_file_is_read_as_it_is(tree: Tree, file: Path) -> None:
    os.utime(file, ns=(0, 5))

    content = read_small(tree, KEY, LIMIT)

    assert content is not None
    assert content.data == b"content"
    assert content.stat.st_mtime_ns == 5
    assert not content.fuzzy
    assert content.bytes_read == 7


def test_an_empty_file_is_read(tree: Tree, file: Path) -> None:
    file.write_bytes(b"")

    content = read_small(tree, KEY, LIMIT)

    assert content is not None
    assert content.data == b""


def test_a_file_over_the_limit_is_left_to_the_large_way(tree: Tree, file: Path) -> None:
    file.write_bytes(b"x" * (LIMIT + 1))

    assert read_small(tree, KEY, LIMIT) is None


def test_a_file_that_grows_once_is_read_again(
    tree: Tree, file: Path, after_each_read: Install
) -> None:
    changes = iter([b" and more"])
    after_each_read(lambda: append(file, next(changes, b"")))

    content = read_small(tree, KEY, LIMIT)

    assert content is not None
    assert content.data == b"content and more"
    assert not content.fuzzy
    assert content.bytes_read == 7 + 16


def append(file: Path, more: bytes) -> None:
    if more:
        with file.open("ab") as handle:
            handle.write(more)


def shrink_once(file: Path, size: int) -> Callable[[], None]:
    sizes = iter([size])

    def shrink() -> None:
        for to in sizes:
            os.truncate(file, to)

    return shrink


def test_a_file_that_shrinks_is_never_filled_up_with_zeros(
    tree: Tree, file: Path, after_each_read: Install
) -> None:
    after_each_read(shrink_once(file, 3))

    content = read_small(tree, KEY, LIMIT)

    assert content is not None
    assert content.data == b"con"
    assert not content.fuzzy


def test_a_file_that_never_rests_is_stored_and_marked(
    tree: Tree, file: Path, after_each_read: Install
) -> None:
    count = iter(range(1000))
    after_each_read(lambda: file.write_bytes(b"number %03d" % next(count)))

    content = read_small(tree, KEY, LIMIT)

    assert content is not None
    assert content.fuzzy
    assert bytes(content.data).startswith(b"number")
    assert content.bytes_read <= TRIES * 2 * 10 + 7


def test_a_file_that_outgrows_the_limit_while_read_is_left_to_the_large_way(
    tree: Tree, file: Path, after_each_read: Install
) -> None:
    after_each_read(lambda: append(file, b"x" * LIMIT))

    assert read_small(tree, KEY, LIMIT) is None


def test_a_file_just_written_is_not_settled(file: Path) -> None:
    file.write_bytes(b"fresh")
    fresh = os.stat(file)

    now = fresh.st_ctime_ns
    assert not reading.is_settled(fresh, now + 1_000_000)
    assert reading.is_settled(fresh, now + 1_000_000_000)


@pytest.mark.parametrize("become", ["gone", "fifo", "directory", "link"])
def test_what_is_no_regular_file_any_more_has_vanished(tree: Tree, file: Path, become: str) -> None:
    file.unlink()
    match become:
        case "fifo":
            os.mkfifo(file)
        case "directory":
            file.mkdir()
        case "link":
            file.symlink_to("/etc/passwd")
        case _:
            pass

    with pytest.raises(VanishedError):
        read_small(tree, KEY, LIMIT)


def test_an_unreadable_disk_is_an_error_of_that_path(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_descriptor: int, _size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", read)

    with pytest.raises(SourceError, match="disk") as caught:
        read_small(tree, KEY, LIMIT)
    assert not isinstance(caught.value, VanishedError)


def windows(large: LargeFile, size: int = 3) -> list[tuple[int, bytes]]:
    return [(at, bytes(data)) for at, data in large.windows(lambda: memoryview(bytearray(size)))]


def test_a_large_file_comes_in_windows(tree: Tree) -> None:
    with LargeFile(tree, KEY) as large:
        assert windows(large) == [(0, b"con"), (3, b"ten"), (6, b"t")]
        assert large.is_stable()
        assert large.bytes_read == 7


def test_a_large_file_that_changed_says_so_and_may_be_read_again(
    tree: Tree, file: Path, after_each_read: Install
) -> None:
    changes = iter([b" and more"])
    after_each_read(lambda: append(file, next(changes, b"")))

    with LargeFile(tree, KEY) as large:
        first = windows(large, 100)
        assert not large.is_stable()
        second = windows(large, 100)
        assert large.is_stable()

    assert first == [(0, b"content")]
    assert second == [(0, b"content and more")]


def test_a_large_file_that_shrank_ends_where_it_ends(
    tree: Tree, file: Path, after_each_read: Install
) -> None:
    after_each_read(shrink_once(file, 4))

    with LargeFile(tree, KEY) as large:
        assert windows(large) == [(0, b"con"), (3, b"t")]
        assert not large.is_stable()
        assert large.size == 4


def test_a_sparse_giant_costs_what_it_holds(tree: Tree, file: Path) -> None:
    with file.open("r+b") as handle:
        handle.truncate(1 << 40)
        handle.seek(1 << 39)
        handle.write(b"data")

    with LargeFile(tree, KEY) as large:
        ranges = list(large.data_ranges(0, large.length))

    assert sum(end - begin for begin, end in ranges) < 1 << 20
    assert any(begin <= 1 << 39 < end for begin, end in ranges)
