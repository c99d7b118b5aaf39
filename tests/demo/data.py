"""Real data for the demonstration: this machine's documentation, and a database that lives."""

import filecmp
import os
import random
import shutil
import sqlite3
import stat
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Taken in this order until there is enough. A minimal container has hardly any documentation, but
# Python's own library is wherever this runs.
_SOURCES = (
    Path("/usr/share/doc"),
    Path("/usr/include"),
    Path("/usr/share/man"),
    Path(sysconfig.get_path("stdlib")),
    Path("/usr/share"),
)
_BYTES_MAX = 220 * 1024 * 1024
_FILES_MAX = 15_000
_ROWS = 120_000
_PAUSE_SECONDS = 0.8


@dataclass(frozen=True)
class Collected:
    """What was copied."""

    files: int
    links: int
    size_bytes: int
    sources: list[str]


def collect(target: Path) -> Collected:
    """Copy system documentation with its links, modes and times, up to a bound."""
    files = links = size = 0
    used: list[Path] = []
    for source in _SOURCES:
        if not source.is_dir() or any(source.is_relative_to(one) for one in used):
            continue
        used.append(source)
        for directory, names, entries in os.walk(source):
            names.sort()
            place = target / source.name / os.path.relpath(directory, source)
            place.mkdir(parents=True, exist_ok=True)
            for name in sorted(entries + [one for one in names if _is_link(directory, one)]):
                original = Path(directory, name)
                mode = original.lstat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                    continue
                if size > _BYTES_MAX or files > _FILES_MAX:
                    return Collected(files, links, size, [str(one) for one in used])
                if not os.access(original, os.R_OK) and not stat.S_ISLNK(mode):
                    continue
                shutil.copy2(original, place / name, follow_symlinks=False)
                files += 1
                links += stat.S_ISLNK(mode)
                size += original.lstat().st_size
            shutil.copystat(directory, place)
    return Collected(files, links, size, [str(one) for one in used])


def change(tree: Path) -> str:
    """Edit, add, remove and move some files; a line that says so."""
    source = random.Random(7)
    paths = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    chosen = source.sample(paths, min(190, len(paths)))
    edited, removed, retouched = chosen[:100], chosen[100:140], chosen[140:180]
    for path in edited:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
        with path.open("ab") as file:
            file.write(b"\nOne more line, written after the first backup.\n")
    for path in removed:
        path.unlink()
    for path in retouched:
        path.chmod(path.stat().st_mode ^ stat.S_IXUSR)
    for path in chosen[180:]:
        path.rename(path.with_name(path.name + ".renamed"))
    added = tree / "added after the first backup"
    added.mkdir()
    for number in range(50):
        (added / f"note-{number}.txt").write_text(f"note {number}\n" * 500)
    return (
        f"{len(edited)} files edited, 50 added, {len(removed)} removed, {len(retouched)} modes "
        f"changed, {len(chosen[180:])} renamed"
    )


def create_database(path: Path) -> None:
    """A database of some thirty megabytes."""
    source = random.Random(3)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE readings (id INTEGER PRIMARY KEY, sensor TEXT, value TEXT)")
        database.executemany(
            "INSERT INTO readings (sensor, value) VALUES (?, ?)",
            ((f"sensor-{number % 97}", source.randbytes(100).hex()) for number in range(_ROWS)),
        )
    database.close()


@contextmanager
def writer(path: Path) -> Iterator[None]:
    """Keep changing the database: new rows and rewritten ones, in small transactions."""
    stop = threading.Event()

    def write() -> None:
        source = random.Random(5)
        database = sqlite3.connect(path, timeout=30)
        while not stop.wait(_PAUSE_SECONDS):
            with database:
                for _ in range(20):
                    value = source.randbytes(100).hex()
                    database.execute(
                        "INSERT INTO readings (sensor, value) VALUES ('live', ?)", [value]
                    )
                    database.execute(
                        "UPDATE readings SET value = ? WHERE id = ?",
                        [value, source.randrange(1, _ROWS)],
                    )
        database.close()

    thread = threading.Thread(target=write, name="database writer")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def rows_of(path: Path) -> tuple[int, str]:
    """How many rows a database has, and what its own check says of it."""
    with sqlite3.connect(path) as database:
        check: str = database.execute("PRAGMA integrity_check").fetchone()[0]
        rows: int = database.execute("SELECT count(*) FROM readings").fetchone()[0]
    database.close()
    return rows, check


def differences(left: Path, right: Path) -> tuple[int, list[str]]:
    """How many entries were compared by content, mode, time and link; which differ."""
    compared = 0
    different = []
    for directory, names, files in os.walk(left):
        there = right / os.path.relpath(directory, left)
        if sorted(names + files) != sorted(os.listdir(there)):
            different.append(directory)
        for name in names + files:
            compared += 1
            if not _same(Path(directory, name), there / name):
                different.append(str(Path(directory, name)))
    return compared, different


def _same(left: Path, right: Path) -> bool:
    if not os.path.lexists(right):
        return False
    one, other = left.lstat(), right.lstat()
    if (one.st_mode, one.st_uid, one.st_gid) != (other.st_mode, other.st_uid, other.st_gid):
        return False
    if one.st_mtime_ns != other.st_mtime_ns:
        return False
    if stat.S_ISLNK(one.st_mode):
        return left.readlink() == right.readlink()
    return stat.S_ISDIR(one.st_mode) or filecmp.cmp(left, right, shallow=False)


def _is_link(directory: str, name: str) -> bool:
    return os.path.islink(os.path.join(directory, name))
