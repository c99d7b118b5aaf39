"""Catalogs as other versions leave them."""

import sqlite3
from contextlib import closing
from pathlib import Path


def to_first_revision(path: Path) -> None:
    """Make of a catalog, whose coordinator has ended, one of the first revision, rows and all."""
    with closing(sqlite3.connect(path)) as catalog, catalog:
        catalog.execute("ALTER TABLE volumes DROP COLUMN workload")
        catalog.execute("UPDATE alembic_version SET version_num = 'v0001'")


def to_unknown_revision(path: Path, revision: str = "v9999") -> None:
    """Make of a catalog, whose coordinator has ended, one of a version that is yet to come."""
    with closing(sqlite3.connect(path)) as catalog, catalog:
        catalog.execute("CREATE TABLE yet_to_come (number INTEGER)")
        catalog.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def revision_of(path: Path) -> str:
    """The revision that a catalog says it has."""
    with closing(sqlite3.connect(path)) as catalog:
        (revision,) = catalog.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(revision)
