"""A directory with more names than are sorted at once goes the whole way, and back."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent import listing
from agent.state import State
from tests.integration.agent.test_restore import Node, picture

pytestmark = pytest.mark.asyncio
ENTRIES = 1500


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with State(tmp_path / "state.db") as state, ThreadPoolExecutor(2) as workers:
        yield Node(tmp_path, state, workers)


async def test_a_directory_that_is_sorted_by_runs(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_NAMES_IN_MEMORY", 125)
    wide = node.source / "wide"
    wide.mkdir()
    for number in range(ENTRIES):
        (wide / f"{number * 7919 % 10_007:05d}\n{number}").write_bytes(b"%d" % number)
    await node.back_up()
    first = await node.coordinator.tree()
    await node.back_up()
    again = await node.coordinator.tree()
    (wide / "05000-added").write_bytes(b"added")
    await node.back_up()
    more = await node.coordinator.tree()

    assert len(first) == ENTRIES + 2
    assert again == first
    assert more.keys() - first.keys() == {b"wide\x0005000-added"}
    await node.restore(b"wide/05000-added")
    assert [path.name for path in (node.target / "wide").iterdir()] == ["05000-added"]

    # What is extra among so many is found, and removed.
    wanted = picture(wide)
    (wide / "05000-extra").write_bytes(b"extra")
    (wide / "05000-added").unlink()
    outcome = await node.restore(in_place=True, delete_extra=True)
    assert picture(wide).keys() == wanted.keys()
    assert outcome.statistics.files_removed == 1
    assert outcome.statistics.files_unchanged == ENTRIES
