"""An HTTP server that answers what it is told to, one answer after the other."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple


class Reply(NamedTuple):
    """One answer; `length` announces another one than the body has."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    length: int | None = None


# Closes the connection instead.
NOTHING = Reply(status=0)


class Answering:
    """Gives its replies in turn, and the last one from then on; each on a connection of its own."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.lower().splitlines()
        for line in lines:
            if line.startswith("content-length:"):
                await reader.readexactly(int(line.partition(":")[2]))
            if line == "expect: 100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        method, target = head.split()[:2]
        self.asked.append(f"{method} {target.partition('?')[0]}")
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if reply.status:
            length = len(reply.body) if reply.length is None else reply.length
            headers = {"content-length": str(length), "connection": "close", **reply.headers}
            text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"HTTP/1.1 {reply.status} X\r\n{text}\r\n".encode())
            writer.write(reply.body if method != "HEAD" else b"")
            await writer.drain()
        writer.close()


@asynccontextmanager
async def answering(*replies: Reply, tls: ssl.SSLContext | None = None) -> AsyncIterator[Answering]:
    """The server, on a free port of loopback."""
    answers = Answering(*replies)
    server = await asyncio.start_server(answers.answer, "127.0.0.1", 0, ssl=tls)
    async with server:
        scheme = "https" if tls else "http"
        answers.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield answers
