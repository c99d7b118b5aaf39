import asyncio
import contextlib
import os
from pathlib import Path

import apsw
import pytest

from agent.errors import StateError
from agent.state import Clone, FrameChange, FrameCount, Head, Missed, Rehashed, State
from repository.frames import Location
from repository.ids import PackNonce

VOLUME = b"v" * 16
OTHER = b"o" * 16
HEAD = Head(b"root", 7, b"pointer")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def node(state: State, volume_id: bytes, node_id: bytes) -> bytes | None:
    return state.load_nodes(volume_id, [node_id]).get(node_id)


def test_a_new_state_knows_nothing(path: Path) -> None:
    with State(path) as state:
        assert state.head(VOLUME) is None
        assert node(state, VOLUME, b"n" * 32) is None
        assert state.known([b"c" * 32]) == {}
        assert state.known([]) == {}


Changes = dict[bytes, tuple[int, bytes | None]]


async def commit(
    state: State,
    volume_id: bytes,
    head: Head,
    nodes: Changes,
    frames: list[FrameChange],
    *,
    replace: bool = False,
) -> None:
    """Commit with nodes given as (uses, data); those with data are staged first."""
    staged = [(id_, data) for id_, (_, data) in nodes.items() if data is not None]
    await asyncio.wrap_future(state.stage_nodes(volume_id, staged))
    uses = {id_: use for id_, (use, _) in nodes.items()}
    await state.commit(volume_id, head, uses, frames, replace=replace)


@pytest.mark.asyncio
async def test_a_commit_is_still_there_after_a_start(path: Path) -> None:
    with State(path) as state:
        await commit(state, VOLUME, HEAD, {b"a": (1, b"A"), b"b": (1, b"B")}, [])

    with State(path) as state:
        assert state.head(VOLUME) == HEAD
        assert state.load_nodes(VOLUME, [b"a", b"b", b"c"]) == {b"a": b"A", b"b": b"B"}


@pytest.mark.asyncio
async def test_a_commit_edits_the_manifest_of_its_volume_only(path: Path) -> None:
    with State(path) as state:
        await commit(state, VOLUME, HEAD, {b"a": (1, b"A"), b"b": (1, b"B")}, [])
        await commit(state, OTHER, HEAD, {b"a": (1, b"A")}, [])

        await commit(
            state,
            VOLUME,
            Head(b"next", 8, b"p"),
            {b"c": (1, b"C"), b"a": (-1, None)},
            [],
        )

        assert state.head(VOLUME) == Head(b"next", 8, b"p")
        assert state.load_nodes(VOLUME, [b"a", b"b", b"c"]) == {b"b": b"B", b"c": b"C"}
        assert node(state, OTHER, b"a") == b"A"


@pytest.mark.asyncio
async def test_a_commit_that_replaces_leaves_nothing_of_what_was(path: Path) -> None:
    with State(path) as state:
        await commit(state, VOLUME, HEAD, {b"a": (1, b"A")}, [FrameChange(b"p", 0, 1, 10)])

        await commit(state, VOLUME, HEAD, {b"b": (1, b"B")}, [], replace=True)

        assert node(state, VOLUME, b"a") is None
        assert list(state.all_frames(VOLUME)) == []


@pytest.mark.asyncio
async def test_frames_are_counted_per_volume_and_forgotten_at_zero(path: Path) -> None:
    changes = [FrameChange(b"p", 0, 2, 20), FrameChange(b"q", 1, 1, 10)]
    with State(path) as state:
        await commit(state, VOLUME, HEAD, {}, changes)
        await commit(state, OTHER, HEAD, {}, [FrameChange(b"p", 0, 5, 50)])

        await commit(state, VOLUME, HEAD, {}, [FrameChange(b"q", 1, 0, 0)])

        asked = [(b"p", 0), (b"q", 1), (b"unknown", 0)]
        assert state.frame_counts(VOLUME, asked) == {(b"p", 0): FrameCount(2, 20)}
        assert state.frame_counts(OTHER, asked) == {(b"p", 0): FrameCount(5, 50)}


@pytest.mark.asyncio
async def test_chunks_are_known_until_their_pack_is_forgotten(path: Path) -> None:
    ids = [os.urandom(32) for _ in range(1000)]
    rows = [(id_, Location(PackNonce(b"pq"[n % 2 :][:1]), n, 0, 5)) for n, id_ in enumerate(ids)]
    with State(path) as state:
        await state.remember_chunks(rows)
        assert state.known([*ids, b"x" * 32]) == dict(rows)

        await state.forget_packs([b"p"])

        assert state.known(ids) == dict(rows[1::2])


@pytest.mark.asyncio
async def test_the_newest_place_of_a_chunk_wins(path: Path) -> None:
    with State(path) as state:
        await state.remember_chunks([(b"c", Location(PackNonce(b"p"), 0, 0, 5))])
        await state.remember_chunks([(b"c", Location(PackNonce(b"q"), 1, 2, 5))])

        assert state.known([b"c"]) == {b"c": Location(PackNonce(b"q"), 1, 2, 5)}


@pytest.mark.asyncio
async def test_borrowed_chunks_are_known_to_their_volume_alone(path: Path) -> None:
    place = Location(PackNonce(b"p"), 3, 1, 5)
    with State(path) as state:
        assert not state.borrows(VOLUME)
        await state.remember_chunks([(b"c", place)], borrower=VOLUME)

        assert (state.borrows(VOLUME), state.borrows(OTHER)) == (True, False)
        assert state.borrowed(VOLUME, [b"c", b"d"]) == {b"c": place}
        assert state.borrowed(VOLUME, []) == {}
        assert state.borrowed(OTHER, [b"c"]) == {}
        assert state.known([b"c"]) == {}
        assert state.head(VOLUME) is None


@pytest.mark.asyncio
@pytest.mark.parametrize("gone", ["pack", "volume"])
async def test_borrowed_chunks_go_with_their_pack_and_with_their_volume(
    path: Path, gone: str
) -> None:
    with State(path) as state:
        await state.remember_chunks([(b"c", Location(PackNonce(b"p"), 3, 1, 5))], borrower=VOLUME)

        await (state.forget_packs([b"p"]) if gone == "pack" else state.forget_volume(VOLUME))

        assert not state.borrows(VOLUME)


@pytest.mark.asyncio
async def test_a_forgotten_volume_is_gone_but_its_chunks_stay(path: Path) -> None:
    with State(path) as state:
        await state.remember_chunks([(b"c", Location(PackNonce(b"p"), 0, 0, 5))])
        await commit(state, VOLUME, HEAD, {b"a": (1, b"A")}, [])

        await state.forget_volume(VOLUME)

        assert state.head(VOLUME) is None
        assert node(state, VOLUME, b"a") is None
        assert state.known([b"c"])


@pytest.mark.parametrize(
    "content", [b"no database at all" * 100, b"SQLite format 3\0" + b"x" * 999]
)
def test_a_damaged_database_is_begun_anew(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with State(path) as state:
        assert state.head(VOLUME) is None
        assert state.lost == "it is damaged"


@pytest.mark.parametrize("version", [1, 99])
def test_a_database_of_another_version_is_begun_anew(path: Path, version: int) -> None:
    with apsw.Connection(str(path)) as other:
        other.execute("CREATE TABLE volumes (something)")
        other.pragma("user_version", version)
    other.close()

    with State(path) as state:
        assert state.head(VOLUME) is None
        assert state.lost.startswith(f"it is of version {version}, ")
    with State(path) as state:
        assert state.lost == ""


def test_how_far_files_were_read_again_is_kept_and_goes_with_its_volume(path: Path) -> None:
    with State(path) as state:
        assert state.rehashed(VOLUME) is None
        asyncio.run(state.keep_rehashed(VOLUME, Rehashed(1, b"key")))
        asyncio.run(state.keep_rehashed(VOLUME, Rehashed(2, None)))
        asyncio.run(state.keep_rehashed(OTHER, Rehashed(3, b"key")))
    with State(path) as state:
        assert state.rehashed(VOLUME) == Rehashed(2, None)
        asyncio.run(state.forget_volume(VOLUME))
        assert state.rehashed(VOLUME) is None
        assert state.rehashed(OTHER) == Rehashed(3, b"key")


def test_what_events_missed_is_kept_until_they_miss_nothing(path: Path) -> None:
    with State(path) as state:
        for missed in (Missed(1, 20_000), Missed(2, 20_001)):
            state.keep_missed(VOLUME, missed).result()
        state.keep_missed(OTHER, Missed(3, 20_002)).result()
    with State(path) as state:
        assert state.missed() == {VOLUME: Missed(2, 20_001), OTHER: Missed(3, 20_002)}
        state.keep_missed(VOLUME, None).result()
        state.keep_missed(VOLUME, None).result()
        assert state.missed() == {OTHER: Missed(3, 20_002)}


@pytest.mark.parametrize("table", ["rehashed", "missed"])
def test_a_database_of_before_a_table_came_is_not_begun_anew(path: Path, table: str) -> None:
    with State(path) as state:
        asyncio.run(state.commit(VOLUME, HEAD, {}, []))
    with contextlib.closing(apsw.Connection(str(path))) as db:
        db.execute(f"DROP TABLE {table}")

    with State(path) as state:
        assert state.lost == ""
        assert state.head(VOLUME) == HEAD
        assert state.rehashed(VOLUME) is None
        assert state.missed() == {}


def test_a_database_that_was_not_there_is_not_lost(path: Path) -> None:
    with State(path) as state:
        assert state.lost == ""


@pytest.mark.asyncio
async def test_a_failed_commit_changes_nothing(path: Path) -> None:
    refused: Changes = {b"b": (1, None)}
    with State(path) as state:
        await commit(state, VOLUME, HEAD, {b"a": (1, b"A")}, [])

        with pytest.raises(StateError, match="unusable"):
            await commit(state, VOLUME, Head(b"next", 8, b"p"), refused, [])

        assert state.head(VOLUME) == HEAD


def test_a_state_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="unusable"):
        State(tmp_path / "absent" / "state.db")


@pytest.mark.asyncio
async def test_a_node_stays_until_its_last_use_ends(tmp_path: Path) -> None:
    with State(tmp_path / "state.db") as state:
        await commit(state, VOLUME, HEAD, {b"a": (1, b"A")}, [])
        await commit(state, VOLUME, HEAD, {b"a": (2, b"A")}, [])
        await commit(state, VOLUME, HEAD, {b"a": (-2, None)}, [])
        assert node(state, VOLUME, b"a") == b"A"

        await commit(state, VOLUME, HEAD, {b"a": (-1, None)}, [])
        assert node(state, VOLUME, b"a") is None


@pytest.mark.asyncio
async def test_what_was_staged_for_no_commit_is_forgotten_with_the_next(path: Path) -> None:
    with State(path) as state:
        await asyncio.wrap_future(state.stage_nodes(VOLUME, [(b"a", b"A"), (b"b", b"B")]))
        assert state.head(VOLUME) is None
        assert node(state, VOLUME, b"a") == b"A"

        await commit(state, VOLUME, HEAD, {b"b": (1, None)}, [])

        assert state.load_nodes(VOLUME, [b"a", b"b"]) == {b"b": b"B"}


def test_clones_are_kept_replaced_and_forgotten(path: Path) -> None:
    first = Clone(VOLUME, b"a", b"/clones/1", 7, b"c" * 32, 100, 8, 9, 10)
    other = first._replace(local_id=OTHER)
    second = first._replace(path=b"/clones/2", inode=11)
    with State(path) as state:
        state.change_clones([first, other], []).result()
        assert sorted(state.clones()) == sorted([first, other])
        state.change_clones([second], [first.name]).result()
        state.change_clones([], [(VOLUME, b"nothing")]).result()
    with State(path) as state:
        assert sorted(state.clones()) == sorted([second, other])
        state.halve_changes(VOLUME).result()
        assert {each.name: each.changed for each in state.clones()} == {
            second.name: 5,
            other.name: other.changed,
        }
        state.change_clones([], [second.name, other.name]).result()
        assert state.clones() == []
