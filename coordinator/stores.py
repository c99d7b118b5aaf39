"""The place where the repository lies, opened: a directory, or a bucket behind a network.

What it is asked is counted. A bucket is asked again while it is away, and left alone when it stays
away; what it can do beyond what all can was found when the repository was made, and is recorded in
it.
"""

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.config import Bucket, Config
from coordinator.errors import ObjectExistsError, ObjectMissingError
from coordinator.logs import get_logger
from repository.store.breaking import Breaker, BreakingSigning, BreakingStore
from repository.store.counting import CountingStore, Tally
from repository.store.interface import Signing, Store
from repository.store.local import LocalStore
from repository.store.retrying import RetryingSigning, RetryingStore

if TYPE_CHECKING:
    from repository.store.s3.store import S3Store

log = get_logger()

# What a probe of the store found, kept for ever: it decides what is signed and what is trusted.
CAPABILITIES_NAME: Final = "capabilities"
# A call that finds the store left alone waits so long before it fails: less than the agents' own
# patience with the coordinator.
_PARKED_SECONDS: Final = 60.0

Clock = Callable[[], int]


@dataclass(frozen=True)
class Place:
    """Where a repository lies, opened."""

    store: Store
    location: str
    """As a person writes it."""
    directory: Path | None = None
    """None where it is no directory."""
    signing: Signing | None = None
    """The store, where agents may send it requests that are signed here."""
    breaker: Breaker | None = None
    """None where nothing is left alone when it fails."""
    tally: Tally = field(default_factory=Tally)
    """What it was asked, by us."""
    check: Callable[[], Awaitable[list[str]]] | None = None
    """What is wrong with a bucket, its key or this machine's clock: warnings, or an error."""


OpenPlace = Callable[[Config, Clock], AbstractAsyncContextManager[Place]]


def in_directory(make: Callable[[Path], Store] = LocalStore) -> OpenPlace:
    """Open a directory with this kind of store."""

    @asynccontextmanager
    async def opened(config: Config, _: Clock) -> AsyncIterator[Place]:
        path = config.repository
        store = CountingStore(make(path))
        yield Place(store, str(path), directory=path, tally=store.total)

    return opened


@asynccontextmanager
async def open_place(config: Config, clock: Clock) -> AsyncIterator[Place]:
    """Open what the settings name."""
    if config.bucket is None:
        async with in_directory()(config, clock) as place:
            yield place
        return
    async with _open_bucket(config.bucket, clock) as place:
        yield place


@asynccontextmanager
async def _open_bucket(bucket: Bucket, clock: Clock) -> AsyncIterator[Place]:
    # Loads what speaks S3, which takes a quarter of a second: only who has a bucket waits for it.
    opening = importlib.import_module("repository.store.s3.opening")
    credentials = None
    if bucket.credentials_file is not None:
        credentials = await opening.read_credentials(bucket.credentials_file)
    async with opening.open_s3(bucket.location, now_ns=clock, credentials=credentials) as unprobed:
        yield _place(await _probed(unprobed), bucket)


def _place(store: "S3Store", bucket: Bucket) -> Place:
    # The bucket counts what it sends, which one call may do more than once.
    breaker = Breaker()
    outer = BreakingStore(RetryingStore(store), breaker, wait_seconds=_PARKED_SECONDS)
    signing = BreakingSigning(RetryingSigning(store.signing), breaker, wait_seconds=_PARKED_SECONDS)
    return Place(
        store=outer,
        location=bucket.location.url,
        signing=signing if store.capabilities.presign else None,
        breaker=breaker,
        tally=store.bucket.tally,
        check=partial(importlib.import_module("repository.store.s3.check").check, store),
    )


async def _probed(store: "S3Store") -> "S3Store":
    """The store, with what it can do: as recorded, or found out and recorded now.

    Found out only where nothing is recorded, so before a repository is made; there whatever is
    wrong with bucket, key or clock shows.
    """
    capabilities = importlib.import_module("repository.store.s3.capabilities").Capabilities
    try:
        recorded = await store.get(CAPABILITIES_NAME)
    except ObjectMissingError:
        check = importlib.import_module("repository.store.s3.check")
        probe = importlib.import_module("repository.store.s3.probe")
        for warning in await check.check(store):
            log.warning(warning)
        found = await probe.probe(store)
        try:
            await store.put(CAPABILITIES_NAME, found.encode())
        except ObjectExistsError:
            found = capabilities.decode(await store.get(CAPABILITIES_NAME))
        return store.able(found)
    return store.able(capabilities.decode(recorded))
