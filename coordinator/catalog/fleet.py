"""Nodes, tokens and volumes in SQL."""

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import delete, exists, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Connection
from typing_extensions import override

from coordinator.catalog import coding
from coordinator.catalog.connections import Connections, reading, writing
from coordinator.catalog.interface import Fleet, TokenRecord
from coordinator.catalog.tables import (
    meta,
    nodes,
    sessions,
    snapshots,
    tasks,
    tokens,
    volumes,
)
from coordinator.holding import Holding, Named, attribute, move
from coordinator.model import Node, SessionState, Volume, VolumeReport
from repository.ids import NodeId, RepositoryId, VolumeId

# Well below SQLite's limit of variables.
_BATCH: Final = 500


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
    ) -> set[VolumeId]:
        revoked = select(nodes.c.revoked).where(nodes.c.node_id == node_id)
        if connection.scalar(revoked):
            # What it said before it was cut off comes too late.
            return set()
        connection.execute(
            update(volumes).where(volumes.c.node_id == node_id).values(present=False)
        )
        named = [Named(report.local_id, report.name) for report in reports]
        local_ids = [each.local_id for each in named]
        meant = attribute(node_id, named, _holdings(connection, node_id, local_ids))
        told = [
            coding.report_row(report) | {"volume_id": volume_id}
            for report in reports
            if (volume_id := meant[report.local_id]) is not None
        ]
        if told:
            known = insert(volumes)
            # Whose volume it is was decided when it was first seen or moved, and not by an agent.
            connection.execute(
                known.on_conflict_do_update(
                    index_elements=[volumes.c.volume_id],
                    set_={name: known.excluded[name] for name in told[0]},
                    where=volumes.c.node_id == node_id,
                ),
                [row | {"node_id": node_id, "first_seen_at": now} for row in told],
            )
        _drop_unread(connection, node_id)
        return {local_id for local_id, volume_id in meant.items() if volume_id is None}

    @override
    @writing
    def move_volume(
        self,
        connection: Connection,
        volume_id: VolumeId,
        to: NodeId,
        name: str,
        *,
        replacing: bool,
    ) -> list[VolumeId]:
        holdings = _holdings(connection, to, [volume_id])
        changed = move(volume_id, to, name, holdings, replacing=replacing)
        for holding in changed:
            connection.execute(
                update(volumes)
                .where(volumes.c.volume_id == holding.volume_id)
                .values(
                    node_id=holding.node_id,
                    local_id=holding.local_id,
                    awaits=holding.awaits,
                    present=False,
                )
            )
            # A task of the holder before, or of what is replaced, must not commit any more.
            connection.execute(
                update(sessions)
                .where(sessions.c.volume_id == holding.volume_id)
                .where(sessions.c.state == SessionState.OPEN)
                .values(state=SessionState.FENCED)
            )
        return [holding.volume_id for holding in changed]

    @override
    @reading
    def volumes(self, connection: Connection) -> list[Volume]:
        found = connection.execute(select(volumes).order_by(volumes.c.name, volumes.c.volume_id))
        return [coding.volume(row) for row in found]

    @override
    @writing
    def assign_volumes(
        self,
        connection: Connection,
        volume_ids: Iterable[VolumeId],
        repository_id: RepositoryId,
    ) -> None:
        assigned = (
            update(volumes)
            .where(volumes.c.volume_id.in_(list(volume_ids)))
            .values(repository_id=repository_id)
        )
        connection.execute(assigned)

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


def _holdings(
    connection: Connection, node_id: NodeId, volume_ids: Sequence[VolumeId]
) -> list[Holding]:
    """All that a node holds, and these volumes, whoever holds them."""
    has_snapshots = exists().where(snapshots.c.volume_id == volumes.c.volume_id)
    columns = (
        volumes.c.volume_id,
        volumes.c.node_id,
        volumes.c.name,
        volumes.c.local_id,
        volumes.c.awaits,
    )
    query = select(*columns, has_snapshots.label("has_snapshots"))
    batches = (volume_ids[start : start + _BATCH] for start in range(0, len(volume_ids), _BATCH))
    conditions = [
        volumes.c.node_id == node_id,
        *(volumes.c.volume_id.in_(batch) for batch in batches),
    ]
    found = (
        coding.holding(row)
        for condition in conditions
        for row in connection.execute(query.where(condition))
    )
    return list({holding.volume_id: holding for holding in found}.values())


def _forget_volumes(connection: Connection, node_id: NodeId) -> None:
    """Nobody tells of this node's volumes any more: there are their snapshots alone."""
    connection.execute(update(volumes).where(volumes.c.node_id == node_id).values(present=False))
    _drop_unread(connection, node_id)


def _drop_unread(connection: Connection, node_id: NodeId) -> None:
    """Containers come and go all day: what went and never was read leaves no row behind."""
    connection.execute(
        delete(volumes)
        .where(volumes.c.node_id == node_id, volumes.c.present.is_(False))
        .where(volumes.c.awaits.is_(None))
        .where(~exists().where(sessions.c.volume_id == volumes.c.volume_id))
        .where(~exists().where(tasks.c.volume_id == volumes.c.volume_id))
    )
