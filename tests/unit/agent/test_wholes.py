"""Small files come out the same, whether they are made here or by writer processes."""

import os
import signal
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from msgspec import structs

from agent.side import SLOT_BYTES
from agent.standing import TargetFullError
from agent.turn import Turn
from agent.wholes import FileFrame, Outcomes, Whole, WholeFiles, that_fit
from agent.writer import Outcome, Setup
from agent.writer_main import Maker
from agent.writing import File, Target
from repository.entries import Attributes, ChunkClass, Content, EntryType, Extent
from repository.errors import DamagedError
from repository.frames import FrameIdentity
from repository.ids import ChunkId, IdKeys, ObjectType, PackNonce, RepositoryId
from repository.layout import ReaderKeys
from tests.fakes.agent import entry
from tests.fakes.frames import MemoryFrames
from tests.faults.disks import memory_disk

NEVER = 1 << 30
TIME = 1_234_567_890_123_456_789
IDS = IdKeys(b"d" * 32, b"n" * 32, b"l" * 32)
KEYS = ReaderKeys(RepositoryId(b"R" * 16), IDS)
NONCE = PackNonce(b"p" * 16)


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


@pytest.fixture(params=["here", "by writers"])
def wholes(
    request: pytest.FixtureRequest, target: Target, logged: list[str]
) -> Iterator[WholeFiles]:
    writers_from = NEVER if request.param == "here" else 0
    wholes = made(target, logged, writers_from=writers_from)
    wholes.expect(1)
    yield wholes
    wholes.close()
    assert logged == []


def made(target: Target, logged: list[str], *, writers_from: int) -> WholeFiles:
    log = lambda _, message: logged.append(message)  # noqa: E731 - shorter
    return WholeFiles(target, KEYS, Turn(), log, writers_from=writers_from)


def process_ids(wholes: WholeFiles) -> list[int]:
    """Those of the writers, once they have come up."""
    assert all(process.is_ready(wait_seconds=30) for process in wholes.writers.processes)
    return [process.process_id for process in wholes.writers.processes]


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
    found = {id(file): error for file, error in written(wholes, files)}
    assert len(found) == len(files)
    errors = [found[id(each.file)] for each in files]
    return [None if error is None else error.message for error in errors]


def written(wholes: WholeFiles, files: Sequence[Whole]) -> Outcomes:
    """Have them made by writers, if there are any for what takes no place, or else here."""
    new = [each for each in files if each.file.is_new]
    others = [each for each in files if not each.file.is_new]
    found: Outcomes = []
    for batch in that_fit(in_frames(new)):
        by_writer = wholes.write_frames(batch)
        if by_writer is None:
            among = {id(file) for frame in batch for file in frame.files}
            others += [each for each in new if id(each.file) in among]
        else:
            found += by_writer
    return [*found, *wholes.write(others)]


def in_frames(files: Sequence[Whole]) -> list[FileFrame]:
    """The files, three to a frame; from now on their entries say where their content is."""
    source = MemoryFrames(KEYS.repository, IDS, NONCE)
    frames = []
    for start in range(0, len(files), 3):
        some = files[start : start + 3]
        places = source.add(ObjectType.DATA, *(bytes(each.data) for each in some))
        for (file, _), (chunk_id, place) in zip(some, places, strict=True):
            extents = [Extent.at(chunk_id, place)]
            content = Content(ChunkClass.SMALL, extents, None)
            file.entry = structs.replace(file.entry, content=content)
        sealed, key = source.frames[-1]
        identity = FrameIdentity(NONCE, len(source.frames) - 1)
        of_these = [each.file for each in some]
        frames.append(FileFrame(memoryview(sealed), key, identity, of_these))
    return frames


def test_files_have_their_content_and_their_metadata(wholes: WholeFiles, tmp_path: Path) -> None:
    files = [
        whole(b"a", b"first", mode=0o4751),
        whole(b"below\0b", os.urandom(100_000), xattrs=[(b"user.color", b"\x00blue")]),
        whole(b"c", os.urandom(SLOT_BYTES // 4), mode=0o600),
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

    assert outcomes(wholes, file, whole(b"b", b"x")) == [None, None]

    assert [key for key, _ in warned] == [b"a"]
    assert "nonsense" in warned[0][1]


def test_a_warning_of_a_file_that_failed_is_not_the_next_ones(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    maker = Maker(Setup(b"/target", KEYS.repository, IDS.data), root)
    (tmp_path / "taken").write_bytes(b"mine")
    [frame] = in_frames([whole(b"taken", b"1"), whole(b"b", b"2")])
    maker.warnings.append("of whatever came before")

    first, second = maker.make(frame.order(), frame.sealed)

    assert (first.outcome, second.outcome) == (Outcome.FAILED, Outcome.MADE)
    assert (first.warnings, second.warnings) == ([], [])
    os.close(root)


def test_a_writer_that_ends_early_costs_a_warning(
    target: Target, tmp_path: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.wholes._WRITERS_MAX", 1)
    wholes = made(target, logged, writers_from=0)
    wholes.expect(1)
    [process_id] = process_ids(wholes)
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


def test_the_other_writers_go_on_without_one_that_ended(
    target: Target, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    wholes = made(target, logged, writers_from=0)
    wholes.expect(1)
    first, second = process_ids(wholes)
    os.kill(first, signal.SIGKILL)

    assert outcomes(wholes, whole(b"a", b"a")) == [None]
    assert process_ids(wholes) == [second]
    assert wholes.write_frames(in_frames([whole(b"b", b"b")])) is not None
    wholes.close()

    assert len(logged) == 1


@pytest.mark.parametrize("writers_from", [NEVER, 0])
def test_a_full_target_ends_everything(
    tmp_path: Path, logged: list[str], writers_from: int
) -> None:
    with memory_disk(tmp_path / "small", 64 * 1024) as disk:
        descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
        with Target(descriptor, os.fsencode(disk), lambda *_: None) as target:
            wholes = made(target, logged, writers_from=writers_from)
            wholes.expect(1)
            files = [whole(b"%d" % number, bytes(40_000)) for number in range(3)]
            with pytest.raises(TargetFullError, match="no space left"):
                outcomes(wholes, *files)
            wholes.close()


def test_a_damaged_frame_costs_its_own_files(
    target: Target, tmp_path: Path, logged: list[str]
) -> None:
    wholes = made(target, logged, writers_from=0)
    wholes.expect(1)
    files = [whole(b"%d" % number, b"content %d" % number) for number in range(9)]
    frames = in_frames(files)
    flipped = bytearray(frames[1].sealed)
    flipped[7] ^= 1
    frames[1] = frames[1]._replace(sealed=memoryview(flipped))
    # And one that does not hold what an entry says.
    strange = files[8].file
    content = strange.entry.content
    assert content is not None
    [extent] = content.extents
    wrong = structs.replace(extent, id=ChunkId(b"x" * 32))
    strange.entry = structs.replace(
        strange.entry, content=structs.replace(content, extents=[wrong])
    )

    found = wholes.write_frames(frames)
    wholes.close()

    assert found is not None
    bad = {file.key for file, error in found if isinstance(error, DamagedError)}
    assert bad == {b"3", b"4", b"5", b"8"}
    assert all(error is not None and error.hint for file, error in found if file.key in bad)
    left = {path.name for path in (tmp_path / "target").iterdir() if path.is_file()}
    assert left == {"0", "1", "2", "6", "7"}


def test_writers_end_with_their_restore(target: Target, logged: list[str]) -> None:
    wholes = made(target, logged, writers_from=0)
    wholes.expect(1)
    ids = process_ids(wholes)

    wholes.close()

    for process_id in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


def test_few_files_start_no_writer(target: Target, logged: list[str]) -> None:
    wholes = made(target, logged, writers_from=2)

    started = []
    for _ in range(2):
        wholes.expect(1)
        started.append(bool(wholes.writers.processes))
    wholes.close()

    assert started == [False, True]
