"""Agents of other versions: who is let in, who is not, and what people are told."""

import grpc
import pytest

from coordinator.config import Config
from proto.tidemark.v1 import admin_pb2
from proto.versions import Versions
from tests.fakes.agent import FakeAgent
from tests.integration.coordinator.serving import Coordinator, serving
from tests.integration.coordinator.test_backup import detail

pytestmark = pytest.mark.asyncio

HERE = Versions(2, 3)


async def node(coordinator: Coordinator) -> admin_pb2.Node:
    (only,) = (await coordinator.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes
    return only


async def agents_check(coordinator: Coordinator) -> admin_pb2.DoctorCheck:
    answer = await coordinator.admin.RunDoctor(admin_pb2.RunDoctorRequest())
    return next(check for check in answer.checks if check.name == "agents")


async def refused(agent: FakeAgent) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with agent.connected():
            pass
    return caught.value


@pytest.mark.parametrize("speaks", [(1, 2), (2, 2), (0, 3), (3, 9)])
async def test_an_older_or_newer_agent_with_a_common_version_works(
    config: Config, speaks: tuple[int, int]
) -> None:
    async with serving(config, protocol=HERE) as coordinator:
        agent = await coordinator.agent()
        agent.speaks = speaks
        agent.volume("v")
        assert await coordinator.back_up(agent, "v", {"file": b"content"})
        async with agent.connected() as connection:
            welcome = connection.welcome
            assert (welcome.oldest_protocol_version, welcome.protocol_version) == HERE
            assert (await node(coordinator)).state == "connected"
            assert (await node(coordinator)).protocol_version == speaks[1]


@pytest.mark.parametrize(
    ("speaks", "advice"),
    [
        ((1, 1), "upgrade the agent on node, then it connects by itself"),
        ((0, 0), "upgrade the agent on node, then it connects by itself"),
        ((4, 5), "upgrade the coordinator to 5.0, then the agent connects by itself"),
    ],
)
async def test_an_agent_without_a_common_version_is_refused_and_everybody_is_told_whose_turn_it_is(
    config: Config, speaks: tuple[int, int], advice: str
) -> None:
    async with serving(config, protocol=HERE) as coordinator:
        agent = await coordinator.agent()
        agent.speaks, agent.version = speaks, "5.0"

        error = await refused(agent)

        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert detail(error).hint == advice
        assert "agent 5.0 speaks version" in detail(error).message
        shown = await node(coordinator)
        assert (shown.state, shown.agent_version) == ("incompatible", "5.0")
        assert (shown.message, shown.hint) == (detail(error).message, advice)
        check = await agents_check(coordinator)
        assert (check.ok, check.hint) == (False, advice)
        assert check.message == f"node: {shown.message}"

        # Upgraded, or gone back to what it was.
        agent.speaks = HERE
        async with agent.connected():
            shown = await node(coordinator)
            assert (shown.state, shown.message, shown.hint) == ("connected", "", "")
            assert (await agents_check(coordinator)).ok


async def test_a_refused_agent_names_no_volumes(config: Config) -> None:
    async with serving(config, protocol=HERE) as coordinator:
        agent = await coordinator.agent()
        agent.speaks = (4, 5)
        agent.volume("v")
        await refused(agent)

        volumes = await coordinator.admin.ListVolumes(admin_pb2.ListVolumesRequest())

        assert list(volumes.volumes) == []


@pytest.mark.parametrize(
    ("speaks", "version"), [((3, 2), "1"), ((2, 2), "1\n"), ((2, 2), "x" * 101)]
)
async def test_what_no_agent_says_of_itself_is_refused(
    config: Config, speaks: tuple[int, int], version: str
) -> None:
    async with serving(config, protocol=HERE) as coordinator:
        agent = await coordinator.agent()
        agent.speaks, agent.version = speaks, version

        assert (await refused(agent)).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await node(coordinator)).state == "disconnected"
