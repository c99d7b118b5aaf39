"""What was read and does not check out is read once more.

A network, a proxy or the memory of a server breaks a bit now and then, and whoever reads next finds
all of it whole. Only what is broken twice is broken where it lies.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from repository.errors import DamagedError, KeyMaterialError

_T = TypeVar("_T")


async def read_soundly(read: Callable[[], Awaitable[_T]]) -> _T:
    """What `read` reads and checks, again if it has to be; then its errors are the caller's.

    DamagedError, or KeyMaterialError: a sealed key that is broken looks like one of another's.
    """
    try:
        return await read()
    except (DamagedError, KeyMaterialError):
        return await read()
