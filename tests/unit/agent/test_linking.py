"""Names of one inode are one thing, as its newest name says; two inodes in turn stay two."""

import os
from pathlib import Path

import pytest

from agent.linking import Inodes, has_several_names, is_one_inode
from agent.reading import generation_of
from repository.entries import ChunkClass, Content, Entry, EntryType, Extent, Flag
from repository.frames import Location
from repository.ids import ChunkId, PackNonce


def entry(**more: object) -> Entry:
    fields: dict[str, object] = {
        "type": EntryType.FILE,
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "mtime_ns": 5,
        "size": 3,
        "inode": 7,
        "ctime_ns": 6,
        "links": 2,
        "flags": 0,
        "device": 0,
        "target": None,
        "xattrs": None,
        "long_xattrs": None,
        "content": content(b"a"),
        "generation": 9,
    }
    return Entry(**fields | more)  # type: ignore[arg-type]


def content(name: bytes, chunking: ChunkClass = ChunkClass.SMALL) -> Content:
    place = Location(PackNonce(b"n" * 16), 0, 0, 3)
    return Content(chunking, [Extent.at(ChunkId(name * 32), place)], None)


def restored(*entries: Entry) -> list[tuple[Entry, list[bytes]]]:
    inodes = Inodes()
    for number, each in enumerate(entries):
        inodes.add(b"%d" % number, each, None)
    return [(inode.entry, [name.key for name in inode.names]) for inode in inodes]


def test_what_has_one_name_or_no_known_inode_stands_alone() -> None:
    assert has_several_names(entry())
    assert not has_several_names(entry(links=1))
    assert not has_several_names(entry(inode=0))


def test_one_generation_is_one_inode_whatever_else_differs() -> None:
    other = entry(content=content(b"b", ChunkClass.PAGED), size=4, mtime_ns=8, ctime_ns=9)

    assert restored(entry(), other) == [(other, [b"0", b"1"])]


def test_another_generation_is_another_inode_though_all_else_is_the_same() -> None:
    first, second = entry(), entry(generation=10)

    assert restored(first, second, second) == [(first, [b"0"]), (second, [b"1", b"2"])]


def test_another_type_is_another_inode() -> None:
    assert not is_one_inode(entry(), entry(type=EntryType.FIFO))


@pytest.mark.parametrize("field", ["mtime_ns", "size", "ctime_ns", "target", "device"])
def test_without_generations_what_was_changed_is_not_surely_the_same(field: str) -> None:
    one = entry(generation=0)
    value = b"other" if field == "target" else 1234

    assert is_one_inode(one, entry())
    assert not is_one_inode(one, entry(**{field: value}))


def test_without_generations_one_time_of_change_is_one_inode_however_it_was_cut() -> None:
    paged = entry(generation=0, content=content(b"b", ChunkClass.PAGED))

    assert is_one_inode(entry(generation=0), paged)


def test_without_generations_and_times_the_content_tells() -> None:
    young = entry(generation=0, ctime_ns=0)

    assert is_one_inode(young, entry(generation=0))
    assert not is_one_inode(young, entry(generation=0, content=content(b"b")))


def test_the_newest_entry_stands_for_all() -> None:
    old, new = entry(mode=0o600), entry(ctime_ns=7)
    young = entry(ctime_ns=0, mtime_ns=9)
    fuzzy = entry(ctime_ns=0, flags=Flag.FUZZY)
    stale = entry(ctime_ns=8, flags=Flag.STALE)

    assert restored(old, new)[0][0] == restored(new, old)[0][0] == new
    assert restored(new, young)[0][0] == restored(young, new)[0][0] == young
    assert restored(old, fuzzy)[0][0] == restored(fuzzy, old)[0][0] == old
    assert restored(fuzzy, stale)[0][0] == restored(stale, fuzzy)[0][0] == fuzzy


def test_names_that_are_restored_as_another_one_was_read_are_told_of() -> None:
    same = Inodes()
    same.add(b"a", entry(), None)
    same.add(b"b", entry(content=content(b"b", ChunkClass.PAGED), ctime_ns=9), None)
    torn = Inodes()
    torn.add(b"a", entry(), None)
    torn.add(b"b", entry(mtime_ns=8), None)

    assert [inode.is_torn for inode in same] == [False]
    assert [inode.is_torn for inode in torn] == [True]


def generation(path: Path) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return generation_of(descriptor, os.fstat(descriptor))
    finally:
        os.close(descriptor)


def test_names_of_a_file_have_its_generation_and_later_files_have_others(tmp_path: Path) -> None:
    seen = set()
    for number in range(20):
        one, other = tmp_path / f"a{number}", tmp_path / f"b{number}"
        one.write_bytes(b"")
        assert generation(one) == 0, "one name needs none"
        other.hardlink_to(one)
        assert generation(one) == generation(other) != 0
        seen.add(generation(one))
        one.unlink()
        other.unlink()
    assert len(seen) == 20


def test_links_and_pipes_have_generations_and_directories_have_none(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        os.link(tmp_path / name, tmp_path / f"{name} again", follow_symlinks=False)

    assert generation(tmp_path / "link") == generation(tmp_path / "link again") != 0
    assert generation(tmp_path / "pipe") == generation(tmp_path / "pipe again") != 0
    assert generation(tmp_path) == 0
