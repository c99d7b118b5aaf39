"""Send a file in pieces by requests that are signed already, three at a time, and do nothing else.

    python -m tests.bench.plain none|md5 FILE URL...

What any upload to the same server by one process of Python can reach: no cutting, no sealing, no
compression, and nothing kept of what was sent. With `md5` the server is told what to find in each
piece, as it is by whoever wants to be sure of it; with `none` a bit that breaks on its way stays.
"""

import asyncio
import base64
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Final

import aiohttp
from yarl import URL

OBJECT_BYTES: Final = 32 << 20
# As many as an agent sends.
AT_ONCE: Final = 3
_PIECE_BYTES: Final = 1 << 20
_SECONDS: Final = 600.0


async def send(path: str, urls: list[str], *, summed: bool) -> None:
    """All objects; raises where one is refused."""
    descriptor = os.open(path, os.O_RDONLY)
    each = iter(enumerate(urls))
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(
                _worker(session, descriptor, each, summed=summed), name=f"sender {number}"
            )


async def _worker(
    session: aiohttp.ClientSession,
    descriptor: int,
    each: Iterator[tuple[int, str]],
    *,
    summed: bool,
) -> None:
    for number, url in each:
        body = await asyncio.to_thread(os.pread, descriptor, OBJECT_BYTES, number * OBJECT_BYTES)
        headers = {"Content-Length": str(len(body))}
        if summed:
            headers["Content-MD5"] = await asyncio.to_thread(_checksum, body)
        async with session.put(URL(url, encoded=True), data=_cut(body), headers=headers) as answer:
            answer.raise_for_status()


def _checksum(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


async def _cut(body: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for begin in range(0, len(view), _PIECE_BYTES):
        yield view[begin : begin + _PIECE_BYTES]


if __name__ == "__main__":
    asyncio.run(send(sys.argv[2], sys.argv[3:], summed=sys.argv[1] == "md5"))
