import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import beneath, listing
from agent import sweep as module
from agent.beneath import Tree
from agent.errors import VolumeError
from agent.sweep import Batch, Problem, sweep
from repository.entries import Entry, Flag, encode_entry
from repository.tree import encode_node
from repository.walking import Leaf
from tests.unit.agent import trees

# Names whose order betrays a walk that compares paths instead of components.
NAMES = st.sampled_from(
    [b"a", b"a-b", b"a b", b"a.", b"A", b"b", b"\x01", b"\xff\xfe", b"\n", b"aa"]
)
SPECS = st.recursive(
    st.dictionaries(NAMES, st.binary(max_size=3), max_size=4),
    lambda lower: st.dictionaries(NAMES, st.binary(max_size=3) | lower, max_size=4),
    max_leaves=12,
)


class Sum(Batch):
    """All batches of a sweep as one."""


def leaves(old: Iterable[tuple[bytes, Entry]]) -> Iterator[Leaf]:
    """The old manifest in leaves of three entries."""
    listed = [(key, encode_entry(entry)) for key, entry in old]
    for start in range(0, len(listed), 3):
        yield Leaf(encode_node(0, listed[start : start + 3]))


def swept(root: Path, old: Iterable[tuple[bytes, Entry]] = (), **options: object) -> Sum:
    total = Sum()
    with Tree.of_volume(os.fsencode(root)) as tree:
        for batch in sweep(tree, leaves(old), **options):  # type: ignore[arg-type]
            for name in Batch.__slots__:
                setattr(total, name, getattr(total, name) + getattr(batch, name))
    return total


def keys(found: Iterable[module.Found | module.Removed | Problem]) -> list[bytes]:
    return [item.key for item in found]


@settings(max_examples=80, deadline=None)
@given(before=SPECS, after=SPECS)
def test_a_sweep_finds_what_a_recursive_comparison_finds(
    before: trees.Spec, after: trees.Spec
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        trees.make(root, before)
        old = trees.manifest(root)
        trees.change(root, after)
        new = trees.manifest(root)

        total = swept(root, old)

        was, now = dict(old), dict(new)
        assert keys(total.found) == [key for key, entry in new if was.get(key) != entry]
        assert [item.old for item in total.found] == [was.get(key) for key in keys(total.found)]
        assert keys(total.removed) == [key for key, _ in old if key not in now]
        assert not total.errors
        unchanged = total.unchanged_files + total.unchanged_directories
        assert unchanged == sum(was.get(key) == entry for key, entry in new)


def test_the_order_of_the_walk_is_the_order_of_keys(tmp_path: Path) -> None:
    trees.make(tmp_path, {b"a": {b"x": b"", b"\xff": b""}, b"a-b": b"", b"a\x01": b"", b"a b": {}})

    found = keys(swept(tmp_path).found)

    assert found == sorted(found)
    assert found[:2] == [b"", b"a"]


@pytest.mark.parametrize(
    "field", ["inode", "size", "mtime_ns", "ctime_ns", "mode", "uid", "gid", "links", "flags"]
)
def test_a_difference_in_any_field_makes_a_name_changed(tmp_path: Path, field: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    old = dict(trees.manifest(tmp_path))
    values = {name: getattr(old[b"file"], name) for name in Entry.__struct_fields__}
    different = msgspec.structs.replace(old[b"file"], **{field: values[field] ^ 1})

    total = swept(tmp_path, [(b"", old[b""]), (b"file", different)])

    assert keys(total.found) == [b"file"]
    assert total.found[0].old == different


def test_a_stale_name_is_looked_at_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    old = dict(trees.manifest(tmp_path))
    old[b"file"] = msgspec.structs.replace(old[b"file"], flags=Flag.STALE)

    assert keys(swept(tmp_path, old.items()).found) == [b"file"]


def test_links_are_recorded_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    os.mkfifo(root / "pipe")

    assert keys(swept(root).found) == [b"", b"link", b"pipe"]


def test_an_excluded_directory_is_recorded_and_not_listed(tmp_path: Path) -> None:
    trees.make(tmp_path, {b"own": {b"repository": b""}, b"z": b""})
    own = os.stat(tmp_path / "own")

    total = swept(tmp_path, excludes=frozenset({(own.st_dev, own.st_ino)}))

    assert keys(total.found) == [b"", b"own", b"z"]


@contextlib.contextmanager
def failing_open(monkeypatch: pytest.MonkeyPatch, victim: bytes, error: OSError) -> Iterator[None]:
    def open_directory(directory: int, name: bytes, *, same_filesystem: bool = False) -> int:
        if name == victim:
            raise error
        return beneath.open_directory(directory, name, same_filesystem=same_filesystem)

    with monkeypatch.context() as patch:
        patch.setattr("agent.sweep.open_directory", open_directory)
        yield


def test_what_an_unreadable_directory_held_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.make(tmp_path, {b"a": {b"x": b"12", b"y": {b"z": b"3"}}, b"a-b": b"", b"b": b""})
    old = trees.manifest(tmp_path)

    with failing_open(monkeypatch, b"a", PermissionError(13, "Permission denied")):
        total = swept(tmp_path, old)

    assert keys(total.errors) == [b"a"]
    assert not total.removed
    assert (total.kept_files, total.kept_bytes, total.kept_directories) == (2, 3, 1)
    assert (total.unchanged_files, total.unchanged_directories) == (2, 2)


def test_a_directory_that_vanishes_before_it_is_opened_is_just_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.make(tmp_path, {b"a": {b"x": b"12"}, b"b": b""})
    old = trees.manifest(tmp_path)

    with failing_open(monkeypatch, b"a", FileNotFoundError(2, "No such file")):
        total = swept(tmp_path, old)

    assert keys(total.removed) == [b"a", b"a\0x"]
    assert not total.errors


def test_a_name_that_is_exchanged_for_ever_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.make(tmp_path, {b"a": {b"x": b"12"}, b"b": b""})
    old = trees.manifest(tmp_path)

    with failing_open(monkeypatch, b"a", NotADirectoryError(20, "Not a directory")):
        total = swept(tmp_path, old)

    assert keys(total.errors) == [b"a"]
    assert (total.kept_files, total.kept_directories) == (1, 1)


def test_another_filesystem_is_recorded_with_a_warning_and_not_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.make(tmp_path, {b"mount": {b"x": b"12"}, b"z": b""})

    with failing_open(monkeypatch, b"mount", OSError(18, "Invalid cross-device link")):
        total = swept(tmp_path)

    assert keys(total.found) == [b"", b"mount", b"z"]
    assert keys(total.warnings) == [b"mount"]


@pytest.fixture
def deep_path(tmp_path: Path) -> Iterator[Path]:
    """A directory that is removed here: pytest's own way recurses, and fails every later run."""
    yield tmp_path
    subprocess.run(["rm", "--recursive", "--force", tmp_path], check=True)


def test_a_thousand_levels_are_walked_with_few_descriptors(deep_path: Path) -> None:
    descriptor = os.open(deep_path, os.O_RDONLY)
    for level in range(1000):
        os.mkdir("deep-directory", dir_fd=descriptor)
        os.close(os.open("z", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        lower = os.open("deep-directory", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = lower
        assert level < 1000
    os.close(descriptor)
    most = 0

    with Tree.of_volume(os.fsencode(deep_path)) as tree:
        found = []
        for batch in sweep(tree, ()):
            most = max(most, len(os.listdir("/proc/self/fd")))
            found += keys(batch.found)

    assert len(found) == 2001
    assert found == sorted(found)
    assert most < 120


def test_a_directory_too_large_for_memory_is_sorted_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_NAMES_IN_MEMORY", 10)
    names = [b"%03d\n%d" % (n * 7919 % 100, n) for n in range(100)]
    trees.make(tmp_path, dict.fromkeys(names, b""))

    assert keys(swept(tmp_path, scratch=str(tmp_path)).found) == [b"", *sorted(names)]


def test_a_large_removal_comes_in_batches(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    entry = trees.manifest(tmp_path)[1][1]
    old = [(b"a%05d" % n, entry) for n in range(3000)] + [
        (b"z%05d" % n, entry) for n in range(3000)
    ]

    with Tree.of_volume(os.fsencode(tmp_path)) as tree:
        batches = list(sweep(tree, leaves(old)))

    assert sum(len(batch.removed) for batch in batches) == 6000
    assert max(len(batch.removed) + len(batch.found) for batch in batches) <= 512


def test_names_that_have_not_changed_come_in_batches_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEEN_PER_BATCH", 4)
    trees.make(tmp_path, {b"%02d" % n: b"12" for n in range(6)} | {b"a": {b"x": b"3", b"y": b""}})
    old = trees.manifest(tmp_path)

    with Tree.of_volume(os.fsencode(tmp_path)) as tree:
        batches = list(sweep(tree, leaves(old)))

    assert max(batch.unchanged_files for batch in batches) == 4
    assert sum(batch.unchanged_files for batch in batches) == 8
    assert sum(batch.unchanged_bytes for batch in batches) == 13
    assert sum(batch.unchanged_directories for batch in batches) == 2
    assert not any(batch.found or batch.removed for batch in batches)


def test_a_sweep_ends_early_when_canceled(tmp_path: Path) -> None:
    trees.make(tmp_path, {b"%04d" % n: b"" for n in range(600)})

    with Tree.of_volume(os.fsencode(tmp_path)) as tree:
        assert list(sweep(tree, (), is_canceled=lambda: True)) == []


def test_a_volume_may_be_a_single_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")

    total = swept(file)
    again = swept(file, [(b"", trees.entry_of(total.found[0].stat))])

    assert keys(total.found) == [b""]
    assert (again.unchanged_files, again.unchanged_bytes) == (1, 7)


def test_an_absent_volume_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="not there"):
        swept(tmp_path / "absent")


def test_a_volume_that_is_a_fifo_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(VolumeError, match="neither"):
        swept(tmp_path / "pipe")


def test_a_path_too_long_for_a_manifest_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.make(tmp_path, {b"short": b"", b"long" * 10: {b"within": b""}, b"z": b""})
    monkeypatch.setattr(module, "KEY_BYTES_MAX", 20)

    total = swept(tmp_path)

    assert keys(total.found) == [b"", b"short", b"z"]
    assert keys(total.errors) == [b"long" * 10]
