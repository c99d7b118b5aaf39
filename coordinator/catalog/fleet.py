"""Nodes, tokens and volumes in SQL."""

from collections.abc import Iterable, Sequence

from sqlalchemy import delete, exists, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Connection
from typing_extensions import override

from coordinator.catalog import coding
from coordinator.catalog.connections import Connections, reading, writing
from coordinator.catalog.interface import Fleet, TokenRecord
from coordinator.catalog.tables import meta, nodes, sessions, tasks, tokens, volumes
from coordinator.model import Node, Volume, VolumeReport
from repository.ids import NodeId, VolumeId


class SqlFleet(Fleet):
    """Fleet on SQLite."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections

    @override
    @writing
    def add_token(self, connection: Connection, token: TokenRecord) -> None:
        row = {
            "token_id": token.token_id,
            "secret_hash": token.secret_hash,
            "created_at": token.created_at,
            "expires_at": token.expires_at,
        }
        connection.execute(insert(tokens).values(row))

    @override
    @writing
    def enrol(self, connection: Connection, node: Node, secret_hash: bytes, now: int) -> bool:
        good = (
            update(tokens)
            .where(tokens.c.secret_hash == secret_hash)
            .where(tokens.c.used_at.is_(None))
            .where(tokens.c.expires_at > now)
            .values(used_at=now)
        )
        row = {
            "node_id": node.node_id,
            "name": node.name,
            "enrolled_at": node.enrolled_at,
            "certificate_expires_at": node.certificate_expires_at,
            "signing_public_key": node.signing_public_key,
            "signing_certificate": node.signing_certificate,
        }
        if connection.execute(good).rowcount != 1:
            return False
        connection.execute(insert(nodes).values(row))
        return True

    @override
    @reading
    def enrolled_before(
        self, connection: Connection, signing_public_key: bytes, secret_hash: bytes, now: int
    ) -> Node | None:
        found = connection.execute(
            select(nodes)
            # A node is enrolled in the very transaction that uses its token up.
            .join(tokens, tokens.c.used_at == nodes.c.enrolled_at)
            .where(tokens.c.secret_hash == secret_hash)
            .where(tokens.c.expires_at > now)
            .where(nodes.c.signing_public_key == signing_public_key)
            .where(nodes.c.last_seen_at.is_(None))
            .where(nodes.c.revoked.is_(False))
        )
        row = found.one_or_none()
        return None if row is None else coding.node(row)

    @override
    @reading
    def node(self, connection: Connection, node_id: NodeId) -> Node | None:
        found = connection.execute(select(nodes).where(nodes.c.node_id == node_id))
        row = found.one_or_none()
        return None if row is None else coding.node(row)

    @override
    @reading
    def nodes(self, connection: Connection) -> list[Node]:
        found = connection.execute(select(nodes).order_by(nodes.c.name, nodes.c.enrolled_at))
        return [coding.node(row) for row in found]

    @override
    @writing
    def node_seen(
        self, connection: Connection, node_id: NodeId, agent_version: str, now: int
    ) -> None:
        seen = (
            update(nodes)
            .where(nodes.c.node_id == node_id)
            .values(agent_version=agent_version, last_seen_at=now)
        )
        connection.execute(seen)

    @override
    @writing
    def certificate_renewed(self, connection: Connection, node_id: NodeId, expires_at: int) -> None:
        renewed = (
            update(nodes)
            .where(nodes.c.node_id == node_id)
            .values(certificate_expires_at=expires_at)
        )
        connection.execute(renewed)

    @override
    @writing
    def revoke_node(self, connection: Connection, node_id: NodeId) -> None:
        connection.execute(update(nodes).where(nodes.c.node_id == node_id).values(revoked=True))
        _forget_volumes(connection, node_id)

    @override
    @writing
    def report_volumes(
        self, connection: Connection, node_id: NodeId, reports: Sequence[VolumeReport], now: int
    ) -> None:
        revoked = select(nodes.c.revoked).where(nodes.c.node_id == node_id)
        if connection.scalar(revoked):
            # What it said before it was cut off comes too late.
            return
        connection.execute(
            update(volumes).where(volumes.c.node_id == node_id).values(present=False)
        )
        told = [coding.report_row(report) for report in reports]
        if told:
            known = insert(volumes)
            # Whose volume it is was decided when it was first seen, and not by an agent.
            connection.execute(
                known.on_conflict_do_update(
                    index_elements=[volumes.c.volume_id],
                    set_={name: known.excluded[name] for name in told[0]},
                    where=volumes.c.node_id == node_id,
                ),
                [row | {"node_id": node_id, "first_seen_at": now} for row in told],
            )
        _drop_unread(connection, node_id)

    @override
    @reading
    def volumes(self, connection: Connection) -> list[Volume]:
        found = connection.execute(select(volumes).order_by(volumes.c.name, volumes.c.volume_id))
        return [coding.volume(row) for row in found]

    @override
    @writing
    def mark_scheduled(
        self, connection: Connection, volume_ids: Iterable[VolumeId], now: int
    ) -> None:
        marked = (
            update(volumes)
            .where(volumes.c.volume_id.in_(list(volume_ids)))
            .values(scheduled_at=now)
        )
        connection.execute(marked)

    @override
    @reading
    def get_meta(self, connection: Connection, key: str) -> bytes | None:
        value: bytes | None = connection.scalar(select(meta.c.value).where(meta.c.key == key))
        return value

    @override
    @writing
    def set_meta(self, connection: Connection, key: str, value: bytes) -> None:
        kept = insert(meta).values(key=key, value=value)
        connection.execute(
            kept.on_conflict_do_update(index_elements=[meta.c.key], set_={"value": value})
        )


def _forget_volumes(connection: Connection, node_id: NodeId) -> None:
    """Nobody tells of this node's volumes any more: there are their snapshots alone."""
    connection.execute(update(volumes).where(volumes.c.node_id == node_id).values(present=False))
    _drop_unread(connection, node_id)


def _drop_unread(connection: Connection, node_id: NodeId) -> None:
    """Containers come and go all day: what went and never was read leaves no row behind."""
    connection.execute(
        delete(volumes)
        .where(volumes.c.node_id == node_id, volumes.c.present.is_(False))
        .where(~exists().where(sessions.c.volume_id == volumes.c.volume_id))
        .where(~exists().where(tasks.c.volume_id == volumes.c.volume_id))
    )
