"""A restore: grant, manifest, fetch plan, files, metadata.

    manifest ─► directories, links ─► window of extents ─► frames in pack order ─► workers: open,
                made at once          (bounded)             (coalesced ranges)      check, write

What stands in the target already is compared first, and only what differs is fetched and written.
Within a window every frame is fetched and opened once, however many files share it; the window, the
ranges in flight and the frames being opened are bounded, so memory does not depend on the snapshot.
A frame that is damaged costs the files that need it, and those are named. A target is marked for as
long as it is not what the snapshot says, and until all of it is on the disk. Nothing is removed but
what this run has made or replaces, and what it was asked to remove. A dry run does all of it with a
Rehearsal for a Target, and fetches nothing but metadata.
"""

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from agent.ending import to_its_end
from agent.errors import TargetError, UnreachableError, first_error
from agent.fetching import Fetcher, OpenedGrant, Wanted, in_pack_order
from agent.placing import Placing
from agent.rehearsing import Rehearsal
from agent.removing import Extras
from agent.selecting import Selection, select, selected_entries, with_attributes
from agent.services import (
    Phase,
    RestoreClient,
    RestoreOutcome,
    RestorePlaces,
    RestoreTask,
    Services,
)
from agent.side import SLOT_BYTES
from agent.standing import Block, TargetFullError, blocks_of
from agent.tally import Tally
from agent.targets import Place, open_rehearsal, open_target, place_of
from agent.turn import Turn
from agent.wholes import WHOLE_BYTES_MAX, FileFrame, Outcomes, Whole, WholeFiles, that_fit
from agent.windows import WINDOW_EXTENTS, Piece, Window, Windows
from agent.writing import File, Target
from repository.entries import ROOT_KEY, Entry, EntryType
from repository.errors import DamagedError, FormatError, TidemarkError, UsageError
from repository.failpoints import failpoint
from repository.frames import FrameIdentity, FrameReader
from repository.ids import ObjectType
from repository.keys import KEY_BYTES, UnsealingKey
from repository.reader import Chunks, SnapshotReader, slice_extent

_T = TypeVar("_T")

# Frames that a worker spreads over files at a time, so that no worker has none.
_FRAMES_SPREAD: Final = 4
# Descriptors that a worker holds while it spreads one fetch over files.
_OPEN_FILES: Final = 32


async def run_restore(
    task: RestoreTask, services: Services, client: RestoreClient, places: RestorePlaces
) -> RestoreOutcome:
    """Restore a snapshot. Errors are part of the outcome; cancellation passes through."""
    restore = _Restore(task, services, client, places)
    statistics = restore.statistics
    try:
        await restore.run()
    except TidemarkError as error:
        return RestoreOutcome(statistics, Phase.FAILED, error)
    except BaseExceptionGroup as errors:
        failures, others = errors.split(TidemarkError)
        if others is not None or failures is None:
            raise
        first = first_error(failures)
        assert isinstance(first, TidemarkError)
        return RestoreOutcome(statistics, Phase.FAILED, first)
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


_Fetched = Sequence[tuple[Wanted, memoryview | TidemarkError]]


class _Restore:
    """One run."""

    def __init__(
        self,
        task: RestoreTask,
        services: Services,
        client: RestoreClient,
        places: RestorePlaces,
    ) -> None:
        self._task = task
        self._services = services
        self._client = client
        self._places = places
        self._local = threading.local()
        self._grant: OpenedGrant
        self._fetcher: Fetcher
        self._reader: SnapshotReader
        self._placing: Placing
        self._tally = Tally(services, lists_changes=task.dry_run)
        self.statistics = self._tally.statistics

    async def run(self) -> None:
        """Everything, in order."""
        task = self._task
        one_time = UnsealingKey(secrets.token_bytes(KEY_BYTES))
        failpoint("agent.restore.begun", UnreachableError)
        grant = await self._client.open_restore(task.task_id, one_time.public)
        failpoint("agent.restore.granted", UnreachableError)
        self._grant = OpenedGrant(grant, one_time)
        self._fetcher = Fetcher(self._client, task.task_id, self._grant)
        self._reader = SnapshotReader(self._fetcher, self._grant.reader_keys, self._in_worker)
        root = self._grant.root
        if task.delete_extra and root.errors_total:
            raise UsageError(
                "not everything could be read when this snapshot was made, so what it lacks may "
                "well have been there",
                hint="restore without --delete, or from a snapshot that is Completed",
            )
        place = place_of(task, self._places, root.volume)
        try:
            top = None
            if root.manifest is not None:
                top = await self._reader.entry(root.manifest, ROOT_KEY)
            selection = await select(self._reader, root.manifest, task.paths)
            if not selection:
                self._tally.totals = (root.total_files, root.total_bytes)
            if top is not None and top.type is EntryType.FILE:
                place, name = place.above()
                await self._restore_file(place, name, top)
            else:
                await self._restore_tree(place, selection)
        finally:
            self.statistics.bytes_fetched = self._fetcher.bytes_fetched

    async def _open(self, place: Place) -> Target | Rehearsal:
        if self._task.dry_run:
            return await self._in_worker(lambda: open_rehearsal(place))
        return await self._in_worker(lambda: open_target(place, self._tally.warn))

    async def _restore_tree(self, place: Place, selection: Selection) -> None:
        manifest = self._grant.root.manifest
        with await self._open(place) as target, ExitStack() as stack:
            target.may_clear = self._task.delete_extra
            is_empty, was_marked = await self._in_worker(lambda: self._claim(target))
            extras = None
            if (self._task.delete_extra and not is_empty) or was_marked:
                only = not self._task.delete_extra
                extras = stack.enter_context(Extras(target, target.marker, leftovers_only=only))
            placing = self._begin(target, selection, is_empty=is_empty, extras=extras)
            failpoint("agent.target.opened", TargetError)
            await self._in_worker(lambda: target.mark(self._task.job_id))
            failpoint("agent.target.marked", TargetError)
            if manifest is not None:
                entries = selected_entries(self._reader, manifest, selection)
                await self._fill(target, self._laid_out(entries))
            failpoint("agent.links.making", TargetError)
            await self._in_worker(placing.make_links)
            await self._in_worker(placing.remove_extras)
            await self._in_worker(placing.finish_directories)
            keeps_mark = was_marked and bool(selection)
            if keeps_mark:
                message = "the mark of an earlier restore stays: that was of more than these paths"
                self._tally.warn(target.marker, message)
            await self._finish(target, keeps_mark=keeps_mark)
            # The top comes after the mark that lay in it.
            before = self.statistics.errors_total
            failpoint("agent.target.unmarked", TargetError)
            await self._in_worker(placing.finish_top)
            if self.statistics.errors_total > before:
                await self._in_worker(lambda: target.mark(self._task.job_id))
            await self._in_worker(target.sync_top)
            failpoint("agent.restore.finished", TargetError)

    async def _restore_file(self, place: Place, name: bytes, entry: Entry) -> None:
        """Restore a volume that is one file: the target is that file."""
        shown = os.fsdecode(self._task.target or name)
        with await self._open(place) as target:
            standing = await self._in_worker(lambda: target.look(name))
            if standing is not None and standing.type is EntryType.DIRECTORY:
                raise TargetError(
                    f"{shown} is a directory, and the snapshot is a single file",
                    hint="name a path for the file",
                )
            if standing is not None and not self._replaces:
                raise TargetError(
                    f"{shown} exists, and the snapshot is a single file",
                    hint="name a path that does not exist yet, or give --overwrite",
                )
            self._begin(target, Selection(), is_empty=standing is None)
            await self._in_worker(lambda: target.mark(self._task.job_id))
            batch = [(name, await with_attributes(self._reader, entry))]
            await self._fill(target, self._laid_out(_once(batch)))
            await self._finish(target)

    def _begin(
        self,
        target: Target | Rehearsal,
        selection: Selection,
        *,
        is_empty: bool,
        extras: Extras | None = None,
    ) -> Placing:
        ids = self._grant.reader_keys.ids
        self._placing = Placing(
            target, self._tally, ids, selection, is_empty=is_empty, extras=extras
        )
        return self._placing

    @property
    def _replaces(self) -> bool:
        return self._task.in_place or self._task.overwrite

    def _claim(self, target: Target | Rehearsal) -> tuple[bool, bool]:
        """See that the target may be written: whether it is empty, and whether it was marked."""
        shown = os.fsdecode(self._task.target)
        is_empty = target.is_empty()
        was_marked = not is_empty and target.look(target.marker) is not None
        if was_marked and not self._replaces:
            raise TargetError(
                f"{shown} holds a restore that was not finished",
                hint="finish it with --overwrite, or restore to another directory",
            )
        if not is_empty and not self._replaces:
            raise TargetError(
                f"{shown} is not empty",
                hint="give --overwrite to replace what exists, or name a new directory",
            )
        return is_empty, was_marked

    async def _finish(self, target: Target | Rehearsal, *, keeps_mark: bool = False) -> None:
        """Bring everything to the disk and take the mark away, if all is as it should be."""
        if self.statistics.errors_total or keeps_mark:
            return
        failpoint("agent.target.unmarking", TargetError)
        self._tally.tell("writing to disk")
        await self._in_worker(target.unmark)

    # From entries to windows of extents.

    async def _laid_out(
        self, entries: AsyncIterator[list[tuple[bytes, Entry]]]
    ) -> AsyncIterator[list[File]]:
        """The files that need content, in the order of keys but for those with several names."""
        async for batch in entries:
            # Not behind the windows that the workers write.
            laying = asyncio.get_running_loop().run_in_executor(
                None, partial(self._placing.lay_out, batch)
            )
            yield await to_its_end(laying)
            self._tally.tell()
        for files in self._placing.deferred():
            yield await self._in_worker(partial(self._placing.begin, files))

    async def _windows(
        self,
        target: Target | Rehearsal,
        batches: AsyncIterator[list[File]],
        wholes: WholeFiles | None,
    ) -> AsyncIterator[Window]:
        """What files lack, in portions of a bounded size."""
        windows = Windows(self._grant.place, self._fetcher.fetch_bytes, WINDOW_EXTENTS)
        async for pieces in self._lacking(target, batches):
            windows.add(pieces)
            if wholes is not None:
                wholes.expect(sum(piece.is_small_file for piece in pieces))
            if windows.is_full:
                yield windows.take()
        yield windows.rest()

    async def _lacking(
        self, target: Target | Rehearsal, batches: AsyncIterator[list[File]]
    ) -> AsyncIterator[list[Piece]]:
        """What files lack, in steps."""
        async for files in batches:
            # Most small files are new and in one piece: no call for each of them.
            alone: list[Piece] = []
            for file in files:
                if (piece := _only_piece(file)) is not None:
                    alone.append(piece)
                    continue
                async for pieces in self._plan(target, file):
                    yield pieces
            yield alone

    async def _plan(self, target: Target | Rehearsal, file: File) -> AsyncIterator[list[Piece]]:
        """What a file lacks, in steps."""
        content = file.entry.content
        assert content is not None
        offset = there = 0
        try:
            async for extents in self._reader.extents(content):
                blocks = blocks_of(extents, offset)
                offset = blocks[-1].offset + blocks[-1].extent.length
                if offset > file.entry.size:
                    raise FormatError("its content is longer than its entry says")
                same = await self._compared(file, blocks)
                there += sum(
                    block.extent.length
                    for block, is_there in zip(blocks, same, strict=True)
                    if is_there
                )
                yield [
                    Piece(file, *block)
                    for block, is_there in zip(blocks, same, strict=True)
                    if not is_there
                ]
            if offset != file.entry.size:
                raise FormatError("its content is shorter than its entry says")
            self._tally.found(there)
            if there and await self._in_worker(lambda: target.settle(file, there)):
                self._placing.done(file)
        except TargetFullError:
            raise
        except (DamagedError, TargetError) as error:
            self._placing.give_up(file, error)

    async def _compared(self, file: File, blocks: Sequence[Block]) -> Sequence[bool]:
        """Which blocks are holes, or stand there already."""
        if file.same is not None:
            return file.same
        if file.standing is None:
            return self._placing.compare(file, blocks)
        return await self._in_worker(lambda: self._placing.compare(file, blocks))

    # From frames to files.

    async def _fill(self, target: Target | Rehearsal, batches: AsyncIterator[list[File]]) -> None:
        if isinstance(target, Rehearsal):
            async for window in self._windows(target, batches, None):
                self._rehearse(target, window)
        else:
            wholes = WholeFiles(target, self._grant.reader_keys, Turn(), self._services.log)
            try:
                await self._write_all(target, wholes, self._windows(target, batches, wholes))
            finally:
                await self._in_worker(wholes.close)
        await self._in_worker(self._placing.give_up_unfinished)

    async def _write_all(
        self, target: Target, wholes: WholeFiles, windows: AsyncIterator[Window]
    ) -> None:
        """Write each window while the next one is planned."""
        name = f"restore {self._task.task_id} window"
        async with asyncio.TaskGroup() as group:
            writing: asyncio.Task[None] | None = None
            async for window in windows:
                if writing is not None:
                    await writing
                writing = group.create_task(self._write(target, wholes, window), name=name)
                if not self._placing.is_empty:
                    # What stands in the target is compared only when nothing is written.
                    await writing

    def _groups(self, window: Window) -> Iterator[list[Wanted]]:
        """The frames of a window in the order of packs, each group for one fetch."""
        wanted = []
        for identity, pieces in window.items():
            try:
                wanted.append(Wanted(self._grant.place(identity), identity))
            except DamagedError as error:
                self._give_up_all(pieces, error)
        return in_pack_order(wanted, self._fetcher.fetch_bytes)

    def _rehearse(self, target: Rehearsal, window: Window) -> None:
        """Count what would be fetched and written."""
        for group in self._groups(window):
            for wanted in group:
                self._fetcher.bytes_fetched += wanted.place.length
                for piece in window[wanted.identity]:
                    self._tally.wrote(piece.extent.length)
                    if target.write(piece.file, piece.extent.length):
                        self._placing.done(piece.file)

    async def _write(self, target: Target, wholes: WholeFiles, window: Window) -> None:
        """Fetch the frames of a window, and write what is in them."""
        groups = self._groups(window)
        async with asyncio.TaskGroup() as group:
            for number in range(self._fetcher.fetches_max):
                name = f"restore {self._task.task_id} fetch {number}"
                fetching = self._fetch_and_write(target, wholes, window, groups)
                group.create_task(fetching, name=name)

    async def _fetch_and_write(
        self,
        target: Target,
        wholes: WholeFiles,
        window: Window,
        groups: Iterator[list[Wanted]],
    ) -> None:
        for group in groups:
            fetched = await self._fetcher.fetch_each(group)
            failpoint("agent.restore.fetched", UnreachableError)
            async with asyncio.TaskGroup() as spreading:
                for start in range(0, len(fetched), _FRAMES_SPREAD):
                    part = fetched[start : start + _FRAMES_SPREAD]
                    name = f"restore {self._task.task_id} spread"
                    spreading.create_task(self._spread(target, wholes, window, part), name=name)
            self._tally.tell()

    async def _spread(
        self, target: Target, wholes: WholeFiles, window: Window, fetched: _Fetched
    ) -> None:
        """Write what is in frames: by a writer if that is only small files, or else in a worker."""
        loop = asyncio.get_running_loop()
        by_writers, others = self._apart(window, fetched)
        broken: set[FrameIdentity] = set()
        for batch in that_fit(by_writers):
            asking = loop.run_in_executor(wholes.asking, partial(self._ask, wholes, batch, broken))
            if not await to_its_end(asking):
                asked = {frame.identity for frame in batch}
                others += [each for each in fetched if each[0].identity in asked]
        write = partial(self._write_here, target, wholes, window)
        if others:
            await self._in_worker(partial(write, others, broken))
        if broken:
            # They may have been broken on their way. What is broken again is so where it lies.
            again = [wanted for wanted, _ in fetched if wanted.identity in broken]
            await self._in_worker(partial(write, await self._fetcher.fetch_each(again), None))

    def _apart(
        self, window: Window, fetched: _Fetched
    ) -> tuple[list[FileFrame], list[tuple[Wanted, memoryview | TidemarkError]]]:
        """Frames of which only new small files are wanted, and all others."""
        by_writers, others = [], []
        for wanted, sealed in fetched:
            pieces = window[wanted.identity]
            if (
                isinstance(sealed, TidemarkError)
                or len(sealed) > SLOT_BYTES
                or not all(piece.is_small_file for piece in pieces)
            ):
                others.append((wanted, sealed))
                continue
            if files := [piece.file for piece in pieces if piece.file.error is None]:
                by_writers.append(FileFrame(sealed, wanted.place.key, wanted.identity, files))
        return by_writers, others

    def _ask(
        self, wholes: WholeFiles, frames: Sequence[FileFrame], broken: set[FrameIdentity]
    ) -> bool:
        """Have a writer make files; False where there is none. Tells which frames do not open."""
        made = wholes.write_frames(frames)
        if made is None:
            return False
        outcomes = iter(made)
        for frame in frames:
            mine = list(islice(outcomes, len(frame.files)))
            if all(isinstance(problem, DamagedError) for _, problem in mine):
                broken.add(frame.identity)
            else:
                self._settle(mine)
        return True

    def _write_here(
        self,
        target: Target,
        wholes: WholeFiles,
        window: Window,
        fetched: _Fetched,
        broken: set[FrameIdentity] | None,
    ) -> None:
        """Open frames and write their chunks to where they belong. Runs in a worker.

        Frames that do not open are told; without `broken` their files are given up.
        """
        opened = _OpenFiles(target)
        try:
            for wanted, sealed in fetched:
                pieces = window[wanted.identity]
                if isinstance(sealed, TidemarkError):
                    self._give_up_all(pieces, sealed)
                    continue
                try:
                    chunks = self._frame_reader().open(
                        sealed, wanted.place.key, wanted.identity, ObjectType.DATA
                    )
                except DamagedError as error:
                    if broken is None:
                        self._give_up_all(pieces, error)
                    else:
                        broken.add(wanted.identity)
                    continue
                self._put_all(opened, wholes, pieces, chunks)
            opened.begin_writeback()
        finally:
            opened.close()

    def _put_all(
        self,
        opened: "_OpenFiles",
        wholes: WholeFiles,
        pieces: Iterable[Piece],
        chunks: Chunks,
    ) -> None:
        whole: list[Whole] = []
        for piece in pieces:
            file = piece.file
            if file.error is not None:
                continue
            try:
                data = slice_extent(piece.extent, chunks)
                if len(data) == file.entry.size:
                    whole.append(Whole(file, data))
                    continue
                self._count(file, len(data), done=opened.write(file, data, piece.offset))
            except TargetFullError:
                raise
            except (DamagedError, TargetError) as error:
                self._placing.give_up(file, error)
        self._settle(wholes.write(whole))

    def _settle(self, outcomes: Outcomes) -> None:
        for file, problem in outcomes:
            if problem is None:
                self._count(file, file.entry.size, done=True)
            else:
                self._placing.give_up(file, problem)

    def _count(self, file: File, size_bytes: int, *, done: bool) -> None:
        self._tally.wrote(size_bytes)
        if done:
            self._placing.done(file)

    def _frame_reader(self) -> FrameReader:
        reader: FrameReader | None = getattr(self._local, "reader", None)
        if reader is None:
            keys = self._grant.reader_keys
            reader = FrameReader(keys.repository, keys.ids, reuses_buffer=True)
            self._local.reader = reader
        return reader

    def _give_up_all(self, pieces: Iterable[Piece], error: TidemarkError) -> None:
        for piece in pieces:
            self._placing.give_up(piece.file, error)

    async def _in_worker(self, work: Callable[[], _T]) -> _T:
        """Run in a worker thread; even when canceled, not before the worker has let go."""
        loop = asyncio.get_running_loop()
        return await to_its_end(loop.run_in_executor(self._services.workers, work))


def _only_piece(file: File) -> Piece | None:
    """All of a file that is new and in one piece; None for any other one."""
    content = file.entry.content
    if file.standing is not None or content is None or len(content.extents) != 1:
        return None
    [extent] = content.extents
    if content.list is not None or extent.is_hole or extent.length != file.entry.size:
        return None
    return Piece(file, 0, extent, file.is_new and extent.length <= WHOLE_BYTES_MAX)


class _OpenFiles:
    """Files that a worker writes parts of, opened once for one fetch."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._open: dict[bytes, int] = {}
        # From where to where each was written.
        self._written: dict[int, tuple[int, int]] = {}

    def write(self, file: File, data: memoryview, offset: int) -> bool:
        """Write a part; True if it was the last of its file."""
        descriptor = self._get(file)
        end = offset + len(data)
        first, last = self._written.get(descriptor, (offset, end))
        self._written[descriptor] = min(first, offset), max(last, end)
        return self._target.write_at(descriptor, file, data, offset)

    def _get(self, file: File) -> int:
        descriptor = self._open.get(file.key)
        if descriptor is None:
            if len(self._open) >= _OPEN_FILES:
                self.close()
            descriptor = self._open[file.key] = self._target.open(file)
        return descriptor

    def begin_writeback(self) -> None:
        """Let the disk begin now, or the restore waits for all of it in the end."""
        for descriptor, (first, last) in self._written.items():
            self._target.begin_writeback(descriptor, first, last - first)

    def close(self) -> None:
        """Close them all."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        self._written.clear()


async def _once(batch: list[tuple[bytes, Entry]]) -> AsyncIterator[list[tuple[bytes, Entry]]]:
    yield batch
