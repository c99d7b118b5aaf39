"""Opens a bucket as a store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from repository.errors import UsageError
from repository.store.s3.capabilities import NONE_KNOWN, Capabilities
from repository.store.s3.client import open_bucket
from repository.store.s3.location import (
    DEFAULT_PROFILE,
    Credentials,
    S3Location,
    parse_credentials,
)
from repository.store.s3.signing import endpoint_of
from repository.store.s3.store import S3Store
from repository.store.s3.versions import PAGE_KEYS

# Requests that are under way at once; others wait for one of them.
CONNECTIONS: Final = 32


@asynccontextmanager
async def open_s3(
    location: S3Location,
    *,
    now_ns: Callable[[], int],
    capabilities: Capabilities = NONE_KNOWN,
    credentials: Credentials | None = None,
    connections: int = CONNECTIONS,
    page_keys: int = PAGE_KEYS,
) -> AsyncIterator[S3Store]:
    """The store, for as long as the context lasts; nothing is asked of it yet.

    `now_ns` is the time since 1970. Without credentials they are looked for where AWS's own tools
    look: environment, ~/.aws, the machine's role. StoreError where there are none.
    """
    async with open_bucket(location, credentials, now_ns=now_ns, connections=connections) as bucket:
        endpoint = await endpoint_of(bucket)
        yield S3Store(bucket, endpoint, capabilities, page_keys=page_keys)


async def read_credentials(path: Path, profile: str = DEFAULT_PROFILE) -> Credentials:
    """The key in a file of the form that AWS tools use; UsageError where there is none."""
    try:
        content = await asyncio.to_thread(path.read_bytes)
    except OSError as error:
        raise UsageError(
            f"the credentials file {path} cannot be read: {error}",
            hint="check its path, and that the daemon's user may read it",
        ) from error
    return parse_credentials(content, profile)
