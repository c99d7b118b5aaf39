"""Opens the catalog: brings the file to the newest schema, then hands out its parts."""

import asyncio
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy.engine import Connection

from coordinator.catalog.bandwidth import SqlBandwidth
from coordinator.catalog.connections import Connections
from coordinator.catalog.fleet import SqlFleet
from coordinator.catalog.interface import Bandwidth, Catalog, Fleet, Jobs, Ledger, Locks
from coordinator.catalog.jobs import SqlJobs
from coordinator.catalog.ledger import SqlLedger
from coordinator.catalog.locks import SqlLocks
from coordinator.catalog.tables import metadata
from coordinator.catalog.upgrading import (
    REVISION,
    Standing,
    check_usable,
    copy_before_upgrade,
    look,
    remove_old_copies,
)
from coordinator.errors import CatalogError, UpgradeError
from coordinator.logs import get_logger
from repository.failpoints import failpoint

log = get_logger()

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
        self.bandwidth: Bandwidth = SqlBandwidth(connections)
        self.locks: Locks = SqlLocks(connections)

    async def close(self) -> None:
        """Give the files back."""
        await self._connections.close()


async def open_catalog(path: Path, now: int) -> Catalog:
    """The catalog in this file, made or upgraded as needed. The caller holds the data directory.

    `now`: Unix time in ns, for the name of the copy that is made before an upgrade. A catalog of a
    newer version is not touched (UnsupportedFormatError); one whose upgrade fails stays as it was
    (UpgradeError); CatalogError if it cannot be used for another reason.
    """
    standing, revision = await asyncio.to_thread(look, path)
    check_usable(path, standing, revision)
    if standing is Standing.OLDER:
        await _upgrade(path, revision, now)
    connections = Connections(path)
    try:
        await connections.write(_create if standing is Standing.NEW else _nothing)
    except CatalogError:
        await connections.close()
        raise
    return SqlCatalog(connections)


async def _upgrade(path: Path, revision: str, now: int) -> None:
    """Copy, then run the steps in one transaction: all of them happen, or none."""
    copy = await asyncio.to_thread(copy_before_upgrade, path, revision, now)
    log.info("upgrading the catalog", revision=revision, to=REVISION, copy=str(copy))
    failpoint("coordinator.upgrade.copied", CatalogError)
    # Only here, since a start that has nothing to change should not wait for Alembic.
    steps = importlib.import_module("coordinator.catalog.migrations").upgrade
    connections = Connections(path)
    try:
        await connections.write(partial(_run_steps, steps))
    except Exception as error:  # whatever a step stumbles over comes to the same
        raise UpgradeError(
            f"the upgrade of the catalog {path} from {revision} to {REVISION} failed: {error}",
            hint="the catalog is as it was, and the version of before works with it; "
            f"a copy of it is {copy}",
        ) from error
    finally:
        await connections.close()
    failpoint("coordinator.upgrade.done", CatalogError)
    await asyncio.to_thread(remove_old_copies, path)


def _run_steps(steps: Callable[[Connection], None], connection: Connection) -> None:
    steps(connection)
    failpoint("coordinator.upgrade.written", CatalogError)


def _create(connection: Connection) -> None:
    """Make a new catalog as it is now: the steps are for those that were made before."""
    metadata.create_all(connection)
    connection.exec_driver_sql(_VERSION_TABLE)
    connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (REVISION,))


def _nothing(_: Connection) -> None:
    """Begin and end a writing transaction: a disk that takes none should be known at start."""
