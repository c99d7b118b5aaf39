"""The port for Prometheus and for whoever restarts the agent: open from the start.

What speaks HTTP on it is loaded when the first caller comes: it takes longer to load than anything
else here, and a start should wait for nothing that nobody has asked for.
"""

import asyncio
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from agent.config import Address
from agent.metrics import Metrics, Sample

if TYPE_CHECKING:
    from aiohttp import web

# Slow readers of /metrics must not hold up the end of the agent.
_SHUTDOWN_SECONDS: Final = 1.0


class Endpoint:
    """The HTTP server."""

    def __init__(self, metrics: Metrics, sample: Callable[[], Sample]) -> None:
        self._metrics = metrics
        self._sample = sample
        self._server: asyncio.Server | None = None
        self._speaker: web.Server | None = None

    async def open(self, address: Address) -> Address:
        """Listen; answer where, since port 0 takes a free one. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._speak, address.host, address.port)
        return Address(address.host, int(self._server.sockets[0].getsockname()[1]))

    async def close(self) -> None:
        """Stop listening, and let who is being answered have the answer."""
        if self._server is not None:
            self._server.close()
        if self._speaker is not None:
            self._speaker.pre_shutdown()
            await self._speaker.shutdown(_SHUTDOWN_SECONDS)

    def _speak(self) -> asyncio.Protocol:
        """What speaks with one caller."""
        if self._speaker is None:
            pages = importlib.import_module("agent.pages")
            self._speaker = pages.speaker(self._metrics, self._sample)
        return self._speaker()
