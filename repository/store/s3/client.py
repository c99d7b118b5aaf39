"""The connection to one bucket: opening it, and asking with every failure translated.

The library behind it takes a quarter of a second to load, so it loads when the first store opens.
It gives up on a store that says nothing for a while; how long a request may take altogether is for
whoever knows what it is good for.
"""

import asyncio
import importlib
import io
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import cache
from typing import Any, Final, TypeVar

from typing_extensions import override

from repository.errors import StoreUnavailableError, UsageError
from repository.store.counting import Tally, charge
from repository.store.interface import Operation, check_name
from repository.store.patience import Patience
from repository.store.retrying import persistence
from repository.store.s3.errors import answer_of, failures, shorter, translate
from repository.store.s3.location import Credentials, S3Location

_T = TypeVar("_T")
# A host that is there answers a handshake within a second from anywhere.
_CONNECT_SECONDS: Final = 10.0
# Between two pieces of an answer. Stores take some seconds to answer when they are busy.
_READ_SECONDS: Final = 60.0
# Where nothing says otherwise: what AWS signs for by default, and others do not care.
_REGION: Final = "us-east-1"
# By the first word of an operation's name. What is none of these costs what a write does.
_KINDS: Final = {
    "get": Operation.GET,
    "head": Operation.HEAD,
    "list": Operation.LIST,
    "delete": Operation.DELETE,
}
# Of answers: the request took too long to come, or there were too many.
_TOO_BUSY: Final = frozenset({408, 429})
# What the library says before each request, and where it then notes that it was sent elsewhere.
_ASKING: Final = "before-parameter-build.s3"
_REDIRECT: Final = "s3_redirect"


class Bucket:
    """One bucket, as a place of keys below a prefix."""

    def __init__(self, client: Any, location: S3Location, now_ns: Callable[[], int]) -> None:
        self.location = location
        # How often each operation was sent; answers that never came are counted, too.
        self.requests: Counter[str] = Counter()
        # The same by what they cost, and the bytes of objects.
        self.tally = Tally()
        self._client = client
        self._now_ns = now_ns

    def key(self, name: str) -> str:
        """The key of an object of ours; UsageError where no object can be called so."""
        return self.location.key_prefix + check_name(name)

    def now_ns(self) -> int:
        """This machine's time."""
        return self._now_ns()

    async def call(self, operation: str, about: str, **parameters: Any) -> dict[str, Any]:
        """Ask once; the answer without its body. Raises errors of ours about that object."""

        async def ask() -> dict[str, Any]:
            with self.translated(about):
                return await self._send(operation, parameters)

        return await self.persist(_kind(operation), ask)

    async def read(self, about: str, **parameters: Any) -> tuple[dict[str, Any], bytes]:
        """Get an object; the answer, and what came of its body."""

        async def ask() -> tuple[dict[str, Any], bytes]:
            with self.translated(about):
                answer = await self._send("get_object", parameters)
                async with answer["Body"] as body:
                    data = bytes(await body.read())
                charge(self.tally, Operation.GET, 0, bytes_out=len(data))
                return answer, data

        return await self.persist(Operation.GET, ask)

    async def read_whole(self, name: str) -> bytes:
        """All of an object of ours; StoreUnavailableError where it was cut off."""
        answer, data = await self.read(name, Key=self.key(name))
        _check_whole(name, data, answer)
        return data

    async def read_range(self, name: str, offset: int, length: int) -> tuple[dict[str, Any], bytes]:
        """Some bytes of an object of ours, at least one, and the answer.

        DamagedError where it is shorter, StoreUnavailableError where something else came.
        """
        wanted = f"bytes={offset}-{offset + length - 1}"
        answer, data = await self.read(name, Key=self.key(name), Range=wanted)
        _check_whole(name, data, answer)
        _check_range(name, answer, offset, length)
        return answer, data

    async def persist(self, _: Operation, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask, once here: whoever calls tries again."""
        return await ask()

    def patient(self, patience: Patience) -> "PatientBucket":
        """The same bucket, for small requests that nobody else makes again."""
        same = PatientBucket(self._client, self.location, self._now_ns, patience)
        same.requests, same.tally = self.requests, self.tally
        return same

    async def sign(self, operation: str, about: str, seconds: int, **parameters: Any) -> str:
        """The URL of a request that works for so long. Asks nobody, unless for a newer key."""
        with self.translated(about):
            return str(
                await self._client.generate_presigned_url(
                    operation, Params=self._with_bucket(parameters), ExpiresIn=seconds
                )
            )

    @contextmanager
    def translated(self, about: str) -> Iterator[None]:
        """Failures of the libraries as ours."""
        try:
            yield
        except failures() as error:
            raise translate(error, about, self.location, self._now_ns()) from error

    async def _send(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self.requests[operation] += 1
        charge(self.tally, _kind(operation), bytes_in=_size(parameters.get("Body", b"")))
        answer = await getattr(self._client, operation)(**self._with_bucket(parameters))
        return dict(answer)

    def _with_bucket(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return {"Bucket": self.location.bucket, **parameters}


class PatientBucket(Bucket):
    """Asks again while the store is in trouble: what comes to the same when it is done twice.

    What it says of a request is taken for its answer, though another one may fare better.
    """

    def __init__(
        self, client: Any, location: S3Location, now_ns: Callable[[], int], patience: Patience
    ) -> None:
        super().__init__(client, location, now_ns)
        self._persistence = persistence(patience)

    @override
    async def persist(self, operation: Operation, ask: Callable[[], Awaitable[_T]]) -> _T:
        course = self._persistence.begin(operation)
        while True:
            try:
                return await course.within(ask())
            except StoreUnavailableError as error:
                if not _is_trouble(error):
                    raise
                await self._persistence.pause(course, error)


def _check_whole(name: str, data: bytes, answer: dict[str, Any]) -> None:
    """StoreUnavailableError where a body was cut off on its way."""
    if len(data) != answer.get("ContentLength"):
        raise StoreUnavailableError(
            f"{name} was cut off on its way here", hint="it is tried again where it can be"
        )


def _check_range(name: str, answer: dict[str, Any], offset: int, length: int) -> None:
    """Whether it is the range that was asked for, by what the store says of it."""
    size = answer["ContentLength"]
    told = str(answer.get("ContentRange", ""))
    if not told and offset == 0 and size == length:
        return
    expected = f"bytes {offset}-{offset + size - 1}/"
    if not told.startswith(expected):
        raise StoreUnavailableError(
            f"the store sent another part of {name} than was asked for: {told or 'all of it'}",
            hint="it is tried again where it can be; if it lasts, ask who runs the store",
        )
    if size == length:
        return
    total = told.removeprefix(expected)
    if total.isdigit() and int(total) < offset + length:
        raise shorter(name)
    raise StoreUnavailableError(
        f"the store sent {size} of {length} bytes of {name}",
        hint="it is tried again where it can be; if it lasts, ask who runs the store",
    )


def _is_trouble(error: StoreUnavailableError) -> bool:
    """Whether it says nothing of what was asked."""
    answer = answer_of(error)
    return answer is None or answer.status >= 500 or answer.status in _TOO_BUSY


def _kind(operation: str) -> Operation:
    return _KINDS.get(operation.partition("_")[0], Operation.PUT)


def _size(body: bytes | io.BytesIO) -> int:
    return len(body) if isinstance(body, bytes) else body.getbuffer().nbytes


@asynccontextmanager
async def open_bucket(
    location: S3Location,
    credentials: Credentials | None,
    *,
    now_ns: Callable[[], int],
    connections: int,
) -> AsyncIterator[Bucket]:
    """The bucket, for as long as the context lasts. Asks the store nothing yet.

    Without credentials they are looked for where AWS's own tools look.
    """
    await _check_authorities(location)
    session = await asyncio.to_thread(_session)
    async with AsyncExitStack() as stack:
        try:
            location = _with_region(location, session)
            context = session.create_client(
                "s3",
                region_name=location.region,
                endpoint_url=location.endpoint,
                verify=str(location.ca_file) if location.ca_file else None,
                config=_config(location, connections),
                **_key(credentials),
            )
            client = await stack.enter_async_context(context)
            client.meta.events.register_last(_ASKING, _stay)
        except failures() as error:
            raise translate(error, location.url, location, now_ns()) from error
        yield Bucket(client, location, now_ns)


async def _check_authorities(location: S3Location) -> None:
    """UsageError for a file of authorities that is none: every request would fail by it."""
    if location.ca_file is None:
        return
    try:
        await asyncio.to_thread(ssl.create_default_context, cafile=location.ca_file)
    except OSError as error:
        raise UsageError(
            f"{location.ca_file} holds no certificates that can be read: {error}",
            hint="name the file with the certificates of the store's authorities, as PEM",
        ) from error


def _session() -> Any:
    """A session of its own; what describes the service is read from disk once."""
    session = importlib.import_module("aiobotocore.session").AioSession()
    session.register_component("data_loader", _loader())
    return session


@cache
def _loader() -> Any:
    return importlib.import_module("botocore.loaders").create_loader()


def _stay(context: dict[str, Any], **_: object) -> None:
    """Have the library not look for the bucket in other regions.

    It would ask twice for everything, and what is signed for others would be refused.
    """
    context.get(_REDIRECT, {})["redirected"] = True


def _with_region(location: S3Location, session: Any) -> S3Location:
    region = location.region or session.get_config_variable("region") or _REGION
    return location._replace(region=region)


def _key(credentials: Credentials | None) -> dict[str, str]:
    if credentials is None:
        return {}
    given = {
        "aws_access_key_id": credentials.access_key,
        "aws_secret_access_key": credentials.secret_key.reveal().decode(),
    }
    if credentials.token is not None:
        given["aws_session_token"] = credentials.token.reveal().decode()
    return given


def _config(location: S3Location, connections: int) -> Any:
    """How to speak: as the oldest and the strictest of compatible stores want it."""
    return importlib.import_module("aiobotocore.config").AioConfig(
        signature_version="s3v4",
        s3={"addressing_style": location.style},
        # Some stores refuse checksums that nobody asked for, and some answer with wrong ones.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # Whoever calls tries again, and knows how often it is worth it.
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        max_pool_connections=connections,
        tcp_keepalive=True,
        # An endpoint is what the location says, and not what a machine's AWS configuration does.
        ignore_configured_endpoint_urls=True,
    )
