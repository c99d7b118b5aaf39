"""What every store promises; `tests/contract/test_store.py` holds each to it.

Names are `/`-separated ASCII. An object is written whole or not at all, is durable when the call
returns, and is never replaced. Errors are those of `repository.errors`; a listing that fails
raises, and never falls short silently.
"""

import re
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime
from enum import Enum, StrEnum
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from repository.errors import UsageError

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*")
NAME_LENGTH_MAX: Final = 512


class Operation(StrEnum):
    """What is asked of a store. Each has its price, and its time."""

    PUT = "put"
    GET = "get"
    HEAD = "head"
    LIST = "list"
    DELETE = "delete"


class ObjectInfo(NamedTuple):
    """An object as a listing shows it."""

    name: str
    size: int


class SignedRequest(NamedTuple):
    """One request to the store that whoever holds it may send, without any credential.

    `headers` are sent exactly as they stand: they are part of the signature.
    """

    method: str
    url: str
    headers: dict[str, str]


class ObjectWriter(Protocol):
    """Writes one object piece by piece. Left without `commit`, nothing stays."""

    async def write(self, *pieces: bytes | bytearray | memoryview) -> None:
        """Append these, one after the other.

        StoreFullError or StoreUnavailableError; the object can then only be aborted.
        """
        ...

    async def commit(self) -> None:
        """Make it durable and visible; ObjectExistsError where the name is taken.

        After StoreUnavailableError it may be called again: what was written is still held. An
        ObjectExistsError may then tell of what the call before has done. A writer that no longer
        knows what of it reached the disk raises StoreUnavailableError each time; the object must
        then be written anew.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Store(Protocol):
    """A place of objects."""

    def writer(self, name: str) -> ObjectWriter:
        """Begin an object; used as `async with`."""
        ...

    async def put(self, name: str, data: bytes) -> None:
        """Write an object at once."""
        async with self.writer(name) as writer:
            await writer.write(data)
            await writer.commit()

    def get(self, name: str) -> Awaitable[bytes]:
        """The whole object; ObjectMissingError where there is none."""
        ...

    def get_range(self, name: str, offset: int, length: int) -> Awaitable[bytes]:
        """Exactly these bytes; DamagedError where the object is shorter."""
        ...

    def head(self, name: str) -> Awaitable[ObjectInfo]:
        """Name and size; ObjectMissingError where there is none."""
        ...

    def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """All objects whose name begins with `prefix`, which ends with `/` or is empty, sorted."""
        ...

    def delete(self, name: str) -> Awaitable[None]:
        """Remove an object; ObjectMissingError where there is none."""
        ...

    def remove_leftovers(self) -> None:
        """Remove what a crash left half written, where a store leaves any. May block.

        Only while nobody writes.
        """
        return


class Checksum(Enum):
    """What of an object's content a store compares when it is written."""

    MD5 = "md5"
    SHA256 = "sha256"


class StoredObject(NamedTuple):
    """What a store says of an object."""

    size: int
    checksum: bytes | None
    """Of the store's own kind; None where it does not tell."""
    locked_until: datetime | None = None
    """None where nothing keeps it, or the store does not tell."""
    part: bytes = b""
    """Those of its bytes that were asked for."""


class Signing(Protocol):
    """Lets somebody else send one request, for a while.

    A store that has this has `Store`, too; one that cannot be signed for does not have it.
    """

    @property
    def endpoint(self) -> str:
        """What every URL signed here begins with; ends with a slash."""
        ...

    @property
    def checksum(self) -> Checksum:
        """The kind of checksum that requests are signed for."""
        ...

    def sign_put(
        self,
        name: str,
        *,
        size_bytes: int,
        checksum: bytes,
        seconds: int,
        retain_until: datetime | None = None,
    ) -> Awaitable[SignedRequest]:
        """Write this object with exactly this content, for so many seconds from now. No I/O.

        Where the store cannot do so itself, nothing keeps the request from being sent twice: with
        the same content. `retain_until` (with a zone) locks the object for so long; UsageError
        where the store cannot.
        """
        ...

    def sign_get(self, name: str, *, seconds: int) -> Awaitable[SignedRequest]:
        """Read this object for so many seconds from now; the sender may add a Range header.

        No I/O.
        """
        ...

    def stored(self, name: str, offset: int, length: int) -> Awaitable[StoredObject]:
        """Ask what there is by this name, and for some of its bytes, at least one.

        By one request where the store tells everything along with them. ObjectMissingError where
        there is nothing, DamagedError where it is shorter.
        """
        ...


class Locking(Protocol):
    """Keeps objects from being deleted until a time, by anybody.

    A store that has this has `Store`, too. A lock is never shortened. Times have a zone, and are of
    whole seconds.
    """

    def writing_until(self, when: datetime) -> Store:
        """The same store; what is written to it is locked until then from its first moment."""
        ...

    def retain_until(self, name: str, when: datetime) -> Awaitable[None]:
        """Lock an object until then, or longer where it is locked for longer already.

        ObjectMissingError where there is none.
        """
        ...

    def locked_until(self, name: str) -> Awaitable[datetime | None]:
        """Until when nobody can delete it; None where nothing keeps it."""
        ...


def check_prefix(prefix: str) -> str:
    """The prefix; UsageError for one that no listing has."""
    if prefix:
        check_name(prefix.removesuffix("/"))
    if prefix and not prefix.endswith("/"):
        raise UsageError(f"{prefix!r} is not a prefix of objects: it does not end with a slash")
    return prefix


def check_name(name: str) -> str:
    """The name; UsageError where no object can be called so."""
    if len(name) > NAME_LENGTH_MAX or not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name for an object")
    return name
