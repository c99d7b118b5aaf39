"""Grants: what an agent is given to restore one snapshot, and the bytes that it may fetch for it.

A grant holds the keys of the packs that the snapshot's own volume wrote, and single frame keys of
what others wrote and it shares; never the key of a session. All of them are wrapped by one random
key, which is sealed to the agent's one-time key. A grant lives as long as its task runs.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from coordinator.catalog import Catalog, PackPlace
from coordinator.custody import Custody, Random
from coordinator.dispatch import Dispatcher
from coordinator.errors import (
    CatalogError,
    DamagedError,
    ForbiddenError,
    LockedError,
    NotFoundError,
    RejectedError,
    StoreUnavailableError,
)
from coordinator.founding import SIGNED_SECONDS
from coordinator.model import Node, RestoreOrder, Snapshot, TaskId
from coordinator.repositories import Repositories
from repository.failpoints import failpoint
from repository.frames import FrameIdentity
from repository.ids import NodeId, PackNonce, RepositoryId
from repository.keys import KEY_BYTES, frame_key, seal, wrap
from repository.layout import GRANT_FRAME, GRANT_INFO, GRANT_PACK, GRANT_READER_KEYS
from repository.pack import FrameTable
from repository.ranges import Read, reads
from repository.store.counting import charged
from repository.store.interface import SignedRequest

# Packs whose keys are wrapped in one go in a thread.
_BATCH: Final = 64
# A message carries a frame of the usual size whole, so that nobody has to join what he gets.
PIECE_BYTES: Final = 2 * 1024 * 1024
# One read of the store.
_READ_BYTES: Final = 4 * 1024 * 1024
# So many needless bytes cost less than another read of an object store.
_GAP_BYTES: Final = 128 * 1024
_RANGES_MAX: Final = 4096
_NAMES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class GrantHeader:
    """What a restore begins with."""

    root: bytes
    sealed_grant_key: bytes
    wrapped_reader_keys: bytes
    endpoint: str
    """What every signed read begins with; empty where packs are read through here."""


@dataclass(frozen=True, slots=True)
class PackGrant:
    """All frames of a pack."""

    pack_nonce: PackNonce
    name: str
    wrapped_pack_key: bytes
    frame_table: bytes


@dataclass(frozen=True, slots=True)
class FrameGrant:
    """One frame of a pack."""

    pack_nonce: PackNonce
    frame_number: int
    name: str
    wrapped_frame_key: bytes
    offset: int
    length: int


GrantPart = GrantHeader | PackGrant | FrameGrant


@dataclass(slots=True)
class _Grant:
    repository_id: RepositoryId
    names: set[str] = field(default_factory=set)


class Restores:
    """Gives grants, and serves what they cover."""

    def __init__(
        self,
        catalog: Catalog,
        repositories: Repositories,
        custody: Custody,
        dispatcher: Dispatcher,
        *,
        random: Random,
    ) -> None:
        self._catalog = catalog
        self._repositories = repositories
        self._custody = custody
        self._dispatcher = dispatcher
        self._random = random
        self._grants: dict[TaskId, _Grant] = {}

    async def open(
        self, task_id: TaskId, node: Node, public_key: bytes
    ) -> AsyncIterator[GrantPart]:
        """The grant of a running restore task, piece by piece."""
        snapshot = await self._snapshot(task_id, node)
        grant_key = self._random(KEY_BYTES)
        try:
            sealed = seal(public_key, grant_key, GRANT_INFO)
        except ValueError as error:
            raise RejectedError("the one-time key of a restore is not an X25519 key") from error
        if not self._custody.unlocked:
            raise LockedError(
                "custody of the recovery secret is locked, and a restore needs it",
                hint="start the coordinator with the right --passphrase-file",
            )
        self._forget_ended()
        repository = self._repositories.of(snapshot.repository_id).repository
        grant = _Grant(snapshot.repository_id)
        self._grants[task_id] = grant
        reader_keys = wrap(grant_key, repository.reader_keys(), GRANT_READER_KEYS)
        signing = repository.signing_store
        endpoint = "" if signing is None else signing.endpoint
        yield GrantHeader(snapshot.root_object, sealed, reader_keys, endpoint)
        failpoint("coordinator.grant.begun", CatalogError)
        needed = await self._catalog.ledger.references(snapshot)
        for nonces in _batches(list(needed)):
            self._dispatcher.running_task(task_id, node.node_id)
            places = await self._catalog.ledger.places(nonces)
            for nonce in nonces:
                if nonce not in places:
                    raise DamagedError(
                        f"no pack holds the frames of {nonce.hex()}, which the snapshot needs",
                        hint="run tidemark verify to see what it affects",
                    )
                grant.names.add(places[nonce].name)
            for part in await asyncio.to_thread(
                self._wrap, grant_key, snapshot, [(places[each], needed[each]) for each in nonces]
            ):
                yield part
        failpoint("coordinator.grant.given", CatalogError)

    def _wrap(
        self,
        grant_key: bytes,
        snapshot: Snapshot,
        wanted: Sequence[tuple[PackPlace, list[int]]],
    ) -> list[GrantPart]:
        parts: list[GrantPart] = []
        for place, frames in wanted:
            nonce = place.origin.pack_nonce
            key = self._custody.pack_key(
                snapshot.repository_id, place.origin.sealed_data_key, nonce
            )
            if place.origin.volume_id == snapshot.volume_id:
                wrapped = wrap(grant_key, key, GRANT_PACK + nonce)
                parts.append(PackGrant(nonce, place.name, wrapped, place.frame_table))
                continue
            table = FrameTable.decode(place.frame_table)
            for frame in frames:
                found = table.find(FrameIdentity(nonce, frame))
                if found is None:
                    raise DamagedError(f"pack {place.name} does not hold frame {frame}")
                context = GRANT_FRAME + nonce + frame.to_bytes(4, "big")
                wrapped = wrap(grant_key, frame_key(key, frame), context)
                parts.append(FrameGrant(nonce, frame, place.name, wrapped, *found))
        return parts

    async def _snapshot(self, task_id: TaskId, node: Node) -> Snapshot:
        task = self._dispatcher.running_task(task_id, node.node_id)
        if not isinstance(task.order, RestoreOrder):
            raise RejectedError("only a restore is given keys")
        snapshot = await self._catalog.ledger.snapshot(task.order.snapshot_id)
        if snapshot is None:
            raise NotFoundError(f"there is no snapshot {task.order.snapshot_id}")
        return snapshot

    async def read(
        self, task_id: TaskId, node_id: NodeId, name: str, ranges: Sequence[tuple[int, int]]
    ) -> AsyncIterator[memoryview]:
        """Ranges of one pack of the task's grant, in the order asked for."""
        self._dispatcher.running_task(task_id, node_id)
        grant = self._grants.get(task_id)
        if grant is None or name not in grant.names:
            raise ForbiddenError(f"the grant of this restore does not cover {name}")
        if len(ranges) > _RANGES_MAX:
            raise RejectedError("too many ranges in one request")
        store = self._repositories.of(grant.repository_id).repository.store
        for begin, size, wanted in _reads(ranges):
            # A task that ends takes its reads with it, and a revoked node's tasks end at once.
            self._dispatcher.running_task(task_id, node_id)
            with charged(self._dispatcher.tally(task_id)):
                read = memoryview(await store.get_range(name, begin, size))
            failpoint("coordinator.restore.read", StoreUnavailableError)
            for offset, length in wanted:
                for start in range(offset - begin, offset - begin + length, PIECE_BYTES):
                    yield read[start : min(start + PIECE_BYTES, offset - begin + length)]

    async def sign_reads(
        self, task_id: TaskId, node_id: NodeId, names: Sequence[str]
    ) -> list[SignedRequest]:
        """Requests to the store for packs of the task's grant, in this order."""
        self._dispatcher.running_task(task_id, node_id)
        if len(names) > _NAMES_MAX:
            raise RejectedError("too many packs in one request")
        grant = self._grants.get(task_id)
        if grant is None:
            raise ForbiddenError("this restore was given no grant")
        signing = self._repositories.of(grant.repository_id).repository.signing_store
        if signing is None:
            raise RejectedError("this repository's store cannot be signed for")
        for name in names:
            if name not in grant.names:
                raise ForbiddenError(f"the grant of this restore does not cover {name}")
        return [await signing.sign_get(name, seconds=SIGNED_SECONDS) for name in names]

    def _forget_ended(self) -> None:
        running = {task.task_id for job in self._dispatcher.running() for task in job.tasks}
        for task_id in set(self._grants) - running:
            del self._grants[task_id]


def _reads(ranges: Iterable[tuple[int, int]]) -> Iterator[Read]:
    return reads(ranges, gap_bytes=_GAP_BYTES, read_bytes=_READ_BYTES)


def _batches(nonces: list[PackNonce]) -> list[list[PackNonce]]:
    return [nonces[start : start + _BATCH] for start in range(0, len(nonces), _BATCH)]
