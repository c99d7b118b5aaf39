"""Locks what snapshots need, as coordinator/locking.py decides: nobody can delete it until then.

Whatever cannot be locked makes a commit fail before it begins: a snapshot tells nothing that is not
so. Where the settings ask for no locks, nothing here does anything.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Final

from coordinator.catalog import Catalog
from coordinator.errors import DamagedError, ObjectMissingError, StoreError, TidemarkError
from coordinator.founding import Repository
from coordinator.locking import Lock
from coordinator.logs import get_logger
from coordinator.model import NANOSECONDS, FrameReference
from coordinator.stores import CAPABILITIES_NAME, Clock
from repository.ids import VolumeId
from repository.layout import CONFIG_NAME, KEYS_NAME, certificate_name
from repository.store.interface import Locking, Store

log = get_logger()

# Half of the store's connections: uploads and restores go on beside it.
_AT_ONCE: Final = 16
# Recorded together, so that after a failure in the middle of very many few are locked again.
_BATCH: Final = 256


class Locks:
    """The locks of one repository."""

    def __init__(
        self, catalog: Catalog, repository: Repository, lock: Lock | None, *, clock: Clock
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._repository_id = repository.config.repository
        # A repository that is only read is not locked either.
        self._lock = lock if repository.locking is not None else None
        self._clock = clock

    @property
    def lock(self) -> Lock | None:
        """What is asked for; None where nothing is locked."""
        return self._lock

    @property
    def seconds(self) -> int:
        """For how long what a snapshot needs is locked from its commit on; 0 where nothing is."""
        return 0 if self._lock is None else self._lock.length_ns // NANOSECONDS

    @property
    def _locking(self) -> Locking:
        assert self._repository.locking is not None
        return self._repository.locking

    def needed_until(self, committed_at: int) -> int | None:
        """What a snapshot that is committed then may promise."""
        return None if self._lock is None else self._lock.needed_until(committed_at)

    def upload_until(self) -> datetime | None:
        """Until when a pack is locked that is written now."""
        return None if self._lock is None else _time(self._lock.granted_until(self._clock()))

    def store(self, until: int | datetime | None) -> Store:
        """The repository's store; what is written to it is locked until then."""
        if until is None or self._lock is None:
            return self._repository.store
        when = until if isinstance(until, datetime) else _time(until)
        return self._locking.writing_until(when)

    async def locked_until(self, name: str) -> int:
        """Until when an object is locked, as the store says; 0 where it is not."""
        return 0 if self._lock is None else nanoseconds(await self._locking.locked_until(name))

    async def begin(self) -> None:
        """Lock what founds the repository, which shows that the store lets us.

        StoreError where it does not, or says so and does not keep it.
        """
        if self._lock is None:
            return
        try:
            await self._hold_repository(self._lock, self._clock())
        except DamagedError as error:
            # Backups will say so, too, and not begin to promise anything; restores must go on.
            log.error("not locked", reason=error.message, hint=error.hint)  # noqa: TRY400
        await self._check_kept()

    async def _check_kept(self) -> None:
        [known] = await self._catalog.locks.objects(self._repository_id, [CONFIG_NAME])
        if await self.locked_until(known.name) < known.locked_until:
            raise StoreError(
                f"{self._repository.location} takes locks and does not keep them",
                hint="do not rely on object lock there; ask for no lock",
            )

    async def problem(self) -> TidemarkError | None:
        """What is wrong with locks now: the store is asked about one object."""
        try:
            await self._check_kept()
        except TidemarkError as error:
            return error
        return None

    async def hold(
        self,
        volume_id: VolumeId,
        references: Sequence[FrameReference],
        *,
        base: bool,
        committed_at: int,
    ) -> None:
        """Lock all that the volume's next snapshot needs for as long as it will promise.

        StoreError, DamagedError where something of it is gone.
        """
        if self._lock is None:
            return
        await self._hold_repository(self._lock, committed_at)
        packs = await self._catalog.locks.lapsing_packs(
            volume_id, references, base=base, before=self._lock.needed_until(committed_at)
        )
        names = self._lock.lapsing(packs, committed_at)
        await self._extend(self._lock, names, committed_at, self._catalog.locks.packs_locked)

    async def _hold_repository(self, lock: Lock, committed_at: int) -> None:
        """What no snapshot opens without, and what says whose signatures to believe."""
        nodes = await self._catalog.ledger.writers(self._repository_id)
        certificates = map(certificate_name, [self._repository.coordinator_id, *nodes])
        names = [CONFIG_NAME, KEYS_NAME, CAPABILITIES_NAME, *certificates]
        objects = await self._catalog.locks.objects(self._repository_id, names)
        names = lock.lapsing(objects, committed_at)
        record = partial(self._catalog.locks.objects_locked, self._repository_id)
        await self._extend(lock, names, committed_at, record)

    async def _extend(
        self,
        lock: Lock,
        names: Sequence[str],
        now: int,
        record: Callable[[Iterable[str], int], Awaitable[None]],
    ) -> None:
        until = lock.granted_until(now)
        for batch in _batches(names):
            await self._retain(batch, _time(until))
            await record(batch, until)
        if names:
            log.info("objects locked", objects=len(names), until=f"{_time(until):%Y-%m-%d %H:%M}")

    async def _retain(self, names: Iterable[str], when: datetime) -> None:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def retain(name: str) -> None:
            async with turns:
                try:
                    await self._locking.retain_until(name, when)
                except ObjectMissingError as error:
                    raise DamagedError(
                        f"{name} is needed by the snapshot, and is gone from the repository",
                        hint="run tidemark verify to see what it affects, and ask who deleted it",
                    ) from error

        try:
            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(retain(name), name=f"lock {name}")
        except ExceptionGroup as errors:  # by except*, Python 3.11.2 would raise a group again
            raise errors.exceptions[0] from None


def nanoseconds(when: datetime | None) -> int:
    """As the catalog keeps it."""
    return 0 if when is None else int(when.timestamp()) * NANOSECONDS


def _time(whole_nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(whole_nanoseconds // NANOSECONDS, UTC)


def _batches(names: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(islice(rest, _BATCH)):
        yield batch
