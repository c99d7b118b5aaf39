"""What agents tell of their volumes and engines, as people see it."""

import asyncio

import grpc
import pytest

from coordinator.config import Config
from proto.tidemark.v1 import admin_pb2, agent_pb2, common_pb2
from tests.fakes.agent import FakeAgent
from tests.integration.coordinator.serving import Coordinator, serving

pytestmark = pytest.mark.asyncio

ENGINE = common_pb2.Engine(name="docker", address="unix:///d.sock", answers=True, version="20.10")


async def volumes(coordinator: Coordinator) -> dict[str, admin_pb2.Volume]:
    answer = await coordinator.admin.ListVolumes(admin_pb2.ListVolumesRequest())
    return {volume.volume: volume for volume in answer.volumes}


async def eventually(coordinator: Coordinator, present: set[str]) -> None:
    async with asyncio.timeout(5):
        seen = None
        while seen != present:
            seen = {each.volume for each in (await volumes(coordinator)).values() if each.present}


async def checks(coordinator: Coordinator) -> dict[str, admin_pb2.DoctorCheck]:
    answer = await coordinator.admin.RunDoctor(admin_pb2.RunDoctorRequest())
    return {check.name: check for check in answer.checks}


def tell(agent: FakeAgent, *engines: common_pb2.Engine) -> agent_pb2.ConnectRequest:
    report = agent_pb2.VolumesReport(volumes=agent.volumes, engines=engines)
    return agent_pb2.ConnectRequest(volumes=report)


async def test_verdicts_and_users_of_volumes_are_shown(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        for name in ("data", "sock"):
            agent.volume(name)
        agent.volumes[0].containers.extend(["db", "web"])
        agent.volumes[0].project = "shop"
        agent.volumes[0].labels["tier"] = "gold"
        agent.volumes[1].verdict, agent.volumes[1].reason = "excluded", "a socket holds no data"
        async with agent.connected():
            seen = await volumes(coordinator)

    assert (list(seen["data"].containers), seen["data"].project) == (["db", "web"], "shop")
    assert dict(seen["data"].labels) == {"tier": "gold"}
    assert (seen["sock"].verdict, seen["sock"].reason) == ("excluded", "a socket holds no data")


async def test_a_volume_that_is_gone_says_so_and_keeps_its_snapshots(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        agent.volume("never")
        await coordinator.back_up(agent, "data", {"a": b"a"})
        agent.volumes.clear()
        async with agent.connected():
            await eventually(coordinator, set())
            seen = await volumes(coordinator)
            unprotected = await coordinator.admin.ListVolumes(
                admin_pb2.ListVolumesRequest(unprotected_only=True)
            )

    assert set(seen) == {"data"}
    assert seen["data"].last_snapshot_id
    assert (seen["data"].verdict, seen["data"].present) == ("unprotected", False)
    assert "not on its node any more" in seen["data"].reason
    assert [volume.volume for volume in unprotected.volumes] == ["data"]


async def test_the_doctor_says_whether_engines_answer(config: Config) -> None:
    silent = common_pb2.Engine(name="docker", address="unix:///d.sock", message="it is down")
    async with serving(config) as coordinator:
        agent = await coordinator.agent("web")
        async with agent.connected() as connection:
            assert "docker" not in await checks(coordinator)
            for engine in (silent, ENGINE):
                agent.volume(f"{engine.answers}")
                await connection.say(tell(agent, engine))
                await eventually(coordinator, {volume.name for volume in agent.volumes})
                check = (await checks(coordinator))["docker"]
                assert check.ok == engine.answers
                assert ("web: it is down" in check.message) != engine.answers
            status = await coordinator.admin.GetStatus(admin_pb2.GetStatusRequest())

            assert "20.10" in (await checks(coordinator))["docker"].message

    assert list(status.nodes[0].engines) == [ENGINE]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda volume: volume.containers.append("\x1b[2J"),
        lambda volume: volume.containers.extend(str(number) for number in range(1000)),
        lambda volume: volume.labels.update({"a": "x" * 20_000}),
        lambda volume: setattr(volume, "project", "a\nb"),
        lambda volume: setattr(volume, "verdict", "perfect"),
    ],
)
async def test_what_no_sound_agent_tells_is_refused(config: Config, spoil: object) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        assert callable(spoil)
        spoil(agent.volumes[0])
        with pytest.raises((grpc.aio.AioRpcError, AssertionError)):
            async with agent.connected():
                pass
        assert await volumes(coordinator) == {}
