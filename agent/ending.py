"""Waiting for what runs in a thread: to its end, even for whoever is canceled meanwhile."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def to_its_end(
    running: "asyncio.Future[_T]", canceled: Callable[[], None] = lambda: None
) -> _T:
    """Return what it returns. When canceled, say so by `canceled`, and leave once it has ended.

    A thread cannot be stopped, and what it uses must stay open for so long. What it then raises is
    its way out, and no news to anybody: unasked for, the loop would log it as forgotten.
    """
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        canceled()
        while not running.done():
            # Whoever cancels again must wait as well.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()
        raise
