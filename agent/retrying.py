"""Calls made again while the coordinator or the store is away, and for how long.

Every call of a task may be repeated: an upload by its name, a commit by its session. Each try takes
the line's connection of that moment. What was refused is not asked again.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc

from agent.channel import NodeChannel, translated
from agent.errors import UnreachableError
from agent.line import Line
from agent.logs import get_logger
from agent.services import Clock
from repository.errors import StoreUnavailableError, TidemarkError

# How long a restore waits for a coordinator that went away, and a backup that has no session yet.
# With one it waits for its lease.
PATIENCE_SECONDS: Final = 120.0
_BACKOFF_SECONDS: Final = (0.2, 5.0)

_T = TypeVar("_T")
_log = get_logger()
_random = random.SystemRandom()


class Persistence:
    """Makes a call again until it succeeds, is refused, or patience is over."""

    def __init__(self, line: Line[NodeChannel], clock: Clock) -> None:
        self._line = line
        self._clock = clock

    async def call(
        self, work: Callable[[NodeChannel], Awaitable[_T]], patience_seconds: float
    ) -> _T:
        """Do it, and again while the coordinator or the store is away, for so long."""
        shortest, longest = _BACKOFF_SECONDS
        give_up_at: float | None = None
        failure: TidemarkError
        cause: BaseException | None
        while True:
            try:
                async with self._line.use() as line:
                    return await work(line)
            except grpc.RpcError as error:
                failure, cause = translated(error), error
            except StoreUnavailableError as error:
                failure, cause = error, error.__cause__
            if not isinstance(failure, UnreachableError | StoreUnavailableError):
                raise failure from cause
            now = self._clock.monotonic()
            if give_up_at is None:
                give_up_at = now + patience_seconds
                _log.warning("asking again", reason=failure.message, seconds=patience_seconds)
            if now >= give_up_at:
                raise failure from cause
            await asyncio.sleep(shortest * _random.uniform(0.5, 1.5))
            shortest = min(shortest * 2, longest)
