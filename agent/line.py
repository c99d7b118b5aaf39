"""A connection that is replaced under work: new calls take the new one, old calls end on the old.

Renewal opens a channel with the new certificate while packs travel on the channel before it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """Something that is open until closed."""

    async def close(self) -> None:
        """End it, and whatever still uses it."""
        ...


_T = TypeVar("_T", bound=Closable)


class Line(Generic[_T]):
    """The connection of the moment. What was replaced closes with its last user."""

    def __init__(self, connection: _T) -> None:
        self._current = connection
        self._users: dict[int, tuple[_T, int]] = {}

    @asynccontextmanager
    async def use(self) -> AsyncIterator[_T]:
        """Hold the connection of this moment open for as long as the block lasts."""
        connection = self._current
        self._count(connection, 1)
        try:
            yield connection
        finally:
            if not self._count(connection, -1) and connection is not self._current:
                await connection.close()

    async def replace(self, connection: _T) -> None:
        """Let this connection serve from now on."""
        before, self._current = self._current, connection
        if id(before) not in self._users:
            await before.close()

    async def close(self) -> None:
        """Close everything, whoever uses it."""
        for connection, _ in [*self._users.values(), (self._current, 0)]:
            await connection.close()

    def _count(self, connection: _T, step: int) -> int:
        _, users = self._users.get(id(connection), (connection, 0))
        users += step
        if users:
            self._users[id(connection)] = (connection, users)
        else:
            del self._users[id(connection)]
        return users
