"""Between the engine and the volumes."""

import asyncio
import threading
from pathlib import Path

import pytest
from typing_extensions import override

from agent import discovering
from agent.config import load
from agent.daemon import SystemClock
from agent.discovering import Discovery
from agent.discovery.answer import Answer, NamedVolume
from agent.errors import EngineError
from agent.volumes import Survey, Volumes
from repository.ids import NodeId
from tests.fakes.engine import FakeEngine

pytestmark = pytest.mark.asyncio

ANSWER = Answer("7", "/d", (), (NamedVolume("data", mountpoint="/"),))


def volumes_in(state: Path) -> Volumes:
    flags = ["--config", "/dev/null", "--coordinator", "h:1", "--state", str(state), "--docker"]
    return Volumes(load(flags, {}).config, NodeId(b"n" * 16))


class Stuck(Volumes):
    """A survey that meets a dead network filesystem."""

    def __init__(self, state: Path, released: threading.Event) -> None:
        flags = ["--config", "/dev/null", "--coordinator", "h:1", "--state", str(state)]
        super().__init__(load(flags, {}).config, NodeId(b"n" * 16))
        self._released = released

    @override
    def survey(self, answer: Answer) -> Survey:
        self._released.wait(10)
        return Survey([], {})


async def test_a_change_is_told_once(tmp_path: Path) -> None:
    changes: list[bool] = []
    volumes = volumes_in(tmp_path)
    discovery = Discovery(
        "unix:///x", volumes, SystemClock(), lambda: changes.append(discovery.engine.answers)
    )

    await discovery.on_answer(ANSWER)
    await discovery.on_answer(ANSWER)
    assert changes == [True]
    assert discovery.engine.version == "7"
    discovery.on_silence("down")
    discovery.on_silence("down")
    assert changes == [True, False]
    assert discovery.engine.message == "down"
    discovery.on_silence("two\nlines " + "x" * 10_000)
    assert discovery.engine.message.startswith("two\\nlines")
    assert len(discovery.engine.message) == 1000
    assert [volume.name for volume in volumes.all()] == ["data"]


async def test_a_dead_filesystem_holds_nothing_but_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovering, "_SURVEY_SECONDS", 0.05)
    released = threading.Event()
    discovery = Discovery("unix:///x", Stuck(tmp_path, released), SystemClock(), lambda: None)

    with pytest.raises(EngineError, match="does not answer"):
        await discovery.on_answer(ANSWER)

    released.set()
    await discovery.on_answer(ANSWER)
    assert discovery.engine.answers


async def test_the_first_look_is_waited_for(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "docker.sock")
    engine.add_volume("data")
    volumes = volumes_in(tmp_path)
    async with engine.serving(), asyncio.TaskGroup() as group:
        discovery = Discovery(engine.address, volumes, SystemClock(), lambda: None)
        running = group.create_task(discovery.run())
        await discovery.first_look()
        assert [volume.name for volume in volumes.all()] == ["data"]
        running.cancel()


async def test_an_engine_that_is_not_there_is_not_waited_for(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/none.sock"
    async with asyncio.TaskGroup() as group:
        discovery = Discovery(address, volumes_in(tmp_path), SystemClock(), lambda: None)
        running = group.create_task(discovery.run())
        async with asyncio.timeout(2):
            await discovery.first_look()
        running.cancel()

    assert not discovery.engine.answers
    assert "none.sock" in discovery.engine.message
