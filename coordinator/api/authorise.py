"""Who may call what: one table, and one gate in front of every call.

A method without a row is refused to everybody, and a test that walks the services fails. A caller
is who its certificate says, for as long as that is valid, whenever the connection was made; a node
besides must be known and not revoked. All of that is looked at anew at every call.
"""

from typing import Any, Final

import grpc.aio

from coordinator.catalog import Catalog
from coordinator.dispatch import Clock
from coordinator.enrolment import Identity, Role, expires_ns, parse_identity
from coordinator.errors import ExpiredError, ForbiddenError, UnauthenticatedError
from coordinator.model import Node
from repository.ids import NodeId

_AGENT: Final = "/tidemark.v1.AgentService/"
_ADMIN: Final = "/tidemark.v1.AdminService/"

# Who may call each method. Roles below admin get their own rows when they exist.
RULES: Final[dict[str, frozenset[Role]]] = {
    _AGENT + "Enrol": frozenset({Role.BOOTSTRAP}),
    _AGENT + "RenewCertificate": frozenset({Role.RENEWAL}),
    **{
        _AGENT + method: frozenset({Role.NODE})
        for method in (
            "Connect",
            "OpenSession",
            "ReadBase",
            "UploadPack",
            "SignUpload",
            "ConfirmUpload",
            "Commit",
            "OpenRestore",
            "ReadPack",
            "SignReads",
        )
    },
    **{
        _ADMIN + method: frozenset({Role.ADMIN})
        for method in (
            "GetStatus",
            "GetRepository",
            "ListRepositories",
            "InitRepository",
            "ExportRecoveryKit",
            "RunDoctor",
            "ListNodes",
            "CreateNodeToken",
            "RevokeNode",
            "ListVolumes",
            "MoveVolume",
            "AssignVolumes",
            "CreateBackup",
            "CreateRestore",
            "CreateVerify",
            "ListJobs",
            "GetJob",
            "WatchJob",
            "CancelJob",
            "GetJobLogs",
            "ListSnapshots",
            "GetSnapshot",
            "ListEntries",
            "FindEntries",
            "ReadFile",
            "DiffSnapshots",
            "GetBandwidth",
            "SetBandwidth",
        )
    },
}

Context = grpc.aio.ServicerContext[Any, Any]


def identity_of(context: Context) -> Identity:
    """Who calls, by the certificate of the connection; UnauthenticatedError."""
    names = context.auth_context().get("x509_subject_alternative_name", [])
    found = [parse_identity(name.decode("utf-8", "replace")) for name in names]
    if len(found) == 1 and found[0] is not None:
        return found[0]
    raise UnauthenticatedError(
        "this certificate names nobody that the coordinator knows",
        hint="use a context or a token that this coordinator has given out",
    )


def certificate_expires_at(context: Context) -> int:
    """When the certificate of the connection expires, Unix time in ns."""
    (certificate,) = context.auth_context()["x509_pem_cert"]
    return expires_ns(certificate)


def node_id_of(identity: Identity) -> NodeId:
    """Which node an identity names; one that no node has, where it names none."""
    try:
        return NodeId(bytes.fromhex(identity.name))
    except ValueError:
        return NodeId(b"")


class Gate:
    """Checks callers."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock

    async def check(self, method: str, context: Context) -> Identity:
        """The caller, if it may call this method; ForbiddenError, UnauthenticatedError."""
        identity = identity_of(context)
        if certificate_expires_at(context) <= self._clock():
            raise ExpiredError(
                "the certificate of this connection has expired",
                hint="connect anew; a node renews its certificate by itself",
            )
        if identity.role not in RULES.get(method, frozenset()):
            raise ForbiddenError(f"a {identity.role} may not call {method.rpartition('/')[2]}")
        if identity.role in {Role.NODE, Role.RENEWAL}:
            await self.node(identity)
        return identity

    async def node(self, identity: Identity) -> Node:
        """The node behind an identity; UnauthenticatedError if unknown or revoked."""
        node = await self._catalog.fleet.node(node_id_of(identity))
        if node is None or node.revoked:
            raise UnauthenticatedError(
                "this node is revoked" if node is not None else "this node is not enrolled here",
                hint="enrol it again with a new token: tidemark node token",
            )
        return node
