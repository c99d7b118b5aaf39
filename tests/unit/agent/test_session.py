"""The control stream against a coordinator that breaks it as it likes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from typing_extensions import override

from agent.channel import NodeChannel
from agent.daemon import SystemClock
from agent.errors import CoordinatorError
from agent.line import Line
from agent.services import (
    BackupOutcome,
    BackupStatistics,
    BackupTask,
    Engine,
    Progress,
    RestoreTask,
    Volume,
)
from agent.session import BackupWish, ControlStream, Greeting, check_protocol
from agent.throttle import Demand, Flow, Grant
from proto.tidemark.v1 import agent_pb2, agent_pb2_grpc
from proto.versions import PROTOCOL
from repository.errors import StoreFullError

pytestmark = pytest.mark.asyncio

Stream = grpc.aio.ServicerContext[agent_pb2.ConnectRequest, agent_pb2.ConnectResponse]
VOLUME = Volume(b"v" * 16, "volume", b"/srv", containers=("db",), labels=(("a", "b"),))
ENGINE = Engine("docker", "unix:///docker.sock", answers=False, message="down")
TASK = BackupTask("task", "job", VOLUME, b"r" * 16, b"k" * 32)


class Agent:
    """Notes what the coordinator says."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[object] = asyncio.Queue()
        self.tasks: list[str] = []
        self.wanted: Demand | None = None

    def greeting(self) -> Greeting:
        return Greeting("1", [VOLUME], [ENGINE], self.tasks, [b"/restores"])

    def on_welcome(self, unknown_task_ids: Sequence[str]) -> None:
        self.said.put_nowait(("welcome", list(unknown_task_ids)))

    def on_backup(self, wish: BackupWish) -> None:
        self.said.put_nowait(wish)

    def on_restore(self, task: RestoreTask) -> None:
        self.said.put_nowait(task)

    def on_cancel(self, task_id: str) -> None:
        self.said.put_nowait(("cancel", task_id))

    def on_reported(self, task_id: str) -> None:
        self.said.put_nowait(("reported", task_id))

    def on_bandwidth(self, grant: Grant | None) -> None:
        self.said.put_nowait(("bandwidth", grant))

    def demand(self) -> Demand | None:
        return self.wanted


class Coordinator(agent_pb2_grpc.AgentServiceServicer):
    """Notes what the agent says; answers and hangs up when the test says so."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[agent_pb2.ConnectRequest] = asyncio.Queue()
        self.to_say: asyncio.Queue[agent_pb2.ConnectResponse | None] = asyncio.Queue()

    @override
    async def Connect(  # type: ignore[override]  # writes to the context
        self, request_iterator: AsyncIterator[agent_pb2.ConnectRequest], context: Stream
    ) -> None:
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen(request_iterator), name="listen")
            while (message := await self.to_say.get()) is not None:
                await context.write(message)
            listening.cancel()

    async def _listen(self, requests: AsyncIterator[agent_pb2.ConnectRequest]) -> None:
        async for request in requests:
            self.heard.put_nowait(request)
        # The agent leaves: it hears what was left to say, and the end.
        self.to_say.put_nowait(None)

    def welcome(self, *unknown: str, protocol: tuple[int, int] = PROTOCOL) -> None:
        welcome = agent_pb2.Welcome(
            coordinator_version="7.7",
            oldest_protocol_version=protocol[0],
            protocol_version=protocol[1],
            heartbeat_seconds=1,
            unknown_task_ids=unknown,
        )
        self.to_say.put_nowait(agent_pb2.ConnectResponse(welcome=welcome))

    async def hears(self, kind: str) -> agent_pb2.ConnectRequest:
        while True:
            message = await self.heard.get()
            if message.WhichOneof("message") == kind:
                return message


@asynccontextmanager
async def talking() -> AsyncIterator[tuple[Agent, Coordinator, ControlStream]]:
    agent = Agent()
    coordinator = Coordinator()  # type: ignore[abstract]  # it answers one call
    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServiceServicer_to_server(coordinator, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(8), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream = ControlStream(Line(NodeChannel(channel)), agent, SystemClock())
        async with asyncio.TaskGroup() as group:
            running = group.create_task(stream.run(), name="stream")
            yield agent, coordinator, stream
            running.cancel()
    await server.stop(None)


async def test_the_agent_says_who_it_is_and_takes_tasks() -> None:
    async with talking() as (agent, coordinator, stream):
        hello = (await coordinator.hears("hello")).hello
        coordinator.welcome("old")
        assert await agent.said.get() == ("welcome", ["old"])
        assert stream.is_connected

        ask = agent_pb2.RunRestore(task_id="1", job_id="2", target=b"/t", dry_run=True)
        coordinator.to_say.put_nowait(agent_pb2.ConnectResponse(run_restore=ask))
        cancel = agent_pb2.CancelTask(task_id="1")
        coordinator.to_say.put_nowait(agent_pb2.ConnectResponse(cancel_task=cancel))

        restore = await agent.said.get()
        assert isinstance(restore, RestoreTask)
        assert (restore.task_id, restore.target) == ("1", b"/t")
        assert (restore.dry_run, restore.overwrite) == (True, False)
        assert await agent.said.get() == ("cancel", "1")
        assert [volume.name for volume in hello.volumes] == ["volume"]
        assert list(hello.restore_roots) == [b"/restores"]


async def test_the_agent_tells_what_it_speaks() -> None:
    async with talking() as (_, coordinator, _stream):
        hello = (await coordinator.hears("hello")).hello

        assert (hello.oldest_protocol_version, hello.protocol_version) == PROTOCOL


async def test_a_coordinator_that_speaks_another_protocol_is_left_and_asked_again() -> None:
    async with talking() as (agent, coordinator, stream):
        coordinator.welcome(protocol=(8, 9))
        await coordinator.hears("hello")
        await coordinator.hears("hello")

        assert not stream.is_connected
        assert agent.said.empty()


@pytest.mark.parametrize(
    ("oldest", "newest", "hint"),
    [(8, 9, "upgrade the agent"), (0, 0, "upgrade the coordinator"), (9, 8, "")],
)
async def test_whose_turn_it_is_to_be_upgraded_is_said(oldest: int, newest: int, hint: str) -> None:
    welcome = agent_pb2.Welcome(
        coordinator_version="7.7", oldest_protocol_version=oldest, protocol_version=newest
    )

    with pytest.raises(CoordinatorError, match=r"coordinator 7\.7") as refused:
        check_protocol(welcome)

    assert refused.value.hint == hint


async def test_progress_logs_ends_and_heartbeats_go_up() -> None:
    async with talking() as (_, coordinator, stream):
        coordinator.welcome()
        await coordinator.hears("hello")
        await asyncio.to_thread(stream.send_log, "task", "info", "a line")
        await asyncio.to_thread(stream.send_progress, "task", Progress("reading", 1))
        await asyncio.to_thread(stream.send_progress, "task", Progress("reading", 2))

        assert (await coordinator.hears("log")).log.message == "a line"
        assert (await coordinator.hears("progress")).progress.progress.files_done == 2
        await coordinator.hears("heartbeat")

        error = StoreFullError("full", hint="make room")
        stream.send_backup_end(TASK, BackupOutcome(BackupStatistics(files_new=3), error=error))
        end = (await coordinator.hears("backup_finished")).backup_finished

        assert (end.task_id, end.error.message, end.result.files_new) == ("task", "full", 3)
        await stream.told_everything()


async def test_an_end_that_may_have_been_lost_is_told_again_where_it_is_waited_for() -> None:
    async with talking() as (agent, coordinator, stream):
        coordinator.welcome()
        await coordinator.hears("hello")
        stream.send_backup_end(TASK, BackupOutcome(BackupStatistics()))
        await coordinator.hears("backup_finished")

        coordinator.to_say.put_nowait(None)
        hello = (await coordinator.hears("hello")).hello
        coordinator.welcome()
        await coordinator.hears("backup_finished")

        assert list(hello.running_task_ids) == ["task"]
        assert agent.said.qsize() >= 2


async def test_an_end_that_nobody_waits_for_is_dropped() -> None:
    async with talking() as (agent, coordinator, stream):
        await coordinator.hears("hello")
        stream.send_backup_end(TASK, BackupOutcome(BackupStatistics()))
        coordinator.welcome("task")

        assert await agent.said.get() == ("reported", "task")
        await stream.told_everything()
        coordinator.to_say.put_nowait(None)
        assert not (await coordinator.hears("hello")).hello.running_task_ids


async def test_the_stream_changes_over_at_once_but_not_under_a_task() -> None:
    async with talking() as (agent, coordinator, stream):
        agent.tasks = ["task"]
        coordinator.welcome()
        await coordinator.hears("hello")
        await agent.said.get()
        stream.reconnect()
        await coordinator.hears("heartbeat")
        stayed = stream.is_connected

        agent.tasks = []
        stream.send_backup_end(TASK, BackupOutcome(BackupStatistics()))
        began = asyncio.get_running_loop().time()
        await coordinator.hears("backup_finished")
        hello = (await coordinator.hears("hello")).hello
        seconds = asyncio.get_running_loop().time() - began
        coordinator.welcome()
        await coordinator.hears("heartbeat")

    assert stayed
    assert list(hello.running_task_ids) == ["task"]
    # Without the wait that follows upon a stream that broke.
    assert seconds < 0.25


async def test_a_grant_comes_down_and_only_then_a_demand_goes_up() -> None:
    async with talking() as (agent, coordinator, stream):
        agent.wanted = Demand(
            7, 0.5, Flow(wants=True, used_bytes=10, blocked_seconds=0.25), Flow(False, 0, 0.0)
        )
        coordinator.welcome()
        await agent.said.get()
        stream.send_demand()
        # Whoever has granted nothing may be too old to take it.
        assert (await coordinator.hears("hello")).WhichOneof("message") == "hello"
        assert (await coordinator.heard.get()).WhichOneof("message") == "heartbeat"

        granted = agent_pb2.BandwidthGrant(
            number=7, backup=100, restore=50, floor=9, lease_milliseconds=1500
        )
        coordinator.to_say.put_nowait(agent_pb2.ConnectResponse(bandwidth=granted))
        assert await agent.said.get() == ("bandwidth", Grant(7, 100, 50, 9, 1.5))
        stream.send_demand()
        told = (await coordinator.hears("bandwidth")).bandwidth

        assert (told.grant_number, told.measured_milliseconds) == (7, 500)
        assert (told.backup.wants, told.backup.used_bytes) == (True, 10)
        assert told.backup.blocked_milliseconds == 250
        assert not told.restore.wants


@pytest.mark.parametrize("work", ["run_backup", "run_restore"])
async def test_work_without_a_grant_before_it_lifts_the_limit_of_a_former_stream(work: str) -> None:
    async with talking() as (agent, coordinator, _stream):
        agent.wanted = Demand(7, 0.5, Flow(False, 0, 0.0), Flow(False, 0, 0.0))
        coordinator.welcome()
        await agent.said.get()
        order = agent_pb2.ConnectResponse()
        getattr(order, work).SetInParent()
        coordinator.to_say.put_nowait(order)

        assert await agent.said.get() == ("bandwidth", None)


async def test_a_limit_that_is_lifted_is_told_as_none() -> None:
    async with talking() as (agent, coordinator, _stream):
        coordinator.welcome()
        await agent.said.get()
        lifted = agent_pb2.BandwidthGrant(unlimited=True)
        coordinator.to_say.put_nowait(agent_pb2.ConnectResponse(bandwidth=lifted))

        assert await agent.said.get() == ("bandwidth", None)
