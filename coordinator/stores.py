"""The place where a repository lies, opened: a directory, or a bucket behind a network.

What it is asked is counted. A bucket is asked again while it is away, and left alone when it stays
away; what it can do beyond what all can was found when the repository was made, and is recorded in
it.
"""

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from coordinator.config import Bucket, Where
from coordinator.errors import (
    ConfigError,
    FormatError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)
from coordinator.logs import get_logger
from repository.store.around import StoreAround
from repository.store.breaking import Breaker, BreakingSigning, BreakingStore
from repository.store.counting import CountingStore, Tally
from repository.store.interface import Locking, Operation, Signing, Store
from repository.store.local import LocalStore
from repository.store.locking import GuardedLocking
from repository.store.patience import Patience
from repository.store.retrying import RetryingSigning, RetryingStore

if TYPE_CHECKING:
    from repository.store.s3.capabilities import Capabilities
    from repository.store.s3.location import S3Location
    from repository.store.s3.store import S3Store

log = get_logger()

# What a probe of the store found, kept for ever: it decides what is signed and what is trusted.
CAPABILITIES_NAME: Final = "capabilities"
# What it wrote to find that out, where the key may not delete it again.
PROBE_PREFIX: Final = "probe/"
# A call that finds the store left alone waits so long before it fails: less than the agents' own
# patience with the coordinator.
_PARKED_SECONDS: Final = 60.0
# For a small object, from a store that answers within a second, and within some when it is busy.
_FIRST_SECONDS: Final = 15.0
# Of a start, for each small request: whoever starts us is told soon what is wrong, and one request
# that fails is nothing that has to be known.
_AT_START: Final = Patience(
    wait_seconds_first=0.5, wait_seconds_max=2.0, total_seconds=5.0, begin_seconds=5.0
)
# Of somebody at a terminal: what passes by itself passes within this, as a gateway that has to slow
# down does, and an answer that is longer in coming is not waited for. With the 64 KiB or so that a
# look at a snapshot begins with, 15 s in all.
_AT_TERMINAL: Final = Patience(
    wait_seconds_first=0.5,
    wait_seconds_max=2.0,
    total_seconds=6.0,
    begin_seconds=6.0,
    answer_seconds=dict.fromkeys(Operation, 8.0),
)

Clock = Callable[[], int]


@dataclass(frozen=True)
class Place:
    """Where a repository lies, opened."""

    store: Store
    location: str
    """As a person writes it."""
    directory: Path | None = None
    """None where it is no directory."""
    bucket: "S3Location | None" = None
    """None where it is no bucket."""
    signing: Signing | None = None
    """The store, where agents may send it requests that are signed here."""
    locking: Locking | None = None
    """The store's locks, where the settings ask for some."""
    breaker: Breaker | None = None
    """None where nothing is left alone when it fails."""
    tally: Tally = field(default_factory=Tally)
    """What it was asked, by us."""
    impatient: Store | None = None
    """The same for somebody at a terminal: asked a few times within seconds, whatever came before.
    None where that makes no difference."""
    check: Callable[[], Awaitable[list[str]]] | None = None
    """What is wrong with a bucket, its key or this machine's clock: warnings, or an error."""


OpenPlace = Callable[[Where, Clock], AbstractAsyncContextManager[Place]]


def in_directory(make: Callable[[Path], Store] = LocalStore) -> OpenPlace:
    """Open a directory with this kind of store."""

    @asynccontextmanager
    async def opened(where: Where, _: Clock) -> AsyncIterator[Place]:
        assert isinstance(where, Path)
        store = CountingStore(make(where))
        yield Place(store, str(where), directory=where, tally=store.total)

    return opened


_local = in_directory()


@asynccontextmanager
async def open_place(where: Where, clock: Clock) -> AsyncIterator[Place]:
    """Open what the settings name."""
    open_at = _open_bucket(where, clock) if isinstance(where, Bucket) else _local(where, clock)
    async with open_at as place:
        yield place


@asynccontextmanager
async def _open_bucket(bucket: Bucket, clock: Clock) -> AsyncIterator[Place]:
    # Loads what speaks S3, which takes a quarter of a second: only who has a bucket waits for it.
    opening = importlib.import_module("repository.store.s3.opening")
    credentials = None
    if bucket.credentials_file is not None:
        credentials = await opening.read_credentials(bucket.credentials_file)
    async with opening.open_s3(bucket.location, now_ns=clock, credentials=credentials) as unprobed:
        patient = unprobed.patient(_AT_START)
        if bucket.lock_seconds is not None:
            # Nobody takes back a lock that a wrong clock has set.
            await importlib.import_module("repository.store.s3.check").check_access(patient.bucket)
        recorded = await _recorded(patient)
        if recorded is None:
            store = unprobed.able(await _probed(patient, unprobed, bucket))
        else:
            store = unprobed.able(recorded)
            _check_lock(bucket, able=recorded.object_lock, recorded=True)
        yield _place(store, bucket)


def _place(store: "S3Store", bucket: Bucket) -> Place:
    # The bucket counts what it sends, which one call may do more than once.
    breaker = Breaker()
    outer = BreakingStore(RetryingStore(store), breaker, wait_seconds=_PARKED_SECONDS)
    signing = BreakingSigning(RetryingSigning(store.signing), breaker, wait_seconds=_PARKED_SECONDS)
    return Place(
        store=outer,
        location=bucket.location.url,
        bucket=bucket.location,
        signing=signing if store.capabilities.presign else None,
        locking=None
        if bucket.lock_seconds is None
        else GuardedLocking(store, breaker, wait_seconds=_PARKED_SECONDS),
        breaker=breaker,
        tally=store.bucket.tally,
        impatient=impatient(store, bucket.location.url),
        check=partial(importlib.import_module("repository.store.s3.check").check_recorded, store),
    )


def impatient(
    store: Store,
    where: str,
    patience: Patience = _AT_TERMINAL,
    *,
    monotonic: Callable[[], float] = time.monotonic,
) -> Store:
    """A store for somebody who waits for its answer, and is told soon that there is none."""
    return _Impatient(RetryingStore(store, patience, clock=monotonic), where)


class _Impatient(StoreAround):
    """Says of which store it is that nothing came. It is for reading."""

    def __init__(self, inner: Store, where: str) -> None:
        super().__init__(inner)
        self._where = where

    @override
    async def get(self, name: str) -> bytes:
        with self._told():
            return await self._inner.get(name)

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        with self._told():
            return await self._inner.get_range(name, offset, length)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except StoreUnavailableError as error:
            raise StoreUnavailableError(
                f"{self._where} cannot be read just now: {error.message}",
                hint="see tidemark doctor; backups and restores wait for the store by themselves",
            ) from error


async def _recorded(store: "S3Store") -> "Capabilities | None":
    """What the store can do as it was found once; None where nobody has looked.

    The first question to it: who starts us is told soon that it does not answer.
    """
    module = importlib.import_module("repository.store.s3.capabilities")
    where = store.bucket.location.url
    try:
        async with asyncio.timeout(_FIRST_SECONDS):
            recorded = await store.get(CAPABILITIES_NAME)
    except ObjectMissingError:
        return None
    except StoreError as error:
        if not error.retryable:
            # What is wrong with the key or the bucket as a whole says more.
            await importlib.import_module("repository.store.s3.check").check(store)
        raise
    except TimeoutError as error:
        raise StoreUnavailableError(
            f"the store of {where} did not answer within {_FIRST_SECONDS:.0f} s",
            hint="check the network and the endpoint",
        ) from error
    try:
        found: Capabilities = module.Capabilities.decode(recorded)
    except FormatError as error:
        raise FormatError(
            f"the object {CAPABILITIES_NAME} in {where} is not what was written there",
            hint="check that the endpoint is an S3; if it is, remove the object: it is made anew",
        ) from error
    return found


async def _probed(patient: "S3Store", store: "S3Store", bucket: Bucket) -> "Capabilities":
    """What the store can do, found out and recorded now: before a repository is made.

    There whatever is wrong with bucket, key or clock shows. ConfigError where it is to lock, and
    cannot: nothing is recorded then, since the bucket may still be given what it lacks.
    """
    check = importlib.import_module("repository.store.s3.check")
    probe = importlib.import_module("repository.store.s3.probe")
    for warning in await check.check(patient):
        log.warning(warning)
    found: Capabilities = await probe.probe(patient)
    _check_lock(bucket, able=found.object_lock, recorded=False)
    try:
        await RetryingStore(store, _AT_START).put(CAPABILITIES_NAME, found.encode())
    except ObjectExistsError:
        found = await _recorded(patient) or found
    return found


def _check_lock(bucket: Bucket, *, able: bool, recorded: bool) -> None:
    if able or bucket.lock_seconds is None:
        return
    url = bucket.location.url
    if recorded:
        raise ConfigError(
            f"{url} could not lock objects when its repository was made",
            hint="make another one in a bucket with object lock, or ask for no lock",
        )
    raise ConfigError(
        f"{url} cannot lock objects, and a lock is asked for",
        hint="make a bucket with object lock, which most stores allow for new ones only, or ask "
        "for no lock",
    )
