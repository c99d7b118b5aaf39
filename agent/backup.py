"""A backup of one volume, from its directory to the committed snapshot.

    sweep ─► batches of names ─► workers: read, hash, compress, seal ─► packs ─► uploads
      │                             │                                    ▲          │
      └──── order of keys ──────────┴─► edits ─► new manifest nodes ─────┘        commit

One thread walks and edits the manifest with what the workers made of each name (`making.py`); the
event loop uploads. Each stage waits for the next: windows, groups and buffers are bounded, so
memory does not grow with the volume. A store that fails ends the backup, and is never taken for a
source that cannot be read.
"""

import asyncio
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, TypeVar

from agent.auditing import Audit
from agent.beneath import Tree
from agent.ending import to_its_end
from agent.errors import StateError, UnreachableError, VolumeError
from agent.known import KnownChunks
from agent.last import LostStateError
from agent.making import PROBLEMS_MAX, Beside, Made, Maker
from agent.manifest import MetadataWriter
from agent.packing import BUFFERS_FAR, FinishedPack, PackIdentity, Packs
from agent.reading import Scanned
from agent.recalling import recall
from agent.rehashing import Rehash, begun, next_share
from agent.services import (
    BY_HAND,
    AuditOutcome,
    BackupOutcome,
    BackupStatistics,
    BackupTask,
    Committed,
    PathProblem,
    Progress,
    Services,
    Session,
)
from agent.small import SmallFiles
from agent.state import Head
from agent.storing import Storer
from agent.tracking.tracker import Done, Taken, proof_of
from agent.turn import Turn
from agent.watching import watched_path
from repository.entries import path_of
from repository.errors import CanceledError, DamagedError, TidemarkError
from repository.failpoints import failpoint
from repository.ids import NodeId, SessionId, VolumeId
from repository.keys import KEY_BYTES, seal
from repository.layout import DATA_KEY_INFO, LABEL_INFO, WriterKeys
from repository.refs import refs_hash
from repository.snapshot import (
    FORMAT,
    Detection,
    Label,
    RootBody,
    peek_signed_root,
    root_hash,
    sign_root,
    split_root,
)
from repository.tree import Boundaries, encode_pointer

if TYPE_CHECKING:
    from agent.clones import VolumeClones

# As many as there are buffers of data to send.
_UPLOADS: Final = 3
_REFS_PIECE_BYTES: Final = 1024 * 1024
# A line of a job's log names so many; its warnings name more.
_PATHS_LOGGED: Final = 10
_NO_MANIFEST: Final = "the last manifest is not all here"
_ALTERED_HINT: Final = (
    "see the kernel's log for its disk, and compare it with an older snapshot; this one has it as "
    "it is now"
)
_UNTOLD_HINT: Final = "it is in this snapshot; report it, and see the volume swept until an audit"
_T = TypeVar("_T")


async def run_backup(task: BackupTask, services: Services) -> BackupOutcome:
    """Back one volume up. Errors are part of the outcome; cancellation passes through."""
    backup = _Backup(task, services)
    try:
        committed = await backup.run()
    except TidemarkError as error:
        return BackupOutcome(backup.statistics, error=error)
    return BackupOutcome(backup.statistics, committed=committed)


class _Backup:
    """One run: open, make, upload, commit."""

    def __init__(self, task: BackupTask, services: Services) -> None:
        self._task = task
        self._taken: Taken
        self._rehash: Rehash | None = None
        self._services = services
        self._started_ns = services.clock.now_ns()
        self._canceled = threading.Event()
        self._storer: Storer | None = None
        self._clones: VolumeClones | None = None
        self._packed_bytes = 0
        self.statistics = BackupStatistics()

    async def run(self) -> Committed:
        """Everything, in order; then without the clones that nothing is to come of."""
        try:
            return await self._run()
        finally:
            if self._clones is not None:
                closing = asyncio.get_running_loop().run_in_executor(None, self._clones.close)
                await to_its_end(closing)

    async def _run(self) -> Committed:
        self._report("opening")
        volume = self._task.volume
        through_links = volume.source == BY_HAND
        opened = asyncio.to_thread(Tree.of_volume, volume.path, through_links=through_links)
        with await opened as tree:
            data_key = secrets.token_bytes(KEY_BYTES)
            info = DATA_KEY_INFO + self._task.repository_id
            sealed = seal(self._task.recovery_public_key, data_key, info)
            failpoint("agent.session.asked", UnreachableError)
            session = await self._services.coordinator.open_session(self._task.task_id, sealed)
            failpoint("agent.session.opened", UnreachableError)
            keys = WriterKeys.decode(session.writer_keys)
            identity = PackIdentity(
                repository=keys.repository,
                session=SessionId(session.session_id),
                node=NodeId(self._services.node_id),
                data_key=data_key,
                sealed_data_key=sealed,
                metadata_public=keys.metadata_public,
                signing=self._services.signing_key,
            )
            await recall(session, self._task.volume.volume_id, self._services, self._report)
            self._report("looking for changes")
            self._taken = await asyncio.to_thread(self._begin, tree, session)
            failpoint("agent.changes.taken", StateError)
            made = await self._save(tree, session, keys, identity)
            failpoint("agent.manifest.made", StateError)
            await asyncio.to_thread(_check_still_there, volume.path, tree)
        return await self._commit(session, keys, made)

    def _begin(self, tree: Tree, session: Session) -> Taken:
        """Learn where to look. What was told so far happened before anything is read."""
        volume = self._task.volume
        local_id = self._task.local_id or volume.volume_id
        if self._services.clones is not None:
            self._clones = self._services.clones.of_volume(local_id, tree)
        path, audit = watched_path(volume), self._task.audit
        return self._services.tracking.begin(local_id, path, tree, session.head_root, audit=audit)

    async def _save(
        self, tree: Tree, session: Session, keys: WriterKeys, identity: PackIdentity
    ) -> Made:
        """Make the manifest in a thread, and upload what falls due meanwhile."""
        loop = asyncio.get_running_loop()
        finished: asyncio.Queue[FinishedPack | None] = asyncio.Queue()
        known = KnownChunks(self._services.state, self._task.volume.volume_id)

        def deliver(pack: FinishedPack) -> None:
            loop.call_soon_threadsafe(finished.put_nowait, pack)

        packs = (
            Packs(identity, deliver)
            if session.signed_uploads is None
            else Packs(identity, deliver, BUFFERS_FAR)
        )
        failure: TidemarkError | None = None
        made: Made | None = None
        async with asyncio.TaskGroup() as group:
            for number in range(_UPLOADS):
                upload = self._upload(session, finished, packs, known)
                group.create_task(upload, name=f"upload-{number}-{self._task.task_id}")
            try:
                made = await self._in_thread(
                    packs, lambda: self._make(tree, session, keys, packs, known)
                )
            except TidemarkError as error:
                packs.fail(error)
                failure = error
            finally:
                for _ in range(_UPLOADS):
                    finished.put_nowait(None)
        failure = packs.failure or failure
        if failure is not None:
            raise failure
        assert made is not None
        return made

    def _make(
        self, tree: Tree, session: Session, keys: WriterKeys, packs: Packs, known: KnownChunks
    ) -> Made:
        """Make the manifest from the last one if it is at hand, else from nothing."""
        services, volume_id = self._services, self._task.volume.volume_id
        head = services.state.head(volume_id)
        if head is not None and head.root != session.head_root:
            head = None  # not the last one that the coordinator knows
        now_ns = services.clock.now_ns
        suspects = self._taken.suspects
        device = tree.stat_root().st_dev
        scanned = Scanned(suspects.beneath(device), suspects.begun_ns)
        with SmallFiles(tree, keys.ids, Turn(), services.log, now_ns, scanned=scanned) as small:
            try:
                return self._attempt(head, small, keys, packs, known)
            except LostStateError:
                services.log("warning", "the agent's copy of the last manifest is incomplete")
                services.log(
                    "warning", "all files are read again; what is stored is not sent again"
                )
                return self._attempt(None, small, keys, packs, known)

    def _attempt(
        self,
        head: Head | None,
        small: SmallFiles,
        keys: WriterKeys,
        packs: Packs,
        known: KnownChunks,
    ) -> Made:
        """Make the manifest from this one. Raises LostStateError where it is not all here."""
        services, volume_id = self._services, self._task.volume.volume_id
        self.statistics = BackupStatistics()
        workers, now_ns = services.workers, services.clock.now_ns
        taken = self._taken
        self._storer = Storer(
            small,
            packs,
            known,
            keys,
            workers,
            now_ns,
            self._clones,
            disk=services.disk,
            groups=services.groups,
        )
        stage = partial(services.state.stage_nodes, volume_id)
        metadata = MetadataWriter(packs, known, keys.ids, stage)
        maker = Maker(volume_id, services.state, workers, self._storer, metadata, self.statistics)
        audit = self._audit(small) if taken.way.audits and head is not None else None
        self._rehash = None if head is None else self._next_rehash(small, keys)
        beside: list[Beside] = []
        if audit is not None:
            beside.append(audit.beside)
        if self._rehash is not None:
            beside.append(self._rehash.among)
        try:
            made = maker.make(
                small.tree,
                head,
                Boundaries(keys.boundaries),
                excludes=self._task.excludes,
                is_canceled=self._canceled.is_set,
                on_progress=lambda: self._report("reading"),
                dirty=None if taken.way.audits else taken.way.dirty,
                suspects=small.scanned.suspects,
                whereabouts=taken.whereabouts,
                beside=beside,
            )
        except (LostStateError, TidemarkError) as error:
            if audit is not None and audit.missed:
                self._conclude(audit)  # a miss is one, whatever becomes of this backup
            if isinstance(error, LostStateError):
                # Places that were promised to nodes are known by now: what is known must be true.
                metadata.flush()
            raise
        self._conclude(audit)
        self._tell_altered()
        packs.flush()
        self.statistics.bytes_read = self._storer.counters.bytes_read
        self.statistics.data_added = self._storer.counters.bytes_added + metadata.bytes_added
        return made

    def _next_rehash(self, small: SmallFiles, keys: WriterKeys) -> Rehash | None:
        """What has to be read again in spite of its stat, if it is time for that."""
        done = self._services.state.rehashed(self._task.volume.volume_id)
        share = next_share(done, self._started_ns)
        if share is None:
            return None
        # Nobody who writes to the volume knows what comes next.
        return Rehash(share, small.tree, keys.boundaries, small.scanned.suspects)

    async def _keep_rehashed(self) -> None:
        """Note how far that has come, once it is committed."""
        state, volume_id = self._services.state, self._task.volume.volume_id
        done = begun(state.rehashed(volume_id), self._started_ns)
        if self._rehash is not None:
            done = self._rehash.done
        if done is not None:
            await state.keep_rehashed(volume_id, done)

    def _audit(self, small: SmallFiles) -> Audit:
        since = partial(self._services.tracking.since, self._taken, small.tree)
        wait = self._canceled.wait
        return Audit(self._taken, small.tree, since, let_go=small.turn.let_go, wait=wait)

    def _conclude(self, audit: Audit | None) -> None:
        """Say what an audit has found, if there was one or somebody asked for it."""
        statistics, way = self.statistics, self._taken.way
        if audit is None:
            if self._task.audit or way.audits:
                reason = _NO_MANIFEST if way.audits else way.reason
                statistics.audit = AuditOutcome(audited=False, reason=reason)
            return
        paths = [path_of(key) for key in audit.missed_keys]
        statistics.audit = AuditOutcome(
            audited=not audit.void,
            reason=audit.void,
            places=audit.places,
            candidates=audit.candidates,
            missed=audit.missed,
            missed_paths=paths,
        )
        if not audit.void or audit.missed:
            now_ns = self._services.clock.now_ns()
            self._services.tracking.audited(self._taken, audit.missed, now_ns)
        self._warn_of(paths, audit.missed, "events did not tell of this change", _UNTOLD_HINT)

    def _tell_altered(self) -> None:
        """Say what changed without a sign of it."""
        statistics = self.statistics
        if statistics.altered_files:
            self._services.tracking.altered(self._taken, statistics.altered_files)
            message = "its content changed, and its times did not"
            paths = statistics.altered_paths
            self._warn_of(paths, statistics.altered_files, message, _ALTERED_HINT)

    def _warn_of(self, paths: list[bytes], total: int, message: str, hint: str) -> None:
        """Name what was missed, before whatever else there is to warn of."""
        if not total:
            return
        warnings = self.statistics.warnings
        warnings[:0] = [PathProblem(path, message, hint) for path in paths[:PROBLEMS_MAX]]
        del warnings[PROBLEMS_MAX:]
        shown = ", ".join(os.fsdecode(path) or "." for path in paths[:_PATHS_LOGGED])
        rest = total - min(len(paths), _PATHS_LOGGED)
        more = f", and {rest:,} more" if rest else ""
        self._services.log("error", f"{message}: {shown}{more}")

    async def _in_thread(self, packs: Packs, work: Callable[[], _T]) -> _T:
        """Run the maker in a thread of its own; cancellation waits until the thread has ended."""

        def canceled() -> None:
            self._canceled.set()
            packs.fail(CanceledError("the backup was canceled"))

        name, begin = f"backup-{self._task.task_id}", self._services.begin_thread
        with ThreadPoolExecutor(1, thread_name_prefix=name, initializer=begin) as thread:
            running = asyncio.get_running_loop().run_in_executor(thread, work)
            return await to_its_end(running, canceled)

    async def _upload(
        self,
        session: Session,
        finished: "asyncio.Queue[FinishedPack | None]",
        packs: Packs,
        known: KnownChunks,
    ) -> None:
        """Upload packs as they come. After a failure the rest is let go, so that nobody waits."""
        while (pack := await finished.get()) is not None:
            try:
                if packs.failure is None:
                    failpoint("agent.pack.sending", UnreachableError)
                    await self._services.coordinator.upload_pack(session, pack)
                    failpoint("agent.pack.uploaded", UnreachableError)
                    await known.settle(pack.chunks)
                    failpoint("agent.pack.settled", StateError)
                    self._packed_bytes += pack.size_bytes
            except TidemarkError as error:
                packs.fail(error)
            finally:
                pack.release()

    async def _commit(self, session: Session, keys: WriterKeys, made: Made) -> Committed:
        """Sign the root, have it countersigned, and keep what the next backup starts from."""
        self.statistics.data_added_packed = self._packed_bytes
        self.statistics.detection = made.detection
        self.statistics.proof = self._proof(made)
        # All packs are sent; the coordinator knows of them even if it hears no more from us.
        self.statistics.store_requests = self._services.tally.snapshot()
        self._report("committing")
        refs = made.refs.encode()
        signed = sign_root(self._root(session, keys, made, refs), self._services.signing_key)
        pieces = [
            refs[start : start + _REFS_PIECE_BYTES]
            for start in range(0, len(refs), _REFS_PIECE_BYTES)
        ]
        failpoint("agent.root.signed", TidemarkError)
        committed = await self._services.coordinator.commit(
            session, signed, pieces, self.statistics
        )
        failpoint("agent.commit.answered", UnreachableError)
        if split_root(committed.root)[1] != signed:
            raise DamagedError(
                "the coordinator countersigned another root than ours",
                hint="this is a defect; keep the logs of both daemons",
            )
        await self._services.state.commit(
            self._task.volume.volume_id,
            Head(committed.root, committed.sequence, encode_pointer(made.manifest)),
            made.node_uses,
            made.frame_changes,
            replace=made.base,
        )
        failpoint("agent.head.committed", StateError)
        if self._clones is not None:
            await asyncio.to_thread(self._clones.committed)
        done = Done(committed.root, made.detection is Detection.SWEEP, made.again)
        await asyncio.to_thread(self._services.tracking.committed, self._taken, done)
        await self._keep_rehashed()
        return committed

    def _proof(self, made: Made) -> str:
        """What the snapshot rests on, and what an audit said of it."""
        proof, audit = proof_of(self._taken, made.detection), self.statistics.audit
        if audit is None or not audit.audited:
            return proof
        return f"{proof}; events missed {audit.missed:,} of {audit.candidates:,} changes"

    def _root(self, session: Session, keys: WriterKeys, made: Made, refs: bytes) -> RootBody:
        volume, statistics = self._task.volume, self.statistics
        label = Label(
            volume_name=volume.name,
            node_name=os.uname().nodename,
            source=volume.source,
            path=volume.path,
            errors=[(each.path, each.message, each.hint) for each in statistics.errors],
            proof=statistics.proof,
        )
        return RootBody(
            format=FORMAT,
            repository=keys.repository,
            volume=VolumeId(volume.volume_id),
            node=NodeId(self._services.node_id),
            session=SessionId(session.session_id),
            parent=root_hash(session.head_root) if session.head_root else b"",
            manifest=made.manifest,
            refs_hash=refs_hash(refs),
            detection=made.detection,
            started_ns=self._started_ns,
            total_files=made.total_files,
            total_bytes=made.total_bytes,
            fuzzy_files=statistics.fuzzy_files,
            errors_total=statistics.errors_total,
            label=seal(keys.metadata_public, label.encode(), LABEL_INFO + keys.repository),
        )

    def _report(self, activity: str) -> None:
        statistics = self.statistics
        files_total, bytes_total = self._expected
        # What is read of a file that is not done yet counts as well: it may be the only one.
        read = 0 if self._storer is None else self._storer.counters.bytes_read
        self._services.progress(
            Progress(
                activity=activity,
                files_done=statistics.total_files_processed,
                files_total=files_total,
                bytes_done=max(statistics.total_bytes_processed, read),
                bytes_total=bytes_total,
            )
        )

    @cached_property
    def _expected(self) -> tuple[int | None, int | None]:
        """Files and bytes of the last snapshot: what this one will come to, more or less."""
        head = self._services.state.head(self._task.volume.volume_id)
        if head is None:
            return None, None
        body = peek_signed_root(split_root(head.root)[1])
        return body.total_files, body.total_bytes


def _check_still_there(path: bytes, tree: Tree) -> None:
    """VolumeError where the volume was removed or unmounted while it was read.

    A walk of a removed directory finds nothing, which must not pass for an empty volume.
    """
    try:
        now, then = os.stat(path), tree.stat_root()
    except OSError as error:
        raise _gone(path) from error
    if (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino) and not tree.is_file:
        raise _gone(path)


def _gone(path: bytes) -> VolumeError:
    return VolumeError(
        f"{os.fsdecode(path)} went away while it was read",
        hint="bring it back, then back up again; earlier snapshots still restore",
    )
