"""Every call against every certificate that must not get in. The calls are those of the protocol's
own description, so that a new one is in here by itself.

What each call is sent would do something if the caller were let in, and what the coordinator keeps
is compared before and after.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_bytes
from typing import Any, Final

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from agent.daemon import SystemClock
from coordinator.api.authorise import RULES
from coordinator.config import Config
from coordinator.enrolment import Identity, KeyPair, Role
from proto.bootstrap import parse_token
from proto.tidemark.v1 import admin_pb2, agent_pb2
from tests.fakes.agent import FakeAgent
from tests.fakes.authority import Forger
from tests.integration.coordinator.serving import Coordinator, serving
from tests.integration.coordinator.test_access import METHODS, replace_paths

pytestmark = pytest.mark.asyncio

CALL_SECONDS: Final = 10
IN: Final = grpc.StatusCode.OK
HANDSHAKE: Final = grpc.StatusCode.UNAVAILABLE
NOBODY: Final = grpc.StatusCode.UNAUTHENTICATED
NOT_THIS: Final = grpc.StatusCode.PERMISSION_DENIED
# What gRPC itself says where a refusal overtakes what is still being sent: that it ended, not how.
UNTOLD: Final = {grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED}
TRIES: Final = 10
# Calls that leave something behind in what the coordinator keeps.
CHANGING: Final = {
    "AgentService/Enrol",
    "AgentService/Connect",
    "AdminService/CreateNodeToken",
    "AdminService/RevokeNode",
    "AdminService/MoveVolume",
    "AdminService/CreateBackup",
    "AdminService/CreateRestore",
    "AdminService/CreateVerify",
}


def in_days(days: float) -> datetime:
    return datetime.fromtimestamp(SystemClock().now_ns() / 10**9, UTC) + timedelta(days=days)


@dataclass
class Scene:
    """A coordinator with a node, a snapshot and an unused token, and whoever knocks."""

    coordinator: Coordinator
    agent: FakeAgent
    requests: Mapping[str, Message]
    forger: Forger

    def name_of(self, role: Role) -> str:
        """Whom a good certificate of this role names."""
        if role in {Role.NODE, Role.RENEWAL}:
            return self.agent.node_id.hex()
        return "local"

    def pair(self, role: Role, *, name: str = "", days: float = 1.0) -> KeyPair:
        """A certificate as the coordinator makes them for this role."""
        uri = Identity(role, name or self.name_of(role)).uri
        return self.forger.issue([uri], in_days(days))

    @asynccontextmanager
    async def knocking(
        self, pair: KeyPair | None, authority: bytes | None = None
    ) -> AsyncIterator["Knock"]:
        credentials = grpc.ssl_channel_credentials(
            authority or self.agent.authority,
            pair.private_key if pair else None,
            pair.certificate if pair else None,
        )
        async with grpc.aio.secure_channel(self.coordinator.grpc, credentials) as channel:
            yield Knock(channel, self.requests)

    def kept(self) -> tuple[list[str], list[str]]:
        """Everything in the catalog, and every file of the repository."""
        config = self.coordinator.config
        with closing(sqlite3.connect(f"file:{config.data}/catalog.db?mode=ro", uri=True)) as open_:
            catalog = list(open_.iterdump())
        return catalog, sorted(str(path) for path in config.repository.rglob("*"))


@dataclass
class Knock:
    """A channel of somebody, good or bad."""

    channel: grpc.aio.Channel
    requests: Mapping[str, Message]

    async def __call__(self, method: str) -> grpc.StatusCode:
        """How the call ended, OK also for one that was let in and failed at something else."""
        code, tries = await self._code(method), 1
        while code in UNTOLD and tries < TRIES:
            code, tries = await self._code(method), tries + 1
        return code if code in {HANDSHAKE, NOBODY, NOT_THIS} else IN

    async def _code(self, method: str) -> grpc.StatusCode:
        request = self.requests.get(method.removeprefix("/tidemark.v1."))
        stream: Any = self.channel.stream_stream(method, lambda message: message)(
            timeout=CALL_SECONDS
        )
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await stream.write(b"" if request is None else request.SerializeToString())
            await stream.done_writing()
            while await stream.read() is not grpc.aio.EOF:
                pass
        code: grpc.StatusCode = await stream.code()
        return code


@asynccontextmanager
async def scene(config: Config) -> AsyncIterator[Scene]:
    async with serving(config) as coordinator:
        agent = await coordinator.agent("web")
        agent.volume("data")
        await coordinator.agent("other")
        snapshot = await coordinator.back_up(agent, "data", {"a": b"alpha"})
        token = parse_token(await coordinator.token())
        enrol = agent_pb2.EnrolRequest(
            token_secret=token.secret,
            node_name="stranger",
            certificate_request=agent.request(),
            signing_public_key=token_bytes(32),
        )
        hello = agent_pb2.Hello(agent_version="9.9", protocol_version=1, volumes=agent.volumes)
        requests: dict[str, Message] = {
            "AgentService/Enrol": enrol,
            "AgentService/Connect": agent_pb2.ConnectRequest(hello=hello),
            "AdminService/RevokeNode": admin_pb2.RevokeNodeRequest(node="web"),
            "AdminService/MoveVolume": admin_pb2.MoveVolumeRequest(volume="data", node="other"),
            "AdminService/CreateBackup": admin_pb2.CreateBackupRequest(all=True),
            "AdminService/CreateRestore": admin_pb2.CreateRestoreRequest(
                snapshot=snapshot, target=b"/tmp/out"
            ),
            "AdminService/CreateVerify": admin_pb2.CreateVerifyRequest(all=True),
        }
        here = Scene(coordinator, agent, requests, Forger(config.data))
        # What is left of the backup, such as the last lines of its log, is written soon after it.
        quiet, last = 0, here.kept()
        while quiet < 3:
            await asyncio.sleep(0.1)
            now = here.kept()
            quiet, last = (quiet + 1 if now == last else 0), now
        yield here


def role_of(method: str) -> Role:
    """The one that may."""
    (role,) = RULES[method]
    return role


@pytest.mark.parametrize("name", sorted(CHANGING))
async def test_what_a_call_is_sent_would_do_something(config: Config, name: str) -> None:
    """Without this and the next, who is refused by mistake would pass all of the others."""
    method = f"/tidemark.v1.{name}"
    async with scene(config) as here:
        before = here.kept()
        async with here.knocking(here.pair(role_of(method))) as knock:
            assert await knock(method) is IN
        assert here.kept() != before


async def test_whoever_may_call_gets_in(config: Config) -> None:
    async with scene(config) as here:
        for method in METHODS:
            if method.removeprefix("/tidemark.v1.") not in CHANGING:
                async with here.knocking(here.pair(role_of(method))) as knock:
                    assert await knock(method) is IN, method


@pytest.mark.parametrize("role", list(Role))
async def test_an_expired_certificate_gets_into_nothing(config: Config, role: Role) -> None:
    async with scene(config) as here:
        before = here.kept()
        async with here.knocking(here.pair(role, days=-0.001)) as knock:
            assert {await knock(method) for method in METHODS} == {HANDSHAKE}
        assert here.kept() == before


async def test_a_certificate_that_expires_under_its_connection_gets_into_nothing_more(
    config: Config,
) -> None:
    async with scene(config) as here, AsyncExitStack() as stack:
        knocks = []
        for role in Role:
            pair = here.pair(role, days=6 / 86400)
            knocks.append(await stack.enter_async_context(here.knocking(pair)))
            await knocks[-1].channel.channel_ready()
        await asyncio.sleep(6.1)
        before = here.kept()
        for knock in knocks:
            assert {await knock(method) for method in METHODS} == {NOBODY}
        assert here.kept() == before


@pytest.mark.parametrize("role", list(Role))
async def test_a_foreign_certificate_gets_into_nothing(
    config: Config, role: Role, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = replace_paths(config, tmp_path_factory.mktemp("elsewhere"))
    async with serving(elsewhere):
        foreign = Forger(elsewhere.data)
    async with scene(config) as here:
        before = here.kept()
        uri = Identity(role, here.name_of(role)).uri
        pair = foreign.issue([uri], in_days(1))
        async with here.knocking(pair) as knock:
            assert {await knock(method) for method in METHODS} == {HANDSHAKE}
        assert here.kept() == before


async def test_nobody_gets_in_without_a_certificate(config: Config) -> None:
    async with scene(config) as here:
        before = here.kept()
        async with here.knocking(None) as knock:
            assert {await knock(method) for method in METHODS} == {HANDSHAKE}
        assert here.kept() == before


@pytest.mark.parametrize("role", [Role.NODE, Role.RENEWAL])
@pytest.mark.parametrize("case", ["revoked", "unknown", "no id"])
async def test_a_node_that_is_none_gets_into_nothing(config: Config, role: Role, case: str) -> None:
    names = {"revoked": "", "unknown": token_bytes(16).hex(), "no id": "web"}
    async with scene(config) as here:
        if case == "revoked":
            await here.coordinator.admin.RevokeNode(admin_pb2.RevokeNodeRequest(node="web"))
        before = here.kept()
        async with here.knocking(here.pair(role, name=names[case])) as knock:
            for method in METHODS:
                expected = NOBODY if role in RULES[method] else NOT_THIS
                assert await knock(method) is expected, method
        assert here.kept() == before


@pytest.mark.parametrize("role", list(Role))
async def test_a_role_gets_into_nothing_of_another(config: Config, role: Role) -> None:
    async with scene(config) as here:
        before = here.kept()
        async with here.knocking(here.pair(role)) as knock:
            for method in METHODS:
                if role not in RULES[method]:
                    assert await knock(method) is NOT_THIS, method
        assert here.kept() == before


NAMES: Final = {
    "none": [],
    "of the web": ["https://admin/local"],
    "unknown role": ["tidemark://root/local"],
    "no name": ["tidemark://admin/"],
    "upper case": ["TIDEMARK://admin/local"],
    "two": ["tidemark://admin/local", "tidemark://renewal/local"],
    "one of the web beside": ["https://example.com/", "tidemark://admin/local"],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
async def test_a_certificate_of_another_name_gets_into_nothing(
    config: Config, names: list[str]
) -> None:
    async with scene(config) as here:
        before = here.kept()
        pair = here.forger.issue(names, in_days(1))
        async with here.knocking(pair) as knock:
            assert {await knock(method) for method in METHODS} == {NOBODY}
        assert here.kept() == before


async def test_nobody_takes_a_coordinator_of_another_authority_for_theirs(
    config: Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = replace_paths(config, tmp_path_factory.mktemp("elsewhere"))
    async with serving(elsewhere):
        other = await asyncio.to_thread(Path(elsewhere.data / "authority.pem").read_bytes)
    async with scene(config) as here:
        before = here.kept()
        certificate = other[other.index(b"-----BEGIN CERTIFICATE") :]
        async with here.knocking(here.pair(Role.ADMIN), certificate) as knock:
            assert {await knock(method) for method in METHODS} == {HANDSHAKE}
        assert here.kept() == before
