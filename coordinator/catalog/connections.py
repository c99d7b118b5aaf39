"""The two ways into the database file: exactly one connection that writes, a few that only read.

SQLite up to 3.51.2 can corrupt its write-ahead log when two connections write or checkpoint at
once, so there is one writer behind one lock, and readers are `query_only`. A commit is synced to
the disk before it returns (`synchronous=FULL`): what the coordinator has acknowledged, it knows.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from coordinator.errors import CatalogError

T = TypeVar("T")
P = ParamSpec("P")

# Listing and browsing while a backup commits; more would only wait for the same disk.
_READERS: Final = 3
_BUSY_MILLISECONDS: Final = 10_000


class Connections:
    """One writer, some readers, each with a thread. `read` and `write` are each one transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = _engine(path, size=1, writes=True)
        self._reader = _engine(path, size=_READERS, writes=False)
        self._writer_thread = ThreadPoolExecutor(1, thread_name_prefix="catalog-writer")
        self._reader_threads = ThreadPoolExecutor(_READERS, thread_name_prefix="catalog-reader")

    async def write(self, work: Callable[[Connection], T]) -> T:
        """A writing transaction; committed and synced at its end, rolled back on an error."""
        return await self._run(self._writer_thread, self._writer, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """One consistent view."""
        return await self._run(self._reader_threads, self._reader, work)

    async def _run(
        self, threads: ThreadPoolExecutor, engine: Engine, work: Callable[[Connection], T]
    ) -> T:
        """Do this in a thread, to its end even if whoever waits for it is canceled meanwhile.

        The whole transaction is one visit to the thread: a hop for each statement would cost
        several times what SQLite does.
        """

        def run() -> T:
            with _translated(self._path), engine.begin() as connection:
                return work(connection)

        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(threads, run))

    async def close(self) -> None:
        """End what was begun, and close every connection; the last folds the log into the file."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._reader_threads.shutdown()
        self._writer_thread.shutdown()
        self._reader.dispose()
        self._writer.dispose()


class HasConnections(Protocol):
    """A part of the catalog."""

    connections: Connections


Part = TypeVar("Part", bound=HasConnections)


def reading(
    method: Callable[Concatenate[Part, Connection, P], T],
) -> Callable[Concatenate[Part, P], Coroutine[Any, Any, T]]:
    """A method that is given one consistent view, in a thread; called without it, and awaited."""

    @functools.wraps(method)
    async def read(self: Part, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.connections.read(
            lambda connection: method(self, connection, *args, **kwargs)
        )

    return read


def writing(
    method: Callable[Concatenate[Part, Connection, P], T],
) -> Callable[Concatenate[Part, P], Coroutine[Any, Any, T]]:
    """A method that is one writing transaction, in a thread; called without it, and awaited."""

    @functools.wraps(method)
    async def write(self: Part, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.connections.write(
            lambda connection: method(self, connection, *args, **kwargs)
        )

    return write


class _translated:  # noqa: N801 - reads as a word where it is used
    """Library errors leave as the catalog's own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        if isinstance(error, SQLAlchemyError):
            cause = getattr(error, "orig", None) or error
            raise CatalogError(
                f"the catalog {self._path} failed: {cause}",
                hint="check that its disk has space and that the file is readable",
            ) from error


def _engine(path: Path, *, size: int, writes: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
    )
    begin = "BEGIN IMMEDIATE" if writes else "BEGIN"

    def on_connect(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself: schema changes belong into them too.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
        if writes:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
        else:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine
