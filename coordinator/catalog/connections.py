"""The two ways into the database file: exactly one connection that writes, a few that only read.

SQLite up to 3.51.2 can corrupt its write-ahead log when two connections write or checkpoint at
once, so there is one writer behind one lock, and readers are `query_only`. A commit is synced to
the disk before it returns (`synchronous=FULL`): what the coordinator has acknowledged, it knows.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from coordinator.errors import CatalogError

T = TypeVar("T")
P = ParamSpec("P")

# Listing and browsing while a backup commits; more would only wait for the same disk.
_READERS: Final = 3
_BUSY_MILLISECONDS: Final = 10_000


class Connections:
    """One writer, some readers. `read` and `write` are each one transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer_engine = _engine(path, size=1, writes=True)
        self._reader_engine = _engine(path, size=_READERS, writes=False)
        self._writing = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A writing transaction; committed and synced on leaving, rolled back on an error."""
        async with self._writing:
            with _translated(self._path):
                async with self._writer_engine.begin() as connection:
                    yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """One consistent view."""
        with _translated(self._path):
            async with self._reader_engine.begin() as connection:
                yield connection

    async def unbroken(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Do this to its end, even if whoever waits for it is canceled meanwhile.

        A connection whose statement was broken off is in no known state, and closing it so can
        hang. Not a task group's: the caller may end, the transaction may not.
        """
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Looked at, lest it counts as forgotten where the caller is gone.
            task.exception()

    async def close(self) -> None:
        """Close every connection; the last one folds the log into the file."""
        if self._running:
            await asyncio.wait(self._running)
        await self._reader_engine.dispose()
        await self._writer_engine.dispose()


class HasConnections(Protocol):
    """A part of the catalog."""

    connections: Connections


Part = TypeVar("Part", bound=HasConnections)


def unbroken(
    method: Callable[Concatenate[Part, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Part, P], Coroutine[Any, Any, T]]:
    """A method that runs to its end once begun."""

    @functools.wraps(method)
    async def whole(self: Part, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.connections.unbroken(method(self, *args, **kwargs), method.__name__)

    return whole


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


def _engine(path: Path, *, size: int, writes: bool) -> AsyncEngine:
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path)),
        poolclass=AsyncAdaptedQueuePool,
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

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", on_begin)
    return engine
