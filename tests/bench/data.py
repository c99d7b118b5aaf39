"""The data: made from a seed, so that every machine measures the same."""

import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

GIB: Final = 1 << 30
SMALL_FILES: Final = 100_000
CHANGED_FILES: Final = 100
_SMALL_BYTES: Final = (512, 16 * 1024)
_FILES_PER_DIRECTORY: Final = 100
_DIRECTORIES_PER_LEVEL: Final = 32
# A database's page, and the share of them that is written anew, here and there: 200 of a GiB.
PAGE_BYTES: Final = 8 * 1024
_PAGES_SHARE: Final = 200 * PAGE_BYTES / GIB
# Of a log, so many places are overwritten, each by so much.
_EDITS: Final = 20
_EDIT_BYTES: Final = 100
# Of a large file this share is overwritten, in one place.
_CHANGED_SHARE: Final = 1 / 128
_PIECE_BYTES: Final = 8 << 20
_COMPARED_BYTES: Final = 1 << 20

_VOCABULARY: Final = (
    "accepted address after batch before block cache client closed commit config connection "
    "created data deadline default delayed deleted device disk done dropped elapsed empty entry "
    "error event exceeded expired failed file finished flushed found from handler header health "
    "host idle index invalid job key lease limit listen loaded locked message missing mounted "
    "name node opened owner packet path peer pending policy pool port process queue quota read "
    "ready received record refused region released remote removed renewed replica request "
    "reset resolved response restarted retry route rule saved schema sent server session shard "
    "signal size skipped slow snapshot socket started state stopped stored stream synced table "
    "task thread timeout token topic trace updated user value version volume waiting worker "
    "written zone"
)
_LEVELS: Final = ("DEBUG", "INFO", "INFO", "INFO", "WARN", "ERROR")


class Case(NamedTuple):
    """A kind of data: how it is made, and how it changes."""

    name: str
    title: str
    make: Callable[[Path, float], None]
    change: Callable[[Path, random.Random], None]
    has_one_file: bool = True
    filesystem: str = ""
    """Where it lies, if not where the scratch directory does."""


def text(chance: random.Random) -> Iterator[bytes]:
    """Lines as programs log them, without end: they shrink to about a quarter."""
    phrases = [
        " ".join(chance.choices(_VOCABULARY.split(), k=chance.randint(3, 9))) for _ in range(5000)
    ]
    clock = 1_700_000_000_000
    while True:
        numbers = chance.randbytes(8 * 1000).hex()
        said = chance.choices(phrases, k=1000)
        levels = chance.choices(_LEVELS, k=1000)
        lines = []
        for index in range(1000):
            number = numbers[16 * index : 16 * index + 16]
            clock += int(number[:3], 16)
            thing, took = number[:12], int(number[12:], 16)
            lines.append(f"{clock} {levels[index]} {said[index]} id={thing} took={took}us\n")
        yield "".join(lines).encode()


def noise(chance: random.Random) -> Iterator[bytes]:
    """Bytes that do not shrink."""
    while True:
        yield chance.randbytes(_PIECE_BYTES)


def _write(path: Path, pieces: Iterator[bytes], size: int) -> None:
    with path.open("wb") as file:
        while size > 0:
            piece = next(pieces)[:size]
            file.write(piece)
            size -= len(piece)


def make_text(directory: Path, scale: float) -> None:
    _write(directory / "application.log", text(random.Random(1)), int(GIB * scale))


def make_log(directory: Path, scale: float) -> None:
    _write(directory / "audit.log", text(random.Random(5)), int(GIB / 4 * scale))


def make_random(directory: Path, scale: float) -> None:
    _write(directory / "media.bin", noise(random.Random(2)), int(GIB * scale))


def make_pages(directory: Path, scale: float) -> None:
    _write(directory / "accounts.ibd", pages(random.Random(4)), int(GIB * scale))


def pages(chance: random.Random) -> Iterator[bytes]:
    """A database's pages: rows of text and rows of what does not shrink, half and half."""
    rows = text(chance)
    held = b""
    while True:
        page = bytearray()
        for _ in range(PAGE_BYTES // 1024):
            while len(held) < 512:
                held += next(rows)
            page += held[:512] + chance.randbytes(512)
            held = held[512:]
        yield bytes(page)


def make_small(directory: Path, scale: float) -> None:
    chance = random.Random(3)
    pieces = text(chance)
    held = b""
    for number in range(max(1, int(SMALL_FILES * scale))):
        size = small_size(chance)
        while len(held) < size:
            held = next(pieces) + held
        path = small_path(directory, number)
        if number % _FILES_PER_DIRECTORY == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(held[:size])
        held = held[size:]


def small_size(chance: random.Random) -> int:
    """As many files below 3 KiB as above."""
    low, high = _SMALL_BYTES
    return int(low * (high / low) ** chance.random())


def small_path(directory: Path, number: int) -> Path:
    """Where a small file lies: a hundred to a directory, two levels of directories."""
    group = number // _FILES_PER_DIRECTORY
    above, below = divmod(group, _DIRECTORIES_PER_LEVEL)
    return directory / f"part-{above:03d}" / f"group-{below:02d}" / f"record-{number:06d}.log"


def change_region(directory: Path, chance: random.Random) -> None:
    """Overwrite one region of each file with new data of its kind."""
    for path in sorted(directory.iterdir()):
        size = path.stat().st_size
        pieces = text(chance) if path.suffix == ".log" else noise(chance)
        length = max(1, int(size * _CHANGED_SHARE))
        with path.open("r+b") as file:
            file.seek(chance.randrange(max(1, size - length)))
            while length > 0:
                piece = next(pieces)[:length]
                file.write(piece)
                length -= len(piece)


def change_pages(directory: Path, chance: random.Random) -> None:
    """Write pages of each file anew, wherever they lie."""
    written = pages(chance)
    for path in sorted(directory.iterdir()):
        count = path.stat().st_size // PAGE_BYTES
        with path.open("r+b") as file:
            for number in chance.sample(range(count), max(1, int(count * _PAGES_SHARE))):
                file.seek(number * PAGE_BYTES)
                file.write(next(written))


def change_places(directory: Path, chance: random.Random) -> None:
    """Overwrite some places of each file in place."""
    for path in sorted(directory.iterdir()):
        size = path.stat().st_size
        with path.open("r+b") as file:
            for _ in range(_EDITS):
                file.seek(chance.randrange(max(1, size - _EDIT_BYTES)))
                file.write(chance.randbytes(_EDIT_BYTES // 2).hex().encode())


def change_small(directory: Path, chance: random.Random) -> None:
    """Write CHANGED_FILES of them anew."""
    paths = sorted(directory.rglob("*.log"))
    pieces = text(chance)
    for path in chance.sample(paths, min(CHANGED_FILES, len(paths))):
        path.write_bytes(next(pieces)[: small_size(chance)])


CASES: Final = {
    case.name: case
    for case in (
        Case("text", "one large compressible file", make_text, change_region),
        Case("random", "random data", make_random, change_region),
        Case(
            "pages", "a database, 200 of its pages changed", make_pages, change_pages, True, "xfs"
        ),
        Case("edits", "a log, 20 places overwritten", make_log, change_places, True, "xfs"),
        Case("small", "small files", make_small, change_small, has_one_file=False),
    )
}


def size_of(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(size for _, size, _ in _listing(directory).values())


def differences(source: Path, restored: Path) -> list[str]:
    """Paths whose content, kind, mode or time of change is not the same on both sides."""
    mine, theirs = _listing(source), _listing(restored)
    different = {path for path in mine.keys() | theirs.keys() if mine.get(path) != theirs.get(path)}
    for path in mine.keys() - different:
        is_file = stat.S_ISREG(mine[path][0])
        if is_file and not _same_bytes(f"{source}/{path}", f"{restored}/{path}"):
            different.add(path)
    return sorted(different)


def _same_bytes(one: str, other: str) -> bool:
    # Not by pathlib, here and below: for 100,000 files it takes several times as long.
    with open(one, "rb") as left, open(other, "rb") as right:
        while piece := left.read(_COMPARED_BYTES):
            if piece != right.read(_COMPARED_BYTES):
                return False
        return not right.read(1)


def _listing(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, size and time by path; of directories without the size, which is the filesystem's."""
    found: dict[str, tuple[int, int, int]] = {}
    pending = [""]
    while pending:
        above = pending.pop()
        with os.scandir(f"{directory}/{above}") as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                is_directory = stat.S_ISDIR(status.st_mode)
                path = f"{above}{entry.name}"
                size = 0 if is_directory else status.st_size
                found[path] = (status.st_mode, size, status.st_mtime_ns)
                if is_directory:
                    pending.append(f"{path}/")
    return found
