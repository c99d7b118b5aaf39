"""A restore: grant, manifest, fetch plan, files, metadata.

    manifest ─► directories, links ─► window of extents ─► frames in pack order ─► workers: open,
                made at once          (bounded)             (coalesced ranges)      check, write

Within a window every frame is fetched and opened once, however many files share it; the window, the
ranges in flight and the frames being opened are bounded, so memory does not depend on the snapshot.
A frame that is damaged costs the files that need it, and those are named. A target is marked for as
long as it is not what the snapshot says. Nothing is removed but what this run has made.
"""

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Final, NamedTuple, TypeVar

from agent.errors import TargetError
from agent.fetching import Fetcher, OpenedGrant, Wanted, in_pack_order
from agent.services import (
    PathProblem,
    Phase,
    Progress,
    RestoreClient,
    RestoreOutcome,
    RestoreStatistics,
    RestoreTask,
    Services,
)
from agent.turn import Turn
from agent.writing import MARKER, File, Target, TargetFullError, open_target
from repository.entries import Entry, EntryType, Extent, Pointer, key_of, path_of
from repository.errors import DamagedError, FormatError, TidemarkError, UsageError
from repository.frames import FrameIdentity, FrameReader
from repository.ids import ObjectType
from repository.keys import KEY_BYTES, UnsealingKey
from repository.reader import Chunks, SnapshotReader, slice_extent

_T = TypeVar("_T")

# Extents planned at once: 16 GiB of a general file, 30,000 small files, some 20 MiB of memory.
_WINDOW_EXTENTS: Final = 32_768
# Fetches in flight, each of at most FETCH_BYTES: one on the line, one arrived, one being opened.
_FETCHES: Final = 3
# Descriptors that a worker holds while it spreads one fetch over files.
_OPEN_FILES: Final = 32
# From so many files on, a frame is spread in turns (turn.py).
_MANY_PIECES: Final = 8
_ERRORS_MAX: Final = 100


async def run_restore(
    task: RestoreTask, services: Services, client: RestoreClient, roots: Sequence[bytes]
) -> RestoreOutcome:
    """Restore a snapshot. Errors are part of the outcome; cancellation passes through."""
    restore = _Restore(task, services, client, roots)
    statistics = restore.statistics
    try:
        await restore.run()
    except TidemarkError as error:
        return RestoreOutcome(statistics, Phase.FAILED, error)
    except BaseExceptionGroup as errors:
        failures, others = errors.split(TidemarkError)
        if others is not None or failures is None:
            raise
        return RestoreOutcome(statistics, Phase.FAILED, _first(failures))
    if not statistics.errors_total:
        return RestoreOutcome(statistics, Phase.COMPLETED)
    if statistics.files_restored:
        return RestoreOutcome(statistics, Phase.PARTIALLY_FAILED)
    worst = statistics.errors[0]
    nothing = DamagedError(
        f"nothing could be restored: {worst.message}",
        hint=worst.hint or "see the errors of the job",
    )
    return RestoreOutcome(statistics, Phase.FAILED, nothing)


def _first(error: BaseException) -> TidemarkError:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, TidemarkError)
    return error


class _Piece(NamedTuple):
    """Where the bytes of one extent belong."""

    file: File
    offset: int
    extent: Extent


_Window = dict[FrameIdentity, list[_Piece]]


class _Restore:
    """One run."""

    def __init__(
        self,
        task: RestoreTask,
        services: Services,
        client: RestoreClient,
        roots: Sequence[bytes],
    ) -> None:
        self._task = task
        self._services = services
        self._client = client
        self._roots = roots
        self._lock = threading.Lock()
        self._local = threading.local()
        self._turn = Turn()
        self._grant: OpenedGrant
        self._fetcher: Fetcher
        self._reader: SnapshotReader
        self._totals: tuple[int | None, int | None] = (None, None)
        # Names of directories, of links to make, and of files that have several names.
        self._directories: list[tuple[bytes, Entry]] = []
        self._links: list[tuple[bytes, File]] = []
        self._firsts: dict[int, File] = {}
        self.statistics = RestoreStatistics()

    async def run(self) -> None:
        """Everything, in order."""
        if self._task.wishes:
            raise UsageError(
                f"this agent cannot restore with {', '.join(self._task.wishes)} yet",
                hint="restore to an empty directory",
            )
        one_time = UnsealingKey(secrets.token_bytes(KEY_BYTES))
        grant = await self._client.open_restore(self._task.task_id, one_time.public)
        self._grant = OpenedGrant(grant, one_time)
        self._fetcher = Fetcher(self._client, self._task.task_id, self._grant)
        self._reader = SnapshotReader(self._fetcher, self._grant.reader_keys, self._in_worker)
        manifest = self._grant.root.manifest
        try:
            if manifest is None:
                await self._fill_directory(None, [])
                return
            top = await self._reader.entry(manifest, b"")
            if top is not None and top.type is EntryType.FILE:
                await self._make_single_file(top)
                return
            selected = await self._selected(manifest)
            if not selected:
                self._totals = (self._grant.root.total_files, self._grant.root.total_bytes)
            await self._fill_directory(manifest, selected)
        finally:
            self.statistics.bytes_fetched = self._fetcher.bytes_fetched

    async def _selected(self, manifest: Pointer) -> list[bytes]:
        """The keys asked for, none inside another; empty for everything."""
        keys = sorted({key_of(_plain(path)) for path in self._task.paths})
        if b"" in keys:
            return []
        for key in keys:
            if await self._reader.entry(manifest, key) is None:
                raise UsageError(
                    f"the snapshot has no {os.fsdecode(path_of(key))}",
                    hint="see what it has with `tidemark snapshot ls`",
                )
        outer: list[bytes] = []
        for key in keys:
            if not outer or not key.startswith(outer[-1] + b"\0"):
                outer.append(key)
        return outer

    async def _fill_directory(self, manifest: Pointer | None, selected: list[bytes]) -> None:
        target = await self._in_worker(
            lambda: open_target(self._task.target, self._roots, self._warn)
        )
        with target:
            await self._in_worker(lambda: self._claim(target))
            if manifest is not None:
                await self._fill(target, self._entries(manifest, selected))
            await self._in_worker(lambda: self._make_links(target))
            if not self.statistics.errors_total:
                await self._in_worker(target.unmark)
            await self._in_worker(lambda: self._finish_directories(target))

    def _claim(self, target: Target) -> None:
        shown = os.fsdecode(self._task.target)
        if target.has(MARKER):
            raise TargetError(
                f"{shown} holds a restore that was not finished",
                hint="remove what is in it, or restore to another directory",
            )
        if not target.is_empty():
            raise TargetError(
                f"{shown} is not empty", hint="restore to an empty directory, or to a new one"
            )
        target.mark(self._task.job_id)

    async def _entries(
        self, manifest: Pointer, selected: Sequence[bytes]
    ) -> AsyncIterator[list[tuple[bytes, Entry]]]:
        """Everything, or what was selected with the directories that lead there."""
        if not selected:
            async for batch in self._reader.entries(manifest):
                yield batch
            return
        made: set[bytes] = set()
        for key in selected:
            for above in _ancestors(key):
                if above not in made:
                    made.add(above)
                    entry = await self._reader.entry(manifest, path_of(above))
                    if entry is not None:
                        yield [(above, entry)]
            async for batch in self._reader.entries(manifest, path_of(key)):
                yield batch

    # From entries to windows of extents.

    async def _fill(
        self, target: Target, entries: AsyncIterator[list[tuple[bytes, Entry]]]
    ) -> None:
        window: _Window = {}
        planned = 0
        async for batch in entries:
            for file in await self._in_worker(partial(self._lay_out, target, batch)):
                async for count in self._plan(target, file, window):
                    planned += count
                    if planned >= _WINDOW_EXTENTS:
                        await self._write(target, window)
                        window, planned = {}, 0
        await self._write(target, window)

    def _lay_out(self, target: Target, batch: Sequence[tuple[bytes, Entry]]) -> list[File]:
        """Make everything that has no content; return the files that have."""
        files = []
        for key, entry in batch:
            if entry.type is EntryType.FILE and entry.size:
                if (file := self._with_content(key, entry)) is not None:
                    files.append(file)
                continue
            try:
                path_of(key)  # a key that would leave the target ends everything
                self._make(target, key, entry)
            except TargetFullError:
                raise
            except TargetError as error:
                self._problem(key, error)
        return files

    def _with_content(self, key: bytes, entry: Entry) -> File | None:
        path_of(key)
        if key == MARKER:
            self._warn(key, "not restored: Tidemark marks unfinished restores with this name")
            return None
        file = File(key, entry)
        if entry.content is None:
            self._problem(key, DamagedError("its content was not stored"))
            return None
        return None if self._is_further_name(file) else file

    def _is_further_name(self, file: File) -> bool:
        """Whether the file is another name of one that is restored already."""
        entry = file.entry
        if entry.links <= 1 or not entry.inode:
            return False
        first = self._firsts.setdefault(entry.inode, file)
        if first is file or not _is_same_file(first.entry, entry):
            return False
        self._links.append((file.key, first))
        return True

    def _make(self, target: Target, key: bytes, entry: Entry) -> None:
        match entry.type:
            case EntryType.DIRECTORY:
                if key:
                    target.make_directory(key)
                self._directories.append((key, entry))
                return
            case EntryType.FILE:
                file = File(key, entry)
                if self._is_further_name(file):
                    return
                target.write_whole(file, ())
            case EntryType.SYMLINK:
                target.make_symlink(key, entry)
            case EntryType.SOCKET:
                self._warn(key, "a socket is not restored: its server makes it anew")
                return
            case EntryType.FIFO | EntryType.CHARACTER_DEVICE | EntryType.BLOCK_DEVICE:
                target.make_special(key, entry)
        self._done(files=1)

    async def _plan(self, target: Target, file: File, window: _Window) -> AsyncIterator[int]:
        """Add a file's extents to the window, in steps, so that it may be written in between."""
        content = file.entry.content
        assert content is not None
        offset = holes = 0
        try:
            async for extents in self._reader.extents(content):
                for extent in extents:
                    if offset + extent.length > file.entry.size:
                        raise FormatError("its content is longer than its entry says")
                    if extent.is_hole:
                        holes += extent.length
                    else:
                        identity = FrameIdentity(extent.nonce, extent.frame)
                        window.setdefault(identity, []).append(_Piece(file, offset, extent))
                    offset += extent.length
                yield len(extents)
            if offset != file.entry.size:
                raise FormatError("its content is shorter than its entry says")
            if holes and await self._in_worker(lambda: target.settle(file, holes)):
                self._done(files=1, restored=file.entry.size)
        except TargetFullError:
            raise
        except (DamagedError, TargetError) as error:
            self._give_up(target, file, error)

    # From frames to files.

    async def _write(self, target: Target, window: _Window) -> None:
        """Fetch the frames of a window in the order of packs, and write what is in them."""
        wanted = []
        for identity, pieces in window.items():
            try:
                wanted.append(Wanted(self._grant.place(identity), identity))
            except DamagedError as error:
                self._give_up_all(target, pieces, error)
        groups = in_pack_order(wanted)
        async with asyncio.TaskGroup() as group:
            for number in range(_FETCHES):
                name = f"restore {self._task.task_id} fetch {number}"
                group.create_task(self._fetch_and_write(target, window, groups), name=name)

    async def _fetch_and_write(
        self, target: Target, window: _Window, groups: Iterator[list[Wanted]]
    ) -> None:
        for group in groups:
            fetched = await self._fetcher.fetch_each(group)
            await self._in_worker(partial(self._spread, target, window, fetched))
            self._tell()

    def _spread(
        self,
        target: Target,
        window: _Window,
        fetched: Iterable[tuple[Wanted, memoryview | TidemarkError]],
    ) -> None:
        """Open frames and write their chunks to where they belong. Runs in a worker."""
        opened = _OpenFiles(target)
        try:
            for wanted, sealed in fetched:
                pieces = window[wanted.identity]
                if isinstance(sealed, TidemarkError):
                    self._give_up_all(target, pieces, sealed)
                    continue
                try:
                    chunks = self._frame_reader().open(
                        sealed, wanted.place.key, wanted.identity, ObjectType.DATA
                    )
                except DamagedError as error:
                    self._give_up_all(target, pieces, error)
                    continue
                with self._turn.taken() if len(pieces) > _MANY_PIECES else nullcontext():
                    self._put_all(target, opened, pieces, chunks)
        finally:
            opened.close()

    def _put_all(
        self, target: Target, opened: "_OpenFiles", pieces: Iterable[_Piece], chunks: Chunks
    ) -> None:
        for piece in pieces:
            try:
                self._put(target, opened, piece, slice_extent(piece.extent, chunks))
            except TargetFullError:
                raise
            except (DamagedError, TargetError) as error:
                self._give_up(target, piece.file, error)

    def _put(self, target: Target, opened: "_OpenFiles", piece: _Piece, data: memoryview) -> None:
        file = piece.file
        if file.error is not None:
            return
        if len(data) == file.entry.size:
            target.write_whole(file, (data,))
            done = True
        else:
            done = target.write_at(opened.get(file), file, data, piece.offset)
        self._done(files=int(done), restored=file.entry.size if done else 0, written=len(data))

    def _frame_reader(self) -> FrameReader:
        reader: FrameReader | None = getattr(self._local, "reader", None)
        if reader is None:
            keys = self._grant.reader_keys
            reader = self._local.reader = FrameReader(keys.repository, keys.ids)
        return reader

    def _make_links(self, target: Target) -> None:
        for key, first in self._links:
            try:
                target.make_link(key, first)
                self._done(files=1, restored=first.entry.size)
            except TargetFullError:
                raise
            except TargetError as error:
                self._problem(key, error)

    def _finish_directories(self, target: Target) -> None:
        """Give directories their metadata, the deepest first: it may lock us out."""
        for key, entry in reversed(self._directories):
            if not key and self._task.paths:
                continue  # the target is only where the paths go
            try:
                target.finish_directory(key, entry)
            except TargetError as error:
                self._problem(key, error)

    async def _make_single_file(self, entry: Entry) -> None:
        """Restore a volume that is one file: the target is that file."""
        parent, _, name = self._task.target.rstrip(b"/").rpartition(b"/")
        target = await self._in_worker(lambda: open_target(parent or b"/", self._roots, self._warn))
        file = File(name + MARKER, entry)
        with target:
            if target.has(name):
                raise TargetError(
                    f"{os.fsdecode(self._task.target)} exists, and the snapshot is a single file",
                    hint="name a path that does not exist yet",
                )
            if entry.size:
                await self._fill_file(target, file)
            else:
                await self._in_worker(lambda: target.write_whole(file, ()))
                self._done(files=1)
            if file.error is None:
                await self._in_worker(lambda: target.move(file, name))

    async def _fill_file(self, target: Target, file: File) -> None:
        window: _Window = {}
        planned = 0
        async for count in self._plan(target, file, window):
            planned += count
            if planned >= _WINDOW_EXTENTS:
                await self._write(target, window)
                window, planned = {}, 0
        await self._write(target, window)

    # What is known of it.

    def _done(self, *, files: int = 0, restored: int = 0, written: int = 0) -> None:
        with self._lock:
            self.statistics.files_restored += files
            self.statistics.bytes_restored += restored
            self.statistics.bytes_written += written

    def _give_up(self, target: Target, file: File, error: TidemarkError) -> None:
        if target.give_up(file, error):
            self._problem(file.key, error)

    def _give_up_all(self, target: Target, pieces: Iterable[_Piece], error: TidemarkError) -> None:
        for piece in pieces:
            self._give_up(target, piece.file, error)

    def _problem(self, key: bytes, error: TidemarkError) -> None:
        with self._lock:
            self.statistics.errors_total += 1
            if len(self.statistics.errors) < _ERRORS_MAX:
                problem = PathProblem(key.replace(b"\0", b"/"), error.message, error.hint)
                self.statistics.errors.append(problem)

    def _warn(self, key: bytes, message: str) -> None:
        with self._lock:
            if len(self.statistics.warnings) < _ERRORS_MAX:
                path = key.replace(b"\0", b"/")
                self.statistics.warnings.append(PathProblem(path, message))

    def _tell(self) -> None:
        files, size = self._totals
        self._services.progress(
            Progress(
                "restoring",
                files_done=self.statistics.files_restored,
                files_total=files,
                bytes_done=self.statistics.bytes_written,
                bytes_total=size,
            )
        )

    async def _in_worker(self, work: Callable[[], _T]) -> _T:
        """Run in a worker thread; even when canceled, not before the worker has let go."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._services.workers, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise


class _OpenFiles:
    """Files that a worker writes parts of, opened once for one fetch."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._open: dict[bytes, int] = {}

    def get(self, file: File) -> int:
        """A descriptor, good until the next call."""
        descriptor = self._open.get(file.key)
        if descriptor is None:
            if len(self._open) >= _OPEN_FILES:
                self.close()
            descriptor = self._open[file.key] = self._target.open(file)
        return descriptor

    def close(self) -> None:
        """Close them all."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def _is_same_file(one: Entry, other: Entry) -> bool:
    """Whether two names with one inode number were names of one file, and not of two in turn."""
    if (one.ctime_ns, one.mtime_ns, one.size) != (other.ctime_ns, other.mtime_ns, other.size):
        return False
    # Content that was read twice may lie in two places; what it is stands in the ids.
    return _ids(one) == _ids(other)


def _ids(entry: Entry) -> list[tuple[bytes, int, int]]:
    extents = entry.content.extents if entry.content is not None else []
    return [(extent.id, extent.skip, extent.length) for extent in extents]


def _plain(path: bytes) -> bytes:
    parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
    if b".." in parts or b"\0" in path:
        raise UsageError(f"{os.fsdecode(path)!r} is not a path within a snapshot")
    return b"/".join(parts)


def _ancestors(key: bytes) -> list[bytes]:
    parts = key.split(b"\0")
    return [b"\0".join(parts[:depth]) for depth in range(1, len(parts))]
