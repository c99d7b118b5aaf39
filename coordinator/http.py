"""The port for Prometheus and for probes that cannot do TLS: open from the start.

What speaks HTTP on it is loaded when the first caller comes: it takes longer to load than anything
else here, and a start should wait for nothing that nobody has asked for.
"""

import asyncio
import importlib
from typing import TYPE_CHECKING, Final

from coordinator.config import Address
from coordinator.custody import Custody
from coordinator.dispatch import Dispatcher
from coordinator.errors import TidemarkError
from coordinator.metrics import Metrics
from coordinator.overview import Overview

if TYPE_CHECKING:
    from aiohttp import web

# Slow readers must not hold up the end of the coordinator.
_SHUTDOWN_SECONDS: Final = 1.0


class HttpServer:
    """Serves until closed."""

    def __init__(
        self, metrics: Metrics, overview: Overview, dispatcher: Dispatcher, custody: Custody
    ) -> None:
        self._parts = (metrics, overview, dispatcher, custody)
        self._server: asyncio.Server | None = None
        self._speaker: web.Server | None = None

    async def open(self, address: Address) -> int:
        """Listen; the port, which is a free one if none was asked for."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._speak, address.host, address.port)
        except OSError as error:
            raise TidemarkError(
                f"cannot listen on {address}: {error.strerror}", hint="choose another --http"
            ) from error
        port: int = self._server.sockets[0].getsockname()[1]
        return port

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
            self._speaker = importlib.import_module("coordinator.pages").speaker(*self._parts)
        return self._speaker()
