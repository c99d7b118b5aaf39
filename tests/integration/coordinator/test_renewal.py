"""Certificates of a day, and how they are renewed."""

import asyncio
import shutil
from pathlib import Path
from secrets import token_bytes
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import msgspec
import pytest

from agent.config import Address
from agent.daemon import SystemClock
from agent.identity import Identity, Keys, Membership, load_identity, prepare_keys, save_membership
from agent.renewal import Renewal
from coordinator.config import Config
from coordinator.enrolment import expires_ns
from proto.tidemark.v1 import admin_pb2, agent_pb2
from proto.tidemark.v1.agent_pb2_grpc import AgentServiceStub
from repository.keys import SigningKey
from tests.fakes.agent import FakeAgent, channel
from tests.integration.coordinator.serving import Coordinator, serving
from tests.integration.coordinator.test_backup import detail

if TYPE_CHECKING:
    from proto.tidemark.v1.agent_pb2_grpc import AgentServiceAsyncStub

pytestmark = pytest.mark.asyncio


def living(config: Config, seconds: int) -> Config:
    """The same, with certificates that live so long."""
    return msgspec.structs.replace(config, certificate_seconds=seconds)


async def expired(certificate: bytes) -> None:
    """Wait until it has."""
    seconds = (expires_ns(certificate) - SystemClock().now_ns()) / 10**9
    await asyncio.sleep(max(0, seconds) + 0.1)


def identity_on_disk(agent: FakeAgent, state: Path) -> Identity:
    """The real agent's identity, with what the fake one holds."""
    prepare_keys(state)
    (state / "identity.new" / "tls.key").write_bytes(agent.key)
    (state / "identity.new" / "signing.key").write_bytes(agent.signing.reveal())
    membership = Membership(
        node_id=agent.node_id,
        node_name=agent.name,
        certificate=agent.certificate,
        renewal_certificate=agent.renewal_certificate,
        ca_certificate=agent.authority,
        signing_certificate=b"",
    )
    save_membership(state, membership)
    return Identity(Keys(agent.key, agent.signing), membership)


async def test_a_node_renews_both_its_certificates(config: Config) -> None:
    async with serving(living(config, 1000)) as coordinator:
        agent = await coordinator.agent()
        renewed = await agent.renew()
        agent.certificate, agent.renewal_certificate = (
            renewed.certificate,
            renewed.renewal_certificate,
        )
        await agent.renew()
        async with agent.connected():
            (node,) = (await coordinator.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes
    assert node.certificate_expires_at.seconds * 10**9 >= expires_ns(agent.certificate)


async def test_a_node_whose_certificate_has_expired_comes_back_by_itself(config: Config) -> None:
    async with serving(living(config, 1)) as coordinator:
        agent = await coordinator.agent()
        await expired(agent.certificate)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with agent.connected():
                pass
        agent.certificate = (await agent.renew()).certificate
        async with agent.connected():
            pass
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("theft", ["tls key", "another challenge", "node certificate"])
async def test_what_was_stolen_of_a_node_renews_nothing(config: Config, theft: str) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.renew(
                signing=SigningKey(token_bytes(32)) if theft == "tls key" else None,
                challenge=token_bytes(32) if theft == "another challenge" else None,
                certificate=agent.certificate if theft == "node certificate" else None,
            )
        (node,) = (await coordinator.admin.ListNodes(admin_pb2.ListNodesRequest())).nodes
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert node.certificate_expires_at.seconds * 10**9 == expires_ns(agent.certificate)


async def test_one_node_cannot_renew_for_another(config: Config) -> None:
    async with serving(config) as coordinator:
        agent, thief = await coordinator.agent("mine"), await coordinator.agent("thief")
        thief.node_id = agent.node_id
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await thief.renew()
        agent.signing = thief.signing
        with pytest.raises(grpc.aio.AioRpcError) as again:
            await agent.renew()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert again.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_revoked_node_renews_nothing(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent("web")
        await coordinator.admin.RevokeNode(admin_pb2.RevokeNodeRequest(node="web"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.renew()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_connection_does_not_outlive_its_certificate(config: Config) -> None:
    async with serving(living(config, 2)) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        async with agent.connected() as connection:
            async with asyncio.timeout(10):
                ended = await connection.stream.read()
            now = SystemClock().now_ns()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connection.stub.OpenSession(agent_pb2.OpenSessionRequest())
    assert ended is grpc.aio.EOF
    assert now >= expires_ns(agent.certificate)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    # With a new certificate the same call is good: a task waits for it.
    assert detail(caught.value).retryable


class Renewed:
    """Notes the identities that the agent is told to use."""

    def __init__(self) -> None:
        self.identities: asyncio.Queue[Identity] = asyncio.Queue()

    async def __call__(self, identity: Identity) -> None:
        self.identities.put_nowait(identity)


def renewal_of(
    coordinator: Coordinator, state: Path, identity: Identity, renewed: Renewed
) -> Renewal:
    host, _, port = coordinator.grpc.rpartition(":")
    address = Address(host, int(port))
    return Renewal(address, state, identity, clock=SystemClock(), renewed=renewed)


async def test_the_agent_renews_in_time_and_keeps_it(config: Config, tmp_path: Path) -> None:
    async with serving(living(config, 3)) as coordinator:
        agent = await coordinator.agent()
        identity, renewed = identity_on_disk(agent, tmp_path / "state"), Renewed()
        renewal = renewal_of(coordinator, tmp_path / "state", identity, renewed)
        await renewal.until_valid()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            running = group.create_task(renewal.run())
            seen = [agent.certificate]
            for _ in range(3):
                newest = (await renewed.identities.get()).membership
                # In time: the one before it is still good.
                assert SystemClock().now_ns() < expires_ns(seen[-1])
                seen.append(newest.certificate)
                kept = load_identity(tmp_path / "state")
                assert kept is not None
                assert kept.membership == newest
                shown = channel(coordinator.grpc, agent.authority, newest.certificate, agent.key)
                async with shown:
                    stub: AgentServiceAsyncStub = AgentServiceStub(shown)
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await stub.OpenSession(agent_pb2.OpenSessionRequest())
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            running.cancel()
    assert len(set(seen)) == 4


async def test_an_agent_that_was_off_too_long_renews_before_all_else(
    config: Config, tmp_path: Path
) -> None:
    async with serving(living(config, 2)) as coordinator:
        agent = await coordinator.agent()
        identity, renewed = identity_on_disk(agent, tmp_path / "state"), Renewed()
        await expired(agent.certificate)
        renewal = renewal_of(coordinator, tmp_path / "state", identity, renewed)
        await renewal.until_valid()
        newest = renewed.identities.get_nowait().membership
    assert expires_ns(newest.certificate) > expires_ns(agent.certificate)


async def test_renewal_goes_on_asking_while_the_coordinator_is_away(
    config: Config, tmp_path: Path
) -> None:
    async with serving(living(config, 1)) as coordinator:
        agent = await coordinator.agent()
        identity, renewed = identity_on_disk(agent, tmp_path / "state"), Renewed()
        renewal = renewal_of(coordinator, tmp_path / "state", identity, renewed)
    host, _, port = coordinator.grpc.rpartition(":")
    again = msgspec.structs.replace(config, listen=type(config.listen)(host, int(port)))
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(renewal.run())
        await asyncio.sleep(2)
        assert renewed.identities.empty()
        async with serving(again):
            newest = (await renewed.identities.get()).membership
        running.cancel()
    assert expires_ns(newest.certificate) > expires_ns(agent.certificate)


async def test_a_renewal_that_cannot_be_kept_is_not_used(config: Config, tmp_path: Path) -> None:
    async with serving(living(config, 1)) as coordinator:
        agent = await coordinator.agent()
        identity, renewed = identity_on_disk(agent, tmp_path / "state"), Renewed()
        renewal = renewal_of(coordinator, tmp_path / "state", identity, renewed)
        directory = tmp_path / "state" / "identity"
        await asyncio.to_thread(shutil.move, directory, tmp_path / "away")
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            running = group.create_task(renewal.run())
            await asyncio.sleep(1.5)
            assert renewed.identities.empty()
            await asyncio.to_thread(shutil.move, tmp_path / "away", directory)
            newest = (await renewed.identities.get()).membership
            running.cancel()
        kept = await asyncio.to_thread(load_identity, tmp_path / "state")
    assert kept is not None
    assert kept.membership == newest
