"""Where the last manifest has inodes that are asked for, learned from whoever comes past them."""

from pathlib import Path

from agent.whereabouts import Whereabouts
from repository.entries import EntryType
from tests.unit.agent import trees
from tests.unit.agent.test_rescan import Nodes, last_of

FILES = 300


def swept(root: Path, whereabouts: Whereabouts, *, to_the_end: bool = True) -> None:
    """Tell of everything beside the manifest of an empty volume, as the first backup does."""
    for _ in whereabouts.begin_anew(last_of([]).leaves()):
        pass
    for _, entry in trees.manifest(root):
        whereabouts.told(entry.inode, 1 if entry.type is EntryType.DIRECTORY else entry.links)
    if to_the_end:
        whereabouts.end_anew()


def volume_of(tmp_path: Path) -> Path:
    volume = tmp_path / "volume"
    trees.make(_made(volume), {b"%03d" % number: b"" for number in range(FILES)})
    return volume


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_after_a_sweep_what_no_volume_has_is_not_looked_for(tmp_path: Path) -> None:
    volume, whereabouts = volume_of(tmp_path), Whereabouts()
    swept(volume, whereabouts)
    nodes = Nodes()
    last = last_of(trees.manifest(volume), nodes)
    stranger = tmp_path / "stranger"
    stranger.touch()
    strangers = {stranger.stat().st_ino}

    assert list(whereabouts.keys_of(strangers, last)) == []

    assert nodes.asked == []


def test_after_a_sweep_what_it_came_past_is_found(tmp_path: Path) -> None:
    volume, whereabouts = volume_of(tmp_path), Whereabouts()
    swept(volume, whereabouts)
    last = last_of(trees.manifest(volume))
    inodes = {(volume / name).stat().st_ino: name for name in ("007", "299")}

    assert sorted(whereabouts.keys_of(inodes, last)) == [b"007", b"299"]


def test_without_a_sweep_all_is_found_by_looking_through_the_manifest(tmp_path: Path) -> None:
    volume = volume_of(tmp_path)
    inode = (volume / "123").stat().st_ino

    assert list(Whereabouts().keys_of({inode}, last_of(trees.manifest(volume)))) == [b"123"]


def test_a_sweep_that_did_not_end_teaches_nothing(tmp_path: Path) -> None:
    volume, whereabouts = volume_of(tmp_path), Whereabouts()
    swept(volume, whereabouts, to_the_end=False)
    inode = (volume / "123").stat().st_ino

    assert list(whereabouts.keys_of({inode}, last_of(trees.manifest(volume)))) == [b"123"]


def test_files_with_several_names_count_as_asked_for_where_that_is_wanted(tmp_path: Path) -> None:
    volume = volume_of(tmp_path)
    (volume / "other").hardlink_to(volume / "123")
    last = last_of(trees.manifest(volume))
    for linked, keys in (False, []), (True, [b"123", b"other"]):
        whereabouts = Whereabouts(linked=linked)
        swept(volume, whereabouts)

        assert sorted(whereabouts.keys_of([], last)) == keys


def test_the_manifest_that_a_sweep_lies_beside_is_learned_with_it(tmp_path: Path) -> None:
    """What could not be read is kept as it was, so it is in the next manifest, too."""
    volume, whereabouts = volume_of(tmp_path), Whereabouts()
    last = last_of(trees.manifest(volume))
    inode = (volume / "123").stat().st_ino
    assert [leaf.stats for leaf in whereabouts.begin_anew(last.leaves())]
    whereabouts.end_anew()

    assert list(whereabouts.keys_of({inode}, last)) == [b"123"]


def test_what_the_manifest_got_is_looked_for_anew(tmp_path: Path) -> None:
    """A name that was asked for before it was there, as a number that is given away again."""
    volume, whereabouts = volume_of(tmp_path), Whereabouts()
    swept(volume, whereabouts)
    new = volume / "new"
    before = last_of(trees.manifest(volume))
    new.touch()
    inode = new.stat().st_ino
    whereabouts.told(inode, 1)
    assert list(whereabouts.keys_of({inode}, before)) == []

    whereabouts.told(inode, 1)

    assert list(whereabouts.keys_of({inode}, last_of(trees.manifest(volume)))) == [b"new"]
