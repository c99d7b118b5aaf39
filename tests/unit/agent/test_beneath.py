import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import beneath
from agent.beneath import Tree, open_beneath, open_directory, open_regular
from agent.errors import VolumeError

LINK = "Not a directory|Too many levels of symbolic links"


@pytest.fixture(params=["openat2", "stepwise"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with the system call and with what stands in for it."""
    if request.param == "stepwise":
        monkeypatch.setattr(beneath, "has_openat2", lambda: False)
    elif not beneath.has_openat2():
        pytest.skip("this kernel has no openat2")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    inside = tmp_path / "inside"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "b" / "file").write_bytes(b"mine")
    (tmp_path / "secret").write_bytes(b"secret")
    descriptor = os.open(inside, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def content(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def test_a_plain_path_is_opened(root: int) -> None:
    assert content(open_beneath(root, b"a/b/file", os.O_RDONLY)) == b"mine"


@pytest.mark.parametrize(
    "path", [b"", b"/etc/passwd", b"../secret", b"a/../../secret", b".", b"a/"]
)
def test_a_path_that_is_not_plain_is_refused(root: int, path: bytes) -> None:
    with pytest.raises(OSError, match="not a plain relative path"):
        open_beneath(root, path, os.O_RDONLY)


@pytest.mark.parametrize("target", ["../secret", "/etc", "a/b", "/proc/self/root"])
@pytest.mark.parametrize("path", [b"link", b"link/file", b"a/up", b"a/up/file"])
def test_no_link_is_followed_wherever_it_stands(root: int, path: bytes, target: str) -> None:
    os.symlink(target, "link", dir_fd=root)
    os.symlink(target, "a/up", dir_fd=root)

    with pytest.raises(OSError, match=LINK):
        open_beneath(root, path, os.O_RDONLY)


def test_magic_links_are_not_followed() -> None:
    proc = os.open("/proc/self", os.O_RDONLY)
    with pytest.raises(OSError, match=LINK):
        open_beneath(proc, b"cwd/anything", os.O_RDONLY)
    os.close(proc)


def test_a_mount_point_is_told_apart_where_wanted() -> None:
    top = os.open("/", os.O_RDONLY)
    with pytest.raises(OSError, match="cross-device"):
        open_directory(top, b"proc", same_filesystem=True)
    os.close(open_directory(top, b"proc"))
    os.close(top)


def test_a_mount_of_the_same_filesystem_is_told_apart_too(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    done = subprocess.run(["mount", "--bind", tmp_path, tmp_path / "place"], check=False)
    if done.returncode:
        pytest.skip("cannot mount")
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="cross-device"):
            open_directory(root, b"place", same_filesystem=True)
    finally:
        os.close(root)
        subprocess.run(["umount", "--lazy", tmp_path / "place"], check=True)


def test_a_path_longer_than_the_kernel_takes_is_opened(tmp_path: Path) -> None:
    name = "n" * 200
    descriptor = top = os.open(tmp_path, os.O_RDONLY)
    for _ in range(50):
        os.mkdir(name, dir_fd=descriptor)
        lower = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        if descriptor != top:
            os.close(descriptor)
        descriptor = lower
    os.mkdir("end", dir_fd=descriptor)
    os.close(descriptor)

    opened = open_directory(top, b"/".join([name.encode()] * 50 + [b"end"]))

    assert os.listdir(opened) == []
    os.close(opened)
    os.close(top)


def test_a_reader_never_leaves_while_directories_and_links_are_exchanged(
    root: int, tmp_path: Path
) -> None:
    """The naive reader is the control: where it is not fooled, the test proves nothing."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"outside")
    os.symlink(elsewhere, "a/other", dir_fd=root)
    done = threading.Event()
    a = tmp_path / "inside" / "a"

    def exchange() -> None:
        while not done.is_set():
            os.rename(a / "b", a / "spare")
            os.rename(a / "other", a / "b")
            os.rename(a / "b", a / "other")
            os.rename(a / "spare", a / "b")

    seen, naive = set(), set()
    thread = threading.Thread(target=exchange)
    thread.start()
    for _ in range(100_000):
        try:
            seen.add(content(open_beneath(root, b"a/b/file", os.O_RDONLY)))
        except OSError as error:
            assert error.errno in {errno.ELOOP, errno.ENOTDIR, errno.ENOENT}  # noqa: PT017
        try:
            naive.add((a / "b" / "file").read_bytes())
        except OSError as error:
            assert error.errno == errno.ENOENT  # noqa: PT017
        if b"outside" in naive and b"mine" in seen and len(naive) > 1:
            break
    done.set()
    thread.join()

    assert seen == {b"mine"}
    assert b"outside" in naive


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "device"])
def test_nothing_but_a_regular_file_is_opened_for_reading(root: int, kind: str) -> None:
    match kind:
        case "fifo":
            os.mkfifo("odd", dir_fd=root)
        case "directory":
            os.mkdir("odd", dir_fd=root)
        case "link":
            os.symlink("a/b/file", "odd", dir_fd=root)
        case _:
            os.symlink("/dev/null", "odd", dir_fd=root)

    with pytest.raises(OSError, match="not a regular file"):
        open_regular(root, b"odd")


def test_a_tree_lends_directories_and_keeps_few_of_them_open(tmp_path: Path) -> None:
    names = [b"%03d" % n for n in range(300)]
    for name in names:
        (tmp_path / name.decode()).mkdir()
        (tmp_path / name.decode() / "file").write_bytes(name)
    before = len(os.listdir("/proc/self/fd"))

    with Tree.of_volume(os.fsencode(tmp_path)) as tree:
        for name in names:
            descriptor, found = tree.open_regular(name + b"\0file")
            assert content(descriptor) == name
            assert found.st_size == 3
        assert len(os.listdir("/proc/self/fd")) < before + 70

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lent_directory_stays_open_however_many_others_are_used(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / str(number)).mkdir()

    with Tree.of_volume(os.fsencode(tmp_path)) as tree, tree.directory(b"0") as lent:
        for number in range(1, 100):
            with tree.directory(str(number).encode()):
                pass
        assert os.listdir(lent) == []


def test_a_tree_reads_links_and_refuses_to_walk_through_them(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")

    with Tree.of_volume(os.fsencode(tmp_path)) as tree:
        with tree.held(b"link") as link:
            assert os.readlink(b"", dir_fd=link) == b"/etc"
        with pytest.raises(OSError, match=LINK):
            tree.open_regular(b"link\0passwd")


def test_the_path_to_a_volume_may_hold_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    with Tree.of_volume(os.fsencode(tmp_path / "link")) as tree:
        assert tree.stat_root().st_ino == (tmp_path / "real").stat().st_ino


def test_an_absent_volume_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(VolumeError) as caught:
        Tree.of_volume(os.fsencode(tmp_path / "absent"))

    assert "not there" in caught.value.message
    assert caught.value.hint


def test_a_discovered_path_is_opened_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("content")
    (tmp_path / "link").symlink_to("real")

    for name in ("link", "link/file"):
        with pytest.raises(VolumeError):
            Tree.of_volume(os.fsencode(tmp_path / name), through_links=False)
    for name in ("real", "real/file"):
        with Tree.of_volume(os.fsencode(tmp_path / name), through_links=False) as tree:
            assert tree.stat_root().st_ino == (tmp_path / name).stat().st_ino
