"""Making the manifest: from the walk, by way of the workers, to the tree's edits.

This runs in one thread. It pulls: the tree's editor asks for the next edit, that asks for the next
name whose content is stored, and that asks the walk for more, so nothing runs ahead of what the
window allows. Edits come in the order of keys, whatever order the workers finish in.

Nothing is removed but what a listed directory no longer has, or what was looked for by name and is
not there. A path that cannot be read keeps its previous content, marked stale, and is named as an
error.
"""

import heapq
import stat
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, TypeVar

from msgspec import structs

from agent.beneath import Tree
from agent.errors import SourceError
from agent.last import LastManifest
from agent.manifest import MetadataWriter, Usage
from agent.rescan import rescan
from agent.services import BackupStatistics, PathProblem, added_up
from agent.state import FrameChange, Head, State
from agent.storing import Lists, PendingFile, Saved, Storer
from agent.sweep import Batch, Found, Removed, sweep
from agent.tracking.dirty import Dirty
from agent.whereabouts import Whereabouts
from repository.chunking import SMALL_BYTES_MAX
from repository.content import read_extents
from repository.editing import Edit, Edited, Editor
from repository.entries import (
    ROOT_KEY,
    Content,
    Entry,
    EntryType,
    Flag,
    Pointer,
    are_long,
    encode_attributes,
    encode_entry,
    path_of,
)
from repository.errors import CanceledError
from repository.frames import RAW_BYTES_TARGET
from repository.needs import drive
from repository.refs import Refs
from repository.snapshot import BYTES_MAX, Detection, peek_signed_root, split_root
from repository.tree import Boundaries, decode_pointer

# Names that one worker takes at a time: enough to make a call's cost vanish, few enough that the
# last batch keeps nobody waiting; and no more bytes than fill one frame.
_BATCH_NAMES: Final = 512
_BATCH_BYTES: Final = RAW_BYTES_TARGET
# Batches and files between the walk and the manifest; only those being worked on hold contents.
_WINDOW: Final = 16
PROBLEMS_MAX: Final = 100  # of each kind, as much as the protocol carries

_T = TypeVar("_T")

Walked = Generator[Batch, None, None]
Beside = Callable[[Walked, LastManifest, Callable[[], bool]], Walked]
"""Sees what a walk finds, and may add to it. Closes the walk, and gets the rest to see canceled."""


@dataclass(frozen=True)
class Made:
    """A new manifest, stored; what commits it and what the next backup starts from."""

    manifest: Pointer
    refs: Refs
    base: bool
    total_files: int
    total_bytes: int
    detection: Detection
    again: Dirty
    """Where the next backup must look, whatever changes until then: what was not read, or not at
    one moment, or so soon after a change that a later one might not show."""
    node_uses: Mapping[bytes, int]
    """How many more or fewer uses nodes have; those that came are staged."""
    frame_changes: list[FrameChange]


class _Group:
    """Names that went to a worker together, and the removals among them."""

    def __init__(self) -> None:
        self.found: list[Found] = []
        self.removed: list[Removed] = []
        self.bytes = 0
        self.future: Future[list[Saved | Found]] | None = None

    def has_room(self, size_bytes: int) -> bool:
        return len(self.found) < _BATCH_NAMES and self.bytes + size_bytes <= _BATCH_BYTES


class Maker:
    """Makes one manifest of one volume."""

    def __init__(
        self,
        volume_id: bytes,
        state: State,
        workers: Executor,
        storer: Storer,
        metadata: MetadataWriter,
        statistics: BackupStatistics,
    ) -> None:
        self._volume_id = volume_id
        self._state = state
        self._last = LastManifest(state, volume_id, None)
        self._again = Dirty()
        self._workers = workers
        self._storer = storer
        self._metadata = metadata
        self._turn = storer.turn
        self._usage = Usage()
        self._on_progress: Callable[[], None] = lambda: None
        self._told: Callable[[int, int], None] = lambda _inode, _links: None
        self._statistics = statistics
        self._kept_files = 0
        self._kept_bytes = 0
        self._list_uses: Counter[bytes] = Counter()
        self._window: deque[_Group | PendingFile] = deque()

    def make(  # noqa: PLR0913 - all that differs from one manifest to the next
        self,
        tree: Tree,
        head: Head | None,
        boundaries: Boundaries,
        *,
        excludes: frozenset[tuple[int, int]],
        is_canceled: Callable[[], bool],
        on_progress: Callable[[], None],
        dirty: Dirty | None = None,
        suspects: frozenset[int] = frozenset(),
        whereabouts: Whereabouts | None = None,
        beside: Sequence[Beside] = (),
    ) -> Made:
        """Walk, store, edit. Raises LostStateError where the head's manifest is not all here.

        With `dirty` nothing else is looked at but the inodes of `suspects`, provided that there is
        a head; `whereabouts` knows some of them, and learns of all in a sweep. What is found passes
        through `beside`.
        """
        root = None if head is None else decode_pointer(head.manifest)
        last = self._last = LastManifest(self._state, self._volume_id, root)
        totals = None if head is None else _totals(head)
        if dirty is None or totals is None:
            detection = Detection.SWEEP
            leaves = last.leaves()
            if whereabouts is not None:
                leaves = whereabouts.begin_anew(leaves)
            walk = sweep(tree, leaves, excludes=excludes, is_canceled=is_canceled)
        else:
            detection = Detection.EVENTS
            whereabouts = whereabouts or Whereabouts()
            known = set(whereabouts.keys_of(suspects, last))
            everywhere = {ROOT_KEY} if whereabouts.is_everywhere else set()
            dirty = Dirty(dirty.names | known, dirty.subtrees | everywhere, dirty.inodes)
            walk = rescan(tree, dirty, last, totals, excludes=excludes, is_canceled=is_canceled)
        if whereabouts is not None:
            self._told = whereabouts.told

        for each in beside:
            walk = each(walk, last, is_canceled)

        def go_on() -> None:
            # Where all chunks of a huge file are known, nothing else would notice.
            if is_canceled():
                raise CanceledError("the backup was canceled")
            on_progress()

        self._on_progress = go_on
        edits = self._edits(walk, is_canceled)
        try:
            with self._turn.taken():
                edited = Editor(boundaries, last.load, self._metadata.put_node).edit(root, edits)
        finally:
            walk.close()
            # Whoever ends early must not leave workers behind that use a tree about to be closed;
            # and not wait for them with the turn, for which they may be waiting.
            _call_off([work.future for work in self._window if isinstance(work, _Group)])
        assert edited.root is not None, "a volume's own entry is always there"
        if whereabouts is not None:
            whereabouts.end_anew()
        self._metadata.flush()
        return self._made(edited, edited.root, detection, base=root is None)

    def _made(self, edited: Edited, root: Pointer, detection: Detection, *, base: bool) -> Made:
        self._usage.count(edited.added, 1)
        self._usage.count(edited.removed, -1)
        counts, refs = self._usage.against(self._state, self._volume_id, base=base)
        uses = self._list_uses
        uses.update(pointer.id for pointer in edited.added)
        uses.subtract(pointer.id for pointer in edited.removed)
        statistics = self._statistics
        return Made(
            manifest=root,
            refs=refs,
            base=base,
            total_files=statistics.total_files_processed + self._kept_files,
            total_bytes=added_up(statistics.total_bytes_processed, self._kept_bytes),
            detection=detection,
            again=self._again,
            node_uses=uses,
            frame_changes=counts,
        )

    def _load_old_list(self, pointer: Pointer) -> bytes:
        self._list_uses[pointer.id] -= 1
        return self._last.load(pointer)

    # From batches of the walk to edits.

    def _edits(self, walk: Iterator[Batch], is_canceled: Callable[[], bool]) -> Iterator[Edit]:
        window = self._window
        for batch in walk:
            self._count_batch(batch)
            for work in self._distribute(batch):
                window.append(work)
                while len(window) > _WINDOW:
                    yield from self._settle(window.popleft())
            self._on_progress()
        while window:
            yield from self._settle(window.popleft())
            self._on_progress()
        if is_canceled():
            raise CanceledError("the backup was canceled")

    def _distribute(self, batch: Batch) -> Iterator[_Group | PendingFile]:
        """Hand small things to workers in groups, and read large files here, in order of keys."""
        group = _Group()
        for item in _merged(batch.found, batch.removed):
            if isinstance(item, Removed):
                group.removed.append(item)
                continue
            # What was moved is not read.
            is_file = _is_file(item) and item.moved is None
            size = item.stat.st_size
            large = is_file and size >= SMALL_BYTES_MAX
            if (large or not group.has_room(size)) and (group.found or group.removed):
                yield self._begin(group)
                group = _Group()
            if large:
                yield self._save_large(item)
                continue
            group.found.append(item)
            group.bytes += size if is_file else 0
        if group.found or group.removed:
            yield self._begin(group)

    def _save_large(self, found: Found) -> PendingFile:
        with self._turn.let_go():
            return self._storer.save_large(found, self._lists(), self._on_progress)

    def _begin(self, group: _Group) -> _Group:
        if group.found:
            group.future = self._workers.submit(self._storer.save_batch, group.found)
        return group

    def _lists(self) -> Lists:
        return Lists(self._metadata.put_list, self._last.load)

    # From what became of a name to its edit.

    def _settle(self, work: _Group | PendingFile) -> Iterator[Edit]:
        for item in self._outcomes(work):
            edit: Edit | None
            if isinstance(item, Saved):
                edit = self._edit_of(item)
            elif isinstance(item, Removed):
                edit = self._remove(item.key, item.old)
            else:  # it was small when the walk saw it
                with self._turn.let_go():
                    grown = self._storer.save_large(item, self._lists(), self._on_progress)
                    saved = grown.result()
                edit = self._edit_of(saved)
            self._metadata.lists.clear()
            if edit is not None:
                yield edit

    def _outcomes(self, work: _Group | PendingFile) -> Iterable[Saved | Found | Removed]:
        with self._turn.let_go():
            if isinstance(work, PendingFile):
                return [work.result()]
            saved = [] if work.future is None else work.future.result()
        return _merged(saved, work.removed)

    def _edit_of(self, saved: Saved) -> Edit | None:
        if saved.error is not None:
            self._count_error(saved.key, saved.error)
        if not _is_final(saved):
            self._again.names.add(saved.key)
        if saved.entry is None:
            if saved.old is not None and saved.error is None:
                return self._remove(saved.key, saved.old)
            return None
        if saved.lacks is not None:
            self._count_error(saved.key, saved.lacks)
        self._look_for_altered(saved)
        entry, old = self._without_long_attributes(saved.entry), saved.old
        if saved.error is None:
            self._count_file(old, entry)
        else:
            self._keep(entry)
        if entry == old:
            return None
        self._tell(entry, old)
        if old is None or old.content != entry.content or old.long_xattrs != entry.long_xattrs:
            if old is not None:
                self._usage.count_entry(old, self._load_old_list, -1)
            self._usage.count_entry(entry, self._load_new_list, 1)
        return saved.key, encode_entry(entry)

    def _tell(self, entry: Entry, old: Entry | None) -> None:
        """Say what inode the name has from now on; it need not be the one that the walk saw."""
        links = 1 if entry.type is EntryType.DIRECTORY else entry.links
        if old is None or (old.inode, old.links) != (entry.inode, entry.links):
            self._told(entry.inode, links)
        if old is not None and old.inode != entry.inode:
            self._told(old.inode, 1)

    def _look_for_altered(self, saved: Saved) -> None:
        """Take note of a file that changed though nothing of its stat says so."""
        old, entry, statistics = saved.old, saved.entry, self._statistics
        if old is None or entry is None or not _has_same_stat(old, entry):
            return
        if old.content == entry.content or old.content is None or entry.content is None:
            return
        if is_same_content(old.content, entry.content, self._list_of):
            return
        statistics.altered_files += 1
        if len(statistics.altered_paths) < PROBLEMS_MAX:
            statistics.altered_paths.append(path_of(saved.key))

    def _without_long_attributes(self, entry: Entry) -> Entry:
        """The entry with attributes stored outside of it if they are long."""
        if entry.xattrs is None or not are_long(entry.xattrs):
            return entry
        pointer = self._metadata.put_attributes(encode_attributes(entry.xattrs))
        return structs.replace(entry, xattrs=None, long_xattrs=pointer)

    def _load_new_list(self, pointer: Pointer) -> bytes:
        self._list_uses[pointer.id] += 1
        return self._list_of(pointer)

    def _list_of(self, pointer: Pointer) -> bytes:
        made = self._metadata.lists.get(pointer.id)
        return self._last.load(pointer) if made is None else made  # of a file that was moved

    def _remove(self, key: bytes, old: Entry) -> Edit:
        self._told(old.inode, 1)
        self._usage.count_entry(old, self._load_old_list, -1)
        self._statistics.files_removed += old.type is not EntryType.DIRECTORY
        return key, None

    # Counting.

    def _count_batch(self, batch: Batch) -> None:
        statistics = self._statistics
        statistics.files_unmodified += batch.unchanged_files
        statistics.total_files_processed += batch.unchanged_files
        statistics.total_bytes_processed = added_up(
            statistics.total_bytes_processed, batch.unchanged_bytes
        )
        self._kept_files += batch.kept_files
        self._kept_bytes += batch.kept_bytes
        for problem in batch.errors:
            # It may be a directory that was not listed, or not all of it was looked at.
            self._again.subtrees.add(problem.key)
            self._count_error(problem.key, problem.error)
        # What is left out of every snapshot is said of every snapshot.
        self._again.names.update(problem.key for problem in batch.warnings)
        for problem in batch.warnings[: PROBLEMS_MAX - len(statistics.warnings)]:
            statistics.warnings.append(_problem(problem.key, problem.error))

    def _count_file(self, old: Entry | None, entry: Entry) -> None:
        if entry.type is EntryType.DIRECTORY:
            return
        statistics = self._statistics
        statistics.total_files_processed += 1
        if entry.type is EntryType.FILE:
            statistics.total_bytes_processed = added_up(
                statistics.total_bytes_processed, entry.size
            )
        statistics.fuzzy_files += bool(entry.flags & Flag.FUZZY)
        if old is None or old.type is EntryType.DIRECTORY:
            statistics.files_new += 1
        elif is_equal(old, entry):
            statistics.files_unmodified += 1
        else:
            statistics.files_changed += 1

    def _keep(self, entry: Entry) -> None:
        if entry.type is not EntryType.DIRECTORY:
            self._kept_files += 1
            self._kept_bytes += entry.size if entry.type is EntryType.FILE else 0

    def _count_error(self, key: bytes, error: SourceError) -> None:
        self._statistics.errors_total += 1
        if len(self._statistics.errors) < PROBLEMS_MAX:
            self._statistics.errors.append(_problem(key, error))


def is_equal(old: Entry, new: Entry) -> bool:
    """Whether a restore of either would give the same: what only tells inodes is not restored."""
    return _restored(old) == _restored(new)


def is_same_content(old: Content, new: Content, load: Callable[[Pointer], bytes]) -> bool:
    """Whether two contents of one length hold the same bytes, wherever these lie.

    What was cut in another way, or has other holes, may do so: it passes for the same.
    """
    if old.chunking is not new.chunking:
        return True
    parts = [
        [(each.length, each.id) for some in drive(read_extents(content), load) for each in some]
        for content in (old, new)
    ]
    holes = [[length for length, chunk_id in part if not chunk_id] for part in parts]
    return parts[0] == parts[1] or holes[0] != holes[1]


def _has_same_stat(old: Entry, new: Entry) -> bool:
    """Whether all that a sweep compares is equal, and was to be trusted."""
    return (
        old.type is EntryType.FILE
        and new.ctime_ns != 0
        and not old.flags
        and structs.replace(old, content=None, xattrs=None, long_xattrs=None)
        == structs.replace(new, content=None, xattrs=None, long_xattrs=None)
    )


def _restored(entry: Entry) -> Entry:
    return structs.replace(entry, inode=0, ctime_ns=0, generation=0)


def _is_final(saved: Saved) -> bool:
    """Whether a later change of the name will show, and nothing is missing until then."""
    entry = saved.entry
    return entry is not None and not entry.flags and entry.ctime_ns != 0 and saved.error is None


def _totals(head: Head) -> tuple[int, int] | None:
    """Files and bytes of a snapshot; None where it has more bytes than are told of."""
    body = peek_signed_root(split_root(head.root)[1])
    return None if body.total_bytes >= BYTES_MAX else (body.total_files, body.total_bytes)


def _call_off(futures: "list[Future[list[Saved | Found]] | None]") -> None:
    """Let those that have not begun never begin, and wait for the others."""
    wait([future for future in futures if future is not None and not future.cancel()])


def _merged(items: Sequence[_T], removed: Sequence[Removed]) -> Iterable[_T | Removed]:
    """Both in order of keys. Mostly nothing is removed, and then nothing need be compared."""
    if not removed:
        return items
    parts: list[Sequence[_T | Removed]] = [items, removed]
    return heapq.merge(*parts, key=attrgetter("key"))


def _is_file(found: Found) -> bool:
    return stat.S_ISREG(found.stat.st_mode)


def _problem(key: bytes, error: SourceError) -> PathProblem:
    return PathProblem(path_of(key), error.message, error.hint)
