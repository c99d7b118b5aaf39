"""Finds what a store can do, by doing it: what stores say of themselves is often wrong.

Each question is one or two small requests below `probe/`, which is empty again afterwards. A store
that refuses a question cannot do what it is about; one that is in trouble fails the probe, since a
wrong answer would be kept.
"""

import hashlib
import importlib
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from repository.errors import (
    ObjectExistsError,
    StoreError,
    StoreUnavailableError,
    TidemarkError,
)
from repository.store.interface import Operation, SignedRequest
from repository.store.s3.capabilities import NONE_KNOWN, Capabilities
from repository.store.s3.client import Bucket
from repository.store.s3.errors import answer_of
from repository.store.s3.signing import content
from repository.store.s3.store import S3Store
from repository.store.s3.versions import has_locks, has_versions, versions_of

_CONTENT: Final = b"what was written"
# As long as the other, so that only the bytes differ.
_OTHER: Final = b"something else.."
# Objects that the questions leave behind.
_PARTS: Final = ("plain", "listed", "summed", "wrong", "signed", "renamed")
_SIGNED_SECONDS: Final = 300
# For a request of some bytes, to a store that has just answered others.
_SEND_SECONDS: Final = 30.0
_NO_VERSION: Final = "null"
# Statuses that say nothing of a request; those for whoever cannot serve it are not among them.
_TROUBLE: Final = frozenset({408, 429, 500, 502, 503, 504})


async def probe(store: S3Store) -> Capabilities:
    """What the store can do. StoreError where it does not even write, read, list and delete."""
    bucket, name = store.bucket, f"probe/{secrets.token_hex(8)}"
    async with _cleaned(bucket, name):
        put = await _put(bucket, f"{name}/plain", _CONTENT)
        suffix = await _yes(_gives_suffixes(bucket, f"{name}/plain"))
        locks = await _yes(has_locks(bucket))
        versions = _version(put) or locks or await _yes(has_versions(bucket))
        return Capabilities(
            conditional_put=await _has_conditions(bucket, f"{name}/plain"),
            checksum_sha256=await _compares_sums(bucket, name),
            versioning=bool(versions),
            object_lock=locks,
            suffix_ranges=suffix,
            list_after_write=await _lists_at_once(store, name),
            presign=await _yes(_signs(store, name)),
        )


async def _yes(question: Awaitable[bool]) -> bool:
    """The answer; no where the store refuses the question. Trouble is no answer."""
    try:
        return await question
    except StoreError as error:
        if error.retryable:
            raise
        return False


async def _has_conditions(bucket: Bucket, name: str) -> bool:
    """Whether a write to a name that is taken fails, as it is told to."""
    try:
        await _put(bucket, name, _OTHER, IfNoneMatch="*")
    except ObjectExistsError:
        return True
    except StoreError as error:
        if error.retryable:
            raise
    return False


async def _compares_sums(bucket: Bucket, name: str) -> bool:
    """Whether a right SHA-256 is taken and a wrong one is not."""
    right, wrong = (_checksum(data) for data in (_CONTENT, _OTHER))
    if not await _yes(_takes(bucket, f"{name}/summed", right)):
        return False
    try:
        await _put(bucket, f"{name}/wrong", _CONTENT, ChecksumSHA256=wrong)
    except StoreError as error:
        # Elsewhere such a refusal means: try again. Here it is the answer.
        answer = answer_of(error)
        if answer is not None and answer.status < 500:
            return True
        raise
    return False


def _checksum(data: bytes) -> str:
    known = Capabilities(checksum_sha256=True)
    return str(content(known, sha256=hashlib.sha256(data).digest())["ChecksumSHA256"])


async def _takes(bucket: Bucket, name: str, checksum: str) -> bool:
    await _put(bucket, name, _CONTENT, ChecksumSHA256=checksum)
    return True


async def _gives_suffixes(bucket: Bucket, name: str) -> bool:
    _, data = await bucket.read(name, Key=bucket.key(name), Range="bytes=-7")
    return data == _CONTENT[-7:]


async def _lists_at_once(store: S3Store, name: str) -> bool:
    listed = f"{name}/listed"
    await _put(store.bucket, listed, _CONTENT)
    before = [info.name async for info in store.list_objects(f"{name}/")]
    await store.bucket.call("delete_object", listed, Key=store.bucket.key(listed))
    after = [info.name async for info in store.list_objects(f"{name}/")]
    return listed in before and before != after == [each for each in before if each != listed]


async def _signs(store: S3Store, name: str) -> bool:
    """Whether a signed request works without a key, and for nothing else than it says."""
    signed, renamed = f"{name}/signed", f"{name}/renamed"
    request = await store.signing.sign_put(
        signed,
        size_bytes=len(_CONTENT),
        checksum=hashlib.md5(_CONTENT, usedforsecurity=False).digest(),
        seconds=_SIGNED_SECONDS,
    )
    elsewhere = request._replace(url=request.url.replace(signed, renamed, 1))
    for other, body in ((request, _OTHER), (elsewhere, _CONTENT)):
        if (await _send(store.bucket, other, body))[0] < 300:
            return False
    if (await _answered(store.bucket, request, _CONTENT))[0] >= 300:
        return False
    reading = await store.signing.sign_get(signed, seconds=_SIGNED_SECONDS)
    return await _answered(store.bucket, reading, None) == (200, _CONTENT)


async def _answered(
    bucket: Bucket, request: SignedRequest, body: bytes | None
) -> tuple[int, bytes]:
    """The answer to a request that is right; StoreUnavailableError for one that says nothing."""

    async def ask() -> tuple[int, bytes]:
        status, came = await _send(bucket, request, body)
        if status in _TROUBLE:
            raise StoreUnavailableError(
                f"the store is in trouble at a signed request ({status})",
                hint="if it lasts, ask who runs the store",
            )
        return status, came

    return await bucket.persist(Operation.GET if body is None else Operation.PUT, ask)


async def _send(bucket: Bucket, request: SignedRequest, body: bytes | None) -> tuple[int, bytes]:
    """Status and body of the answer to a signed request, sent as somebody without a key does."""
    aiohttp = importlib.import_module("aiohttp")
    url = importlib.import_module("yarl").URL(request.url, encoded=True)
    authorities = bucket.location.ca_file
    trusted = ssl.create_default_context(cafile=authorities) if authorities else True
    with bucket.translated("a signed request"):
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SEND_SECONDS)) as session,
            session.request(
                request.method, url, data=body, headers=request.headers, ssl=trusted
            ) as answer,
        ):
            return int(answer.status), bytes(await answer.read())


async def _put(bucket: Bucket, name: str, data: bytes, **more: Any) -> dict[str, Any]:
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    sums = content(NONE_KNOWN, md5=md5)
    return await bucket.call("put_object", name, Key=bucket.key(name), Body=data, **sums, **more)


def _version(answer: Mapping[str, Any]) -> bool:
    return bool(answer.get("VersionId", _NO_VERSION) != _NO_VERSION)


@asynccontextmanager
async def _cleaned(bucket: Bucket, name: str) -> AsyncIterator[None]:
    try:
        yield
    except TidemarkError:
        # What went wrong first is what to tell.
        with suppress(TidemarkError):
            await _clean(bucket, name)
        raise
    await _clean(bucket, name)


async def _clean(bucket: Bucket, name: str) -> None:
    """Remove what the questions wrote, with all versions where the bucket keeps them."""
    for part in (f"{name}/{part}" for part in _PARTS):
        for version in await _what_to_remove(bucket, part):
            await bucket.call("delete_object", part, Key=bucket.key(part), **version)


async def _what_to_remove(bucket: Bucket, name: str) -> list[dict[str, str]]:
    """What to name beside the key: to delete what is not there would leave a marker."""
    try:
        versions = await versions_of(bucket, name)
    except StoreError as error:
        if error.retryable:
            raise
        return [{}]
    return [{} if each.id == _NO_VERSION else {"VersionId": each.id} for each in versions]
