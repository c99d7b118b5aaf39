"""Storing contents: from a file that may have changed to an entry whose extents point at frames.

Worker threads take batches of small files, or groups of a large file's chunks: Python's cost is per
call, and hashing, compressing and sealing release the GIL. Whatever is known already is neither
compressed nor sent. A path that cannot be read is a `Saved` with an error; a store that cannot be
written is an exception, and ends the backup.
"""

import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Final, NamedTuple

import msgspec
from msgspec import structs

from agent.attributes import NO_ATTRIBUTES, Had, lacking
from agent.clones import BYTES_MIN, Cloned, VolumeClones
from agent.cutting import FileCutter, Hole, Kept, small_pieces
from agent.disk import DiskThrottle
from agent.errors import SourceError
from agent.extents import Range
from agent.gate import Gate
from agent.known import KnownChunks
from agent.packing import Packs
from agent.reader import Read, SmallFile, Wanted
from agent.reading import (
    LargeFile,
    Stat,
    VanishedError,
    generation_of,
    read_other,
)
from agent.reuse import Changes, OldContent
from agent.small import SmallFiles
from agent.sweep import Found, entry_type, is_unchanged
from repository.chunking import (
    BLOCK_BYTES,
    MAGIC_BYTES,
    classify,
)
from repository.content import ContentWriter, read_extents
from repository.entries import (
    ChunkClass,
    Content,
    Entry,
    EntryType,
    Extent,
    Flag,
    Pointer,
    path_of,
)
from repository.errors import TidemarkError
from repository.failpoints import failpoint
from repository.frames import (
    CHUNKS_MAX,
    RAW_BYTES_TARGET,
    FrameEncoder,
    Location,
    PlainChunk,
)
from repository.ids import ChunkId, ObjectType
from repository.layout import WriterKeys
from repository.needs import drive
from repository.pack import PackKind

# Rewritten blocks of a paged file share a frame with few others, or collection could free nothing.
_REWRITTEN_BYTES: Final = 4 * BLOCK_BYTES
# Groups of a large file's chunks that wait or are worked on, each 1 to 5 MiB.
GROUPS_IN_FLIGHT: Final = 6
# A large file that keeps changing is read again as long as that costs no more than this.
_REREAD_BYTES_MAX: Final = 1024 * 1024 * 1024
_LARGE_TRIES: Final = 20


# The extents of a stretch of a large file, or their promise; a stretch that is as it was.
_Extents = list[Extent] | Future[list[Extent]] | Kept


class Lists(NamedTuple):
    """The list nodes of files with many extents."""

    put: Callable[[bytes], Pointer]
    """Stores one."""
    load: Callable[[Pointer], bytes]
    """Reads one of the last manifest."""

    def extents(self, content: Content | None) -> Iterator[Extent]:
        """Yield the extents of a content that the last manifest has."""
        batches = () if content is None else drive(read_extents(content), self.load)
        return itertools.chain.from_iterable(batches)


class Saved(msgspec.Struct, frozen=True, gc=False):
    """What became of one name: an entry, or none because it has gone or could not be read."""

    key: bytes
    old: Entry | None
    entry: Entry | None
    error: SourceError | None = None
    """Why it was not read; the entry, if there is one, is what is kept."""
    lacks: SourceError | None = None
    """What the entry lacks, though it was read."""


class Counters:
    """What the workers did, added up across threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes_read = 0
        self.bytes_added = 0

    def add(self, *, read: int = 0, added: int = 0) -> None:
        """Count."""
        with self._lock:
            self.bytes_read += read
            self.bytes_added += added


class Storer:
    """Stores the contents of one volume's files in one session."""

    def __init__(  # noqa: PLR0913 - what a session has
        self,
        small: SmallFiles,
        packs: Packs,
        known: KnownChunks,
        keys: WriterKeys,
        workers: Executor,
        now_ns: Callable[[], int],
        clones: VolumeClones | None = None,
        disk: DiskThrottle | None = None,
        groups: Gate | None = None,
    ) -> None:
        self._disk = disk
        self._tree = small.tree
        self._clones = clones
        self._small = small
        self.turn = small.turn
        self._packs = packs
        self._known = known
        self._ids = keys.ids
        self._cutter = FileCutter(keys.chunker)
        self._workers = workers
        self._now_ns = now_ns
        self._scanned = small.scanned
        self._local = threading.local()
        self._groups = groups or Gate(GROUPS_IN_FLIGHT)
        self.counters = Counters()

    def _encoder(self) -> FrameEncoder:
        encoder: FrameEncoder | None = getattr(self._local, "encoder", None)
        if encoder is None:
            encoder = self._local.encoder = FrameEncoder()
        return encoder

    # Small things, many at a time, in a worker thread.

    def save_batch(self, batch: Sequence[Found]) -> "list[Saved | Found]":
        """Store names of any type; a file that turns out to be large comes back as it was."""
        saved: list[Saved | Found] = []
        files: list[int] = []
        with self.turn.taken():
            for index, found in enumerate(batch):
                if found.moved is not None and self._is_still(found, found.moved):
                    saved.append(Saved(found.key, found.old, found.moved))
                elif entry_type(found.stat.st_mode) is EntryType.FILE:
                    files.append(index)
                    saved.append(found)
                else:
                    saved.append(self._save_other(found))
        wanted = [self._wanted(batch[index]) for index in files]
        if self._disk is not None:
            self._disk.take(sum(batch[index].stat.st_size for index in files))
        with self._small.read(wanted) as read:
            failpoint("agent.batch.read", TidemarkError)
            places = self._store_small(read)
            failpoint("agent.batch.stored", TidemarkError)
            with self.turn.taken():
                for index, outcome in zip(files, read, strict=True):
                    saved[index] = _saved(batch[index], outcome, places)
        return saved

    def _is_still(self, found: Found, moved: Entry) -> bool:
        """Whether a name is that of a file that the manifest has elsewhere, and as it was there."""
        try:
            with self._tree.held(found.key) as held:
                now = os.fstat(held)
                return is_unchanged(now, moved) and generation_of(held, now) == moved.generation
        except OSError:
            return False  # whoever reads it says what that means

    def _wanted(self, found: Found) -> Wanted:
        return Wanted(
            found.key,
            paged=_is_paged(found.old),
            suspect=found.stat.st_ino in self._scanned.suspects,
        )

    def _save_other(self, found: Found) -> Saved:
        kind = entry_type(found.stat.st_mode)
        try:
            other = read_other(self._tree, found.key, self._now_ns)
            if entry_type(other.stat.st_mode) is not kind:
                raise VanishedError("something else has its name by now")
        except SourceError as error:
            if kind is not EntryType.DIRECTORY:
                return _unsaved(found, error)
            # What was seen beneath a directory needs it above, if only as the walk saw it.
            entry = entry_of(found.stat, size=0, settled=False)
            reported = None if isinstance(error, VanishedError) else error
            return Saved(found.key, found.old, entry, reported)
        size = 0 if other.target is None else len(other.target)
        entry = entry_of(
            other.stat,
            size=size,
            settled=other.settled,
            had=other.had,
            generation=other.generation,
        )
        if other.target is not None:
            entry = structs.replace(entry, target=other.target)
        return Saved(found.key, found.old, entry, lacks=lacking(other.had.refused))

    def _store_small(self, read: Sequence[Read]) -> dict[bytes, Location]:
        """Store what was read; where each chunk lies."""
        chunks: dict[ChunkId, PlainChunk] = {}
        bytes_read = 0
        for outcome in read:
            if isinstance(outcome, SmallFile):
                content, ids = outcome.content, outcome.chunk_ids
                bytes_read += content.bytes_read
                if len(ids) == 1:
                    chunks[ids[0]] = PlainChunk(ids[0], content.data)
                else:
                    pieces = small_pieces(content.data, paged=True)
                    chunks.update(zip(ids, map(PlainChunk, ids, pieces), strict=True))
        self.counters.add(read=bytes_read)
        places = self._known.find(list(chunks))
        self._store(chunks, places, RAW_BYTES_TARGET)
        return places

    # Large files: read and cut here, hashed and stored in worker threads.

    def save_large(
        self, found: Found, lists: Lists, on_progress: Callable[[], None]
    ) -> "PendingFile":
        """Read a large file in the calling thread; its content is complete once it is awaited.

        Both in the thread that `lists` belongs to, for which LostStateError may be raised.
        """
        try:
            return self._save_large(found, lists, on_progress)
        except SourceError as error:
            return PendingFile(_unsaved(found, error))

    def _save_large(
        self, found: Found, lists: Lists, on_progress: Callable[[], None]
    ) -> "PendingFile":
        suspect = found.stat.st_ino in self._scanned.suspects
        with LargeFile(self._tree, found.key, suspect=suspect) as file:
            cloned = self._clone(found, file)
            if cloned is not None:
                reading = self._read_large(found, file, on_progress, lists, cloned)
                saved = self._saved_large(found, file, settled=cloned.is_stable)
                return PendingFile(saved, reading, lists, self._keeping(cloned))
            stable, tries = False, 0
            while True:
                file.begin()
                reading = self._read_large(found, file, on_progress, lists)
                stable, tries = file.is_stable(), tries + 1
                costly = file.bytes_read + file.stat.st_size > _REREAD_BYTES_MAX
                if stable or tries == _LARGE_TRIES or (costly and tries > 1):
                    break
            saved = self._saved_large(found, file, settled=stable, fuzzy=not stable)
            return PendingFile(saved, reading, lists)

    def _saved_large(
        self, found: Found, file: LargeFile, *, settled: bool, fuzzy: bool = False
    ) -> Saved:
        is_settled = file.is_settled(self._now_ns(), self._scanned.begun_ns)
        entry = entry_of(
            file.stat,
            size=file.size,
            fuzzy=fuzzy,
            settled=settled and is_settled,
            had=file.had,
            generation=file.generation,
        )
        return Saved(found.key, found.old, entry, lacks=lacking(file.had.refused))

    def _clone(self, found: Found, file: LargeFile) -> Cloned | None:
        """A clone to read in the place of a file that is worth it, where there can be one."""
        if self._clones is None or file.length < BYTES_MIN:
            return None
        return self._clones.clone(file, found.key, found.old, self._cutter.parameters)

    def _keeping(self, cloned: Cloned) -> Callable[[Content, int], None]:
        assert self._clones is not None
        return partial(self._clones.keep, cloned)

    def _class(self, found: Found, file: LargeFile) -> ChunkClass:
        beginning = self._cutter.beginning(file, MAGIC_BYTES)
        return classify(path_of(found.key), file.length, beginning, _class_of(found.old))

    def _read_large(
        self,
        found: Found,
        file: LargeFile,
        on_progress: Callable[[], None],
        lists: Lists,
        cloned: Cloned | None = None,
    ) -> "_Reading":
        """Read a file whose pass has begun; of a clone what may differ from the last content."""
        chunking = self._class(found, file)
        rewrite = chunking is ChunkClass.PAGED and _is_paged(found.old)
        frame_bytes = _REWRITTEN_BYTES if rewrite else RAW_BYTES_TARGET
        old, changed = _reusable(found, chunking, cloned, lists)
        pieces = self._cutter.pieces(file, chunking, old, changed)
        groups = self._store_pieces(file, pieces, frame_bytes, on_progress)
        failpoint("agent.large.read", SourceError)
        return _Reading(chunking, groups)

    def _store_pieces(
        self,
        file: LargeFile,
        pieces: Iterable[memoryview | Hole | Kept],
        frame_bytes: int,
        on_progress: Callable[[], None],
    ) -> "list[_Extents]":
        groups: list[_Extents] = []
        group: list[memoryview] = []
        group_bytes, uncounted = 0, -file.bytes_read
        for piece in itertools.chain(pieces, (None,)):
            if isinstance(piece, memoryview):
                if self._disk is not None:
                    self._disk.take(len(piece))
                group.append(piece)
                group_bytes += len(piece)
                if group_bytes < RAW_BYTES_TARGET:
                    continue
            if group:
                groups.append(self._submit(group, frame_bytes))
                self.counters.add(read=group_bytes)
                uncounted -= group_bytes
                group, group_bytes = [], 0
            if isinstance(piece, Hole):
                groups.append([Extent.hole(piece.length)])
            elif isinstance(piece, Kept):
                groups.append(piece)
            on_progress()
        # To find a cut, a little is read of what is then taken over.
        self.counters.add(read=uncounted + file.bytes_read)
        return groups

    def _submit(self, group: list[memoryview], frame_bytes: int) -> "Future[list[Extent]]":
        self._groups.enter()
        try:
            future = self._workers.submit(self._store_group, group, frame_bytes)
        except BaseException:
            self._groups.leave()
            raise
        future.add_done_callback(lambda _: self._groups.leave())
        return future

    def _store_group(self, group: Sequence[memoryview], frame_bytes: int) -> list[Extent]:
        chunks = [PlainChunk(self._ids.chunk_id(ObjectType.DATA, data), data) for data in group]
        places = self._known.find([chunk.id for chunk in chunks])
        self._store({chunk.id: chunk for chunk in chunks}, places, frame_bytes)
        return [Extent.at(chunk.id, places[chunk.id]) for chunk in chunks]

    # Chunks into frames.

    def _store(
        self,
        chunks: Mapping[ChunkId, PlainChunk],
        places: dict[bytes, Location],
        frame_bytes: int,
    ) -> None:
        """Put the chunks that have no place yet into frames, and add their places."""
        while unplaced := [chunk_id for chunk_id in chunks if chunk_id not in places]:
            mine = self._known.claim(unplaced)
            try:
                claimed = [chunks[id_] for id_ in unplaced if id_ in mine]
                places.update(self._store_claimed(claimed, frame_bytes))
            finally:
                self._known.give_up(mine)
            if others := [chunk_id for chunk_id in unplaced if chunk_id not in mine]:
                places.update(self._known.wait(others))

    def _store_claimed(
        self, chunks: Sequence[PlainChunk], frame_bytes: int
    ) -> Iterator[tuple[bytes, Location]]:
        frame: list[PlainChunk] = []
        raw_bytes = 0
        for chunk in chunks:
            if frame and (raw_bytes + len(chunk.data) > frame_bytes or len(frame) == CHUNKS_MAX):
                yield from self._store_frame(frame, raw_bytes)
                frame, raw_bytes = [], 0
            frame.append(chunk)
            raw_bytes += len(chunk.data)
        if frame:
            yield from self._store_frame(frame, raw_bytes)

    def _store_frame(
        self, frame: Sequence[PlainChunk], raw_bytes: int
    ) -> Iterable[tuple[bytes, Location]]:
        plaintext = self._encoder().encode(frame)
        place = self._packs.reserve(PackKind.DATA, raw_bytes, len(frame))
        placed = self._packs.fill(place, ObjectType.DATA, plaintext, frame)
        self._known.place(placed)
        self.counters.add(added=raw_bytes)
        return placed


class _Reading(NamedTuple):
    """What was read of a large file, or is there already."""

    chunking: ChunkClass
    groups: Sequence[_Extents]


class PendingFile:
    """A file whose chunks are on their way."""

    def __init__(
        self,
        saved: Saved,
        reading: _Reading | None = None,
        lists: Lists | None = None,
        keep: Callable[[Content, int], None] | None = None,
    ) -> None:
        """`keep` is told of the content, and of how many bytes of it are not as they were."""
        self._saved = saved
        self._reading = reading
        self._lists = lists
        self._keep = keep

    def result(self) -> Saved:
        """Wait for the chunks; then the entry is complete. Raises what stored it not."""
        reading, lists = self._reading, self._lists
        if self._saved.entry is None or reading is None or lists is None or not reading.groups:
            return self._saved
        old = None if self._saved.old is None else self._saved.old.content
        extents = _extents(reading.groups, OldContent(lists.extents(old)))
        writer = ContentWriter(reading.chunking, lists.put)
        changes = Changes(lists.extents(old)) if self._keep is not None else None
        for extent in extents:
            writer.add(extent)
            if changes is not None:
                changes.add(extent)
        content = writer.finish()
        if self._keep is not None and changes is not None:
            self._keep(content, changes.bytes)
        entry = structs.replace(self._saved.entry, content=content)
        return structs.replace(self._saved, entry=entry)


def _extents(groups: Iterable[_Extents], old: OldContent) -> Iterator[Extent]:
    for group in groups:
        if isinstance(group, Kept):
            yield from old.within(group.begin, group.end)
        else:
            yield from group.result() if isinstance(group, Future) else group


def _reusable(
    found: Found, chunking: ChunkClass, cloned: Cloned | None, lists: Lists
) -> tuple[Iterable[Extent], Iterable[Range]]:
    """The last content and where a clone may differ from it, or nothing where that is in doubt."""
    old = found.old
    if found.reread or old is None or cloned is None or cloned.changed is None:
        return (), ()
    # What was cut in another way has none of its bounds where they would be now.
    if _class_of(old) is not chunking:
        return (), ()
    return lists.extents(old.content), cloned.changed


def entry_of(  # noqa: PLR0913 - what there is to say of a name
    found: os.stat_result | Stat,
    *,
    size: int,
    fuzzy: bool = False,
    settled: bool = True,
    content: Content | None = None,
    had: Had = NO_ATTRIBUTES,
    generation: int = 0,
) -> Entry:
    """The entry of a name with this stat. Its attributes all stand in it, however long they are."""
    return Entry(
        type=entry_type(found.st_mode),
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        size=size,
        inode=found.st_ino,
        # A time that a later change might share proves nothing: the next sweep must look again. So
        # it must where attributes are lacking, or the next snapshot would lack them silently.
        ctime_ns=found.st_ctime_ns if settled and not had.refused else 0,
        links=found.st_nlink,
        flags=Flag.FUZZY if fuzzy else 0,
        device=found.st_rdev,
        target=None,
        xattrs=had.attributes,
        long_xattrs=None,
        content=content,
        generation=generation,
    )


def _class_of(old: Entry | None) -> ChunkClass | None:
    return None if old is None or old.content is None else old.content.chunking


def _is_paged(old: Entry | None) -> bool:
    return _class_of(old) is ChunkClass.PAGED


def _saved(found: Found, read: Read, places: Mapping[bytes, Location]) -> Saved | Found:
    """What became of a file, now that its chunks have places."""
    if isinstance(read, SourceError):
        return _unsaved(found, read)
    if not isinstance(read, SmallFile):
        return found
    content = read.content
    extents = [Extent.at(chunk_id, places[chunk_id]) for chunk_id in read.chunk_ids]
    chunking = ChunkClass.PAGED if _is_paged(found.old) else ChunkClass.SMALL
    entry = entry_of(
        content.stat,
        size=len(content.data),
        fuzzy=content.fuzzy,
        settled=content.settled,
        content=Content(chunking, extents, None) if extents else None,
        had=content.had,
        generation=content.generation,
    )
    return Saved(found.key, found.old, entry, lacks=lacking(content.had.refused))


def _unsaved(found: Found, error: SourceError) -> Saved:
    """What has gone is no more; what cannot be read keeps what the last snapshot had, as stale."""
    old = found.old
    if isinstance(error, VanishedError):
        return Saved(found.key, old, None)
    stale = None if old is None else structs.replace(old, flags=old.flags | Flag.STALE)
    return Saved(found.key, old, stale, error)
