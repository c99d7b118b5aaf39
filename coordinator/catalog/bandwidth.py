"""Limits of the network in SQL."""

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Connection
from typing_extensions import override

from coordinator.catalog import coding
from coordinator.catalog.connections import Connections, reading, writing
from coordinator.catalog.interface import Bandwidth
from coordinator.catalog.tables import bandwidth_limits
from coordinator.limits import Limit, Rule, Scope, with_rule


class SqlBandwidth(Bandwidth):
    """Bandwidth on SQLite."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections

    @override
    @reading
    def limits(self, connection: Connection) -> list[Limit]:
        columns = bandwidth_limits.c
        found = connection.execute(
            select(bandwidth_limits).order_by(columns.scope, columns.subject)
        )
        return [coding.limit(row) for row in found]

    @override
    @writing
    def add_rule(self, connection: Connection, scope: Scope, subject: bytes, rule: Rule) -> Limit:
        columns = bandwidth_limits.c
        mine = (columns.scope == scope) & (columns.subject == subject)
        row = connection.execute(select(bandwidth_limits).where(mine)).one_or_none()
        rules = with_rule(() if row is None else coding.limit(row).rules, rule)
        if not rules:
            connection.execute(delete(bandwidth_limits).where(mine))
        else:
            value = coding.encode(rules)
            kept = insert(bandwidth_limits).values(scope=scope, subject=subject, rules=value)
            connection.execute(
                kept.on_conflict_do_update(
                    index_elements=[columns.scope, columns.subject], set_={"rules": value}
                )
            )
        return Limit(scope, subject, rules)
