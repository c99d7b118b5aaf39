"""Opens the catalog: brings the file to the newest schema, then hands out its three parts."""

import importlib
from pathlib import Path
from typing import Final

from sqlalchemy.engine import Connection

from coordinator.catalog.connections import Connections
from coordinator.catalog.fleet import SqlFleet
from coordinator.catalog.interface import Catalog, Fleet, Jobs, Ledger
from coordinator.catalog.jobs import SqlJobs
from coordinator.catalog.ledger import SqlLedger
from coordinator.catalog.tables import metadata

# The newest revision of migrations/, which makes what tables.py says.
REVISION: Final = "v0003"
# Alembic's own table, as Alembic makes it.
_VERSION_TABLE: Final = (
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL,"
    " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)


class SqlCatalog:
    """The catalog in one SQLite file."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self.fleet: Fleet = SqlFleet(connections)
        self.jobs: Jobs = SqlJobs(connections)
        self.ledger: Ledger = SqlLedger(connections)

    async def close(self) -> None:
        """Give the files back."""
        await self._connections.close()


async def open_catalog(path: Path) -> Catalog:
    """The catalog in this file, made or upgraded as needed. The caller holds the data directory."""
    connections = Connections(path)
    await connections.write(_bring_up_to_date)
    return SqlCatalog(connections)


def _bring_up_to_date(connection: Connection) -> None:
    """Make or change the tables where they are not those of this version; else do nothing.

    A new catalog is made as it is now: the steps there are for those that were made before.
    """
    names = set(connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars())
    if not names:
        metadata.create_all(connection)
        connection.exec_driver_sql(_VERSION_TABLE)
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (REVISION,))
    elif "alembic_version" not in names or _revision(connection) != REVISION:
        # Only here, since a start that has nothing to change should not wait for Alembic.
        importlib.import_module("coordinator.catalog.migrations").upgrade(connection)


def _revision(connection: Connection) -> str | None:
    revision: str | None = connection.exec_driver_sql(
        "SELECT version_num FROM alembic_version"
    ).scalar_one_or_none()
    return revision
