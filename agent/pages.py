"""/metrics and /healthz, as HTTP. Loaded when somebody asks for one of them.

Read-only and without secrets or file names, so it needs no TLS; it answers any caller and changes
nothing. A probe succeeds while the agent works, connected or not: to restart an agent does not
bring a coordinator back.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from agent.metrics import Metrics, Sample


def speaker(metrics: Metrics, sample: Callable[[], Sample]) -> web.Server:
    """What makes, for each caller, the protocol that answers."""
    return web.Server(_Pages(metrics, sample).answer, access_log=None)


class _Pages:
    """What there is to ask for."""

    def __init__(self, metrics: Metrics, sample: Callable[[], Sample]) -> None:
        self._metrics = metrics
        self._sample = sample
        self._pages = {"/metrics": self._show_metrics, "/healthz": self._show_health}

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """The page, 404 where there is none, 405 for whoever wants more than to read."""
        page = self._pages.get(request.path)
        if page is None:
            return web.Response(status=404, text="there are /metrics and /healthz\n")
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, headers={"Allow": "GET, HEAD"}, text="read only\n")
        return page()

    def _show_metrics(self) -> web.Response:
        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _show_health(self) -> web.Response:
        sample = self._sample()
        return web.json_response(
            {
                "status": "ok",
                "connected": sample.connected,
                "tasks": sample.tasks,
                "volumes": sample.volumes,
            }
        )
