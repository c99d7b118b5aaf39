"""A bucket as a store.

An object is kept in memory until it is whole, and sent at once, with a checksum: the store has it
whole or not at all. Names are never replaced: the store refuses it where it can, and is asked first
where it cannot. An answer that was lost is no loss: whoever writes the same bytes again is told
that they are there.
"""

import asyncio
import hashlib
import io
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from weakref import WeakValueDictionary

from typing_extensions import override

from repository.errors import (
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)
from repository.pack import PACK_BYTES_MAX
from repository.store.interface import ObjectInfo, ObjectWriter, Store, check_prefix
from repository.store.patience import Patience
from repository.store.s3.capabilities import NONE_KNOWN, Capabilities
from repository.store.s3.client import Bucket
from repository.store.s3.errors import answer_of, no_bucket
from repository.store.s3.listing import Listing
from repository.store.s3.signing import (
    LOCK_MODE,
    S3Signing,
    check_lock,
    content,
    lock_of,
    locked,
)
from repository.store.s3.versions import PAGE_KEYS, versions_of

_NS: Final = 1_000_000_000


class _Sums(NamedTuple):
    """Of an object's bytes; the last one is empty where the store has no use for it."""

    size_bytes: int
    md5: bytes
    sha256: bytes


def _sums(data: io.BytesIO, capabilities: Capabilities) -> _Sums:
    with data.getbuffer() as content_bytes:
        # The store wants MD5 to find what a network broke, not what a person did.
        md5 = hashlib.md5(content_bytes, usedforsecurity=False).digest()
        sha256 = b""
        if capabilities.checksum_sha256:
            sha256 = hashlib.sha256(content_bytes).digest()
        return _Sums(content_bytes.nbytes, md5, sha256)


class S3Store(Store):
    """Objects below a prefix of one bucket; `signing` lets others send one of them."""

    def __init__(
        self,
        bucket: Bucket,
        endpoint: str,
        capabilities: Capabilities = NONE_KNOWN,
        *,
        page_keys: int = PAGE_KEYS,
    ) -> None:
        self.bucket = bucket
        self.capabilities = capabilities
        self.signing = S3Signing(bucket, capabilities, endpoint)
        self._page_keys = page_keys
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def able(self, capabilities: Capabilities) -> "S3Store":
        """The same store, for what a probe of it has found."""
        return S3Store(self.bucket, self.signing.endpoint, capabilities, page_keys=self._page_keys)

    def patient(self, patience: Patience) -> "S3Store":
        """The same store, whose small requests are made again by itself; nothing is written."""
        bucket = self.bucket.patient(patience)
        return S3Store(bucket, self.signing.endpoint, self.capabilities, page_keys=self._page_keys)

    @property
    def requests(self) -> Counter[str]:
        """How often each operation of S3 was sent."""
        return self.bucket.requests

    @override
    def writer(self, name: str, *, retain_until: datetime | None = None) -> ObjectWriter:
        self.bucket.key(name)
        lock = locked(retain_until, self.capabilities)
        return _S3Writer(self, name, lock)

    @override
    async def get(self, name: str) -> bytes:
        return await self.bucket.read_whole(name)

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        if length == 0:
            # No range of a request is empty.
            await self.head(name)
            return b""
        _, data = await self.bucket.read_range(name, offset, length)
        return data

    @override
    async def head(self, name: str) -> ObjectInfo:
        try:
            return ObjectInfo(name, int((await self._head(name))["ContentLength"]))
        except ObjectMissingError:
            # That answer has no body: it is the same where there is no bucket at all.
            await self._check_bucket()
            raise

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        own = self.bucket.location.key_prefix
        below = own + check_prefix(prefix)
        listing = Listing(self.bucket.location.bucket, below, own)
        while listing.following is not None:
            more = {"ContinuationToken": listing.following} if listing.following else {}
            answer = await self.bucket.call(
                "list_objects_v2",
                f"the listing of {prefix or 'everything'}",
                Prefix=below,
                MaxKeys=self._page_keys,
                **more,
            )
            for info in listing.page(answer):
                yield info

    @override
    async def delete(self, name: str) -> None:
        key = self.bucket.key(name)
        if not self.capabilities.versioning:
            # To remove what is not there succeeds.
            await self.head(name)
            await self.bucket.call("delete_object", name, Key=key)
            return
        versions = await versions_of(self.bucket, name, self._page_keys)
        for version in versions:
            try:
                await self.bucket.call("delete_object", name, Key=key, VersionId=version.id)
            except StoreError as error:
                raise await self._why_not_deleted(name, error) from error
        if not any(version.is_latest and not version.is_marker for version in versions):
            raise ObjectMissingError(f"the repository has no object {name}")

    async def retain_until(self, name: str, when: datetime) -> None:
        """Lock an object until then, or longer where it is locked for longer already.

        Nobody can delete it before, nor shorten that. ObjectMissingError where there is none;
        UsageError where the store cannot lock.
        """
        check_lock(when, self.capabilities)
        retention = {"Mode": LOCK_MODE, "RetainUntilDate": when}
        try:
            await self.bucket.call(
                "put_object_retention", name, Key=self.bucket.key(name), Retention=retention
            )
        except ObjectMissingError:
            raise
        except StoreError as error:
            until = None if error.retryable else await self.locked_until(name)
            if until is None or until < when:
                raise _why_not_locked(name, error) from error

    async def locked_until(self, name: str) -> datetime | None:
        """Until when nobody can delete it; None where nothing keeps it."""
        return lock_of(await self._head(name))

    async def write(self, name: str, data: io.BytesIO, lock: dict[str, Any]) -> None:
        """Send an object; ObjectExistsError where the name has other bytes."""
        sums = await asyncio.to_thread(_sums, data, self.capabilities)
        data.seek(0)
        parameters = {
            "Key": self.bucket.key(name),
            "Body": data,
            **content(self.capabilities, md5=sums.md5, sha256=sums.sha256),
            **lock,
        }
        async with self._turn(name):
            if not self.capabilities.conditional_put and await self._is_there(name):
                await self._check_same(name, data, sums)
                return
            try:
                answer = await self.bucket.call("put_object", name, **parameters)
            except ObjectExistsError:
                await self._check_same(name, data, sums)
                return
        if "ETag" not in answer:
            # A success that has the body of an error, for instance.
            raise StoreUnavailableError(
                f"the store does not confirm {name}",
                hint="it is tried again where it can be; if it lasts, ask who runs the store",
            )

    async def _check_same(self, name: str, data: io.BytesIO, sums: _Sums) -> None:
        """ObjectExistsError where the object that is there has other bytes.

        A store's tag is the MD5, unless it encrypts in its own way: then the bytes are compared.
        """
        there = await self._head(name)
        if int(there["ContentLength"]) == sums.size_bytes:
            if there.get("ETag", "").strip('"') == sums.md5.hex():
                return
            if await self.get(name) == data.getvalue():
                return
        raise ObjectExistsError(f"the repository has an object {name} already")

    async def _head(self, name: str) -> dict[str, Any]:
        return await self.bucket.call("head_object", name, Key=self.bucket.key(name))

    async def _is_there(self, name: str) -> bool:
        try:
            await self._head(name)
        except ObjectMissingError:
            return False
        return True

    async def _why_not_deleted(self, name: str, error: StoreError) -> StoreError:
        """A clearer error where it is a lock that keeps it, and otherwise the same."""
        if error.retryable or not self.capabilities.object_lock:
            return error
        until = await self.locked_until(name)
        if until is None or until.timestamp() <= self.bucket.now_ns() / _NS:
            return error
        return StoreError(
            f"{name} is locked until {until:%Y-%m-%d %H:%M} UTC",
            hint="nobody can delete it before; try again then",
        )

    async def _check_bucket(self) -> None:
        try:
            await self.bucket.call("head_bucket", self.bucket.location.url)
        except ObjectMissingError as error:
            raise no_bucket(self.bucket.location) from error

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """One write of a name at a time: who asks first would not see who is about to write."""
        lock = self._turns.setdefault(name, asyncio.Lock())
        async with lock:
            yield


def _why_not_locked(name: str, error: StoreError) -> StoreError:
    """A clearer error where it is a right that is missing, and otherwise the same."""
    answer = answer_of(error)
    if answer is None or answer.status not in {401, 403}:
        return error
    return StoreError(
        f"the key may not lock {name}",
        hint="let it put and get retention of objects below the prefix",
    )


class _S3Writer(ObjectWriter):
    """An object that is being put together."""

    def __init__(self, store: S3Store, name: str, lock: dict[str, Any]) -> None:
        self._store = store
        self._name = name
        self._lock = lock
        # Sent from where it lies: a pack is large, and there are several at once.
        self._data = io.BytesIO()

    @override
    async def __aenter__(self) -> Self:
        return self

    @override
    async def write(self, *pieces: bytes | bytearray | memoryview) -> None:
        for piece in pieces:
            if self._data.tell() + len(piece) > PACK_BYTES_MAX:
                raise UsageError(f"{self._name} is larger than an object may be")
            self._data.write(piece)

    @override
    async def commit(self) -> None:
        await self._store.write(self._name, self._data, self._lock)

    @override
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._data = io.BytesIO()
