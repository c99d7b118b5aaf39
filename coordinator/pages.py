"""/metrics and /healthz, as HTTP. Loaded when somebody asks for one of them.

Nothing here changes anything or tells names of files; volumes are named in metrics.
"""

from collections import Counter

from aiohttp import web

from coordinator.custody import Custody
from coordinator.dispatch import Dispatcher
from coordinator.errors import TidemarkError
from coordinator.metrics import Metrics
from coordinator.overview import Overview


def speaker(
    metrics: Metrics, overview: Overview, dispatcher: Dispatcher, custody: Custody
) -> web.Server:
    """What makes, for each caller, the protocol that answers."""
    return web.Server(_Pages(metrics, overview, dispatcher, custody).answer, access_log=None)


class _Pages:
    """What there is to ask for."""

    def __init__(
        self, metrics: Metrics, overview: Overview, dispatcher: Dispatcher, custody: Custody
    ) -> None:
        self._metrics = metrics
        self._overview = overview
        self._dispatcher = dispatcher
        self._custody = custody
        self._pages = {"/metrics": self._show_metrics, "/healthz": self._show_health}

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """The page, 404 where there is none, 405 for whoever wants more than to read."""
        page = self._pages.get(request.path)
        if page is None:
            return web.Response(status=404, text="there are /metrics and /healthz\n")
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, headers={"Allow": "GET, HEAD"}, text="read only\n")
        return await page()

    async def _show_metrics(self) -> web.Response:
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

    async def _show_health(self) -> web.Response:
        try:
            await self._overview.totals()
        except TidemarkError as error:
            return web.Response(status=503, text=f"{error.message}\n")
        return web.Response(text="ok\n")
