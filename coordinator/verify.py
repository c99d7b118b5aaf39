"""Proof that what was stored can be restored.

Depth `present`: every pack that a snapshot needs is in the store, of the right length and BLAKE3
over all its bytes, and so are the snapshots' roots. Depth `data`: beyond that every frame of those
packs is opened and its chunks compared with their ids, and the manifests are walked: every extent
must name a chunk that its frame holds. One pack is in memory at a time, whatever is verified.

A store that does not answer proves nothing, neither good nor bad: the verification fails. Where
others hold some of the snapshots, what they hold is proven first.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from blake3 import blake3

from coordinator.browse import manifest_of
from coordinator.catalog import Catalog
from coordinator.custody import Custody
from coordinator.dispatch import Clock
from coordinator.errors import (
    CatalogError,
    DamagedError,
    KeyMaterialError,
    LockedError,
    NotFoundError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)
from coordinator.founding import Repository
from coordinator.model import (
    DamagedPack,
    Failure,
    Pack,
    Progress,
    Snapshot,
    VerifyDepth,
    VerifyOrder,
    VerifyResult,
)
from coordinator.reading import CatalogFrames, Workers, snapshot_reader
from coordinator.repositories import Repositories
from repository.entries import Entry, EntryType, Extent, Pointer, path_of
from repository.failpoints import failpoint
from repository.footers import read_pack_index
from repository.frames import FrameIdentity, FrameReader
from repository.ids import ObjectType, PackNonce, RepositoryId
from repository.keys import frame_key
from repository.layout import root_name
from repository.needs import drive_async
from repository.pack import TAIL_BYTES, PackEnd, identities, parse_tail
from repository.reader import SnapshotReader
from repository.rereading import read_soundly
from repository.walking import diff

_PIECE_BYTES: Final = 4 * 1024 * 1024
# Whatever does not check out is read again: what is broken where it lies is so each time.
_READS_MAX: Final = 2
_DAMAGED_MAX: Final = 100
_PATHS_MAX: Final = 100
# Footers kept while a manifest is walked: neighbours in a tree lie in few packs.
_FOOTERS_MAX: Final = 32
# What stands for a volume as a whole where not even its names can be read.
_EVERYTHING: Final = b"."


@dataclass(slots=True)
class _Damage:
    """What is wrong with one object. No frames named means: any of them may be."""

    name: str
    nonces: set[PackNonce] = field(default_factory=set)
    frames: set[FrameIdentity] | None = None
    snapshots: dict[str, None] = field(default_factory=dict)
    paths: dict[bytes, None] = field(default_factory=dict)

    def hits(self, identity: FrameIdentity) -> bool:
        if identity.nonce not in self.nonces:
            return False
        return self.frames is None or identity in self.frames


@dataclass(slots=True)
class _Count:
    packs: int = 0
    chunks: int = 0
    bytes_read: int = 0


class Verifier:
    """Verifies snapshots."""

    def __init__(
        self,
        catalog: Catalog,
        repositories: Repositories,
        custody: Custody,
        workers: Workers,
        *,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._repositories = repositories
        self._custody = custody
        self._workers = workers
        self._clock = clock

    async def verify(self, order: VerifyOrder, tell: Callable[[Progress], None]) -> VerifyResult:
        """Prove these snapshots. LockedError for depth data without custody; StoreError.

        Of several repositories, one that fails is told of in the result.
        """
        if order.depth is VerifyDepth.DATA and not self._custody.unlocked:
            raise LockedError(
                "custody of the recovery secret is locked, and verifying data needs it",
                hint="verify --depth present goes on; or start the coordinator with the right "
                "--passphrase-file",
            )
        there: dict[RepositoryId, list[Snapshot]] = {}
        for each in order.snapshot_ids:
            snapshot = await self._snapshot(each)
            there.setdefault(snapshot.repository_id, []).append(snapshot)
        results = []
        for repository_id, snapshots in there.items():
            try:
                repository = self._repositories.of(repository_id).repository
                run = _Run(self, repository, order.depth, tell)
                results.append(await run.verify(snapshots))
            except StoreError as error:
                if len(there) == 1:
                    raise
                # Whoever asks for all of them wants to know of the others all the more.
                name = self._repositories.name_of(repository_id)
                results.append(VerifyResult(unproven=(_unproven(name, snapshots, error),)))
        return _joined(results)

    async def _snapshot(self, snapshot_id: str) -> Snapshot:
        snapshots = await self._catalog.ledger.find_snapshots(snapshot_id)
        found = await self._catalog.ledger.snapshot(snapshots[0]) if snapshots else None
        if found is None:
            raise NotFoundError(f"there is no snapshot {snapshot_id}")
        return found

    @property
    def catalog(self) -> Catalog:
        """Where packs and snapshots are known."""
        return self._catalog

    @property
    def custody(self) -> Custody:
        """Opens frames."""
        return self._custody

    @property
    def workers(self) -> Workers:
        """Where frames are opened."""
        return self._workers

    def now(self) -> int:
        """The time of a proof."""
        return self._clock()


class _Run:
    """One verification, of what lies in one repository."""

    def __init__(
        self,
        verifier: Verifier,
        repository: Repository,
        depth: VerifyDepth,
        tell: Callable[[Progress], None],
    ) -> None:
        self._catalog = verifier.catalog
        self._repository = repository
        self._store = repository.store
        self._custody = verifier.custody
        self._workers = verifier.workers
        self._now = verifier.now
        self._depth = depth
        self._tell = tell
        self._count = _Count()
        self._damage: OrderedDict[str, _Damage] = OrderedDict()
        self._frames = CatalogFrames(self._catalog, self._repository, self._custody)
        self._footers: OrderedDict[PackNonce, dict[FrameIdentity, list[tuple[int, bytes]]]] = (
            OrderedDict()
        )

    async def verify(self, snapshots: Sequence[Snapshot]) -> VerifyResult:
        packs = await self._packs(snapshots)
        total = sum(pack.size_bytes for pack in packs)
        for snapshot in snapshots:
            await self._check_root(snapshot)
        for number, pack in enumerate(packs):
            self._tell(
                Progress(number, len(packs), self._count.bytes_read, total, activity="reading")
            )
            await self._check_pack(pack)
            failpoint("coordinator.verify.pack_checked", StoreUnavailableError)
        if self._depth is VerifyDepth.DATA:
            await self._walk_all(snapshots, total)
        await self._name_affected()
        failpoint("coordinator.verify.proving", CatalogError)
        await self._record_proofs(snapshots)
        return self._result(snapshots)

    # ---- packs ----------------------------------------------------------------------------------

    async def _packs(self, snapshots: Sequence[Snapshot]) -> list[Pack]:
        """The packs that these snapshots need, each once, in order of name."""
        names: set[str] = set()
        seen: set[PackNonce] = set()
        for snapshot in snapshots:
            needed = set(await self._catalog.ledger.references(snapshot)) - seen
            seen |= needed
            places = await self._catalog.ledger.places(needed)
            names |= {place.name for place in places.values()}
            for nonce in needed - set(places):
                damage = self._damaged(f"missing pack of {nonce.hex()}")
                damage.nonces.add(nonce)
        found = [await self._catalog.ledger.pack(name) for name in sorted(names)]
        return [pack for pack in found if pack is not None]

    async def _check_pack(self, pack: Pack) -> None:
        self._count.packs += 1
        content, hashed = await self._read(pack)
        if content is None or not hashed:
            damage = self._damaged(pack.name)
            damage.nonces.update(origin.pack_nonce for origin in pack.origins)
        if content is None:
            return
        if self._depth is VerifyDepth.DATA or (not hashed and self._custody.unlocked):
            bad = await self._workers.run(lambda: self._open_frames(content))
            if bad is None or bad:
                damage = self._damaged(pack.name)
                damage.nonces.update(origin.pack_nonce for origin in pack.origins)
            if not hashed or bad:
                self._damaged(pack.name).frames = bad

    async def _read(self, pack: Pack) -> tuple[bytearray | None, bool]:
        """The bytes of a pack, None without them, and whether they are what they were.

        Read once more where they are not: they may have been broken on their way.
        """
        content, hashed, reads = await self._whole(pack), False, 1
        while content is not None:
            hashed = await self._workers.run(partial(_has_hash, content, pack.blake3))
            if hashed or reads >= _READS_MAX:
                break
            content, reads = await self._whole(pack), reads + 1
        return content, hashed

    async def _whole(self, pack: Pack) -> bytearray | None:
        """The bytes of a pack; None if it is missing or of another length."""
        try:
            info = await self._store.head(pack.name)
            if info.size != pack.size_bytes:
                return None
            content = bytearray()
            for offset in range(0, pack.size_bytes, _PIECE_BYTES):
                length = min(_PIECE_BYTES, pack.size_bytes - offset)
                content += await self._store.get_range(pack.name, offset, length)
                self._count.bytes_read += length
        except (ObjectMissingError, DamagedError):
            return None
        return content

    def _open_frames(self, content: bytearray) -> set[FrameIdentity] | None:
        """The frames of a pack that do not open to what its footer says; None for all of them."""
        view = memoryview(content)
        try:
            tail = parse_tail(bytes(view[-TAIL_BYTES:]), len(content))
            end = PackEnd(tail, bytes(view[tail.footer_offset :]))
            index = end.open_with_metadata_key(self._repository.metadata_key)
        except (DamagedError, KeyMaterialError):
            return None
        config, ids = self._repository.config, self._repository.keys.ids
        reader = FrameReader(config.repository, ids, reuses_buffer=True)
        bad: set[FrameIdentity] = set()
        for identity, entry in identities(index):
            origin = index.origins[entry.origin]
            sealed = view[entry.offset : entry.offset + entry.length]
            try:
                key = self._custody.pack_key(
                    config.repository, origin.sealed_data_key, origin.nonce
                )
                chunks = reader.open(sealed, frame_key(key, entry.number), identity, entry.kind)
            except (DamagedError, KeyMaterialError):
                bad.add(identity)
                continue
            self._count.chunks += len(chunks)
            if [(len(chunk.data), chunk.id) for chunk in chunks] != list(entry.chunks):
                bad.add(identity)
        return bad

    # ---- roots and manifests --------------------------------------------------------------------

    async def _check_root(self, snapshot: Snapshot) -> None:
        name = root_name(snapshot.volume_id, snapshot.sequence)
        for _ in range(_READS_MAX):
            try:
                stored = await self._store.get(name)
            except ObjectMissingError:
                stored = b""
            self._count.bytes_read += len(stored)
            if stored == snapshot.root_object:
                break
        else:
            damage = self._damaged(name)
            damage.snapshots[snapshot.snapshot_id] = None
            damage.paths[_EVERYTHING] = None

    async def _walk_all(self, snapshots: Sequence[Snapshot], total: int) -> None:
        """Each manifest; of a volume's later snapshots only what differs from the one before."""
        before: dict[bytes, Pointer | None] = {}
        reader = snapshot_reader(self._catalog, self._repository, self._custody, self._workers)
        ordered = sorted(snapshots, key=lambda each: (each.volume_id, each.sequence))
        for number, snapshot in enumerate(ordered):
            self._tell(
                Progress(
                    number,
                    len(ordered),
                    self._count.bytes_read,
                    total,
                    activity="walking manifests",
                )
            )
            manifest = manifest_of(snapshot)
            base = before.get(snapshot.volume_id)
            try:
                async for key, entry in _changed(reader, base, manifest):
                    await self._check_entry(reader, snapshot, key, entry)
                before[snapshot.volume_id] = manifest
            except DamagedError:
                # A damaged pack is known by now; otherwise the manifest itself is not sound.
                self._blame(snapshot, manifest, _EVERYTHING)

    async def _check_entry(
        self, reader: SnapshotReader, snapshot: Snapshot, key: bytes, entry: Entry
    ) -> None:
        if entry.long_xattrs is not None:
            try:
                await reader.attributes(entry)
            except DamagedError:
                self._blame(snapshot, entry.long_xattrs, path_of(key))
        if entry.content is None:
            if entry.type is EntryType.FILE and entry.size:
                self._blame(snapshot, None, path_of(key))
            return
        size = 0
        async for extents in reader.extents(entry.content):
            for extent in extents:
                size += extent.length
                if not extent.is_hole and not await self._holds(extent):
                    self._blame(snapshot, extent, path_of(key))
        if size != entry.size:
            self._blame(snapshot, manifest_of(snapshot), path_of(key))

    async def _holds(self, extent: Extent) -> bool:
        """Whether the extent's frame holds data, and says that it holds enough of this chunk."""
        identity = FrameIdentity(extent.nonce, extent.frame)
        try:
            chunks = (await self._footer(extent.nonce)).get(identity, [])
        except (DamagedError, ObjectMissingError):
            return False
        if extent.chunk >= len(chunks):
            return False
        length, chunk_id = chunks[extent.chunk]
        return chunk_id == extent.id and extent.skip + extent.length <= length

    async def _footer(self, nonce: PackNonce) -> dict[FrameIdentity, list[tuple[int, bytes]]]:
        if nonce in self._footers:
            self._footers.move_to_end(nonce)
            return self._footers[nonce]
        place, _ = await self._frames.place(nonce)
        key = self._repository.metadata_key
        index = await read_soundly(partial(read_pack_index, self._store, place.name, key))
        found = {
            identity: [(length, bytes(chunk_id)) for length, chunk_id in entry.chunks]
            for identity, entry in identities(index)
            if identity.nonce == nonce and entry.kind is ObjectType.DATA
        }
        self._footers[nonce] = found
        if len(self._footers) > _FOOTERS_MAX:
            self._footers.popitem(last=False)
        return found

    def _blame(self, snapshot: Snapshot, place: Pointer | Extent | None, path: bytes) -> None:
        """Something of a snapshot does not fit; under the damage known of its pack, if any."""
        name = f"manifest of {snapshot.snapshot_id}"
        if place is not None:
            for damage in self._damage.values():
                if place.nonce in damage.nonces:
                    name = damage.name
                    break
        damage = self._damaged(name)
        damage.snapshots[snapshot.snapshot_id] = None
        if len(damage.paths) < _PATHS_MAX:
            damage.paths[path] = None

    # ---- who is affected ------------------------------------------------------------------------

    def _damaged(self, name: str) -> _Damage:
        return self._damage.setdefault(name, _Damage(name))

    async def _name_affected(self) -> None:
        """Of each damaged pack: the snapshots that need it and, with custody, their files."""
        needing: OrderedDict[str, tuple[Snapshot, list[_Damage]]] = OrderedDict()
        for damage in list(self._damage.values())[:_DAMAGED_MAX]:
            for snapshot in await self._catalog.ledger.snapshots_needing(damage.nonces):
                damage.snapshots[snapshot.snapshot_id] = None
                needing.setdefault(snapshot.snapshot_id, (snapshot, []))[1].append(damage)
        if not self._custody.unlocked:
            return
        before: dict[bytes, Pointer | None] = {}
        reader = snapshot_reader(self._catalog, self._repository, self._custody, self._workers)
        for snapshot, damages in needing.values():
            manifest = manifest_of(snapshot)
            try:
                async for key, entry in _changed(reader, before.get(snapshot.volume_id), manifest):
                    await self._affect(reader, key, entry, damages)
                before[snapshot.volume_id] = manifest
            except (DamagedError, ObjectMissingError):
                for damage in damages:
                    damage.paths[_EVERYTHING] = None

    async def _affect(
        self, reader: SnapshotReader, key: bytes, entry: Entry, damages: Iterable[_Damage]
    ) -> None:
        if entry.content is None:
            return
        open_damages = [damage for damage in damages if len(damage.paths) < _PATHS_MAX]
        if not open_damages:
            return
        async for extents in reader.extents(entry.content):
            for extent in extents:
                identity = FrameIdentity(extent.nonce, extent.frame)
                for damage in open_damages:
                    if damage.hits(identity):
                        damage.paths[path_of(key)] = None

    async def _record_proofs(self, snapshots: Sequence[Snapshot]) -> None:
        affected = {each for damage in self._damage.values() for each in damage.snapshots}
        whole = [each.snapshot_id for each in snapshots if each.snapshot_id not in affected]
        if whole:
            await self._catalog.ledger.mark_proof(whole, self._now())

    def _result(self, snapshots: Sequence[Snapshot]) -> VerifyResult:
        damaged = tuple(
            DamagedPack(damage.name, tuple(damage.snapshots), tuple(sorted(damage.paths)))  # type: ignore[arg-type]
            for damage in list(self._damage.values())[:_DAMAGED_MAX]
        )
        return VerifyResult(
            snapshots_checked=len(snapshots),
            packs_checked=self._count.packs,
            chunks_checked=self._count.chunks,
            bytes_read=self._count.bytes_read,
            damaged=damaged,
            damaged_total=len(self._damage),
        )


def _joined(results: Sequence[VerifyResult]) -> VerifyResult:
    """What was found in several repositories, as one."""
    return VerifyResult(
        snapshots_checked=sum(each.snapshots_checked for each in results),
        packs_checked=sum(each.packs_checked for each in results),
        chunks_checked=sum(each.chunks_checked for each in results),
        bytes_read=sum(each.bytes_read for each in results),
        damaged=tuple(damage for each in results for damage in each.damaged)[:_DAMAGED_MAX],
        damaged_total=sum(each.damaged_total for each in results),
        unproven=tuple(failure for each in results for failure in each.unproven),
    )


def _unproven(name: str, snapshots: Sequence[Snapshot], error: StoreError) -> Failure:
    count = "1 snapshot" if len(snapshots) == 1 else f"{len(snapshots):,} snapshots"
    return Failure(
        f"{count} in repository {name} could not be verified: {error.message}",
        error.hint,
        error.exit_code,
    )


def _has_hash(content: bytearray, expected: bytes) -> bool:
    return blake3(content).digest() == expected


async def _changed(
    reader: SnapshotReader, before: Pointer | None, after: Pointer | None
) -> AsyncIterator[tuple[bytes, Entry]]:
    """Entries of a manifest that an earlier one does not have so."""
    async for batch in drive_async(diff(before, after), reader.nodes):
        for key, _, entry in batch:
            if entry is not None:
                yield key, entry
