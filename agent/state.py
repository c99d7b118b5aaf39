"""What an agent keeps between backups: one SQLite database below its state directory.

Per volume it holds the head (the newest countersigned root and where its manifest begins), the
nodes of that manifest, how often each frame is referenced from it, and where chunks lie that it
held on another node, which no other volume may name. For all volumes together it holds where the
chunks lie that this node has stored, which clones it has of large files, and which volumes' events
missed a change. All of it can be lost: that costs a re-read of the volumes, never a re-upload and
never a snapshot, and events are trusted until an audit finds again that they should not be. So it
must never be trusted beyond what the coordinator confirms at commit.

Exactly one connection writes, in a thread of its own. Every other thread that reads gets a
connection of its own, which cannot write. Methods that change something are coroutines and return
once the change is done; methods that read block for microseconds and may be called anywhere.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Self, TypeVar, cast

import apsw

from agent.errors import StateError
from repository.failpoints import failpoint
from repository.frames import Location
from repository.ids import PackNonce

_T = TypeVar("_T")

# Raised with every change of the tables below, and of entries, which lie in them. A database of
# another version is begun anew, whether older or newer: a re-read is all that it costs, and going
# back to an older agent needs nobody.
_SCHEMA_VERSION = 6
_SCHEMA = """
CREATE TABLE volumes (
    volume    INTEGER PRIMARY KEY,
    volume_id BLOB NOT NULL UNIQUE,
    root      BLOB NOT NULL,          -- empty until the first commit
    sequence  INTEGER NOT NULL,
    manifest  BLOB NOT NULL
) STRICT;
CREATE TABLE nodes (
    node    INTEGER PRIMARY KEY,      -- in the order of insertion, which is nearly that of keys
    volume  INTEGER NOT NULL,
    node_id BLOB NOT NULL,
    uses    INTEGER NOT NULL,         -- a list node may stand in several files; 0 is staged
    data    BLOB NOT NULL,
    UNIQUE (volume, node_id)
) STRICT;
CREATE INDEX staged ON nodes (volume) WHERE uses = 0;
CREATE TABLE packs (
    pack  INTEGER PRIMARY KEY,
    nonce BLOB NOT NULL UNIQUE
) STRICT;
CREATE TABLE chunks (
    chunk_id BLOB PRIMARY KEY,
    pack     INTEGER NOT NULL,
    frame    INTEGER NOT NULL,
    number   INTEGER NOT NULL,
    length   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE borrowed (
    volume   INTEGER NOT NULL,
    chunk_id BLOB NOT NULL,
    pack     INTEGER NOT NULL,
    frame    INTEGER NOT NULL,
    number   INTEGER NOT NULL,
    length   INTEGER NOT NULL,
    PRIMARY KEY (volume, chunk_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE frames (
    volume     INTEGER NOT NULL,
    pack       INTEGER NOT NULL,
    frame      INTEGER NOT NULL,
    refs       INTEGER NOT NULL,
    live_bytes INTEGER NOT NULL,
    PRIMARY KEY (volume, pack, frame)
) STRICT, WITHOUT ROWID;
CREATE TABLE clones (
    local_id BLOB NOT NULL,           -- of the volume; those of others are all forgotten
    key      BLOB NOT NULL,
    path     BLOB NOT NULL,
    inode    INTEGER NOT NULL,
    content  BLOB NOT NULL,
    size     INTEGER NOT NULL,
    own      INTEGER NOT NULL,
    own_time INTEGER NOT NULL,
    changed  INTEGER NOT NULL,
    PRIMARY KEY (local_id, key)
) STRICT;
"""
# Came later, and may go: an older agent leaves it alone.
_ADDED = """
CREATE TABLE IF NOT EXISTS rehashed (
    volume   INTEGER PRIMARY KEY,
    day      INTEGER NOT NULL,
    next_key BLOB                     -- null where all of the day's files were read
) STRICT;
CREATE TABLE IF NOT EXISTS missed (
    local_id BLOB PRIMARY KEY,        -- of a volume whose events are not trusted
    changes  INTEGER NOT NULL,
    day      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""
# Rows that one statement inserts. Each step of SQLite lets go of the interpreter's lock and waits
# to have it back, so a row at a time is mostly waiting.
_ROWS = 500
# Page cache of one connection. Half a dozen threads read; together they stay below 32 MiB.
_CACHE_KIB = 4096
# A reader waits so long for the writer's checkpoint before it gives up.
_BUSY_MILLISECONDS = 10_000


class Head(NamedTuple):
    """The last committed snapshot of a volume."""

    root: bytes
    """The countersigned root object, as the coordinator answered it."""
    sequence: int
    manifest: bytes
    """The encoded pointer to the manifest's root node."""


class Rehashed(NamedTuple):
    """How far unchanged files were read again."""

    day: int
    """Whose files, in days since 1970."""
    next_key: bytes | None
    """The first key that was not looked at; None where there is none left."""


class Missed(NamedTuple):
    """What the last audit found that events had not told of."""

    changes: int
    day: int
    """When, in days since 1970."""


class FrameCount(NamedTuple):
    """How many extents of a volume's manifest point into a frame, and for how many bytes."""

    refs: int
    live_bytes: int


class FrameChange(NamedTuple):
    """The new count of a frame. Without references it is forgotten."""

    pack_nonce: bytes
    frame: int
    refs: int
    live_bytes: int


class Clone(NamedTuple):
    """A clone of a file, as it was when a content was stored."""

    local_id: bytes
    """What this node calls the volume."""
    key: bytes
    path: bytes
    """Where the clone is."""
    inode: int
    """Of the file that was cloned."""
    content: bytes
    """A hash of the content that an entry has of it."""
    size: int
    own: int
    """The clone's own inode, and the time that tells whether anybody has touched it."""
    own_time_ns: int
    changed: int
    """Bytes by which the file differed from its clone before: what it takes to keep this one.

    Half of that after each backup in which it had not changed."""

    @property
    def name(self) -> tuple[bytes, bytes]:
        """What there is one clone of."""
        return self.local_id, self.key


class State:
    """The database. Open it once; it may be used from every thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._readers: list[apsw.Connection] = []
        self._readers_lock = threading.Lock()
        self._writer_thread = ThreadPoolExecutor(1, thread_name_prefix="state-writer")
        # `lost`: why what was there was begun anew; empty if it was not.
        self._writer, self.lost = self._writer_thread.submit(_open_writer, path).result()

    def __enter__(self) -> Self:
        """Return itself; leaving closes."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Finish what is being written, and close every connection."""
        self._writer_thread.submit(self._writer.close).result()
        self._writer_thread.shutdown()
        with self._readers_lock:
            for reader in self._readers:
                reader.close()
            self._readers.clear()

    # Reading.

    def head(self, volume_id: bytes) -> Head | None:
        """Return the last committed head of a volume, or None if none is known here."""
        query = "SELECT root, sequence, manifest FROM volumes WHERE volume_id = ? AND root <> x''"
        for row in self._rows(query, (volume_id,)):
            return Head(*cast("tuple[bytes, int, bytes]", row))
        return None

    def rehashed(self, volume_id: bytes) -> Rehashed | None:
        """Return how far files of a volume were read again; None where that never began."""
        query = (
            "SELECT day, next_key FROM rehashed"
            " WHERE volume = (SELECT volume FROM volumes WHERE volume_id = ?)"
        )
        for row in self._rows(query, (volume_id,)):
            return Rehashed(*cast("tuple[int, bytes | None]", row))
        return None

    def load_nodes(self, volume_id: bytes, node_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return those manifest nodes of a volume's head that are here."""
        query = (
            "SELECT node_id, data FROM nodes WHERE node_id IN carray(?)"
            " AND volume = (SELECT volume FROM volumes WHERE volume_id = ?)"
        )
        rows = self._rows(query, (apsw.carray(tuple(node_ids)), volume_id)) if node_ids else ()
        return dict(cast("Iterable[tuple[bytes, bytes]]", rows))

    def known(self, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        """Return the places of those chunks that this node has stored. Best in large batches."""
        if not chunk_ids:
            return {}
        query = (
            "SELECT chunk_id, nonce, frame, number, length FROM chunks JOIN packs USING (pack)"
            " WHERE chunk_id IN carray(?)"
        )
        rows = cast(
            "Iterable[tuple[bytes, bytes, int, int, int]]",
            self._rows(query, (apsw.carray(tuple(chunk_ids)),)),
        )
        return {row[0]: Location(PackNonce(row[1]), *row[2:]) for row in rows}

    def unheard_of(self, pack_nonces: Sequence[bytes]) -> list[bytes]:
        """Return those of the packs of which nothing was ever recorded here."""
        if not pack_nonces:
            return []
        rows = self._rows(
            "SELECT nonce FROM packs WHERE nonce IN carray(?)", (apsw.carray(tuple(pack_nonces)),)
        )
        heard_of = {row[0] for row in cast("Iterable[tuple[bytes]]", rows)}
        return [nonce for nonce in pack_nonces if nonce not in heard_of]

    def borrows(self, volume_id: bytes) -> bool:
        """Return whether the volume held any chunk that another node has stored."""
        query = (
            "SELECT EXISTS (SELECT 1 FROM borrowed"
            " WHERE volume = (SELECT volume FROM volumes WHERE volume_id = ?))"
        )
        return self._rows(query, (volume_id,)) == [(1,)]

    def borrowed(self, volume_id: bytes, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        """Return the places of those chunks that the volume held on another node."""
        if not chunk_ids:
            return {}
        query = (
            "SELECT chunk_id, nonce, frame, number, length FROM borrowed JOIN packs USING (pack)"
            " WHERE chunk_id IN carray(?)"
            " AND volume = (SELECT volume FROM volumes WHERE volume_id = ?)"
        )
        rows = cast(
            "Iterable[tuple[bytes, bytes, int, int, int]]",
            self._rows(query, (apsw.carray(tuple(chunk_ids)), volume_id)),
        )
        return {row[0]: Location(PackNonce(row[1]), *row[2:]) for row in rows}

    def frame_counts(
        self, volume_id: bytes, frames: Iterable[tuple[bytes, int]]
    ) -> dict[tuple[bytes, int], FrameCount]:
        """Return the counts of those (pack nonce, frame) that the volume's head refers to."""
        query = (
            "SELECT refs, live_bytes FROM frames"
            " WHERE volume = (SELECT volume FROM volumes WHERE volume_id = ?)"
            " AND pack = (SELECT pack FROM packs WHERE nonce = ?) AND frame = ?"
        )
        counts = {}
        for nonce, frame in frames:
            for row in self._rows(query, (volume_id, nonce, frame)):
                counts[nonce, frame] = FrameCount(*cast("tuple[int, int]", row))
        return counts

    def all_frames(self, volume_id: bytes) -> Iterator[FrameChange]:
        """Yield every frame that the volume's head refers to, with its count."""
        query = (
            "SELECT nonce, frame, refs, live_bytes FROM frames JOIN packs USING (pack)"
            " WHERE volume = (SELECT volume FROM volumes WHERE volume_id = ?)"
        )
        for row in self._rows(query, (volume_id,)):
            yield FrameChange(*cast("tuple[bytes, int, int, int]", row))

    def clones(self) -> list[Clone]:
        """Return all clones that are kept."""
        rows = cast("Iterable[tuple[object, ...]]", self._rows("SELECT * FROM clones", ()))
        return [Clone(*row) for row in rows]  # type: ignore[arg-type]

    def missed(self) -> dict[bytes, Missed]:
        """Return the volumes, as this node calls them, whose events missed something."""
        rows = self._rows("SELECT local_id, changes, day FROM missed", ())
        return {row[0]: Missed(*row[1:]) for row in cast("Iterable[tuple[bytes, int, int]]", rows)}

    # Writing.

    async def remember_chunks(
        self, rows: Iterable[tuple[bytes, Location]], *, borrower: bytes | None = None
    ) -> None:
        """Record where chunks lie. Call it once the coordinator has acknowledged their pack.

        Those that another node stored are known to the borrower alone, a volume. The newest place
        of a chunk wins. May be lost in a power failure, which costs an upload.
        """
        # Neighbours in the tree are written together: many times faster for a large batch.
        chunks = sorted(rows, key=itemgetter(0))

        def write(db: apsw.Connection) -> None:
            packs = _pack_numbers(db, {location.nonce for _, location in chunks})
            table, row = "chunks", "(?, ?, ?, ?, ?)"
            owner: tuple[int, ...] = ()
            if borrower is not None:
                table, row = "borrowed", "(?, ?, ?, ?, ?, ?)"
                owner = (_volume_number(db, borrower, None),)
            for start in range(0, len(chunks), _ROWS):
                part = chunks[start : start + _ROWS]
                db.execute(
                    f"INSERT OR REPLACE INTO {table} VALUES {', '.join([row] * len(part))}",  # noqa: S608
                    [
                        value
                        for id_, at in part
                        for value in (*owner, id_, packs[at.nonce], at.frame, at.chunk, at.length)
                    ],
                )
            failpoint("agent.chunks.written", StateError)

        await self._write(write, durable=False)

    async def forget_packs(self, pack_nonces: Iterable[bytes]) -> None:
        """Forget the chunks of packs that the coordinator no longer has."""
        nonces = [(nonce,) for nonce in pack_nonces]

        def write(db: apsw.Connection) -> None:
            for table in ("chunks", "borrowed"):
                db.executemany(
                    f"DELETE FROM {table}"  # noqa: S608 - a name from the line above
                    " WHERE pack = (SELECT pack FROM packs WHERE nonce = ?)",
                    nonces,
                )

        await self._write(write, durable=True)

    def stage_nodes(self, volume_id: bytes, nodes: Sequence[tuple[bytes, bytes]]) -> "Future[None]":
        """Keep nodes (id, data) for the commit to come; what it does not use is forgotten with it.

        So the nodes of a new manifest need not wait in memory.
        """

        def write(db: apsw.Connection) -> None:
            volume = _volume_number(db, volume_id, None)
            db.executemany(
                "INSERT OR IGNORE INTO nodes (volume, node_id, uses, data) VALUES (?, ?, 0, ?)",
                ((volume, node_id, data) for node_id, data in nodes),
            )
            failpoint("agent.nodes.written", StateError)

        return self._submit(write, durable=False)

    def change_clones(
        self, kept: Sequence[Clone], dropped: Iterable[tuple[bytes, bytes]]
    ) -> "Future[None]":
        """Forget the clones of these (local id, key), and then keep others."""
        gone = list(dropped)

        def write(db: apsw.Connection) -> None:
            db.executemany("DELETE FROM clones WHERE local_id = ? AND key = ?", gone)
            row = ", ".join("?" * len(Clone._fields))
            db.executemany(f"INSERT OR REPLACE INTO clones VALUES ({row})", kept)  # noqa: S608

        return self._submit(write, durable=True)

    def halve_changes(self, local_id: bytes) -> "Future[None]":
        """Expect of all clones of a volume half of the changes that were expected before."""

        def write(db: apsw.Connection) -> None:
            halve = "UPDATE clones SET changed = changed / 2 WHERE local_id = ? AND changed > 0"
            db.execute(halve, (local_id,))

        return self._submit(write, durable=False)

    async def commit(
        self,
        volume_id: bytes,
        head: Head,
        node_uses: Mapping[bytes, int],
        frame_changes: Iterable[FrameChange],
        *,
        replace: bool = False,
    ) -> None:
        """Make a snapshot the volume's head, durably and in one transaction.

        `node_uses`: how many more or fewer uses each node has; those that came were staged, and
        one without uses is forgotten. Likewise the counts of frames. With `replace`
        nothing of what was remains, as after a backup that began anew.
        """
        changes = list(frame_changes)

        def write(db: apsw.Connection) -> None:
            volume = _volume_number(db, volume_id, head)
            if replace:
                db.execute("UPDATE nodes SET uses = 0 WHERE volume = ? AND uses > 0", (volume,))
                db.execute("DELETE FROM frames WHERE volume = ?", (volume,))
            _change_nodes(db, volume, node_uses)
            _change_frames(db, volume, changes)
            failpoint("agent.head.written", StateError)

        await self._write(write, durable=True)

    def keep_missed(self, local_id: bytes, missed: Missed | None) -> "Future[None]":
        """Take note that a volume's events missed something, or with None that they tell of all."""

        def write(db: apsw.Connection) -> None:
            if missed is None:
                db.execute("DELETE FROM missed WHERE local_id = ?", (local_id,))
            else:
                db.execute("INSERT OR REPLACE INTO missed VALUES (?, ?, ?)", (local_id, *missed))

        return self._submit(write, durable=True)

    async def keep_rehashed(self, volume_id: bytes, rehashed: Rehashed) -> None:
        """Take note of how far files were read again. To lose it costs reading some once more."""

        def write(db: apsw.Connection) -> None:
            number = _volume_number(db, volume_id, None)
            db.execute("INSERT OR REPLACE INTO rehashed VALUES (?, ?, ?)", (number, *rehashed))

        await self._write(write, durable=False)

    async def forget_volume(self, volume_id: bytes) -> None:
        """Forget a volume's head, manifest, counts and borrowed chunks. Others stay known."""

        def write(db: apsw.Connection) -> None:
            for table in ("nodes", "frames", "borrowed", "rehashed", "volumes"):
                db.execute(
                    f"DELETE FROM {table}"  # noqa: S608 - a name from the line above
                    " WHERE volume = (SELECT volume FROM volumes WHERE volume_id = ?)",
                    (volume_id,),
                )

        await self._write(write, durable=True)

    # Connections.

    async def _write(self, change: Callable[[apsw.Connection], None], *, durable: bool) -> None:
        await asyncio.wrap_future(self._submit(change, durable=durable))

    def _submit(
        self, change: Callable[[apsw.Connection], None], *, durable: bool
    ) -> "Future[None]":
        def run() -> None:
            with _translated(self._path):
                # FULL waits for the disk at every commit; in WAL mode NORMAL cannot corrupt.
                self._writer.pragma("synchronous", "FULL" if durable else "NORMAL")
                with self._writer:
                    change(self._writer)

        return self._writer_thread.submit(run)

    def _rows(self, query: str, bindings: tuple[object, ...]) -> Iterable[object]:
        reader: apsw.Connection | None = getattr(self._local, "reader", None)
        with _translated(self._path):
            if reader is None:
                reader = _open_reader(self._path)
                self._local.reader = reader
                with self._readers_lock:
                    self._readers.append(reader)
            return list(reader.execute(query, cast("apsw.Bindings", bindings)))


def remove_state(path: Path) -> None:
    """Remove a database that nobody has open, if there is one."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _open_writer(path: Path) -> tuple[apsw.Connection, str]:
    """Open the database for writing; begin anew where it is damaged or of another version.

    Return it, and why it was begun anew if there was one.
    """
    lost = "it is damaged" if path.exists() else ""
    with _translated(path), contextlib.suppress(apsw.CorruptError, apsw.NotADBError):
        db = _connect(path)
        version = db.pragma("user_version")
        if version == _SCHEMA_VERSION:
            with db:
                db.execute(_ADDED)
            return db, ""
        if lost:
            lost = f"it is of version {version}, and this agent keeps version {_SCHEMA_VERSION}"
        db.close()
    remove_state(path)
    with _translated(path):
        db = _connect(path)
        with db:
            db.execute(_SCHEMA)
            db.execute(_ADDED)
            db.pragma("user_version", _SCHEMA_VERSION)
        return db, lost


def _connect(path: Path) -> apsw.Connection:
    db = apsw.Connection(str(path))
    db.set_busy_timeout(_BUSY_MILLISECONDS)
    db.pragma("journal_mode", "wal")
    db.pragma("cache_size", -_CACHE_KIB)
    return db


def _open_reader(path: Path) -> apsw.Connection:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    db.set_busy_timeout(_BUSY_MILLISECONDS)
    db.pragma("query_only", 1)
    db.pragma("cache_size", -_CACHE_KIB)
    return db


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except apsw.FullError as error:
        raise StateError(
            f"no space left for the agent's state in {path.parent}",
            hint="free some space on that filesystem; nothing that was stored is lost",
        ) from error
    except apsw.Error as error:
        raise StateError(
            f"the agent's database {path} is unusable: {error}",
            hint="stop the agent and remove the file: volumes are read again, nothing is lost",
        ) from error


def _volume_number(db: apsw.Connection, volume_id: bytes, head: Head | None) -> int:
    """The number of a volume, whose head is changed if one is given."""
    if head is None:
        db.execute("INSERT OR IGNORE INTO volumes VALUES (NULL, ?, x'', 0, x'')", (volume_id,))
        number = "SELECT volume FROM volumes WHERE volume_id = ?"
        return cast("int", db.execute(number, (volume_id,)).get)
    return cast(
        "int",
        db.execute(
            "INSERT INTO volumes (volume_id, root, sequence, manifest) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (volume_id) DO UPDATE SET root = excluded.root,"
            " sequence = excluded.sequence, manifest = excluded.manifest RETURNING volume",
            (volume_id, head.root, head.sequence, head.manifest),
        ).get,
    )


def _pack_numbers(db: apsw.Connection, nonces: Iterable[bytes]) -> dict[bytes, int]:
    numbers = {}
    for nonce in nonces:
        db.execute("INSERT OR IGNORE INTO packs (nonce) VALUES (?)", (nonce,))
        numbers[nonce] = cast(
            "int", db.execute("SELECT pack FROM packs WHERE nonce = ?", (nonce,)).get
        )
    return numbers


def _change_nodes(db: apsw.Connection, volume: int, uses: Mapping[bytes, int]) -> None:
    change = "UPDATE nodes SET uses = uses + ? WHERE volume = ? AND node_id = ?"
    more = [(change_, volume, node_id) for node_id, change_ in uses.items() if change_ > 0]
    before = db.total_changes()
    db.executemany(change, more)
    if db.total_changes() - before != len(more):
        raise apsw.ConstraintError("a node of the new manifest is not here")
    fewer = [(change_, volume, node_id) for node_id, change_ in uses.items() if change_ < 0]
    db.executemany(change, fewer)
    db.executemany(
        "DELETE FROM nodes WHERE volume = ? AND node_id = ? AND uses <= 0",
        ((volume, node_id) for _, _, node_id in fewer),
    )
    db.execute("DELETE FROM nodes WHERE volume = ? AND uses = 0", (volume,))


def _change_frames(db: apsw.Connection, volume: int, changes: Sequence[FrameChange]) -> None:
    packs = _pack_numbers(db, {change.pack_nonce for change in changes})
    db.executemany(
        "INSERT OR REPLACE INTO frames VALUES (?, ?, ?, ?, ?)",
        ((volume, packs[c.pack_nonce], c.frame, c.refs, c.live_bytes) for c in changes if c.refs),
    )
    db.executemany(
        "DELETE FROM frames WHERE volume = ? AND pack = ? AND frame = ?",
        ((volume, packs[c.pack_nonce], c.frame) for c in changes if not c.refs),
    )
