"""Send a file in pieces by requests that are signed already, two at a time, and do nothing else.

    python -m tests.bench.plain FILE URL...

What any upload to the same server by one process of Python can reach: no cutting, no sealing, no
compression, no hash, and nothing kept of what was sent.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Final

import aiohttp
from yarl import URL

OBJECT_BYTES: Final = 32 << 20
AT_ONCE: Final = 2
_PIECE_BYTES: Final = 1 << 20
_SECONDS: Final = 600.0


async def send(path: str, urls: list[str]) -> None:
    """All objects; raises where one is refused."""
    descriptor = os.open(path, os.O_RDONLY)
    each = iter(enumerate(urls))
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(_worker(session, descriptor, each), name=f"sender {number}")


async def _worker(
    session: aiohttp.ClientSession, descriptor: int, each: Iterator[tuple[int, str]]
) -> None:
    for number, url in each:
        body = await asyncio.to_thread(os.pread, descriptor, OBJECT_BYTES, number * OBJECT_BYTES)
        headers = {"Content-Length": str(len(body))}
        async with session.put(URL(url, encoded=True), data=_cut(body), headers=headers) as answer:
            answer.raise_for_status()


async def _cut(body: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for begin in range(0, len(view), _PIECE_BYTES):
        yield view[begin : begin + _PIECE_BYTES]


if __name__ == "__main__":
    asyncio.run(send(sys.argv[1], sys.argv[2:]))
