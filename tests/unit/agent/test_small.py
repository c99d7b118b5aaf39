"""Small files are the same, whether they are read here or by a reader process."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.beneath import Tree
from agent.errors import SourceError
from agent.reader import Outcome, Read, SmallFile, Wanted
from agent.reading import VanishedError
from agent.small import SmallFiles
from agent.turn import Turn
from repository.chunking import BLOCK_BYTES, SMALL_BYTES_MAX
from repository.ids import IdKeys, ObjectType

IDS = IdKeys(b"d" * 32, b"n" * 32, b"l" * 32)
NEVER = 1 << 30


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    (path / "below").mkdir(parents=True)
    return path


@pytest.fixture
def tree(volume: Path) -> Iterator[Tree]:
    with Tree.of_volume(os.fsencode(volume)) as tree:
        yield tree


@pytest.fixture(params=["here", "by a reader"])
def small(request: pytest.FixtureRequest, tree: Tree, logged: list[str]) -> Iterator[SmallFiles]:
    reader_from = NEVER if request.param == "here" else 0
    log = lambda _, message: logged.append(message)  # noqa: E731 - shorter
    with SmallFiles(tree, IDS, Turn(), log, reader_from=reader_from) as small:
        if request.param != "here":
            wait_for_reader(small)
        yield small


def wait_for_reader(small: SmallFiles) -> int:
    """Let the reader start; its process id."""
    with small.read([]):
        [process] = small.reader.processes
    assert process.is_ready(wait_seconds=30)
    return process.process_id


def outcomes(small: SmallFiles, *keys: bytes, paged: bool = False) -> list[object]:
    """What became of files: their bytes and ids, or why not."""

    def plain(read: Read) -> object:
        if isinstance(read, SmallFile):
            return bytes(read.content.data), list(read.chunk_ids)
        return type(read) if isinstance(read, SourceError) else read

    with small.read([Wanted(key, paged) for key in keys]) as found:
        return [plain(read) for read in found]


def expected(data: bytes) -> tuple[bytes, list[bytes]]:
    return data, [IDS.chunk_id(ObjectType.DATA, data)] if data else []


def test_contents_come_in_the_order_they_were_asked_for(small: SmallFiles, volume: Path) -> None:
    largest = os.urandom(SMALL_BYTES_MAX - 1)
    (volume / "b").write_bytes(b"second")
    (volume / "a").write_bytes(b"first")
    (volume / "empty").touch()
    (volume / "below" / "c").write_bytes(largest)

    found = outcomes(small, b"b", b"empty", b"below\0c", b"a")

    assert found == [expected(b"second"), expected(b""), expected(largest), expected(b"first")]


def test_a_file_says_what_its_stat_says(small: SmallFiles, volume: Path) -> None:
    (volume / "a").write_bytes(b"content")
    (volume / "a").chmod(0o4751)
    os.utime(volume / "a", ns=(0, -1_500_000_001))
    now = (volume / "a").stat()

    with small.read([Wanted(b"a", paged=False)]) as (read,):
        assert isinstance(read, SmallFile)
        found = read.content.stat

    for name in ("mode", "ino", "nlink", "uid", "gid", "rdev", "mtime_ns", "ctime_ns"):
        assert getattr(found, f"st_{name}") == getattr(now, f"st_{name}")


def test_what_is_no_small_file_is_said_to_be_none(small: SmallFiles, volume: Path) -> None:
    (volume / "large").write_bytes(bytes(SMALL_BYTES_MAX))
    os.mkfifo(volume / "fifo")
    (volume / "link").symlink_to("large")
    (volume / "there").write_bytes(b"x")

    found = outcomes(small, b"large", b"fifo", b"link", b"gone", b"no\0where", b"there")

    vanished = [VanishedError] * 4
    assert found == [Outcome.NOT_SMALL, *vanished, expected(b"x")]


def test_a_file_that_was_cut_in_blocks_still_is(small: SmallFiles, volume: Path) -> None:
    data = os.urandom(BLOCK_BYTES + 7)
    (volume / "a").write_bytes(data)

    pieces = data[:BLOCK_BYTES], data[BLOCK_BYTES:]
    ids = [IDS.chunk_id(ObjectType.DATA, piece) for piece in pieces]
    assert outcomes(small, b"a", paged=True) == [(data, ids)]


def test_files_that_grew_beyond_the_batch_are_read_all_the_same(
    small: SmallFiles, volume: Path
) -> None:
    data = [os.urandom(SMALL_BYTES_MAX - 1) for _ in range(20)]
    for number, each in enumerate(data):
        (volume / str(number)).write_bytes(each)

    found = outcomes(small, *(b"%d" % number for number in range(20)))

    assert found == [expected(each) for each in data]


def test_a_reader_that_ends_early_costs_a_warning(
    tree: Tree, volume: Path, logged: list[str]
) -> None:
    (volume / "a").write_bytes(b"content")
    log = lambda _, message: logged.append(message)  # noqa: E731 - shorter
    with SmallFiles(tree, IDS, Turn(), log, reader_from=0) as small:
        process_id = wait_for_reader(small)
        assert outcomes(small, b"a") == [expected(b"content")]
        os.kill(process_id, signal.SIGKILL)

        assert outcomes(small, b"a") == [expected(b"content")]
        assert outcomes(small, b"a") == [expected(b"content")]

    assert len(logged) == 1
    assert "more slowly" in logged[0]


def test_a_reader_ends_with_its_backup(tree: Tree) -> None:
    with SmallFiles(tree, IDS, Turn(), lambda *_: None, reader_from=0) as small:
        process_id = wait_for_reader(small)

    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def test_few_files_start_no_reader(tree: Tree, volume: Path) -> None:
    (volume / "a").touch()
    with SmallFiles(tree, IDS, Turn(), lambda *_: None, reader_from=2) as small:
        outcomes(small, b"a")
        assert not small.reader.processes
        outcomes(small, b"a")
        assert small.reader.processes
