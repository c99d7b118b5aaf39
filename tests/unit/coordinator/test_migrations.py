import asyncio
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import URL

from coordinator.catalog import migrations, open_catalog
from coordinator.catalog.migrations import versions
from coordinator.catalog.upgrading import REVISION, REVISIONS


def schema(path: Path) -> dict[str, list[str]]:
    """Each table and index with what it consists of; their order means nothing."""
    engine = create_engine(URL.create("sqlite", database=str(path)))
    with engine.begin() as connection:
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master").all()
        revisions = connection.exec_driver_sql("SELECT version_num FROM alembic_version").all()
    engine.dispose()
    assert [revision for (revision,) in revisions] == [REVISION]
    return {name: parts(sql or "") for name, sql in rows}


def parts(sql: str) -> list[str]:
    head, _, rest = " ".join(sql.split()).partition("(")
    return [head.strip(), *sorted(part.strip() for part in rest.removesuffix(")").split(", "))]


def migrated(path: Path, revision: str = "head") -> Path:
    engine = create_engine(URL.create("sqlite", database=str(path)))
    with engine.begin() as connection:
        migrations.upgrade(connection, revision)
    engine.dispose()
    return path


def opened(path: Path) -> Path:
    async def open_and_close() -> None:
        await (await open_catalog(path, 0)).close()

    asyncio.run(open_and_close())
    return path


def test_a_new_catalog_is_what_all_steps_together_make(tmp_path: Path) -> None:
    assert schema(opened(tmp_path / "new.db")) == schema(migrated(tmp_path / "old.db"))


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_catalog_of_each_revision_is_brought_up_to_date(revision: str, tmp_path: Path) -> None:
    old = migrated(tmp_path / "old.db", revision)

    assert schema(opened(old)) == schema(opened(tmp_path / "new.db"))


def test_every_revision_has_its_step_and_every_step_its_revision() -> None:
    modules = pkgutil.iter_modules(versions.__path__)
    found = [importlib.import_module(f"{versions.__name__}.{each.name}") for each in modules]

    assert tuple(step.revision for step in found) == REVISIONS
    assert tuple(step.down_revision for step in found) == (None, *REVISIONS[:-1])


def test_a_start_with_nothing_to_change_does_not_load_alembic(tmp_path: Path) -> None:
    opened(tmp_path / "catalog.db")
    program = (
        "import asyncio, pathlib, sys; from coordinator.catalog import open_catalog;"
        f"asyncio.run(open_catalog(pathlib.Path({str(tmp_path / 'catalog.db')!r}), 0));"
        "sys.exit('alembic' in sys.modules or 'sqlalchemy.orm' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0
