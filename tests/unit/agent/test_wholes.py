"""Small files come out the same, whether they are made here or by a writer process."""

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from agent.side import SLOT_BYTES
from agent.standing import TargetFullError
from agent.turn import Turn
from agent.wholes import Whole, WholeFiles
from agent.writing import File, Target
from repository.entries import Attributes, EntryType
from tests.fakes.agent import entry
from tests.faults.disks import memory_disk

NEVER = 1 << 30
TIME = 1_234_567_890_123_456_789


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def warned() -> list[tuple[bytes, str]]:
    return []


@pytest.fixture
def target(tmp_path: Path, warned: list[tuple[bytes, str]]) -> Iterator[Target]:
    path = tmp_path / "target"
    (path / "below").mkdir(parents=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    warn = lambda key, message: warned.append((key, message))  # noqa: E731 - shorter
    with Target(descriptor, os.fsencode(path), warn) as target:
        yield target


@pytest.fixture(params=["here", "by a writer"])
def wholes(
    request: pytest.FixtureRequest, target: Target, logged: list[str]
) -> Iterator[WholeFiles]:
    log = lambda _, message: logged.append(message)  # noqa: E731 - shorter
    wholes = WholeFiles(target, Turn(), log, writer_from=NEVER if request.param == "here" else 0)
    if request.param != "here":
        wait_for_writer(wholes)
    yield wholes
    wholes.close()
    assert logged == []


def wait_for_writer(wholes: WholeFiles) -> int:
    """Let the writer start; its process id."""
    assert outcomes(wholes, whole(b"the-first", b"")) == [None]
    assert wholes.writer.process is not None
    assert wholes.writer.process.is_ready(wait_seconds=30)
    return wholes.writer.process.process_id


def whole(
    key: bytes, data: bytes, *, mode: int = 0o644, links: int = 1, xattrs: Attributes | None = None
) -> Whole:
    wanted = structs.replace(
        entry(EntryType.FILE, len(data)),
        mode=mode,
        uid=1234,
        gid=4321,
        mtime_ns=TIME,
        inode=7,
        links=links,
        xattrs=xattrs,
    )
    return Whole(File(key, wanted), memoryview(data))


def outcomes(wholes: WholeFiles, *files: Whole) -> list[str | None]:
    """What became of each file: its error, or none."""
    found = {id(each.file): error for each, error in wholes.write(files)}
    assert len(found) == len(files)
    errors = [found[id(each.file)] for each in files]
    return [None if error is None else error.message for error in errors]


def test_files_have_their_content_and_their_metadata(wholes: WholeFiles, tmp_path: Path) -> None:
    files = [
        whole(b"a", b"first", mode=0o4751),
        whole(b"below\0b", os.urandom(100_000), xattrs=[(b"user.color", b"\x00blue")]),
        whole(b"c", os.urandom(SLOT_BYTES // 2), mode=0o600),
        whole(b"not \xff utf-8\n", b"odd"),
    ]

    assert outcomes(wholes, *files) == [None] * 4

    for file, data in files:
        path = os.fsencode(tmp_path / "target") + b"/" + file.key.replace(b"\0", b"/")
        status = os.stat(path)
        assert Path(os.fsdecode(path)).read_bytes() == data
        assert stat.S_IMODE(status.st_mode) == file.entry.mode
        assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (1234, 4321, TIME)
        attributes = {os.fsencode(name): os.getxattr(path, name) for name in os.listxattr(path)}
        assert attributes == dict(file.entry.xattrs or [])
        assert file.begun


def test_more_than_fits_a_slot_is_written_all_the_same(wholes: WholeFiles, tmp_path: Path) -> None:
    files = [whole(b"%d" % number, os.urandom(200_000)) for number in range(30)]

    assert outcomes(wholes, *files) == [None] * 30

    for file, data in files:
        assert (tmp_path / "target" / os.fsdecode(file.key)).read_bytes() == data


def test_a_file_of_several_names_is_known_by_its_inode(wholes: WholeFiles, tmp_path: Path) -> None:
    shared = whole(b"a", b"content", links=2)

    assert outcomes(wholes, shared, whole(b"b", b"other")) == [None, None]

    status = (tmp_path / "target" / "a").stat()
    assert shared.file.identity == (status.st_dev, status.st_ino)


def test_what_cannot_be_made_costs_itself_only(wholes: WholeFiles, tmp_path: Path) -> None:
    (tmp_path / "target" / "taken").write_bytes(b"mine")

    found = outcomes(
        wholes,
        whole(b"a", b"1"),
        whole(b"taken", b"2"),
        whole(b"no\0where", b"3"),
        whole(b"b", b"4"),
    )

    assert [error is None for error in found] == [True, False, False, True]
    assert (tmp_path / "target" / "taken").read_bytes() == b"mine"
    assert (tmp_path / "target" / "b").read_bytes() == b"4"


def test_what_takes_a_place_takes_it(wholes: WholeFiles, tmp_path: Path) -> None:
    (tmp_path / "target" / "taken").write_bytes(b"old")
    file = whole(b"taken", b"new")
    file.file.takes_name = True

    assert outcomes(wholes, file) == [None]
    assert (tmp_path / "target" / "taken").read_bytes() == b"new"


def test_a_directory_exchanged_for_a_link_leads_nowhere(wholes: WholeFiles, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "target" / "way").symlink_to(outside)

    [error] = outcomes(wholes, whole(b"way\0out", b"x"))

    assert error is not None
    assert list(outside.iterdir()) == []


def test_what_an_attribute_cannot_be_is_a_warning(
    wholes: WholeFiles, warned: list[tuple[bytes, str]]
) -> None:
    file = whole(b"a", b"content", xattrs=[(b"nonsense", b"x")])

    assert outcomes(wholes, file, whole(b"b", b"")) == [None, None]

    assert [key for key, _ in warned] == [b"a"]
    assert "nonsense" in warned[0][1]


def test_a_writer_that_ends_early_costs_a_warning(
    target: Target, tmp_path: Path, logged: list[str]
) -> None:
    wholes = WholeFiles(target, Turn(), lambda _, message: logged.append(message), writer_from=0)
    process_id = wait_for_writer(wholes)
    os.kill(process_id, signal.SIGSTOP)
    # As if it had been killed in the middle of this file.
    (tmp_path / "target" / "half").write_bytes(b"ha")
    os.kill(process_id, signal.SIGKILL)

    assert outcomes(wholes, whole(b"half", b"half"), whole(b"b", b"b")) == [None, None]
    assert outcomes(wholes, whole(b"c", b"c")) == [None]
    wholes.close()

    assert [(tmp_path / "target" / name).read_bytes() for name in ("half", "b", "c")] == [
        b"half",
        b"b",
        b"c",
    ]
    assert len(logged) == 1
    assert "more slowly" in logged[0]


@pytest.mark.parametrize("writer_from", [NEVER, 0])
def test_a_full_target_ends_everything(tmp_path: Path, writer_from: int) -> None:
    with memory_disk(tmp_path / "small", 64 * 1024) as disk:
        descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
        with Target(descriptor, os.fsencode(disk), lambda *_: None) as target:
            wholes = WholeFiles(target, Turn(), lambda *_: None, writer_from=writer_from)
            if not writer_from:
                wait_for_writer(wholes)
            files = [whole(b"%d" % number, bytes(40_000)) for number in range(3)]
            with pytest.raises(TargetFullError, match="no space left"):
                outcomes(wholes, *files)
            wholes.close()


def test_a_writer_ends_with_its_restore(target: Target) -> None:
    wholes = WholeFiles(target, Turn(), lambda *_: None, writer_from=0)
    process_id = wait_for_writer(wholes)

    wholes.close()

    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def test_few_files_start_no_writer(target: Target) -> None:
    wholes = WholeFiles(target, Turn(), lambda *_: None, writer_from=2)

    started = []
    for key in (b"a", b"b"):
        assert outcomes(wholes, whole(key, b"x")) == [None]
        started.append(wholes.writer.process is not None)
    wholes.close()

    assert started == [False, True]
