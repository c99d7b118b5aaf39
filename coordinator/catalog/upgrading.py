"""What a catalog file is to this version, and the copy that is made before it is changed.

Looking never writes, so a catalog of a newer version is left as it is, to the byte. A copy is made
of all that was committed, what lies in the write-ahead log included; it is on the disk, whole and
under its name, before the first step of an upgrade begins.
"""

import errno
import os
import re
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Final

from coordinator.errors import CatalogError, UnsupportedFormatError, UpgradeError
from coordinator.model import NANOSECONDS
from coordinator.vault import sync_directory

# Every revision there ever was, oldest first; the last one is what tables.py says.
REVISIONS: Final = ("v0001", "v0002", "v0003", "v0004", "v0005", "v0006", "v0007")
REVISION: Final = REVISIONS[-1]

_COPIES_KEPT: Final = 3
# What stays free for the rest of the machine.
_SPARE_BYTES: Final = 16 * 1024 * 1024
# Beside the copy: SQLite writes a changed table anew, so the log may become as long as the file.
_SIZES_NEEDED: Final = 2
_PAGES_AT_ONCE: Final = 4096


class Standing(Enum):
    """What a catalog file needs before it can be used."""

    NEW = "new"
    """There is none: make it."""
    CURRENT = "current"
    OLDER = "older"
    """Copy it, then upgrade it."""
    NEWER = "newer"
    """Leave it alone."""
    FOREIGN = "foreign"
    """A database, and no catalog: leave it alone."""


def standing_of(tables: Sequence[str], revision: str | None) -> Standing:
    """Tell it from the names of the tables, and from the revision that one of them holds."""
    if not tables:
        return Standing.NEW
    if revision is None:
        return Standing.FOREIGN
    if revision == REVISION:
        return Standing.CURRENT
    return Standing.OLDER if revision in REVISIONS else Standing.NEWER


def copies_to_remove(names: Sequence[str], catalog: str) -> list[str]:
    """Of the files beside a catalog: copies of no use any more.

    Kept is the newest of each revision, and of those the three of the newest revisions. A start
    that fails and is repeated all night so keeps one copy, and not thousands.
    """
    copies = re.compile(re.escape(catalog) + r"\.(v\d{4})-\d{8}T\d{6}Z")
    found = sorted((match[1], name) for name in names if (match := copies.fullmatch(name)))
    newest = dict(found)
    kept = set(list(newest.values())[-_COPIES_KEPT:])
    return [name for _, name in found if name not in kept]


def look(path: Path) -> tuple[Standing, str]:
    """What the file is, and its revision if it has one. Writes nothing; CatalogError."""
    if not path.exists() or path.stat().st_size == 0:
        return Standing.NEW, ""
    try:
        with closing(_reader(path)) as reader:
            rows = reader.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            tables = [name for (name,) in rows]
            revision = None
            if "alembic_version" in tables:
                found = reader.execute("SELECT version_num FROM alembic_version").fetchone()
                revision = None if found is None else str(found[0])
    except sqlite3.Error as error:
        raise CatalogError(
            f"the catalog {path} cannot be read: {error}",
            hint="check its disk; if it is damaged, put a copy of it in its place",
        ) from error
    return standing_of(tables, revision), revision or ""


def check_usable(path: Path, standing: Standing, revision: str) -> None:
    """Refuse what this version must not touch: UnsupportedFormatError."""
    if standing is Standing.NEWER:
        raise UnsupportedFormatError(
            f"the catalog {path} has revision {revision}, and this version knows none after "
            f"{REVISION}",
            hint="a newer Tidemark has upgraded it: start that version, or put the copy that was "
            f"made before in its place ({path.name}.v*)",
        )
    if standing is Standing.FOREIGN:
        raise UnsupportedFormatError(
            f"{path} is a database, but not a catalog of Tidemark",
            hint="start the coordinator with its own --data directory",
        )


def copy_before_upgrade(path: Path, revision: str, now: int) -> Path:
    """A copy of the catalog beside it, durable; UpgradeError. `now` is Unix time in ns."""
    at = datetime.fromtimestamp(now // NANOSECONDS, UTC)
    copy = path.with_name(f"{path.name}.{revision}-{at:%Y%m%dT%H%M%SZ}")
    temporary = path.with_name(f".{path.name}.copy")
    try:
        with closing(_reader(path)) as reader:
            _check_space(path, reader)
            _write_copy(reader, temporary)
        temporary.rename(copy)
        sync_directory(path.parent)
    except (OSError, sqlite3.Error) as error:
        temporary.unlink(missing_ok=True)
        raise UpgradeError(
            f"the catalog {path} cannot be copied before its upgrade: {error}",
            hint="free some space on that filesystem; the catalog is unchanged",
        ) from error
    return copy


def remove_old_copies(path: Path) -> None:
    """Keep a few of the copies beside the catalog."""
    for name in copies_to_remove(os.listdir(path.parent), path.name):
        path.with_name(name).unlink(missing_ok=True)


def _reader(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing. The caller is the only one who works on the catalog."""
    # Without a log there is all in the file, and SQLite need not make itself an empty one.
    settled = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{settled}", uri=True)


def _check_space(path: Path, reader: sqlite3.Connection) -> None:
    (pages,) = reader.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = reader.execute("PRAGMA page_size").fetchone()
    needed = _SIZES_NEEDED * pages * page_bytes + _SPARE_BYTES
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        reason = f"{needed // 2**20} MiB are needed, and {free // 2**20} are free"
        raise OSError(errno.ENOSPC, reason)


def _write_copy(reader: sqlite3.Connection, temporary: Path) -> None:
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with closing(sqlite3.connect(temporary)) as writer:
            reader.backup(writer, pages=_PAGES_AT_ONCE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
