"""A rescan of what was touched finds what a sweep of everything would find."""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec import structs

from agent import beneath, sweep
from agent import rescan as module
from agent.beneath import Tree
from agent.last import LastManifest, LostStateError
from agent.rescan import rescan
from agent.sweep import Batch
from agent.tracking.dirty import Dirty
from repository.editing import Editor
from repository.entries import KEY_BYTES_MAX, Entry, EntryType, Pointer, encode_entry
from repository.ids import ChunkId, PackNonce
from repository.tree import Boundaries
from tests.unit.agent import trees
from tests.unit.agent.test_sweep import failing_open
from tests.unit.agent.touching import Toucher

NONSENSE = {
    b"never",
    b"never\0at\0all",
    b"file\0beneath",
    b"..",
    b"..\0..\0etc",
    b".",
    b"a\0..\0b",
    b"a/b",
    b"/",
    b"\0",
    b"\0\0",
    b"a\0",
    b"\0a",
    b"l" * 300,
    b"a\0" + b"l" * 300,
    b"\0".join([b"x"] * 3000),
    b"\n",
    b"",
}


class Nodes:
    """As much of a state as a manifest's reader asks for, in memory; and what was asked."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}
        self.asked: list[bytes] = []

    def put(self, encoded: bytes) -> Pointer:
        chunk_id = ChunkId(len(self.nodes).to_bytes(32, "big"))
        self.nodes[chunk_id] = encoded
        return Pointer(chunk_id, PackNonce(b"n" * 16), 0, 0, len(encoded))

    def load_nodes(self, volume_id: bytes, node_ids: Iterable[bytes]) -> dict[bytes, bytes]:
        self.asked += node_ids
        return {each: self.nodes[each] for each in node_ids if each in self.nodes}


def last_of(manifest: Iterable[tuple[bytes, Entry]], nodes: Nodes | None = None) -> LastManifest:
    nodes = Nodes() if nodes is None else nodes
    edits = [(key, encode_entry(entry)) for key, entry in manifest]
    editor = Editor(Boundaries(b"b" * 32), lambda pointer: nodes.nodes[pointer.id], nodes.put)
    root = editor.edit(None, edits).root
    return LastManifest(nodes, b"V" * 16, root)  # type: ignore[arg-type]


def totals_of(manifest: Iterable[tuple[bytes, Entry]]) -> tuple[int, int]:
    files = [entry for _, entry in manifest if entry.type is not EntryType.DIRECTORY]
    return len(files), sum(entry.size for entry in files if entry.type is EntryType.FILE)


class Looked(Batch):
    """All batches of a rescan as one."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        super().__init__()
        self.keys: list[bytes] = []
        for batch in batches:
            before = self.keys
            for name in Batch.__slots__:
                setattr(self, name, getattr(self, name) + getattr(batch, name))
            keys = before + sorted(self.keys_of(batch))
            assert all(left < right for left, right in pairwise(keys)), "edits come in order"
            for each in (batch.found, batch.removed):
                assert [item.key for item in each] == sorted(item.key for item in each)
            self.keys = keys

    @staticmethod
    def keys_of(batch: Batch) -> list[bytes]:
        return [*(item.key for item in batch.found), *(item.key for item in batch.removed)]

    def applied_to(self, manifest: Iterable[tuple[bytes, Entry]]) -> list[tuple[bytes, Entry]]:
        entries = dict(manifest)
        for removed in self.removed:
            assert entries.pop(removed.key) == removed.old
        for found in self.found:
            assert entries.get(found.key) == found.old
            entries[found.key] = trees.entry_of(found.stat)
        return sorted(entries.items())

    def counted(self) -> tuple[int, int]:
        """Files and bytes of the new manifest, as a backup counts them."""
        files = self.unchanged_files + self.kept_files
        size = self.unchanged_bytes + self.kept_bytes
        new = totals_of((found.key, trees.entry_of(found.stat)) for found in self.found)
        return files + new[0], size + new[1]


def looked(
    root: Path, manifest: list[tuple[bytes, Entry]], dirty: Dirty, **options: object
) -> Looked:
    with Tree.of_volume(os.fsencode(root)) as tree:
        last, totals = last_of(manifest), totals_of(manifest)
        return Looked(rescan(tree, dirty, last, totals, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(30))
def test_what_events_tell_suffices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(module, "_HELD_MAX", 1 + seed % 3)
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    volume.mkdir()
    outside.mkdir()
    chance = random.Random(seed)
    toucher = Toucher(volume, outside, chance)
    toucher.touch(25)
    toucher.take()
    manifest = trees.manifest(volume)
    for _ in range(4):
        toucher.touch(chance.choice([0, 1, 2, 5, 12]))
        dirty = toucher.take()
        if seed % 2:  # more than that is harmless
            keys = [key for key, _ in manifest] + toucher.keys()
            dirty.names |= NONSENSE | set(chance.sample(keys, len(keys) // 4))
            dirty.subtrees |= set(chance.sample(keys, len(keys) // 8)) | NONSENSE - {b""}

        total = looked(volume, manifest, dirty)

        wanted = trees.manifest(volume)
        assert total.applied_to(manifest) == wanted
        assert total.counted() == totals_of(wanted)
        assert (total.errors, total.warnings) == ([], [])
        manifest = wanted


# One rule at a time. `looked` gives the keys that differ; all else was not looked at.

TREE: trees.Spec = {
    b"d": {b"x": b"12", b"y": b"345", b"e": {b"z": b"6"}},
    b"d-other": b"",
    b"file": b"7890",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    volume = tmp_path / "volume"
    volume.mkdir()
    trees.make(volume, TREE)
    return volume


def test_nothing_but_the_root_is_looked_at_where_nothing_is_dirty(root: Path) -> None:
    manifest = trees.manifest(root)
    (root / "file").write_bytes(b"changed")

    total = looked(root, manifest, Dirty())

    assert total.keys == []
    assert (total.unchanged_directories, total.unchanged_files, total.unchanged_bytes) == (1, 5, 10)


def test_only_dirty_names_and_what_leads_there_are_looked_at(root: Path) -> None:
    manifest = trees.manifest(root)
    for name in ("d/x", "d/y", "d/e/z", "file"):
        (root / name).write_bytes(b"changed")
    (root / "d" / "e" / "new").write_bytes(b"")
    (root / "d" / "e").chmod(0o711)

    total = looked(root, manifest, Dirty(names={b"d\0y", b"d\0e\0never"}))

    assert total.keys == [b"d\0e", b"d\0y"]
    assert total.counted() == (5, 10 - 3 + 7)


def test_a_name_that_is_gone_goes_with_all_beneath_it(root: Path) -> None:
    manifest = trees.manifest(root)
    shutil.rmtree(root / "d")

    total = looked(root, manifest, Dirty(names={b"d", b"d\0e\0z"}))

    assert [item.key for item in total.removed] == [b"d", b"d\0e", b"d\0e\0z", b"d\0x", b"d\0y"]
    assert total.applied_to(manifest) == trees.manifest(root)


def test_a_name_beneath_a_directory_that_is_gone_tells_of_that(root: Path) -> None:
    manifest = trees.manifest(root)
    shutil.rmtree(root / "d")

    total = looked(root, manifest, Dirty(names={b"d\0e\0z"}))

    assert total.applied_to(manifest) == trees.manifest(root)


def test_a_directory_of_which_nothing_was_told_is_swept_for_the_sake_of_what_is_in_it(
    root: Path,
) -> None:
    manifest = trees.manifest(root)
    trees.make(root, {b"new": {b"a": {b"b": b"", b"c": b""}, b"d": b""}})

    total = looked(root, manifest, Dirty(names={b"new\0a\0b"}))

    assert total.applied_to(manifest) == trees.manifest(root)


@pytest.mark.parametrize("key", [b"d", b"d\0e", b"d\0e\0z"])
def test_another_directory_of_the_same_name_is_swept(root: Path, key: bytes) -> None:
    manifest = trees.manifest(root)
    (root / "d").rename(root.parent / "elsewhere")
    trees.make(root, {b"d": {b"y": b"now", b"e": {b"w": b""}}})

    total = looked(root, manifest, Dirty(names={key}))

    assert total.applied_to(manifest) == trees.manifest(root)
    assert not total.unchanged_directories


def test_a_directory_that_came_as_it_is_is_swept_though_its_inode_is_known(root: Path) -> None:
    manifest = trees.manifest(root)
    (root / "d" / "e" / "z").write_bytes(b"changed")

    total = looked(root, manifest, Dirty(subtrees={b"d"}))

    assert total.keys == [b"d\0e\0z"]


@pytest.mark.parametrize("kind", ["file", "link", "pipe"])
def test_what_was_a_directory_has_nothing_beneath_it_any_more(root: Path, kind: str) -> None:
    manifest = trees.manifest(root)
    shutil.rmtree(root / "d")
    match kind:
        case "file":
            (root / "d").write_bytes(b"now a file")
        case "link":
            (root / "d").symlink_to(".")
        case _:
            os.mkfifo(root / "d")

    total = looked(root, manifest, Dirty(names={b"d\0x"}, subtrees={b"d\0e"}))

    assert total.applied_to(manifest) == trees.manifest(root)


def test_a_root_that_is_another_directory_is_swept(root: Path) -> None:
    manifest = trees.manifest(root)
    root.rename(root.with_name("before"))
    root.mkdir()
    trees.make(root, {b"d": {b"x": b""}})

    total = looked(root, manifest, Dirty())

    assert total.applied_to(manifest) == trees.manifest(root)


def test_no_name_leads_through_a_link_or_out_of_the_volume(root: Path) -> None:
    (root.parent / "secret").mkdir()
    (root.parent / "secret" / "x").write_bytes(b"secret")
    manifest = trees.manifest(root)
    shutil.rmtree(root / "d")
    (root / "d").symlink_to(root.parent / "secret")

    total = looked(
        root, manifest, Dirty(names={b"d\0x", b"..\0secret\0x"}, subtrees={b"..", b"..\0secret"})
    )

    assert total.applied_to(manifest) == trees.manifest(root)


@pytest.mark.parametrize("kind", ["excluded", "mounted"])
def test_nothing_in_a_directory_that_is_not_entered_is_looked_at(root: Path, kind: str) -> None:
    own = os.stat(root / "d")
    excludes = frozenset({(own.st_dev, own.st_ino)}) if kind == "excluded" else frozenset()
    manifest = [(key, entry) for key, entry in trees.manifest(root) if key[:2] != b"d\0"]
    dirty = Dirty(names={b"d\0x", b"d\0e\0z"}, subtrees={b"d\0e"})
    with contextlib.ExitStack() as stack:
        if kind == "mounted":
            subprocess.run(["mount", "--bind", root / "d", root / "d"], check=True)
            stack.callback(subprocess.check_call, ["umount", root / "d"])

        total = looked(root, manifest, dirty, excludes=excludes)

    assert total.keys == []
    assert [problem.key for problem in total.warnings] == [b"d"] * (kind == "mounted")


def test_what_an_earlier_manifest_has_beneath_an_excluded_directory_goes(root: Path) -> None:
    own = os.stat(root / "d")

    total = looked(
        root,
        trees.manifest(root),
        Dirty(names={b"d\0x"}),
        excludes=frozenset({(own.st_dev, own.st_ino)}),
    )

    assert total.keys == [b"d\0e", b"d\0e\0z", b"d\0x", b"d\0y"]


def test_a_directory_that_cannot_be_opened_keeps_what_it_had(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = trees.manifest(root)
    (root / "file").write_bytes(b"changed")

    with failing_open(monkeypatch, b"d", PermissionError(13, "Permission denied")):
        total = looked(root, manifest, Dirty(names={b"d\0x", b"file"}))

    assert [problem.key for problem in total.errors] == [b"d"]
    assert total.keys == [b"file"]
    assert (total.kept_files, total.kept_bytes, total.kept_directories) == (3, 6, 1)
    assert total.counted() == (5, 13)


@pytest.mark.parametrize("told", ["unlinked", "written", "linked", "its inode", "beneath", "away"])
def test_all_names_of_an_inode_are_looked_at_where_one_is(root: Path, told: str) -> None:
    os.link(root / "d" / "x", root / "a")
    os.link(root / "d" / "x", root / "file-2")
    manifest = trees.manifest(root)
    dirty = Dirty(names={b"d\0x"})
    match told:
        case "unlinked":
            (root / "d" / "x").unlink()
        case "written":
            (root / "d" / "x").write_bytes(b"changed")
        case "linked":
            os.link(root / "a", root / "d" / "e" / "new")
            dirty = Dirty(names={b"d\0e\0new"})
        case "its inode":
            (root / "a").chmod(0o600)
            dirty = Dirty(inodes={os.stat(root / "a").st_ino})
        case "beneath":
            (root / "a").chmod(0o600)
            dirty = Dirty(subtrees={b"d"})
        case _:
            shutil.rmtree(root / "d")
            dirty = Dirty(names={b"d"})

    total = looked(root, manifest, dirty)

    assert total.applied_to(manifest) == trees.manifest(root)
    assert {b"a", b"file-2"} <= {*total.keys}
    assert total.counted() == totals_of(trees.manifest(root))


def test_a_name_that_was_read_before_its_inode_changed_is_found_by_another(root: Path) -> None:
    """The other one was read after that, so that it has not changed since."""
    os.link(root / "d" / "x", root / "a")
    manifest = dict(trees.manifest(root))
    manifest[b"a"] = structs.replace(manifest[b"a"], ctime_ns=1)

    total = looked(root, [*manifest.items()], Dirty(names={b"d\0x"}))

    assert total.keys == [b"a"]


def test_too_many_names_of_inodes_mean_looking_at_everything(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NAMES_MAX", 1)
    os.link(root / "d" / "x", root / "a")
    os.link(root / "d" / "x", root / "b")
    manifest = trees.manifest(root)
    (root / "file").write_bytes(b"changed")

    total = looked(root, manifest, Dirty(names={b"a"}))

    assert total.applied_to(manifest) == trees.manifest(root)
    assert total.counted() == totals_of(trees.manifest(root))


def test_what_lies_beneath_a_renamed_directory_is_known_again(root: Path) -> None:
    manifest = trees.manifest(root)
    (root / "d").rename(root / "a")
    (root / "a" / "y").write_bytes(b"new")

    total = looked(root, manifest, Dirty(names={b"d"}, subtrees={b"a"}))

    before = dict(manifest)
    assert {found.key: found.moved for found in total.found if found.moved is not None} == {
        b"a\0x": before[b"d\0x"],
        b"a\0e\0z": before[b"d\0e\0z"],
    }
    assert total.applied_to(manifest) == trees.manifest(root)


def test_directories_that_were_exchanged_are_known_again(root: Path) -> None:
    trees.make(root, {b"a": {b"x": b"another"}})
    manifest = trees.manifest(root)
    (root / "a").rename(root / "b")
    (root / "d").rename(root / "a")
    (root / "b").rename(root / "d")

    total = looked(root, manifest, Dirty(subtrees={b"a", b"d"}, names={b"b"}))

    before = dict(manifest)
    moved = {found.key: found.moved for found in total.found if found.moved is not None}
    assert moved[b"a\0x"] == before[b"d\0x"]
    assert moved[b"d\0x"] == before[b"a\0x"]
    assert total.applied_to(manifest) == trees.manifest(root)


def test_of_many_that_are_gone_not_all_are_remembered(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GONE_MAX", 1)
    manifest = trees.manifest(root)
    (root / "d").rename(root / "a")

    total = looked(root, manifest, Dirty(names={b"d"}, subtrees={b"a"}))

    assert sum(found.moved is not None for found in total.found) == 1


def test_a_volume_that_is_a_file_is_always_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    manifest = [(b"", trees.entry_of(os.stat(file)))]

    same = looked(file, manifest, Dirty())
    file.write_bytes(b"changed")
    changed = looked(file, manifest, Dirty(names={b"x"}))

    assert (same.keys, changed.keys) == ([], [b""])


def test_a_key_longer_than_any_changes_nothing(root: Path) -> None:
    keys = {b"\0".join([b"x"] * (KEY_BYTES_MAX // 2 + 5)), b"l" * (KEY_BYTES_MAX + 1)}

    total = looked(root, trees.manifest(root), Dirty(names=keys, subtrees=keys))

    assert (total.keys, total.errors) == ([], [])


def test_a_path_too_long_for_a_manifest_is_an_error_though_only_its_name_is_dirty(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "KEY_BYTES_MAX", 6)
    trees.make(root, {b"too-long": {}})

    total = looked(root, trees.manifest(root)[:-1], Dirty(names={b"too-long", b"longer-still"}))

    assert [problem.key for problem in total.errors] == [b"too-long"]


def test_a_node_that_the_state_lacks_is_missed(root: Path) -> None:
    nodes = Nodes()
    last = last_of(trees.manifest(root), nodes)
    nodes.nodes.clear()

    with (
        Tree.of_volume(os.fsencode(root)) as tree,
        pytest.raises(LostStateError),
    ):
        list(rescan(tree, Dirty(), last, (0, 0)))


def test_a_rescan_ends_early_when_canceled(root: Path) -> None:
    with Tree.of_volume(os.fsencode(root)) as tree:
        last = last_of(trees.manifest(root))
        batches = list(rescan(tree, Dirty(subtrees={b"d"}), last, (0, 0), is_canceled=lambda: True))

    assert not any(batch.found or batch.removed for batch in batches)


def test_deep_directories_are_left_and_come_back_to(root: Path) -> None:
    keys, path = [], root
    for _ in range(70):
        path = path / "d-deep"
        path.mkdir()
        (path / "z").write_bytes(b"")
        keys.append(os.fsencode(path / "z")[len(os.fsencode(root)) + 1 :].replace(b"/", b"\0"))
    manifest = trees.manifest(root)
    for key in keys:
        (root / os.fsdecode(key.replace(b"\0", b"/"))).write_bytes(b"changed")

    total = looked(root, manifest, Dirty(names={*keys}))

    assert total.keys == sorted(keys)


def test_a_directory_that_is_moved_away_meanwhile_is_an_error_and_keeps_what_it_had(
    root: Path,
) -> None:
    trees.make(root, {b"a": {b"b%02d" % number: {b"x": b""} for number in range(3)}})
    path = root / "a" / "b01"
    for _ in range(60):
        path = path / "c"
        path.mkdir()
    manifest = trees.manifest(root)
    deepest = os.fsencode(path)[len(os.fsencode(root)) + 1 :].replace(b"/", b"\0")
    dirty = Dirty(names={deepest, b"a\0b02\0x"})
    with Tree.of_volume(os.fsencode(root)) as tree:
        batches = rescan(tree, dirty, last_of(manifest), totals_of(manifest))

        def open_beneath(*arguments: object, **options: object) -> int:
            if (root / "a").exists():
                (root / "a").rename(root / "gone")
            return beneath.open_beneath(*arguments, **options)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep, "open_beneath", open_beneath)
            total = Looked(batches)

    assert b"a" in [problem.key for problem in total.errors]
    assert total.keys == []


def test_names_that_have_not_changed_come_in_batches(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_SEEN_PER_BATCH", 2)
    manifest = trees.manifest(root)

    with Tree.of_volume(os.fsencode(root)) as tree:
        dirty = Dirty(names={key for key, _ in manifest})
        batches = list(rescan(tree, dirty, last_of(manifest), totals_of(manifest)))

    assert [batch.unchanged_files for batch in batches if batch.unchanged_files] == [2, 2, 1]


def test_few_nodes_of_a_large_manifest_are_read(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "00500").write_bytes(b"")
    nodes = Nodes()
    some = trees.manifest(tmp_path)
    entry = some.pop()[1]
    last = last_of(some + [(b"d\0%05d" % number, entry) for number in range(20_000)], nodes)
    assert len(nodes.nodes) > 250

    with Tree.of_volume(os.fsencode(tmp_path)) as tree:
        total = Looked(rescan(tree, Dirty(names={b"d\0%05d" % 500}), last, (20_000, 0)))

    assert total.unchanged_files == 20_000
    assert len(nodes.asked) < 10
