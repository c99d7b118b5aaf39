"""Puts a snapshot's names into a target: everything but the contents of files.

    entry + what stands there ─► replacing.decide ─► made, kept, or handed on as a File to be filled

Everything here runs in worker threads, one call at a time, and entries come in the order of keys.
What costs a path is an error of that path; the rest goes on. What is extra goes last, and only
where nothing failed: until then it may be all that there is of something.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from agent.errors import TargetError
from agent.linking import Inode, Inodes, Name, has_several_names
from agent.rehearsing import Rehearsal
from agent.removing import Extras, remove
from agent.replacing import Standing, Way, decide, has_metadata, is_one_inode
from agent.selecting import Selection
from agent.standing import Block, TargetFullError, blocks_of
from agent.tally import ADDED, MODIFIED, Tally
from agent.writing import File, Target
from repository.entries import ROOT_KEY, SEPARATOR, Entry, EntryType, path_of
from repository.errors import DamagedError, TidemarkError
from repository.ids import IdKeys

_BATCH: Final = 64


class Placing:
    """The names of one restore."""

    def __init__(
        self,
        target: Target | Rehearsal,
        tally: Tally,
        ids: IdKeys,
        selection: Selection,
        *,
        is_empty: bool,
        extras: Extras | None = None,
    ) -> None:
        """`is_empty`: nothing stands in the target, so nothing is looked for."""
        self._target = target
        self._tally = tally
        self._ids = ids
        self._selection = selection
        self.is_empty = is_empty
        self._extras = extras
        # Names of directories, what has several names, and the further ones, as links to make.
        self._directories: list[tuple[bytes, Entry]] = []
        self._inodes = Inodes()
        self._links: list[tuple[Name, File]] = []
        # Inodes with several names of which one at least is to be a file of its own.
        self._shared: set[tuple[int, int]] = set()
        self._closed: bytes | None = None
        # What was handed on to be filled, and is neither done nor given up.
        self._unfinished: set[File] = set()

    def lay_out(self, batch: Sequence[tuple[bytes, Entry]]) -> list[File]:
        """Place what has no content, and return the files that need some."""
        files = []
        for key, entry in batch:
            path_of(key)  # a key that would leave the target ends everything
            if self._extras is not None:
                self._extras.see(key)
            with self._guarded(key):
                if (file := self._place(key, entry)) is not None:
                    files.append(file)
        self._unfinished.update(files)
        return files

    def _place(self, key: bytes, entry: Entry) -> File | None:
        if self._closed is not None and key.startswith(self._closed):
            raise TargetError("not restored: what lies above it is not entered")
        if key == self._target.marker:
            message = "not restored: Tidemark marks unfinished restores with this name"
            self._tally.warn(key, message)
            return None
        if entry.type is EntryType.SOCKET:
            self._tally.warn(key, "a socket is not restored: its server makes it anew")
            return None
        standing = None if self.is_empty else self._target.look(key)
        way = decide(entry, standing)
        if way is Way.CLEAR and standing is not None and standing.type is EntryType.DIRECTORY:
            self._check_clear(key)
        if entry.type is EntryType.DIRECTORY:
            self._place_directory(key, entry, standing, way)
            return None
        if entry.type is EntryType.FILE and entry.size and entry.content is None:
            raise DamagedError("its content was not stored")
        if has_several_names(entry):
            # What it is to be, and whether what stands there may become it, shows once all its
            # names were seen.
            self._inodes.add(key, entry, standing)
            return None
        file = File(key, entry, standing)
        if standing is not None and (standing.links > 1 or standing.identity in self._shared):
            self._shared.add(standing.identity)
            file.is_shared = True
        if entry.type is EntryType.FILE:
            return self._begin(file)
        self._place_special(file)
        return None

    def _check_clear(self, key: bytes) -> None:
        """See that a directory may go whose place something else takes; count what goes with it."""
        if not self._target.can_enter(key):
            raise TargetError("a directory that is not ours to remove has its name")
        if self._target.may_clear:
            remove(self._target, key, self._tally.problem, self._tally.removed, rehearse=True)
        elif not self._target.is_empty_directory(key):
            raise TargetError(
                "a directory that is not empty has its name", hint="--delete removes it"
            )

    # Directories.

    def _place_directory(
        self, key: bytes, entry: Entry, standing: Standing | None, way: Way
    ) -> None:
        is_above = key in self._selection.above
        if way is not Way.KEEP and key:
            self._target.make_directory(key, way)
            self._tally.change(key, ADDED if way is Way.CREATE else MODIFIED)
        elif standing is not None:
            if not self._target.can_enter(key):
                self._closed = key + SEPARATOR
                message = "left alone: another filesystem, or Tidemark's own data, lies there"
                self._tally.warn(key, message)
                return
            self._target.open_up(key, standing, for_good=not is_above)
            if is_above:
                return
            if self._extras is not None:
                self._extras.enter(key)
            if not has_metadata(standing, entry, times=False):
                self._tally.change(key, MODIFIED)
        self._directories.append((key, entry))

    def finish_directories(self) -> None:
        """Give directories their metadata, the deepest first, but the top: it may lock us out."""
        for key, entry in reversed(self._directories):
            if key:
                self._finish_directory(key, entry)

    def finish_top(self) -> None:
        """Give the top its metadata, unless it is only where chosen paths go."""
        for key, entry in self._directories[:1]:
            if not key:
                self._finish_directory(key, entry)

    @contextlib.contextmanager
    def _guarded(self, key: bytes) -> Iterator[None]:
        """Make an error of a path a problem of that path; a full disk ends everything."""
        try:
            yield
        except TargetFullError:
            raise
        except (TargetError, DamagedError) as error:
            self._tally.problem(key, error)

    def _finish_directory(self, key: bytes, entry: Entry) -> None:
        with self._guarded(key):
            self._target.finish_directory(key, entry)

    # Symbolic links, FIFOs and devices.

    def _place_special(self, file: File) -> None:
        standing = file.standing
        if standing is not None and file.stays and decide(file.entry, standing) is Way.KEEP:
            file.identity = standing.identity
            if file.is_changed:
                self._target.retouch(file)
        elif file.entry.type is EntryType.SYMLINK:
            self._target.make_symlink(file)
        else:
            self._target.make_special(file)
        self.done(file)

    # Files.

    def deferred(self) -> Iterator[list[File]]:
        """Batches of what has several names, to be begun with `begin` once all were seen."""
        inodes = iter(self._inodes)
        while batch := list(itertools.islice(inodes, _BATCH)):
            yield [self._first_of(inode) for inode in batch]

    def _first_of(self, inode: Inode) -> File:
        """An inode as a file that is made by its first name; its others become links."""
        (key, standing), *others = inode.names
        file = File(key, inode.entry, standing)
        if file.standing is not None:
            file.is_shared = not is_one_inode(file.standing, [each.standing for each in others])
            # Of what is not restored with it, no name needs to be parted from what is equal.
            file.may_share = bool(self._selection)
        self._links += [(name, file) for name in others]
        if inode.is_torn:
            message = "its names were read at different moments; all are restored as the newest"
            self._tally.warn(key, message)
        return file

    def begin(self, files: Iterable[File]) -> list[File]:
        """Compare files with what stands there, and return those that need content."""
        begun = [file for file in files if self._begin(file) is not None]
        self._unfinished.update(begun)
        return begun

    def _begin(self, file: File) -> File | None:
        try:
            if file.entry.type is EntryType.FILE:
                return self._compare_whole(file)
            self._place_special(file)
        except TargetFullError:
            raise
        except TargetError as error:
            self.give_up(file, error)
        return None

    def give_up(self, file: File, error: TidemarkError) -> None:
        """Leave a file that cannot be restored, and say so once."""
        self._unfinished.discard(file)
        if self._target.give_up(file, error):
            self._tally.problem(file.key, error)

    def give_up_unfinished(self) -> None:
        """Name what nobody has finished: it must not pass for restored, whoever is to blame."""
        for file in list(self._unfinished):
            hint = "this is a defect of tidemark; restore the path again, and report it"
            self.give_up(file, TargetError("its content was not written whole", hint=hint))

    def _compare_whole(self, file: File) -> File | None:
        """Finish a file that is there already, or is empty; return any other one."""
        entry = file.entry
        if not entry.size:
            if file.stays and file.standing is not None and not file.standing.size:
                self._target.settle(file, 0)
            else:
                self._target.write_whole(file, ())
            self.done(file)
            return None
        content = entry.content
        if file.standing is None or content is None or content.list is not None:
            return file
        # The few extents of a small file are compared here: a call of its own would cost more.
        blocks = blocks_of(content.extents)
        file.same = self.compare(file, blocks)
        if all(file.same) and sum(extent.length for extent in content.extents) == entry.size:
            self._tally.found(entry.size)
            if self._target.settle(file, entry.size):
                self.done(file)
            return None
        return file

    def compare(self, file: File, blocks: Sequence[Block]) -> list[bool]:
        """Which of these extents of a file need not be fetched, holes made where there were none.

        Raises TargetError.
        """
        standing = file.standing
        if standing is None:
            return [block.extent.is_hole for block in blocks]
        same = self._target.same_blocks(file.key, standing, blocks, self._ids)
        filled = [
            block
            for block, is_same in zip(blocks, same, strict=True)
            if block.extent.is_hole and not is_same
        ]
        if filled:
            self._target.make_holes(file, filled)
        return [
            is_same or block.extent.is_hole for block, is_same in zip(blocks, same, strict=True)
        ]

    def done(self, file: File) -> None:
        """Count a file that is as it should be."""
        self._unfinished.discard(file)
        change = (ADDED if file.is_new else MODIFIED) if file.is_changed else None
        self._tally.file(file.key, change, size=file.content_bytes)

    def make_links(self) -> None:
        """Give files their further names."""
        for (key, standing), first in self._links:
            with self._guarded(key):
                if first.error is not None:
                    message = "the file that it is another name of could not be restored"
                    raise TargetError(message)
                is_there = standing is not None and standing.identity == first.identity
                if not is_there:
                    self._target.make_link(key, first, takes_name=standing is not None)
                change = ADDED if standing is None else MODIFIED
                changed = not is_there or first.is_changed
                self._tally.file(key, change if changed else None, size=first.content_bytes)

    # What is extra.

    def remove_extras(self) -> None:
        """Remove what the snapshot does not have, if everything that it has is there."""
        if self._extras is None:
            return
        leftovers_only = self._extras.leftovers_only
        if self._tally.statistics.errors_total:
            if not leftovers_only:
                message = "nothing extra was removed, since not all was restored"
                self._tally.warn(ROOT_KEY, message)
            return
        rehearse = isinstance(self._target, Rehearsal)
        for key in self._extras.all():
            if leftovers_only and self._is_directory(key):
                continue  # a restore makes none under such a name
            remove(self._target, key, self._tally.problem, self._tally.removed, rehearse=rehearse)

    def _is_directory(self, key: bytes) -> bool:
        standing = self._target.look(key)
        return standing is not None and standing.type is EntryType.DIRECTORY
