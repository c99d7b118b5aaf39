"""Limits as administrators set them, and what agents are told of them."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from coordinator.bandwidth import Bandwidth
from coordinator.catalog import open_catalog
from coordinator.config import Config
from coordinator.grants import Flow, Report
from coordinator.limits import Rule, Scope, Window
from coordinator.links import AgentLink, GrantBandwidth, RunTask
from coordinator.metrics import Metrics
from coordinator.model import BackupOrder, JobId, Node, Task, TaskId
from proto.tidemark.v1 import admin_pb2, agent_pb2
from repository.ids import NodeId, RepositoryId, VolumeId
from tests.fakes.agent import Connection
from tests.integration.coordinator.serving import Coordinator, serving

pytestmark = pytest.mark.asyncio

RATE = 20_000_000


async def limit(
    coordinator: Coordinator, rate: int | None, **scope: bool | str
) -> admin_pb2.BandwidthLimit:
    request = admin_pb2.SetBandwidthRequest(bytes_per_second=rate)
    for field, value in scope.items():
        setattr(request, field, value)
    return (await coordinator.admin.SetBandwidth(request)).limit


async def shown(coordinator: Coordinator) -> admin_pb2.GetBandwidthResponse:
    return await coordinator.admin.GetBandwidth(admin_pb2.GetBandwidthRequest())


async def granted(connection: Connection) -> agent_pb2.BandwidthGrant:
    message = await connection.next_message()
    assert message.WhichOneof("message") == "bandwidth"
    return message.bandwidth


def demand(number: int, *, backup: bool = True) -> agent_pb2.ConnectRequest:
    return agent_pb2.ConnectRequest(
        bandwidth=agent_pb2.BandwidthDemand(
            grant_number=number, backup=agent_pb2.Traffic(wants=backup)
        )
    )


async def test_without_a_limit_an_agent_is_told_nothing(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            first = await connection.next_message()

    assert first.WhichOneof("message") == "run_backup"


async def test_an_agent_that_comes_back_to_its_work_hears_that_nothing_limits_it(
    config: Config,
) -> None:
    """The limit was lifted while it was away, and it goes by its floor."""
    async with serving(config) as coordinator:
        await limit(coordinator, RATE, fleet=True)
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await granted(connection)
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
        await limit(coordinator, None, fleet=True)
        async with agent.connected(running=[task.task_id]) as connection:
            first = await granted(connection)

    assert first.unlimited


async def test_a_limit_is_told_before_there_is_work(config: Config) -> None:
    async with serving(config) as coordinator:
        await limit(coordinator, RATE, fleet=True)
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            first = await granted(connection)

    assert (first.number, first.backup, first.restore) == (1, 0, 0)
    assert 0 < first.floor <= RATE * 0.04
    assert first.lease_milliseconds == 1500


async def test_an_agent_that_wants_something_gets_it_and_goes_on_getting_it(config: Config) -> None:
    async with serving(config) as coordinator:
        await limit(coordinator, RATE, fleet=True)
        agent = await coordinator.agent()
        async with agent.connected() as connection:
            await connection.say(demand((await granted(connection)).number))
            second = await granted(connection)
            await connection.say(demand(second.number))
            third = await granted(connection)
            answer = await shown(coordinator)

    assert (second.backup, third.backup) == (RATE, RATE)
    [node] = answer.nodes
    assert (node.node, node.backup_limit, node.obeys) == ("node", RATE, True)


async def test_a_limit_changes_under_way_and_is_lifted(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        async with agent.connected() as connection:
            await limit(coordinator, RATE, node="node")
            await connection.say(demand((await granted(connection)).number))
            before = await granted(connection)
            await connection.say(demand(before.number))
            begun = asyncio.get_running_loop().time()
            await limit(coordinator, RATE // 4, node="node")
            after = await granted(connection)
            while after.backup == RATE:
                after = await granted(connection)
            seconds = asyncio.get_running_loop().time() - begun
            await limit(coordinator, None, node="node")
            lifted = await granted(connection)
            while not lifted.unlimited:
                lifted = await granted(connection)

    assert (before.backup, after.backup) == (RATE, RATE // 4)
    assert seconds < 1


async def test_a_limit_of_one_node_is_no_other_nodes(config: Config) -> None:
    async with serving(config) as coordinator:
        limited, free = await coordinator.agent("limited"), await coordinator.agent("free")
        await limit(coordinator, RATE, node="limited")
        free.volume("data")
        async with limited.connected() as connection, free.connected() as other:
            await coordinator.order_backup("data")
            first, task = await granted(connection), await other.next_message()

    assert first.number == 1
    assert task.WhichOneof("message") == "run_backup"


async def test_limits_outlive_the_coordinator(config: Config) -> None:
    async with serving(config) as coordinator:
        identity = (
            await coordinator.admin.GetRepository(admin_pb2.GetRepositoryRequest())
        ).repository_id
        await limit(coordinator, RATE, fleet=True)
        await limit(coordinator, RATE * 2, repository=identity[:8])
    async with serving(config) as coordinator:
        answer = await shown(coordinator)

    assert [(each.scope, each.bytes_per_second) for each in answer.limits] == [
        ("fleet", RATE),
        ("repository", RATE * 2),
    ]
    assert answer.limits[1].subject_id == identity


async def test_windows_are_shown_with_what_counts_now(config: Config) -> None:
    async with serving(config) as coordinator:
        await limit(coordinator, RATE, fleet=True)
        always = admin_pb2.BandwidthWindow(begin_minute=0, end_minute=0, zone="Europe/Berlin")
        request = admin_pb2.SetBandwidthRequest(
            fleet=True, bytes_per_second=RATE * 5, window=always
        )
        answer = await coordinator.admin.SetBandwidth(request)

    assert [(rule.text, rule.in_force) for rule in answer.limit.rules] == [
        ("20 MB/s", False),
        ("100 MB/s 00:00-00:00 daily Europe/Berlin", True),
    ]
    assert answer.limit.bytes_per_second == RATE * 5


@pytest.mark.parametrize(
    "request_",
    [
        admin_pb2.SetBandwidthRequest(bytes_per_second=RATE),
        admin_pb2.SetBandwidthRequest(fleet=True, bytes_per_second=1),
        admin_pb2.SetBandwidthRequest(
            fleet=True,
            bytes_per_second=RATE,
            window=admin_pb2.BandwidthWindow(begin_minute=9999, end_minute=1, zone="UTC"),
        ),
        admin_pb2.SetBandwidthRequest(
            fleet=True,
            bytes_per_second=RATE,
            window=admin_pb2.BandwidthWindow(begin_minute=9, end_minute=1, zone="Mars"),
        ),
        admin_pb2.SetBandwidthRequest(node="nobody", bytes_per_second=RATE),
        admin_pb2.SetBandwidthRequest(repository="ffffffff", bytes_per_second=RATE),
    ],
)
async def test_what_cannot_be_is_refused_and_not_kept(
    config: Config, request_: admin_pb2.SetBandwidthRequest
) -> None:
    async with serving(config) as coordinator:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await coordinator.admin.SetBandwidth(request_)
        answer = await shown(coordinator)

    assert refused.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    assert not answer.limits


async def test_a_report_of_what_was_never_granted_is_no_report(config: Config) -> None:
    async with serving(config) as coordinator:
        await limit(coordinator, RATE, fleet=True)
        agent = await coordinator.agent()
        async with agent.connected() as connection:
            first = await granted(connection)
            await connection.say(demand(2**60))
            await connection.say(demand(first.number))
            second = await granted(connection)

    assert (second.number, second.backup) == (first.number + 1, RATE)


async def test_the_log_says_who_set_what(config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    async with serving(config) as coordinator:
        await limit(coordinator, RATE, fleet=True)

    assert "bandwidth set" in (told := "".join(capfd.readouterr()))
    assert "20 MB/s" in told


async def test_a_window_opens_by_itself(tmp_path: Path) -> None:
    clock = [datetime(2026, 3, 2, 21, 59, 59, tzinfo=UTC).timestamp()]
    catalog = await open_catalog(tmp_path / "catalog.db", 0)
    budget = Bandwidth(
        catalog,
        RepositoryId(b"r" * 16),
        Metrics("1"),
        clock=lambda: int(clock[0] * 1e9),
        floor_bytes=1_000_000,
        working_with=lambda _: set(),
    )
    link = AgentLink(Node(NodeId(b"n" * 16), "node", 0, 0, b"", b""))
    await budget.load()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        running = group.create_task(budget.run(), name="budget")
        night = Rule(RATE * 5, Window(22 * 60, 6 * 60, "UTC"))
        for rule in (Rule(RATE), night):
            await budget.add_rule(Scope.FLEET, b"", rule, by="test")
        await asyncio.sleep(0.1)
        budget.join(link, is_at_work=False)
        rates = []
        while RATE * 5 not in rates:
            message = await link.outbox.get()
            assert isinstance(message, GrantBandwidth)
            assert message.grant is not None
            rates.append(message.grant.backup)
            budget.hear(link.node.node_id, Report(message.grant.number, backup=Flow(wants=True)))
            if message.grant.backup == RATE:
                clock[0] += 1
        budget.leave(link)
        running.cancel()
    await catalog.close()

    assert list(dict.fromkeys(rates)) == [0, RATE, RATE * 5]


async def test_a_limit_is_queued_before_the_task_that_it_is_for(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path / "catalog.db", 0)
    second, working = RepositoryId(b"s" * 16), set[RepositoryId | None]()
    budget = Bandwidth(
        catalog,
        RepositoryId(b"r" * 16),
        Metrics("1"),
        clock=lambda: 0,
        floor_bytes=1_000_000,
        working_with=lambda _: working,
    )
    node_id = NodeId(b"n" * 16)
    link = AgentLink(Node(node_id, "node", 0, 0, b"", b""))
    order = BackupOrder(VolumeId(b"v" * 16), repository_id=second)
    run = RunTask(Task(TaskId("task"), JobId("job"), order, node_id))
    await budget.load()
    await budget.add_rule(Scope.REPOSITORY, second, Rule(RATE), by="test")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        budget.join(link, is_at_work=False)
        running = group.create_task(budget.run(), name="budget")
        # It counts as at work while that is being written down, and hears of it only then.
        working.add(second)
        await asyncio.sleep(0.1)
        assert link.outbox.empty()
        link.send(run)
        await asyncio.sleep(0.1)
        running.cancel()
    await catalog.close()

    told = link.outbox.get_nowait()
    assert isinstance(told, GrantBandwidth)
    assert told.grant is not None
    assert told.grant.backup == 0
    assert link.outbox.get_nowait() is run


async def test_a_node_that_tells_impossible_things_gets_its_part_and_is_shown(
    config: Config,
) -> None:
    async with serving(config) as coordinator:
        await limit(coordinator, RATE, fleet=True)
        liar, honest = await coordinator.agent("liar"), await coordinator.agent("honest")
        async with liar.connected() as connection, honest.connected() as other:
            await other.say(demand((await granted(other)).number))
            first = await granted(connection)
            huge = agent_pb2.Traffic(wants=True, used_bytes=2**64 - 1, blocked_milliseconds=2**31)
            await connection.say(demand(first.number))
            mine = first
            for number in range(first.number, first.number + 3):
                lie = agent_pb2.BandwidthDemand(
                    grant_number=number, measured_milliseconds=300, backup=huge, restore=huge
                )
                await connection.say(agent_pb2.ConnectRequest(bandwidth=lie))
                mine = await granted(connection)
            share = await granted(other)
            while share.backup in {0, RATE}:
                await other.say(demand(share.number))
                share = await granted(other)
            answer = await shown(coordinator)

    assert mine.backup + mine.restore <= RATE
    assert share.backup >= RATE * 0.02
    assert {node.node for node in answer.nodes} == {"liar", "honest"}
