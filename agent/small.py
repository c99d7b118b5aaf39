"""Small files, read whole: here while there are few, by a reader process once there are many."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Self

from agent.beneath import Tree, TreeCursor
from agent.cutting import small_pieces
from agent.errors import SourceError
from agent.reader import Outcome, Read, Setup, SmallFile, Wanted, read_by, start_reader
from agent.reading import Scanned, read_small
from agent.side import SideGoneError, SideOnDemand
from agent.turn import Turn
from repository.chunking import SMALL_BYTES_MAX
from repository.ids import IdKeys, ObjectType

# A reader takes as long to start as so many files take to be read.
_READER_FROM: Final = 2048
_NOT_SCANNED: Final = Scanned()


class SmallFiles:
    """Reads the small files of one volume. Used from many threads."""

    def __init__(  # noqa: PLR0913 - two of them for tests, which have no other way in
        self,
        tree: Tree,
        ids: IdKeys,
        turn: Turn,
        log: Callable[[str, str], None],
        now_ns: Callable[[], int] = time.time_ns,
        *,
        scanned: Scanned = _NOT_SCANNED,
        reader_from: int | None = None,
    ) -> None:
        """`reader_from`: how many files are read here before a reader is worth its start."""
        self.tree = tree
        self._ids = ids
        self.turn = turn
        self._now_ns = now_ns
        self.scanned = scanned
        setup = Setup(ids.data, SMALL_BYTES_MAX - 1, scanned.begun_ns)
        self.reader = SideOnDemand(
            lambda: start_reader(tree.root, setup),
            log,
            "files are read without it, more slowly",
            worth_at=_READER_FROM,
            begins_at=reader_from,
        )

    def __enter__(self) -> Self:
        """Return itself; leaving ends the reader, if there is one."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the reader."""
        self.reader.close()

    @contextlib.contextmanager
    def read(self, files: Sequence[Wanted]) -> Iterator[list[Read]]:
        """Read a batch.

        What is found may be a view of memory that is used again after the context. The caller must
        not have the turn.
        """
        with contextlib.ExitStack() as lent:
            found = self._by_reader(files, lent)
            if found is None:
                with self.turn.taken():
                    found = self._here(files)
            yield found

    def _by_reader(self, files: Sequence[Wanted], lent: contextlib.ExitStack) -> list[Read] | None:
        self.reader.expect(len(files))
        reader = self.reader.at_hand()
        if reader is None:
            return None
        try:
            found = lent.enter_context(read_by(reader, files))
        except SideGoneError as error:
            self.reader.do_without(reader, error)
            return None
        left = [index for index, each in enumerate(found) if each is Outcome.NO_ROOM]
        if left:
            with self.turn.taken():
                for index, each in zip(left, self._here([files[i] for i in left]), strict=True):
                    found[index] = each
        return found

    def _here(self, files: Sequence[Wanted]) -> list[Read]:
        with TreeCursor(self.tree) as cursor:
            return [self._one_here(cursor, wanted) for wanted in files]

    def _one_here(self, cursor: TreeCursor, wanted: Wanted) -> Read:
        try:
            content = read_small(
                cursor,
                wanted.key,
                SMALL_BYTES_MAX - 1,
                self._now_ns,
                suspect=wanted.suspect,
                scanned_ns=self.scanned.begun_ns,
            )
        except SourceError as error:
            return error
        if content is None:
            return Outcome.NOT_SMALL
        pieces = small_pieces(content.data, paged=wanted.paged)
        chunk_ids = [self._ids.chunk_id(ObjectType.DATA, piece) for piece in pieces]
        return SmallFile(content, chunk_ids)
