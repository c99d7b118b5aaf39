"""Who gets in, and who may call what."""

import asyncio
from itertools import product
from pathlib import Path
from secrets import token_bytes
from typing import Any

import aiohttp
import grpc
import grpc.aio
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.api.authorise import RULES
from coordinator.config import Config
from coordinator.enrolment import Role
from coordinator.errors import BusyError, NoRepositoryError
from coordinator.process import DataLock
from proto.bootstrap import parse_token
from proto.tidemark.v1 import admin_pb2, admin_pb2_grpc, agent_pb2
from repository.keys import SigningKey
from tests.fakes.agent import FakeAgent, channel
from tests.integration.coordinator.serving import Coordinator, admin_channel, serving

SERVICES = [
    agent_pb2.DESCRIPTOR.services_by_name["AgentService"],
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
]
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in SERVICES
    for method in service.methods
}


def test_every_method_has_a_rule_and_every_rule_a_method() -> None:
    assert set(RULES) == set(METHODS)
    assert all(RULES.values())


async def call(open_channel: grpc.aio.Channel, method: str) -> grpc.StatusCode:
    """Call with nothing; how it ended."""
    # Who still sends when its call ends is told INTERNAL by gRPC, whatever the reason was. A lone
    # request goes in one with its end; of a stream that has one, the coordinator awaits that; any
    # other is refused before its first message.
    stream: Any
    if not METHODS[method].client_streaming:
        lone: Any = open_channel.unary_stream(method)
        stream = lone(b"")
    else:
        stream = open_channel.stream_stream(method)()
        if not METHODS[method].server_streaming:
            await stream.done_writing()
    try:
        async with asyncio.timeout(5):
            while await stream.read() is not grpc.aio.EOF:
                pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    code: grpc.StatusCode = await stream.code()
    return code


def channels(
    coordinator: Coordinator, agent: FakeAgent, token: str
) -> dict[Role, grpc.aio.Channel]:
    bootstrap = parse_token(token)
    return {
        Role.NODE: channel(coordinator.grpc, agent.authority, agent.certificate, agent.key),
        Role.ADMIN: admin_channel(coordinator.config),
        Role.BOOTSTRAP: channel(
            coordinator.grpc,
            bootstrap.ca_certificate,
            bootstrap.certificate,
            bootstrap.private_key,
        ),
    }


@pytest.mark.asyncio
async def test_no_role_calls_what_its_rule_does_not_allow(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        opened = channels(coordinator, agent, await coordinator.token())
        for role, method in product(opened, METHODS):
            if role not in RULES[method]:
                assert await call(opened[role], method) is grpc.StatusCode.PERMISSION_DENIED
        for each in opened.values():
            await each.close()


@pytest.mark.asyncio
async def test_a_token_is_good_once(config: Config) -> None:
    async with serving(config) as coordinator:
        token = await coordinator.token()
        await FakeAgent.enrol(coordinator.grpc, token, "first")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await FakeAgent.enrol(coordinator.grpc, token, "second")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.asyncio
async def test_joining_may_be_asked_again_until_the_node_was_heard_of(config: Config) -> None:
    key, signing = ec.generate_private_key(ec.SECP256R1()), SigningKey(token_bytes(32))
    async with serving(config) as coordinator:
        text = await coordinator.token()
        first = await FakeAgent.enrol(coordinator.grpc, text, "web", key, signing)
        again = await FakeAgent.enrol(coordinator.grpc, text, "web", key, signing)
        async with again.connected():
            pass
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await FakeAgent.enrol(coordinator.grpc, text, "web", key, signing)
        nodes = (await coordinator.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes

    assert first.node_id == again.node_id
    assert [node.name for node in nodes] == ["web"]
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.asyncio
async def test_a_second_node_of_a_name_gets_a_name_of_its_own(config: Config) -> None:
    async with serving(config) as coordinator:
        await coordinator.agent("web")
        await coordinator.agent("web")
        nodes = (await coordinator.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes
    assert [node.name for node in nodes] == ["web", "web-2"]


@pytest.mark.asyncio
async def test_a_revoked_node_is_cut_off_and_refused_everywhere(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent("web")
        agent.volume("data")
        async with agent.connected() as connection:
            await coordinator.admin.RevokeNode(admin_pb2.RevokeNodeRequest(node="web"))
            ended = await connection.stream.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connection.stub.OpenSession(agent_pb2.OpenSessionRequest())
    assert ended is grpc.aio.EOF
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.asyncio
async def test_a_certificate_of_another_authority_does_not_get_in(
    config: Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other_home = tmp_path_factory.mktemp("other")
    other_config = replace_paths(config, other_home)
    async with serving(config) as coordinator, serving(other_config) as other:
        foreign = await other.agent()
        async with channel(
            coordinator.grpc, foreign.authority, foreign.certificate, foreign.key
        ) as open_channel:
            stub = admin_pb2_grpc.AdminServiceStub(open_channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def replace_paths(config: Config, directory: Path) -> Config:
    return msgspec.structs.replace(
        config, data=directory / "data", repository=directory / "repository"
    )


@pytest.mark.asyncio
async def test_garbage_on_the_port_harms_nobody(config: Config) -> None:
    async with serving(config) as coordinator:
        host, _, port = coordinator.grpc.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
        await writer.drain()
        writer.close()
        status = await coordinator.admin.GetStatus(admin_pb2.GetStatusRequest())
    assert status.unlocked


@pytest.mark.asyncio
async def test_metrics_and_health_are_served(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent("web")
        agent.volume("data")
        await coordinator.back_up(agent, "data", {"a": b"a"})
        ended, text = 'tidemark_jobs_ended_total{kind="backup",phase="Completed"} 1.0', ""
        async with aiohttp.ClientSession() as session, asyncio.timeout(10):
            while ended not in text:  # a job is counted soon after it is seen to have ended
                async with session.get(f"http://{coordinator.http}/metrics") as answer:
                    text = await answer.text()
            async with session.get(f"http://{coordinator.http}/healthz") as answer:
                health = answer.status
            async with session.get(f"http://{coordinator.http}/packs") as answer:
                missing = answer.status
            async with session.post(f"http://{coordinator.http}/healthz") as answer:
                posted = answer.status
    assert (health, missing, posted) == (200, 404, 405)
    assert 'tidemark_volume_last_success_timestamp_seconds{node="web",volume="data"}' in text
    assert "tidemark_packs 2.0" in text


@pytest.mark.asyncio
async def test_a_second_coordinator_on_the_same_data_is_refused(config: Config) -> None:
    lock = DataLock(config.data)
    with pytest.raises(BusyError) as caught:
        DataLock(config.data)
    lock.close()
    DataLock(config.data).close()
    assert caught.value.exit_code == 11


@pytest.mark.asyncio
@pytest.mark.parametrize("case", ["stranger", "foreign", "gone"])
async def test_what_is_not_this_coordinators_repository_is_never_touched(
    config: Config, tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    home = tmp_path_factory.mktemp("home")
    if case == "stranger":
        wrong = replace_paths(config, home)
        wrong.repository.mkdir()
        (wrong.repository / "precious").write_bytes(b"x")
    elif case == "foreign":
        wrong = replace_paths(config, home)
        await asyncio.to_thread(config.repository.rename, wrong.repository)
    else:
        wrong = config
        await asyncio.to_thread((config.repository / "config").unlink)
    before = sorted(wrong.repository.rglob("*"))
    with pytest.raises(ExceptionGroup) as caught:
        async with serving(wrong):
            pass
    (error,) = caught.value.exceptions
    assert isinstance(error, NoRepositoryError)
    assert error.exit_code == 10
    assert sorted(wrong.repository.rglob("*")) == before
