"""Asking an engine, against one that fails in every way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.daemon import SystemClock
from agent.discovery.answer import Answer
from agent.discovery.docker import Docker, Patience
from agent.errors import EngineError
from tests.fakes.engine import FakeEngine

pytestmark = pytest.mark.asyncio

QUICK = Patience(look=30.0, answer=0.3, settle=0.0, backoff=(0.01, 0.05))


class Heard:
    """Keeps what discovery hears."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.silences: list[str] = []
        self.refuses = False
        self._happened = asyncio.Event()

    async def on_answer(self, answer: Answer) -> None:
        if self.refuses:
            raise EngineError("a source does not answer")
        self.answers.append(answer)
        self._happened.set()

    def on_silence(self, reason: str) -> None:
        self.silences.append(reason)
        self._happened.set()

    def volumes(self) -> list[str]:
        return [volume.name for volume in self.answers[-1].volumes] if self.answers else []

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not what():
                await self._happened.wait()
                self._happened.clear()


@asynccontextmanager
async def watching(engine: FakeEngine, patience: Patience = QUICK) -> AsyncIterator[Heard]:
    heard = Heard()
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(Docker(engine.address, heard, SystemClock(), patience).run())
        yield heard
        watch.cancel()


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "docker.sock")


async def test_all_that_an_engine_has_is_heard_of(engine: FakeEngine) -> None:
    engine.add_volume("data")
    engine.add_container("web", {"Type": "bind", "Source": "/srv", "Destination": "/d"})
    engine.add_container("db", Tmpfs={"/run": ""})
    async with engine.serving(), watching(engine) as heard:
        await heard.until(lambda: heard.answers != [])

    answer = heard.answers[0]
    mounts = {each.name: [mount.type for mount in each.mounts or ()] for each in answer.containers}
    assert (answer.version, answer.data_root) == ("1", "/v")
    assert heard.volumes() == ["data"]
    assert mounts == {"web": ["bind"], "db": ["tmpfs"]}
    assert answer.paths() == ["/srv", "/v", "/v/data/_data"]


async def test_an_event_is_a_reason_to_look_again(engine: FakeEngine) -> None:
    async with engine.serving(), watching(engine) as heard:
        await heard.until(lambda: heard.answers != [])
        engine.add_volume("new")
        engine.tell()
        await heard.until(lambda: heard.volumes() == ["new"])
        engine.volumes.clear()
        engine.tell()
        await heard.until(lambda: heard.volumes() == [])

    assert heard.silences == []


async def test_without_an_event_all_is_looked_at_now_and_then(engine: FakeEngine) -> None:
    often = Patience(look=0.05, settle=0.0)
    async with engine.serving(), watching(engine, often) as heard:
        await heard.until(lambda: heard.answers != [])
        engine.add_volume("new")
        await heard.until(lambda: heard.volumes() == ["new"])


async def test_a_burst_of_events_is_one_look(engine: FakeEngine) -> None:
    async with engine.serving(), watching(engine, Patience(settle=0.2)) as heard:
        await heard.until(lambda: heard.answers != [])
        for number in range(50):
            engine.add_volume(f"v{number}")
            engine.tell()
            await asyncio.sleep(0)
        await heard.until(lambda: len(heard.volumes()) == 50)

    assert engine.looks <= 3


async def test_a_container_is_inspected_once(engine: FakeEngine) -> None:
    engine.add_container("web", Tmpfs={"/run": ""})
    async with engine.serving(), watching(engine) as heard:
        for count in (1, 2, 3):
            await heard.until(lambda count=count: len(heard.answers) >= count)  # type: ignore[misc]
            engine.tell()

    assert engine.inspected == ["web"]
    assert all(len(answer.containers[0].mounts or ()) == 1 for answer in heard.answers)


async def test_a_container_that_goes_while_it_is_asked_about_is_no_failure(
    engine: FakeEngine,
) -> None:
    engine.add_container("brief")
    engine.containers["brief"]["shown"] = None
    async with engine.serving(), watching(engine) as heard:
        await heard.until(lambda: heard.answers != [])

    assert heard.silences == []


async def test_an_engine_that_comes_later_is_found(engine: FakeEngine) -> None:
    async with watching(engine) as heard:
        await heard.until(lambda: len(heard.silences) >= 2)
        assert heard.silences[0] == (
            f"Docker at {engine.address} cannot be reached: No such file or directory"
        )
        async with engine.serving():
            await heard.until(lambda: heard.answers != [])


async def test_an_engine_that_restarts_is_found_again(engine: FakeEngine) -> None:
    async with watching(engine) as heard:
        async with engine.serving():
            await heard.until(lambda: heard.answers != [])
        await heard.until(lambda: heard.silences != [])
        engine.add_volume("after")
        async with engine.serving():
            await heard.until(lambda: heard.volumes() == ["after"])


async def test_a_stream_of_events_that_ends_is_taken_for_a_restart(engine: FakeEngine) -> None:
    async with engine.serving(), watching(engine) as heard:
        await heard.until(lambda: heard.answers != [])
        engine.end_events()
        await heard.until(lambda: heard.silences != [] and len(heard.answers) >= 2)

    assert "stream of events" in heard.silences[0]


async def test_an_engine_that_hangs_is_given_up_and_tried_again(engine: FakeEngine) -> None:
    engine.hangs = True
    async with engine.serving(), watching(engine) as heard:
        await heard.until(lambda: heard.silences != [])
        engine.hangs = False
        await heard.until(lambda: heard.answers != [])

    assert "did not answer in time" in heard.silences[0]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"Volumes": [{"Name": 7}]}', '{"Volumes": [{}]}']
)
async def test_an_answer_that_nobody_understands_is_never_an_empty_one(
    engine: FakeEngine, text: str
) -> None:
    engine.volumes_text = text
    async with engine.serving(), watching(engine) as heard:
        await heard.until(lambda: heard.silences != [])
        assert heard.answers == []
        engine.volumes_text = None
        await heard.until(lambda: heard.answers != [])


async def test_a_listener_that_cannot_use_an_answer_is_told_again(engine: FakeEngine) -> None:
    async with engine.serving(), watching(engine) as heard:
        heard.refuses = True
        engine.tell()
        await heard.until(lambda: heard.silences != [])
        heard.refuses = False
        await heard.until(lambda: heard.answers != [])

    assert heard.silences[0] == "a source does not answer"
