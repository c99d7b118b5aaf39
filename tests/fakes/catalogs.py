"""Catalogs as other versions leave them."""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.engine import URL

from coordinator.catalog import migrations
from coordinator.catalog.upgrading import REVISIONS


def to_first_revision(path: Path) -> None:
    """Make of a catalog, whose coordinator has ended, one of the first revision, rows and all.

    Its tables are made by the first step itself; what later steps added to a row is left out.
    """
    first = path.with_name(f"{path.name}.first")
    engine = create_engine(URL.create("sqlite", database=str(first)))
    with engine.begin() as connection:
        migrations.upgrade(connection, REVISIONS[0])
    engine.dispose()
    with closing(sqlite3.connect(first)) as catalog, catalog:
        catalog.execute("ATTACH ? AS now", (str(path),))
        for table in _tables(catalog):
            columns = ", ".join(f'"{name}"' for name in _columns(catalog, table))
            rows = f"SELECT {columns} FROM now.{table}"  # noqa: S608 - names of our own tables
            catalog.execute(f"INSERT INTO main.{table} ({columns}) {rows}")
    for suffix in ("", "-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
    first.rename(path)


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


def _tables(catalog: sqlite3.Connection) -> list[str]:
    """All tables of the first revision that there still are, but for the revision itself."""
    made = catalog.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")
    kept = {name for (name,) in catalog.execute("SELECT name FROM now.sqlite_master")}
    return [name for (name,) in made if name in kept and name != "alembic_version"]


def _columns(catalog: sqlite3.Connection, table: str) -> list[str]:
    """What a table had in the first revision, and has now."""
    first = catalog.execute("SELECT name FROM pragma_table_info(?, 'main')", (table,)).fetchall()
    now = catalog.execute("SELECT name FROM pragma_table_info(?, 'now')", (table,)).fetchall()
    return [name for (name,) in first if (name,) in now]
