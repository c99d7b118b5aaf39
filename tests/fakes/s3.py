"""A server that speaks as much of S3 as is needed to see what comes through a proxy.

It knows one key, and refuses what is not signed with it. Pages have few names.
"""

import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import unquote

from aiohttp import web

ACCESS_KEY: Final = "access"
SECRET_KEY: Final = "secret"  # noqa: S105 - of a server that holds nothing
REGION: Final = "us-east-1"
PAGE_NAMES: Final = 3


class FakeS3:
    """One server with one bucket; objects by key."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.seen: list[tuple[str, str]] = []
        """Method and raw path of what was well signed."""
        self.refused = 0
        self.address = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeS3"]:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/bucket/{key:.*}", self._handle)
        app.router.add_route("*", "/bucket", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            self.address = f"http://{host}:{port}"
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if not _is_signed(request):
            self.refused += 1
            return web.Response(
                status=403, text="<Error><Code>SignatureDoesNotMatch</Code></Error>"
            )
        self.seen.append((request.method, request.raw_path))
        if "list-type" in request.query:
            return self._list(request)
        key = request.match_info["key"]
        if request.method == "PUT":
            self.objects[key] = body
            return web.Response(headers={"ETag": '"1"'})
        if request.method == "DELETE":
            self.objects.pop(key, None)
            return web.Response(status=204)
        if key not in self.objects:
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
        return _ranged(request, self.objects[key])

    def _list(self, request: web.Request) -> web.Response:
        after = request.query.get("continuation-token", "")
        prefix = request.query.get("prefix", "")
        keys = sorted(key for key in self.objects if key > after and key.startswith(prefix))
        page, more = keys[:PAGE_NAMES], len(keys) > PAGE_NAMES
        parts = [f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"]
        if more:
            parts.append(f"<NextContinuationToken>{page[-1]}</NextContinuationToken>")
        for key in page:
            size = len(self.objects[key])
            parts.append(f"<Contents><Key>{key}</Key><Size>{size}</Size></Contents>")
        text = f"<ListBucketResult>{''.join(parts)}</ListBucketResult>"
        return web.Response(text=text, content_type="application/xml")


def _ranged(request: web.Request, content: bytes) -> web.Response:
    wanted = request.http_range
    if wanted.start is None:
        return web.Response(body=content)
    return web.Response(status=206, body=content[wanted.start : wanted.stop])


def _is_signed(request: web.Request) -> bool:
    """Whether the signature (version 4, in the header) is that of our key over what came."""
    parts = dict(
        part.strip().split("=", 1)
        for part in request.headers["Authorization"].partition(" ")[2].split(",")
    )
    names = parts["SignedHeaders"].split(";")
    path, _, query = request.raw_path.partition("?")
    pairs = sorted(pair if "=" in pair else f"{pair}=" for pair in query.split("&") if pair)
    headers = [f"{name}:{' '.join(request.headers[name].split())}\n" for name in names]
    payload = request.headers["x-amz-content-sha256"]
    canonical = "\n".join(
        [request.method, path, "&".join(pairs), "".join(headers), ";".join(names), payload]
    )
    moment = request.headers["x-amz-date"]
    scope = [moment[:8], REGION, "s3", "aws4_request"]
    key = f"AWS4{SECRET_KEY}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", moment, "/".join(scope), digest])
    expected = hmac.digest(key, text.encode(), "sha256").hex()
    return (
        unquote(parts["Credential"]) == "/".join([ACCESS_KEY, *scope])
        and parts["Signature"] == expected
    )
