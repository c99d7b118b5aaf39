"""Extended attributes of anything, and none where there are none."""

import os
from pathlib import Path

import pytest

from agent import attributes as module
from agent.attributes import attributes_of, lacking
from agent.errors import SourceError
from repository.entries import ATTRIBUTES_BYTES_MAX

# One entry for the owner, a named user (uid 1000) with r-x, the group, a mask and the others.
ACL = bytes.fromhex(
    "02000000 01000700ffffffff 02000500e8030000 04000500ffffffff 10000700ffffffff 20000000ffffffff"
)


def of(path: Path, flags: int = os.O_RDONLY) -> object:
    descriptor = os.open(path, flags)
    try:
        had = attributes_of(descriptor, opened=not flags & os.O_PATH)
        assert not had.refused
        return had.attributes
    finally:
        os.close(descriptor)


def test_a_file_without_attributes_has_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert of(tmp_path / "file") is None


def test_all_kinds_of_names_come_in_order(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    wanted = [
        (b"security.capability", capability),
        (b"system.posix_acl_access", ACL),
        (b"trusted.one", b"\x00\xff"),
        (b"user.a", b""),
        (b"user.b\xff", b"x" * 2000),
    ]
    for name, value in reversed(wanted):
        os.setxattr(path, name, value)

    assert of(path) == wanted


def test_links_fifos_and_directories_have_their_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.setxattr(tmp_path / "file", "trusted.whose", b"the file's")
    (tmp_path / "link").symlink_to("file")
    os.setxattr(tmp_path / "link", "trusted.whose", b"the link's", follow_symlinks=False)
    os.mkfifo(tmp_path / "fifo")
    os.setxattr(tmp_path / "fifo", "trusted.whose", b"the fifo's")
    (tmp_path / "directory").mkdir()
    os.setxattr(tmp_path / "directory", "system.posix_acl_default", ACL)
    held = os.O_PATH | os.O_NOFOLLOW

    assert of(tmp_path / "link", held) == [(b"trusted.whose", b"the link's")]
    assert of(tmp_path / "fifo", held) == [(b"trusted.whose", b"the fifo's")]
    assert of(tmp_path / "directory", held) == [(b"system.posix_acl_default", ACL)]


def test_a_filesystem_without_attributes_has_none() -> None:
    assert of(Path("/proc/self/status")) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become nobody")
def test_what_may_not_be_read_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 0, 4321)  # root's group is ours, though we are nobody
    os.setxattr(path, "user.one", b"1")
    os.setxattr(path, "system.posix_acl_access", ACL)
    descriptor = os.open(path, os.O_PATH)
    try:
        os.seteuid(65534)
        had = attributes_of(descriptor, opened=False)
    finally:
        os.seteuid(0)
        os.close(descriptor)

    assert had.attributes == [(b"system.posix_acl_access", ACL)]
    assert had.refused == [b"user.one"]
    assert "not saved: user.one" in str(lacking(had.refused))
    assert lacking([]) is None
    assert "c, d, e, ..." in str(lacking([b"a", b"b", b"c", b"d", b"e", b"f"]))


def test_more_than_an_entry_holds_is_an_error_for_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "ATTRIBUTES_BYTES_MAX", 10)
    os.setxattr(tmp_path / "file", "user.a", b"12345")

    with pytest.raises(SourceError, match="longer than 10 bytes"):
        of(tmp_path / "file")

    assert ATTRIBUTES_BYTES_MAX > 64 * 1024, "one attribute of the largest size always fits"
