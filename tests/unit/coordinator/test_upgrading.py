"""The catalog's upgrade: what is touched, what is copied, and what a failure leaves behind."""

import asyncio
import shutil
import sqlite3
import stat
from collections import namedtuple
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection

from coordinator.catalog import Catalog, migrations, open_catalog
from coordinator.catalog.upgrading import (
    REVISION,
    REVISIONS,
    Standing,
    copies_to_remove,
    look,
    standing_of,
)
from coordinator.errors import CatalogError, UnsupportedFormatError, UpgradeError
from tests.fakes.catalogs import revision_of, to_first_revision, to_unknown_revision

# 2026-09-21T14:13:20Z
NOW = 1_790_000_000 * 10**9
COPY = "catalog.db.v0001-20260921T141320Z"


def opened(path: Path, now: int = NOW) -> None:
    async def open_and_close() -> None:
        await (await open_catalog(path, now)).close()

    asyncio.run(open_and_close())


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """One of this version, with a row."""
    path = tmp_path / "catalog.db"

    async def make() -> None:
        made: Catalog = await open_catalog(path, NOW)
        await made.fleet.set_meta("kept", b"value")
        await made.close()

    asyncio.run(make())
    return path


def rows(path: Path) -> list[tuple[str, bytes]]:
    with closing(sqlite3.connect(path)) as reader:
        return list(reader.execute("SELECT key, value FROM meta ORDER BY key"))


def files(path: Path) -> dict[str, bytes]:
    """The catalog and its log, to the byte."""
    found = (path, path.with_name(path.name + "-wal"))
    return {each.name: each.read_bytes() for each in found if each.exists()}


def copies(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir() if ".v" in each.name)


@pytest.mark.parametrize(
    ("tables", "revision", "standing"),
    [
        ([], None, Standing.NEW),
        (["meta"], None, Standing.FOREIGN),
        (["alembic_version"], None, Standing.FOREIGN),
        (["alembic_version", "meta"], REVISION, Standing.CURRENT),
        (["alembic_version", "meta"], "v9999", Standing.NEWER),
        (["alembic_version", "meta"], "", Standing.NEWER),
        *((["alembic_version"], revision, Standing.OLDER) for revision in REVISIONS[:-1]),
    ],
)
def test_what_a_catalog_is_to_this_version(
    tables: list[str], revision: str | None, standing: Standing
) -> None:
    assert standing_of(tables, revision) is standing


def test_an_older_catalog_is_copied_and_then_upgraded(catalog: Path) -> None:
    to_first_revision(catalog)

    opened(catalog)

    assert copies(catalog) == [COPY]
    copy = catalog.with_name(COPY)
    assert (revision_of(copy), revision_of(catalog)) == ("v0001", REVISION)
    assert rows(copy) == rows(catalog) == [("kept", b"value")]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_a_copy_in_the_place_of_the_catalog_is_the_catalog_of_before(catalog: Path) -> None:
    to_first_revision(catalog)
    before = look(catalog)
    opened(catalog)

    shutil.copy(catalog.with_name(COPY), catalog)

    assert look(catalog) == before == (Standing.OLDER, "v0001")
    opened(catalog, NOW + 10**9)
    assert rows(catalog) == [("kept", b"value")]


def test_what_lies_in_the_log_alone_is_copied(catalog: Path) -> None:
    to_first_revision(catalog)
    with closing(sqlite3.connect(catalog)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("INSERT INTO meta VALUES ('late', x'01')")
        writer.commit()
        # As a power cut leaves it: not folded into the file.
        crashed = catalog.parent / "crashed"
        crashed.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{catalog}{suffix}", crashed)

    opened(crashed / "catalog.db")

    assert rows(crashed / COPY) == [("kept", b"value"), ("late", b"\x01")]


def test_a_catalog_of_this_version_is_not_copied(catalog: Path) -> None:
    opened(catalog)

    assert copies(catalog) == []


def test_a_newer_catalog_is_refused_and_stays_as_it_is_to_the_byte(catalog: Path) -> None:
    to_unknown_revision(catalog)
    with closing(sqlite3.connect(catalog)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("INSERT INTO meta VALUES ('late', x'01')")
        writer.commit()
        before = files(catalog)
        with pytest.raises(UnsupportedFormatError, match="v9999") as refused:
            opened(catalog)

        assert files(catalog) == before
    assert "newer Tidemark" in refused.value.hint
    assert (refused.value.exit_code, refused.value.retryable) == (1, False)
    assert copies(catalog) == []


def test_another_program_s_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE songs (title TEXT)")
    before = files(path)

    with pytest.raises(UnsupportedFormatError, match="not a catalog"):
        opened(path)

    assert files(path) == before


def test_a_catalog_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").mkdir()

    with pytest.raises(CatalogError, match=r"catalog\.db cannot be read"):
        opened(tmp_path / "catalog.db")


def test_a_step_that_fails_leaves_the_old_catalog_and_says_where_the_copy_is(
    catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_first_revision(catalog)
    steps = migrations.upgrade

    def fail(connection: Connection) -> None:
        steps(connection)
        connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)")

    monkeypatch.setattr(migrations, "upgrade", fail)
    with pytest.raises(UpgradeError, match="no such table: nowhere") as failed:
        opened(catalog)

    assert str(catalog.with_name(COPY)) in failed.value.hint
    assert look(catalog) == (Standing.OLDER, "v0001")
    assert rows(catalog) == rows(catalog.with_name(COPY)) == [("kept", b"value")]
    # And it can be tried again.
    monkeypatch.undo()
    opened(catalog, NOW + 10**9)
    assert revision_of(catalog) == REVISION
    assert copies(catalog) == ["catalog.db.v0001-20260921T141321Z"]


Usage = namedtuple("Usage", "total used free")


def test_without_space_for_the_copy_nothing_is_changed(
    catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_first_revision(catalog)
    before = files(catalog)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30, 2**20))

    with pytest.raises(UpgradeError, match="cannot be copied") as refused:
        opened(catalog)

    assert "free some space" in refused.value.hint
    assert files(catalog) == before
    assert [each.name for each in catalog.parent.iterdir() if "copy" in each.name] == []
    assert copies(catalog) == []


def test_the_newest_copy_of_each_of_three_revisions_is_kept() -> None:
    names = [
        "catalog.db",
        "catalog.db-wal",
        "catalog.db.v0001-20260101T000000Z",
        "catalog.db.v0002-20260103T000000Z",
        "catalog.db.v0002-20260102T000000Z",
        "catalog.db.v0003-20260104T000000Z",
        "catalog.db.v0004-20260105T000000Z",
        "catalog.db.v0004-by-hand",
        "other.db.v0001-20260101T000000Z",
    ]

    assert copies_to_remove(names, "catalog.db") == [
        "catalog.db.v0001-20260101T000000Z",
        "catalog.db.v0002-20260102T000000Z",
    ]
