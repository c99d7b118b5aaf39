"""Opens the catalog: brings the file to the newest schema, then hands out its three parts."""

from pathlib import Path

import alembic.command
from alembic.config import Config
from sqlalchemy.engine import Connection

from coordinator.catalog.connections import Connections
from coordinator.catalog.fleet import SqlFleet
from coordinator.catalog.interface import Catalog, Fleet, Jobs, Ledger
from coordinator.catalog.jobs import SqlJobs
from coordinator.catalog.ledger import SqlLedger

_MIGRATIONS = Path(__file__).parent / "migrations"


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
    await connections.write(_upgrade)
    return SqlCatalog(connections)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
