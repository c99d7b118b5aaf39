"""Nodes as they join, say hello, report their volumes, and are revoked."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from coordinator.catalog import Catalog
from coordinator.custody import Random
from coordinator.dispatch import Clock, Dispatcher
from coordinator.enrolment import Authority, NodeCertificates, new_token, secret_hash
from coordinator.errors import (
    CatalogError,
    DamagedError,
    ForbiddenError,
    IncompatibleError,
    RejectedError,
    UnauthenticatedError,
    UsageError,
)
from coordinator.founding import Repository
from coordinator.logs import get_logger
from coordinator.model import Engine, Node, VolumeReport
from proto.renewal import CHALLENGE_BYTES, RENEWAL_DOMAIN, renewal_statement
from proto.versions import PROTOCOL, Side, Versions, agree
from repository.failpoints import failpoint
from repository.ids import ID_BYTES, NodeId
from repository.keys import SIGNATURE_BYTES, verify

log = get_logger()

_NAME_BYTES_MAX: Final = 253
_PUBLIC_KEY_BYTES: Final = 32
_VERDICTS: Final = frozenset({"protected", "excluded", "unsupported", "unprotected"})
# Far more than any node has; bounds what one hello may cost.
_VOLUMES_MAX: Final = 10_000
# Containers, labels and so on of one volume, and letters in each: far more than agents tell.
_TEXTS_MAX: Final = 500
_TEXT_MAX: Final = 10_000
_ENGINES_MAX: Final = 10
_VERSION_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Program:
    """Which program one side is, and what it speaks."""

    version: str
    protocol: Versions = PROTOCOL


@dataclass(frozen=True, slots=True)
class Told:
    """What an agent says of its node."""

    volumes: Sequence[VolumeReport]
    engines: Sequence[Engine]


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A new node, and what it is to keep."""

    node: Node
    certificates: NodeCertificates
    ca_certificate: bytes


class Fleet:
    """What happens to nodes."""

    def __init__(  # noqa: PLR0913 - what it is put together from
        self,
        catalog: Catalog,
        repository: Repository,
        authority: Authority,
        dispatcher: Dispatcher,
        program: Program,
        *,
        clock: Clock,
        random: Random,
    ) -> None:
        self._program = program
        self._catalog = catalog
        self._repository = repository
        self._authority = authority
        self._dispatcher = dispatcher
        self._clock = clock
        self._random = random
        # Heartbeats are remembered here: a write to the catalog for each would cost a sync.
        self._heard: dict[NodeId, int] = {}
        # Only as good as the agent's last word, so not worth keeping either.
        self._engines: dict[NodeId, Sequence[Engine]] = {}
        # As last told; and of those, what another node holds.
        self._told: dict[NodeId, Sequence[VolumeReport]] = {}
        self._claims: dict[NodeId, Sequence[VolumeReport]] = {}
        # What was told last is kept last.
        self._hearing = asyncio.Lock()
        # An agent that is refused asks again every half minute, so this is soon known again.
        self._agents: dict[NodeId, Program] = {}
        self._refusals: dict[NodeId, IncompatibleError] = {}

    def now(self) -> int:
        """The coordinator's time."""
        return self._clock()

    async def new_token(self, valid_seconds: int) -> tuple[str, int]:
        """A token's text, and when it expires."""
        text, record = new_token(
            self._authority,
            valid_seconds=valid_seconds,
            random=self._random,
            now=self._clock(),
        )
        await self._catalog.fleet.add_token(record)
        return text, record.expires_at

    async def enrol(
        self, *, secret: bytes, name: str, certificate_request: bytes, signing_public_key: bytes
    ) -> Enrolled:
        """Make a node of whoever holds a good token; RejectedError, UnauthenticatedError.

        Asked again with the same key, because the answer got lost, it is the same node. A node is
        certified in the repository: UnsupportedFormatError where that may not be written.
        """
        self._repository.config.check_writable()
        if not _is_name(name):
            raise RejectedError(
                f"{name!r} cannot be a node's name", hint="start the agent with another name"
            )
        if len(signing_public_key) != _PUBLIC_KEY_BYTES:
            raise RejectedError("a node's signing key has 32 bytes")
        now = self._clock()
        secret_id = secret_hash(secret)
        before = await self._catalog.fleet.enrolled_before(signing_public_key, secret_id, now)
        node_id = NodeId(self._random(ID_BYTES)) if before is None else before.node_id
        certificates = self._authority.node(node_id, certificate_request, now)
        if before is not None:
            node = before
        else:
            node = Node(
                node_id=node_id,
                name=await self._free_name(name),
                enrolled_at=now,
                certificate_expires_at=certificates.expires_at,
                signing_public_key=signing_public_key,
                signing_certificate=self._repository.certify_node(node_id, signing_public_key),
            )
            failpoint("coordinator.node.enrolling", CatalogError)
            if not await self._catalog.fleet.enrol(node, secret_id, now):
                raise UnauthenticatedError(
                    "this token was used or has expired",
                    hint="make a new one: tidemark node token",
                )
            failpoint("coordinator.node.enrolled", CatalogError)
        await self._repository.keep_certificate(node.node_id, node.signing_public_key)
        failpoint("coordinator.node.certified", CatalogError)
        log.info("node enrolled", node=node.name, node_id=node.node_id.hex())
        return Enrolled(node, certificates, self._authority.certificate)

    def new_challenge(self) -> bytes:
        """What a node must sign to get a new certificate."""
        return self._random(CHALLENGE_BYTES)

    async def renew(
        self, node: Node, *, challenge: bytes, certificate_request: bytes, signature: bytes
    ) -> NodeCertificates:
        """New certificates for a node that signed the challenge; RejectedError, ForbiddenError."""
        if len(signature) != SIGNATURE_BYTES:
            raise RejectedError("a renewal is signed")
        statement = renewal_statement(node.node_id, challenge, certificate_request)
        try:
            verify(node.signing_public_key, RENEWAL_DOMAIN, statement, signature)
        except DamagedError as error:
            log.warning("renewal refused", node=node.name)
            raise ForbiddenError(
                "the renewal is not signed by the key that this node joined with",
                hint="revoke the node if its certificate may be in other hands",
            ) from error
        certificates = self._authority.node(node.node_id, certificate_request, self._clock())
        failpoint("coordinator.renewal.signed", CatalogError)
        await self._catalog.fleet.certificate_renewed(node.node_id, certificates.expires_at)
        failpoint("coordinator.renewal.recorded", CatalogError)
        log.info("certificate renewed", node=node.name)
        return certificates

    async def _free_name(self, name: str) -> str:
        """A name that no living node has: a machine that lost its state joins beside its former."""
        taken = {node.name for node in await self._catalog.fleet.nodes() if not node.revoked}
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name}-{number}"
        return free

    async def said_hello(self, node: Node, agent: Program, told: Told) -> None:
        """An agent connected and named its volumes; IncompatibleError, RejectedError."""
        if not agent.version.isprintable() or len(agent.version) > _VERSION_MAX:
            raise RejectedError("a node reports an impossible version of its agent")
        now = self._clock()
        self._heard[node.node_id] = now
        self._agents[node.node_id] = agent
        await self._catalog.fleet.node_seen(node.node_id, agent.version, now)
        self._check_protocol(node, agent)
        await self.report(node, told)

    def _check_protocol(self, node: Node, agent: Program) -> None:
        agreed = agree(agent.protocol, self._program.protocol)
        if not isinstance(agreed, Side):
            self._refusals.pop(node.node_id, None)
            return
        if agreed is Side.AGENT:
            hint = f"upgrade the agent on {node.name}, then it connects by itself"
        else:
            hint = f"upgrade the coordinator to {agent.version}, then the agent connects by itself"
        refusal = IncompatibleError(
            f"agent {agent.version} speaks version {agent.protocol} of the protocol, "
            f"and coordinator {self._program.version} speaks {self._program.protocol}",
            hint=hint,
        )
        before = self._refusals.get(node.node_id)
        if before is None or before.message != refusal.message:
            log.warning("agent refused", node=node.name, reason=refusal.message, hint=hint)
        self._refusals[node.node_id] = refusal
        raise refusal

    def refusal(self, node_id: NodeId) -> IncompatibleError | None:
        """Why a node's agent was refused when it last asked, if it was."""
        return self._refusals.get(node_id)

    def protocol_version(self, node_id: NodeId) -> int:
        """The newest version that a node's agent speaks; zero if it was not heard of yet."""
        agent = self._agents.get(node_id)
        return 0 if agent is None else agent.protocol.newest

    async def report(self, node: Node, told: Told) -> None:
        """Keep what an agent says of its node; RejectedError for what no sound agent says."""
        reports = told.volumes
        if len(reports) > _VOLUMES_MAX:
            raise RejectedError("a node reports more volumes than a node can have")
        for report in reports:
            if not _is_sound(report):
                raise RejectedError(f"a node reports an impossible volume {report.name!r}")
        for engine in told.engines[:_ENGINES_MAX]:
            if not f"{engine.name}{engine.address}{engine.version}{engine.message}".isprintable():
                raise RejectedError("a node reports an impossible container engine")
        self._engines[node.node_id] = tuple(told.engines[:_ENGINES_MAX])
        self._told[node.node_id] = tuple(reports)
        await self.hear_again(node.node_id)

    async def hear_again(self, node_id: NodeId) -> None:
        """Keep what an agent told last of its volumes, as they are held by now."""
        async with self._hearing:
            told = self._told.get(node_id)
            if told is None:
                return
            claimed = await self._catalog.fleet.report_volumes(node_id, told, self._clock())
            self._claims[node_id] = [each for each in told if each.local_id in claimed]

    def told(self, node_id: NodeId) -> Sequence[VolumeReport]:
        """The volumes that a node's agent last told of."""
        return self._told.get(node_id, ())

    def claims(self, node_id: NodeId) -> Sequence[VolumeReport]:
        """Those of them that it does not hold."""
        return self._claims.get(node_id, ())

    def engines(self, node_id: NodeId) -> Sequence[Engine]:
        """The container engines that a node's agent last told of."""
        return self._engines.get(node_id, ())

    def heard(self, node: Node) -> None:
        """A heartbeat."""
        self._heard[node.node_id] = self._clock()

    async def nodes(self) -> list[Node]:
        """All nodes, with when each was last heard of."""
        return [
            replace(node, last_seen_at=self._heard.get(node.node_id, node.last_seen_at))
            for node in await self._catalog.fleet.nodes()
        ]

    async def revoke(self, node: Node) -> Node:
        """Never believe this node again, beginning now."""
        if node.revoked:
            raise UsageError(f"node {node.name} is revoked already")
        await self._catalog.fleet.revoke_node(node.node_id)
        await self._dispatcher.drop(node.node_id)
        self._told.pop(node.node_id, None)
        self._claims.pop(node.node_id, None)
        log.warning("node revoked", node=node.name)
        return replace(node, revoked=True)


def _is_sound(report: VolumeReport) -> bool:
    used = report.workload
    texts = (
        *(report.reason, *report.tracking),
        *(used.project, *used.containers, *used.labels, *used.labels.values()),
    )
    return (
        len(report.local_id) == ID_BYTES
        and report.name != ""
        and report.name.isprintable()
        and report.verdict in _VERDICTS
        and len(texts) <= _TEXTS_MAX
        and all(len(text) <= _TEXT_MAX and text.isprintable() for text in texts)
    )


def _is_name(name: str) -> bool:
    fits = 0 < len(name.encode()) <= _NAME_BYTES_MAX
    return fits and "/" not in name and name.isprintable()
