"""Buckets on the servers, opened as stores."""

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from repository.keys import Secret
from repository.store.s3.capabilities import NONE_KNOWN, Capabilities
from repository.store.s3.client import Bucket
from repository.store.s3.location import Credentials, parse_location
from repository.store.s3.opening import open_s3
from repository.store.s3.store import S3Store
from repository.store.s3.versions import PAGE_KEYS
from tests.servers.keys import ACCESS_KEY, SECRET_KEY
from tests.servers.shared import Server

CREDENTIALS = Credentials(ACCESS_KEY, Secret(SECRET_KEY.encode()), None)

# What a probe of a new bucket finds; `tests/contract/test_s3.py` holds each server to it.
CAPABILITIES = {
    "radosgw": Capabilities(
        conditional_put=True, suffix_ranges=True, list_after_write=True, presign=True
    ),
    "rclone": Capabilities(suffix_ranges=True, list_after_write=True, presign=True),
    "moto": Capabilities(conditional_put=True, suffix_ranges=True, list_after_write=True),
}
# The same for a bucket with object lock. This gateway heeds no condition where there are versions.
LOCKING = {
    "radosgw": Capabilities(
        versioning=True,
        object_lock=True,
        suffix_ranges=True,
        list_after_write=True,
        presign=True,
    ),
    "moto": Capabilities(
        conditional_put=True,
        versioning=True,
        object_lock=True,
        suffix_ranges=True,
        list_after_write=True,
    ),
}


@asynccontextmanager
async def opened(
    server: Server,
    bucket: str,
    *,
    capabilities: Capabilities = NONE_KNOWN,
    credentials: Credentials = CREDENTIALS,
    page_keys: int = PAGE_KEYS,
    ahead_seconds: int = 0,
) -> AsyncIterator[S3Store]:
    """A store of its own in a bucket that is there or is not; its clock may be wrong."""
    location = parse_location(
        f"s3://{bucket}/{secrets.token_hex(4)}/repository", endpoint=server.url
    )
    async with open_s3(
        location,
        now_ns=lambda: time.time_ns() + ahead_seconds * 1_000_000_000,
        credentials=credentials,
        capabilities=capabilities,
        page_keys=page_keys,
    ) as store:
        yield store


def new_name() -> str:
    """A name that no bucket has yet."""
    return f"tests-{secrets.token_hex(6)}"


def beside(
    store: S3Store,
    bucket: str = "",
    *,
    capabilities: Capabilities | None = None,
    page_keys: int = PAGE_KEYS,
) -> S3Store:
    """A new store in the same bucket or another one, by the same connections.

    To open a store takes longer than most tests of one.
    """
    old = store.bucket
    location = old.location._replace(
        bucket=bucket or old.location.bucket, prefix=f"{secrets.token_hex(4)}/repository"
    )
    endpoint = f"{location.endpoint}/{location.bucket}/{location.key_prefix}"
    return S3Store(
        Bucket(old._client, location, old._now_ns),
        endpoint,
        store.capabilities if capabilities is None else capabilities,
        page_keys=page_keys,
    )


async def make_bucket(store: S3Store, *, locks: bool = False) -> S3Store:
    """A store in a new bucket, by the same connections."""
    made = beside(store, new_name())
    await made.bucket.call("create_bucket", "a bucket", ObjectLockEnabledForBucket=locks)
    return made


async def remove_bucket(store: S3Store) -> None:
    """Take away the bucket, and what this store has in it."""
    names = [info.name async for info in store.list_objects("")]
    for name in names:
        await store.delete(name)
    await store.bucket.call("delete_bucket", store.bucket.location.url)
