"""What becomes of a name is decided from what is wanted and what stands there, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from agent.replacing import Standing, Way, attribute_edits, decide, has_metadata, is_one_inode
from repository.entries import Entry, EntryType

D, F, L, P, S = (
    EntryType.DIRECTORY,
    EntryType.FILE,
    EntryType.SYMLINK,
    EntryType.FIFO,
    EntryType.SOCKET,
)


def entry(kind: EntryType, **more: object) -> Entry:
    fields: dict[str, object] = {
        "type": kind,
        "mode": 0o640,
        "uid": 1,
        "gid": 2,
        "mtime_ns": 3,
        "size": 0,
        "inode": 9,
        "ctime_ns": 8,
        "links": 1,
        "flags": 0,
        "device": 0,
        "target": None,
        "xattrs": None,
        "long_xattrs": None,
        "content": None,
    }
    return Entry(**fields | more)  # type: ignore[arg-type]


def standing(kind: EntryType, **more: object) -> Standing:
    fields: dict[str, object] = {
        "type": kind,
        "mode": 0o640,
        "uid": 1,
        "gid": 2,
        "mtime_ns": 3,
        "size": 0,
        "identity": (1, 5),
        "links": 1,
        "device": 0,
        "target": None,
        "attributes": None,
    }
    return Standing(**fields | more)  # type: ignore[arg-type]


def test_nothing_there_is_made() -> None:
    assert decide(entry(F), None) is Way.CREATE


def test_the_same_kind_is_kept_and_another_replaced_but_for_directories() -> None:
    ways = {(a, b): decide(entry(a), standing(b)) for a in (D, F, P) for b in (D, F, P, S)}

    assert {pair for pair, way in ways.items() if way is Way.KEEP} == {(D, D), (F, F), (P, P)}
    assert {pair for pair, way in ways.items() if way is Way.REPLACE} == {
        *((F, P), (F, S), (P, F), (P, S)),
    }
    assert all(D in pair for pair, way in ways.items() if way is Way.CLEAR)


def test_a_link_is_kept_only_if_it_points_where_it_should() -> None:
    assert decide(entry(L, target=b"a"), standing(L, target=b"a", mode=0o777)) is Way.KEEP
    assert decide(entry(L, target=b"a"), standing(L, target=b"b")) is Way.REPLACE


def test_metadata_is_owner_mode_time_and_attributes() -> None:
    wanted = entry(F, xattrs=[(b"user.a", b"1")])
    same = standing(F, attributes=[(b"user.a", b"1")])

    assert has_metadata(same, wanted)
    assert not has_metadata(same._replace(mode=1), wanted)
    assert not has_metadata(same._replace(uid=7), wanted)
    assert not has_metadata(same._replace(gid=7), wanted)
    assert not has_metadata(same._replace(mtime_ns=7), wanted)
    assert not has_metadata(same._replace(attributes=None), wanted)
    assert has_metadata(same._replace(mtime_ns=7), wanted, times=False)


def test_all_names_of_an_inode_must_be_restored_for_it_to_be_written_in_place() -> None:
    first = standing(F, links=3)

    assert is_one_inode(first, [first, first])
    assert not is_one_inode(first, [first, None])
    assert not is_one_inode(first, [first, standing(F, identity=(1, 6))])


ATTRIBUTES = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b", b"security.selinux"]), st.binary(max_size=1)
).map(lambda found: sorted(found.items()))


@given(there=ATTRIBUTES, wanted=ATTRIBUTES)
def test_attributes_become_what_is_wanted_but_for_the_systems_labels(
    there: list[tuple[bytes, bytes]], wanted: list[tuple[bytes, bytes]]
) -> None:
    removed, edits = attribute_edits(there, wanted)
    after = {name: value for name, value in there if name not in removed} | dict(edits)

    labels = {name: value for name, value in there if name == b"security.selinux"}
    assert after == labels | dict(wanted)
    assert not any(attribute_edits(sorted(after.items()), wanted))
