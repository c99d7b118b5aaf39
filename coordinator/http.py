"""/metrics and /healthz over plain HTTP, for Prometheus and for probes that cannot do TLS.

Nothing here changes anything or tells names of files; volumes are named in metrics.
"""

from collections import Counter

from aiohttp import web

from coordinator.config import Address
from coordinator.custody import Custody
from coordinator.dispatch import Dispatcher
from coordinator.errors import TidemarkError
from coordinator.metrics import Metrics
from coordinator.overview import Overview


class HttpServer:
    """Serves until closed."""

    def __init__(
        self, metrics: Metrics, overview: Overview, dispatcher: Dispatcher, custody: Custody
    ) -> None:
        self._metrics = metrics
        self._overview = overview
        self._dispatcher = dispatcher
        self._custody = custody
        application = web.Application()
        application.router.add_get("/metrics", self._serve_metrics)
        application.router.add_get("/healthz", self._serve_health)
        self._runner = web.AppRunner(application, access_log=None)

    async def open(self, address: Address) -> int:
        """Listen; the port, which is a free one if none was asked for."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, address.host, address.port)
        try:
            await site.start()
        except OSError as error:
            raise TidemarkError(
                f"cannot listen on {address}: {error.strerror}", hint="choose another --http"
            ) from error
        port: int = self._runner.addresses[0][1]
        return port

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _serve_metrics(self, request: web.Request) -> web.Response:
        running = Counter(job.kind for job in self._dispatcher.running())
        self._metrics.set_live(
            running=running,
            queued=self._dispatcher.queued(),
            agents=len(self._dispatcher.connected()),
        )
        self._metrics.set_totals(await self._overview.totals(), unlocked=self._custody.unlocked)
        self._metrics.set_last_success(await self._overview.last_success())
        return web.Response(
            body=self._metrics.render(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _serve_health(self, request: web.Request) -> web.Response:
        try:
            await self._overview.totals()
        except TidemarkError as error:
            return web.Response(status=503, text=f"{error.message}\n")
        return web.Response(text="ok\n")
