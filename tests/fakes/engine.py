"""A Docker engine that has what it is told to have, and fails as it is told to.

It speaks as much of the Engine API as discovery asks for, on a socket of its own. The real one is
in tests/e2e/engine.py; this one can hang, lie, and lose events.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

API = "1.41"


class FakeEngine:
    """One engine."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.address = f"unix://{socket}"
        self.containers: dict[str, dict[str, Any]] = {}
        self.volumes: list[dict[str, Any]] = []
        self.volumes_text: str | None = None
        """What it says of its volumes instead."""
        self.hangs = False
        self.inspected: list[str] = []
        self.looks = 0
        self._listeners: list[asyncio.Queue[bytes | None]] = []

    def add_container(self, name: str, *mounts: dict[str, Any], **host: Any) -> None:
        self.containers[name] = {
            "listed": {"Id": name, "Names": [f"/{name}"], "Labels": None, "Mounts": list(mounts)},
            "shown": {"Id": name, "Name": f"/{name}", "HostConfig": host},
        }

    def add_volume(self, name: str) -> None:
        made = {"Name": name, "Driver": "local", "Mountpoint": f"/v/{name}/_data"}
        self.volumes.append(made | {"Labels": None, "Options": None})

    def tell(self) -> None:
        """Send an event."""
        line = json.dumps({"Type": "volume", "Action": "create", "time": 1}).encode() + b"\n"
        for listener in self._listeners:
            listener.put_nowait(line)

    def end_events(self) -> None:
        """End the stream of events."""
        for listener in self._listeners:
            listener.put_nowait(None)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeEngine"]:
        app = web.Application()
        app.router.add_get("/version", self._version)
        app.router.add_get(f"/v{API}/info", self._info)
        app.router.add_get(f"/v{API}/containers/json", self._list)
        app.router.add_get(f"/v{API}/containers/{{id}}/json", self._show)
        app.router.add_get(f"/v{API}/volumes", self._volumes)
        app.router.add_get(f"/v{API}/events", self._events)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(self.socket)).start()
        try:
            yield self
        finally:
            self.end_events()
            await runner.cleanup()
            self.socket.unlink(missing_ok=True)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": API, "Version": "1"})

    async def _info(self, _: web.Request) -> web.Response:
        self.looks += 1
        if self.hangs:
            await asyncio.sleep(3600)
        return web.json_response({"ServerVersion": "1", "DockerRootDir": "/v"})

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response([each["listed"] for each in self.containers.values()])

    async def _show(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        self.inspected.append(name)
        shown = self.containers[name]["shown"]
        if shown is None:
            return web.json_response({"message": f"No such container: {name}"}, status=404)
        return web.json_response(shown)

    async def _volumes(self, _: web.Request) -> web.Response:
        if self.volumes_text is not None:
            return web.Response(text=self.volumes_text, content_type="application/json")
        return web.json_response({"Volumes": self.volumes, "Warnings": None})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        listener: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._listeners.append(listener)
        try:
            while (line := await listener.get()) is not None:
                await response.write(line)
        finally:
            self._listeners.remove(listener)
        return response
