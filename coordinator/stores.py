"""The place where the repository lies, opened: a directory, or a bucket behind a network.

A bucket is asked again while it is away, left alone when it stays away, and what it is asked is
counted. What it can do beyond what all can was found when the repository was made, and is recorded
in it.
"""

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.config import Bucket, Config
from coordinator.errors import ConfigError, ObjectExistsError, ObjectMissingError
from coordinator.logs import get_logger
from repository.store.breaking import Breaker, BreakingStore
from repository.store.counting import CountingStore, Tally
from repository.store.interface import Locking, Signing, Store
from repository.store.local import LocalStore
from repository.store.locking import GuardedLocking
from repository.store.retrying import RetryingStore

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
    locking: Locking | None = None
    """The store's locks, where the settings ask for some."""
    breaker: Breaker | None = None
    tally: Tally | None = None
    check: Callable[[], Awaitable[list[str]]] | None = None
    """What is wrong with a bucket, its key or this machine's clock: warnings, or an error."""


OpenPlace = Callable[[Config, Clock], AbstractAsyncContextManager[Place]]


def in_directory(make: Callable[[Path], Store] = LocalStore) -> OpenPlace:
    """Open a directory with this kind of store."""

    @asynccontextmanager
    async def opened(config: Config, _: Clock) -> AsyncIterator[Place]:
        path = config.repository
        yield Place(make(path), str(path), directory=path)

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
        if bucket.lock_seconds is not None:
            # Nobody takes back a lock that a wrong clock has set.
            await importlib.import_module("repository.store.s3.check").check_access(unprobed.bucket)
        yield _place(await _probed(unprobed, bucket), bucket)


def _place(store: "S3Store", bucket: Bucket) -> Place:
    breaker, tally = Breaker(), Tally()
    outer = BreakingStore(
        RetryingStore(CountingStore(store, tally)), breaker, wait_seconds=_PARKED_SECONDS
    )
    return Place(
        store=outer,
        location=bucket.location.url,
        signing=store.signing if store.capabilities.presign else None,
        locking=None
        if bucket.lock_seconds is None
        else GuardedLocking(store, breaker, tally, wait_seconds=_PARKED_SECONDS),
        breaker=breaker,
        tally=tally,
        check=partial(importlib.import_module("repository.store.s3.check").check, store),
    )


async def _probed(store: "S3Store", bucket: Bucket) -> "S3Store":
    """The store, with what it can do: as recorded, or found out and recorded now.

    Found out only where nothing is recorded, so before a repository is made; there whatever is
    wrong with bucket, key or clock shows. ConfigError where it is to lock, and cannot: nothing is
    recorded then, since the bucket may still be given what it lacks.
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
        _check_lock(bucket, able=found.object_lock, recorded=False)
        try:
            await store.put(CAPABILITIES_NAME, found.encode())
        except ObjectExistsError:
            found = capabilities.decode(await store.get(CAPABILITIES_NAME))
        return store.able(found)
    known = store.able(capabilities.decode(recorded))
    _check_lock(bucket, able=known.capabilities.object_lock, recorded=True)
    return known


def _check_lock(bucket: Bucket, *, able: bool, recorded: bool) -> None:
    if able or bucket.lock_seconds is None:
        return
    url = bucket.location.url
    if recorded:
        raise ConfigError(
            f"{url} could not lock objects when its repository was made",
            hint="make another one in a bucket with object lock, or leave repository_lock out",
        )
    raise ConfigError(
        f"{url} cannot lock objects, and repository_lock asks for it",
        hint="make a bucket with object lock, which most stores allow for new ones only, or leave "
        "repository_lock out",
    )
