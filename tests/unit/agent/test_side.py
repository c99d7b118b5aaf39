"""A process beside the agent that does not come up, and where there is none."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from agent.side import SideGoneError, SideOnDemand, SideProcess


class Order(msgspec.Struct, frozen=True, array_like=True):
    slot: int


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def broken(root: int) -> SideProcess:
    """One that ends before it has read what it is told first."""
    return SideProcess("agent.no_such_module", root, "a setup that nobody reads")


def test_a_process_that_ends_at_its_start_says_so_with_the_first_batch(root: int) -> None:
    process = broken(root)

    assert process.is_ready(wait_seconds=30)
    with pytest.raises(SideGoneError, match="ended with code"):
        process.ask(Order(0), list[int], 1)
    process.close()


def test_what_cannot_be_started_is_done_without_and_told_once() -> None:
    def start() -> SideProcess:
        raise SideGoneError("it cannot be started")

    logged: list[str] = []
    side = SideOnDemand(
        start, lambda _, message: logged.append(message), "slowly", worth_at=9, begins_at=2
    )

    for _ in range(4):
        side.expect(1)
        assert side.at_hand() is None
    assert logged == ["it cannot be started; slowly"]


def test_one_that_does_not_start_is_waited_for_once(root: int) -> None:
    logged: list[str] = []
    hung = SideProcess("tests.unit.agent.hanging", root, "a setup that nobody reads")
    side = SideOnDemand(
        lambda: hung, lambda _, message: logged.append(message), "slowly", worth_at=1, begins_at=1
    )
    side.expect(1)

    assert side.at_hand() is None
    assert side.processes == [hung]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(side.at_hand, [0.1, 0.1])) == [None, None]
    assert side.processes == []
    assert logged == ["a process beside the agent does not start; slowly"]


def test_a_machine_of_one_core_does_without(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    side = SideOnDemand(lambda: broken(root), lambda *_: None, "slowly", worth_at=1)

    side.expect(1_000_000)

    assert side.at_hand() is None
    assert side.processes == []
