"""Sessions: one backup's right to write, from its first pack to its countersigned root.

A session writes while it is open and carries the newest fencing token of its volume. What it
uploads is checked on the way in; what it commits is checked against what was found, in two steps:

         what the snapshot needs is locked, where locks are asked for        locks.hold
    T1   fencing, references, sequence and time; the row pins the packs      catalog.begin_commit
         refs object, then the countersigned root, the last object written   store
    T2   the snapshot exists                                                 catalog.finish_commit

Whatever breaks in between is settled by reading the store: if the root is there, the snapshot is.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from coordinator.catalog import Catalog, CommitPlan
from coordinator.custody import Random
from coordinator.dispatch import Clock, Dispatcher
from coordinator.errors import (
    BusyError,
    CatalogError,
    DamagedError,
    FencedError,
    KeyMaterialError,
    NotFoundError,
    ObjectExistsError,
    ObjectMissingError,
    RejectedError,
    StoreError,
    StoreUnavailableError,
    TidemarkError,
)
from coordinator.founding import Repository
from coordinator.logs import get_logger
from coordinator.model import (
    BackupOrder,
    BackupStatistics,
    FrameReference,
    Node,
    Phase,
    Session,
    SessionState,
    Snapshot,
    SnapshotHex,
    TaskId,
)
from coordinator.repositories import Opened, Repositories
from repository.failpoints import failpoint
from repository.ids import ID_BYTES, NodeId, PackNonce, RepositoryId, SessionId, VolumeId
from repository.keys import seal
from repository.layout import REFS_INFO, refs_name, root_name
from repository.refs import REFS_BYTES_MAX, Refs, decode_refs, refs_hash
from repository.rereading import read_soundly
from repository.snapshot import (
    BYTES_MAX,
    Countersigning,
    RootBody,
    Verdict,
    check_countersigned,
    check_signed_root,
    countersign,
    root_hash,
    snapshot_id,
)
from repository.store.counting import Tally, charged
from repository.store.interface import Signing

log = get_logger()

_AGAIN: Final = "the next backup of this volume begins anew"
# An interrupted commit waits for its store no longer than this, once the store is back.
_SETTLE_SECONDS: Final = 30.0
# An agent takes messages of 1 MiB, and each of these is 18 bytes of one: a TiB of packs.
PACKS_SINCE_HEAD_MAX: Final = 32_768


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """What an agent needs to write."""

    session: Session
    writer_keys: bytes
    head_root: bytes
    head_sequence: int
    lease_seconds: int
    signed_uploads: Signing | None
    """The store, where the agent may send packs to it by signed requests."""
    packs_since_head: list[PackNonce]
    """What earlier sessions have stored, of which the agent may not have heard."""


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """A session's last word."""

    session_id: SessionId
    fencing_token: int
    signed_root: bytes
    statistics: BackupStatistics
    refs_object: bytes


class Sessions:
    """Opens and commits."""

    def __init__(
        self,
        catalog: Catalog,
        repositories: Repositories,
        dispatcher: Dispatcher,
        *,
        clock: Clock,
        random: Random,
        incarnation: int,
    ) -> None:
        self._catalog = catalog
        self._repositories = repositories
        self._dispatcher = dispatcher
        self._clock = clock
        self._random = random
        self._incarnation = incarnation
        # One after the other: T1 to T2 of a volume must not be mixed with settling it. Those of
        # others go on meanwhile, since a store may take minutes to say that it does not answer.
        self._turns: defaultdict[VolumeId, asyncio.Lock] = defaultdict(asyncio.Lock)
        # Nodes whose certificates are known to lie in a repository.
        self._certified: set[tuple[RepositoryId, NodeId]] = set()

    async def open(self, task_id: TaskId, node: Node, sealed_data_key: bytes) -> OpenedSession:
        """Begin the right to write the snapshot of a running backup task.

        UnsupportedFormatError where the repository has a feature that is unknown here.
        """
        task = self._dispatcher.running_task(task_id, node.node_id)
        if not isinstance(task.order, BackupOrder):
            raise RejectedError("only a backup writes")
        repository = self._repositories.of(task.order.repository_id).repository
        repository.config.check_writable()
        await self._certify(repository, node)
        async with self._turns[task.order.volume_id]:
            with charged(self._dispatcher.tally(task_id)):
                await self._settle_all(task.order.volume_id)
        if await self._catalog.ledger.snapshot_of_task(task_id) is not None:
            raise FencedError("this task has committed its snapshot already", hint=_AGAIN)
        failpoint("coordinator.session.asked", CatalogError)
        session = await self._catalog.ledger.open_session(
            Session(
                session_id=SessionId(self._random(ID_BYTES)),
                task_id=task_id,
                volume_id=task.order.volume_id,
                node_id=node.node_id,
                repository_id=repository.config.repository,
                fencing_token=0,
                sealed_data_key=sealed_data_key,
                opened_at=self._clock(),
            )
        )
        failpoint("coordinator.session.opened", CatalogError)
        head = await self.head(session)
        return OpenedSession(
            session=session,
            writer_keys=repository.writer_keys(),
            head_root=b"" if head is None else head.root_object,
            head_sequence=0 if head is None else head.sequence,
            lease_seconds=max(1, round(self._dispatcher.limits.grace_seconds)),
            signed_uploads=repository.signing_store,
            packs_since_head=await self.packs_since_head(session),
        )

    async def packs_since_head(self, session: Session) -> list[PackNonce]:
        """What a session's agent is told of its earlier ones. Nothing comes to these any more."""
        return await self._catalog.ledger.packs_since_head(session, PACKS_SINCE_HEAD_MAX)

    async def head(self, session: Session) -> Snapshot | None:
        """What the session's snapshot follows on: the volume's newest in the same repository."""
        return await self._catalog.ledger.head(
            session.volume_id, repository_id=session.repository_id
        )

    async def _certify(self, repository: Repository, node: Node) -> None:
        """Whoever reads the repository must know whose signatures to believe.

        The first one has a node's certificate since the node joined.
        """
        there = (repository.config.repository, node.node_id)
        if repository is self._repositories.first.repository or there in self._certified:
            return
        await repository.keep_certificate(node.node_id, node.signing_public_key)
        self._certified.add(there)

    def of(self, session: Session) -> Opened:
        """Where a session writes; StoreError while that is not there."""
        return self._repositories.of(session.repository_id)

    async def writing(self, session_id: SessionId, fencing_token: int, node: Node) -> Session:
        """The session, if this node may write with it now; FencedError."""
        session = await self._catalog.ledger.session(session_id)
        if (
            session is None
            or session.node_id != node.node_id
            or session.fencing_token != fencing_token
            or session.state is not SessionState.OPEN
        ):
            raise FencedError("this session may not write any more", hint=_AGAIN)
        return session

    def still_writing(self, session: Session) -> None:
        """Refuse what goes on after its task has ended, or its node was revoked; FencedError."""
        try:
            self._dispatcher.running_task(session.task_id, session.node_id)
        except NotFoundError as error:
            raise FencedError("this session may not write any more", hint=_AGAIN) from error

    def tally(self, session: Session) -> Tally:
        """What the store is asked for this session is counted on this."""
        return self._dispatcher.tally(session.task_id)

    @asynccontextmanager
    async def between_commits(self, volume_ids: Iterable[VolumeId]) -> AsyncIterator[None]:
        """No commit of these volumes is between its two steps, as long as the block lasts."""
        async with AsyncExitStack() as stack:
            # In one order, so that no two who want several wait for each other.
            for volume_id in sorted(set(volume_ids)):
                await stack.enter_async_context(self._turns[volume_id])
            yield

    async def commit(self, request: CommitRequest, node: Node) -> Snapshot:
        """Make the snapshot, or say why not. Asked twice for a session, the answer is the same."""
        asked = await self._catalog.ledger.session(request.session_id)
        if asked is None:
            raise FencedError("this session may not write any more", hint=_AGAIN)
        there = self._repositories.standing(asked.repository_id).opened
        if there is not None and there.locks.lock is not None:
            await self._lock_ahead(request, node)
        async with self._turns[asked.volume_id]:
            if (done := await self._answered(request, node)) is not None:
                return done
            session = await self._allowed(request, node)
            failpoint("coordinator.commit.asked", CatalogError)
            plan, refs = await self._plan(request, session, node)
            failpoint("coordinator.commit.planned", CatalogError)
            # Nothing is left to lock, but for what came to its time since just now.
            with charged(self.tally(session)):
                await self._hold(plan, refs, session)
            pinned = await self._catalog.ledger.begin_commit(plan)
            failpoint("coordinator.commit.begun", CatalogError)
            with charged(self.tally(session)):
                snapshot = await self._write(pinned, request.refs_object, refs)
        await self._dispatcher.committed(session.task_id, snapshot)
        return snapshot

    async def _allowed(self, request: CommitRequest, node: Node) -> Session:
        """The session, if its task runs; FencedError, NotFoundError."""
        session = await self.writing(request.session_id, request.fencing_token, node)
        self._dispatcher.running_task(session.task_id, node.node_id)
        return session

    async def _lock_ahead(self, request: CommitRequest, node: Node) -> None:
        """Lock what the snapshot needs, which may be much, while other commits go on."""
        if await self._catalog.ledger.snapshot_of_session(request.session_id) is None:
            session = await self._allowed(request, node)
            plan, refs = await self._plan(request, session, node)
            with charged(self.tally(session)):
                await self._hold(plan, refs, session)

    async def _hold(self, plan: CommitPlan, refs: Refs, session: Session) -> None:
        await self.of(session).locks.hold(
            session.volume_id, plan.references, base=refs.base, committed_at=plan.now
        )

    async def _answered(self, request: CommitRequest, node: Node) -> Snapshot | None:
        """What the session has committed already, if its answer was lost."""
        existing = await self._catalog.ledger.snapshot_of_session(request.session_id)
        if existing is None or existing.node_id != node.node_id:
            return None
        if existing.signed_root != request.signed_root:
            raise FencedError("this session has committed another root", hint=_AGAIN)
        if not existing.settled:
            session = await self._catalog.ledger.session(request.session_id)
            try:
                with charged(Tally() if session is None else self.tally(session)):
                    await self._settle_all(existing.volume_id)
            except BusyError as error:
                # Whose commit it is waits for it.
                raise StoreUnavailableError(error.message, hint=error.hint) from error
            existing = await self._catalog.ledger.snapshot_of_session(request.session_id)
        return existing

    async def _plan(
        self, request: CommitRequest, session: Session, node: Node
    ) -> tuple[CommitPlan, Refs]:
        """Everything that can be told from the request alone is checked here."""
        if len(request.refs_object) > REFS_BYTES_MAX:
            raise RejectedError("the refs are larger than refs may be")
        newest = await self._catalog.ledger.head(session.volume_id)
        is_elsewhere = newest is not None and newest.repository_id != session.repository_id
        head = await self.head(session) if is_elsewhere else newest
        refs, body = await asyncio.to_thread(_checked, request, node.signing_public_key, session)
        parent = b"" if head is None else root_hash(head.root_object)
        if body.parent != parent:
            raise FencedError("the volume has a newer snapshot than this one knows", hint=_AGAIN)
        references = [
            FrameReference(identity.nonce, identity.number, live_bytes)
            for identity, live_bytes in refs.live().items()
        ]
        statistics = request.statistics
        whole = not body.errors_total and not statistics.errors_total
        # A clock that was set back must not reorder a volume's history, nor shorten a lock.
        now = max(self._clock(), 0 if newest is None else newest.committed_at + 1)
        plan = CommitPlan(
            session_id=session.session_id,
            fencing_token=session.fencing_token,
            snapshot_id=SnapshotHex(snapshot_id(request.signed_root).hex()),
            head_sequence=0 if head is None else head.sequence,
            phase=Phase.COMPLETED if whole else Phase.PARTIALLY_FAILED,
            signed_root=request.signed_root,
            refs_object=request.refs_object,
            references=references,
            statistics=statistics,
            total_files=body.total_files,
            total_bytes=min(body.total_bytes, BYTES_MAX),
            now=now,
            base=refs.base,
            locked_until=self.of(session).locks.needed_until(now),
        )
        return plan, refs

    async def _write(self, pinned: Snapshot, refs_object: bytes, refs: Refs) -> Snapshot:
        """Between T1 and T2. Where the root may be under way, it stays pinned until it is there."""
        try:
            await self._send_refs(pinned, refs_object)
        except StoreError:
            # Nobody has sent its root, so it cannot arrive later either: nothing was promised.
            await self._catalog.ledger.abandon_commit(pinned.snapshot_id)
            raise
        try:
            root = await self._send_root(pinned)
        except StoreError as error:
            root = await self._root_despite(error, pinned)
        return await self._finish(pinned, root, refs)

    async def _send_refs(self, pinned: Snapshot, refs_object: bytes) -> None:
        """Write the refs; what is there already was sent by this commit before."""
        there = self._repositories.of(pinned.repository_id)
        config, info = there.repository.config, _refs_info(pinned)
        sealed = await asyncio.to_thread(seal, config.metadata_public, refs_object, info)
        failpoint("coordinator.commit.refs_sealed", StoreUnavailableError)
        name = refs_name(pinned.volume_id, pinned.sequence)
        try:
            await there.locks.store(pinned.locked_until).put(name, sealed)
        except ObjectExistsError:
            await self._check_refs(name, pinned, refs_object)
        failpoint("coordinator.commit.refs_stored", StoreUnavailableError)

    async def _check_refs(self, name: str, pinned: Snapshot, refs_object: bytes) -> None:
        """DamagedError unless they are ours: sealed twice, the same refs are other bytes."""
        repository = self._repositories.of(pinned.repository_id).repository

        async def read() -> bytes:
            sealed = await repository.store.get(name)
            return repository.metadata_key.unseal(sealed, _refs_info(pinned))

        try:
            is_ours = await read_soundly(read) == refs_object
        except KeyMaterialError:
            is_ours = False
        if not is_ours:
            raise _not_ours(name)

    async def _send_root(self, pinned: Snapshot) -> bytes:
        """Write the root, which is the same bytes each time."""
        there = self._repositories.of(pinned.repository_id)
        root = self._countersigned(pinned, there.repository)
        failpoint("coordinator.commit.root_signed", StoreUnavailableError)
        store = there.locks.store(pinned.locked_until)
        await store.put(root_name(pinned.volume_id, pinned.sequence), root)
        failpoint("coordinator.commit.root_stored", StoreUnavailableError)
        return root

    async def _root_despite(self, error: StoreError, pinned: Snapshot) -> bytes:
        """The root, where it turns out there although it failed; else StoreUnavailableError."""
        root = None
        with suppress(StoreError):
            root = await self._found_root(pinned)
        if root is None:
            raise StoreUnavailableError(
                f"the snapshot cannot be written yet: {error.message}",
                hint=error.hint or "it is written once the repository answers",
            ) from error
        return root

    async def _found_root(self, pinned: Snapshot) -> bytes | None:
        """The root, None where the store has none; DamagedError for another one, StoreError."""
        name = root_name(pinned.volume_id, pinned.sequence)
        repository = self._repositories.of(pinned.repository_id).repository

        async def read() -> bytes:
            root = await repository.store.get(name)
            checked = check_countersigned(root, repository.signing.public)
            if checked.id.hex() != pinned.snapshot_id:
                raise _not_ours(name)
            return root

        try:
            return await read_soundly(read)
        except ObjectMissingError:
            return None

    def _countersigned(self, pinned: Snapshot, repository: Repository) -> bytes:
        completed = pinned.phase is Phase.COMPLETED
        addition = Countersigning(
            sequence=pinned.sequence,
            committed_ns=pinned.committed_at,
            incarnation=self._incarnation,
            verdict=Verdict.COMPLETED if completed else Verdict.PARTIALLY_FAILED,
        )
        return countersign(pinned.signed_root, addition, repository.signing)

    async def _finish(self, pinned: Snapshot, root: bytes, refs: Refs) -> Snapshot:
        references = [
            FrameReference(identity.nonce, identity.number, live_bytes)
            for identity, live_bytes in refs.live().items()
        ]
        await self._catalog.ledger.finish_commit(
            pinned.snapshot_id, root, references, base=refs.base
        )
        failpoint("coordinator.commit.finished", CatalogError)
        snapshot = await self._catalog.ledger.snapshot(SnapshotHex(pinned.snapshot_id))
        assert snapshot is not None
        log.info(
            "snapshot committed",
            snapshot_id=snapshot.snapshot_id,
            volume=snapshot.volume,
            sequence=snapshot.sequence,
            phase=snapshot.phase,
        )
        return snapshot

    # ---- settling what was interrupted ----------------------------------------------------------

    async def run(self) -> None:
        """Settle what waits for its store, again and again; never returns."""
        while True:
            await asyncio.sleep(_SETTLE_SECONDS)
            try:
                await self.recover()
            except TidemarkError as error:
                log.error("settling failed", reason=error.message, hint=error.hint)  # noqa: TRY400

    async def recover(self) -> None:
        """After a start, or when the store is back: settle every commit that was interrupted."""
        waiting: defaultdict[RepositoryId, list[tuple[Snapshot, bytes]]] = defaultdict(list)
        for pinned, refs_object in await self._catalog.ledger.unsettled():
            waiting[pinned.repository_id].append((pinned, refs_object))
        try:
            async with asyncio.TaskGroup() as group:
                for repository_id, some in waiting.items():
                    name = f"settle in {self._repositories.name_of(repository_id)}"
                    group.create_task(self._recover(some), name=name)
        except ExceptionGroup as errors:  # by except*, Python 3.11.2 would raise a group again
            raise errors.exceptions[0] from None

    async def _recover(self, waiting: Sequence[tuple[Snapshot, bytes]]) -> None:
        """Those of one repository."""
        for pinned, refs_object in waiting:
            turn = self._turns[pinned.volume_id]
            if turn.locked():
                continue  # whoever is at it brings it to its end, or leaves it to the next time
            async with turn:
                if not await self._is_unsettled(pinned):
                    continue
                try:
                    await self._settle(pinned, refs_object)
                except DamagedError as error:
                    # Stays pinned, and its volume refuses new sessions; the rest must start.
                    log.error("commit not settled", reason=error.message)  # noqa: TRY400

    async def _settle_all(self, volume_id: VolumeId) -> None:
        for pinned, refs_object in await self._catalog.ledger.unsettled():
            if pinned.volume_id == volume_id:
                await self._settle(pinned, refs_object)
                if await self._is_unsettled(pinned):
                    raise BusyError(
                        "an interrupted commit of this volume cannot be settled: "
                        "the repository does not answer",
                        hint="check the repository's disk; it is settled by the next try",
                    )

    async def _is_unsettled(self, pinned: Snapshot) -> bool:
        found = await self._catalog.ledger.snapshot_of_session(pinned.session_id)
        return found is not None and not found.settled

    async def _settle(self, pinned: Snapshot, refs_object: bytes) -> None:
        """Bring it to its end; while the store does not let us, it stays pinned and undecided.

        A commit is not taken back because its root is missing. What was sent and not answered may
        still arrive, after whatever time, and the volume's next root would not follow on it: a
        rebuild would find a chain that is broken. The same root is sent again instead. All packs
        are there, nobody else gets this sequence, and whichever try comes first, it is one object.
        """
        try:
            root = await self._found_root(pinned)
            if root is None:
                await self._send_refs(pinned, refs_object)
                root = await self._send_root(pinned)
                log.warning("interrupted commit finished", snapshot_id=pinned.snapshot_id)
        except StoreError as error:
            log.error("interrupted commit not settled", reason=error.message)  # noqa: TRY400
            return
        await self._finish(pinned, root, decode_refs(refs_object))


def _refs_info(pinned: Snapshot) -> bytes:
    """What the refs of a snapshot are sealed for."""
    return REFS_INFO + pinned.repository_id + pinned.volume_id


def _not_ours(name: str) -> DamagedError:
    return DamagedError(
        f"{name} is not what was written there",
        hint="somebody else writes to this repository; stop it, then run tidemark verify",
    )


def _checked(request: CommitRequest, node_public: bytes, session: Session) -> tuple[Refs, RootBody]:
    """Refs and body of a commit; RejectedError where they do not belong to it."""
    try:
        body = check_signed_root(request.signed_root, node_public)
        refs = decode_refs(request.refs_object)
    except DamagedError as error:
        raise RejectedError(f"the commit does not check out: {error.message}") from error
    if refs_hash(request.refs_object) != body.refs_hash:
        raise RejectedError("the refs are not those that the root was signed with")
    claimed = (body.repository, body.volume, body.node, body.session)
    actual = (session.repository_id, session.volume_id, session.node_id, session.session_id)
    if claimed != actual:
        raise RejectedError("the root was signed for another volume, node or session")
    return refs, body
