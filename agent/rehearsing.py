"""A rehearsal: what a restore would do to its target, found without doing any of it.

It answers what the target (writing.py) answers and writes nothing, so that the same restore, run
with it, counts what it would count. A target that does not exist is not made, and holds nothing.
"""

from collections.abc import Sequence

from typing_extensions import override

from agent.replacing import Standing, Way
from agent.standing import Block, Ground
from agent.writing import File
from repository.entries import Entry
from repository.errors import TidemarkError


class Rehearsal(Ground):
    """Takes what a Target takes."""

    def __init__(
        self,
        descriptor: int,
        path: bytes,
        *,
        marker: bytes,
        closed: frozenset[tuple[int, int]] = frozenset(),
        is_missing: bool = False,
    ) -> None:
        """Take over an open directory, which is only looked at.

        `is_missing`: the target itself does not exist; the directory is one above it.
        """
        super().__init__(descriptor, path, closed)
        self.marker = marker
        self._is_missing = is_missing
        self.may_clear = False

    @override
    def is_empty(self) -> bool:
        """Whether nothing is in it."""
        return self._is_missing or super().is_empty()

    @override
    def look(self, key: bytes) -> Standing | None:
        """What stands at a name; nothing in a target that is missing."""
        return None if self._is_missing else super().look(key)

    def mark(self, job_id: str) -> None:
        """Nothing is unfinished that was not begun."""

    def unmark(self) -> None:
        """So there is no mark."""

    def sync_top(self) -> None:
        """There is nothing to bring to the disk."""

    def make_directory(self, key: bytes, way: Way) -> None:
        """It would be made."""

    def open_up(self, key: bytes, standing: Standing, *, for_good: bool) -> None:
        """It would be opened up."""

    def finish_directory(self, key: bytes, entry: Entry) -> None:
        """It would get its metadata."""

    def make_symlink(self, file: File) -> None:
        """It would be made."""
        file.begun = True

    def make_special(self, file: File) -> None:
        """It would be made."""
        file.begun = True

    def make_link(self, key: bytes, first: File, *, takes_name: bool) -> None:
        """It would be made."""

    def retouch(self, file: File) -> None:
        """It would get its metadata."""

    def write_whole(self, file: File, parts: Sequence[memoryview]) -> None:
        """It would be written."""
        file.begun = True

    def write(self, file: File, count: int) -> bool:
        """So many bytes of it would be written; True if it were done then."""
        file.begun = True
        return self.settle(file, count)

    def make_holes(self, file: File, holes: Sequence[Block]) -> None:
        """They would be made."""
        file.begun = True

    def settle(self, file: File, count: int, descriptor: int | None = None) -> bool:
        """Take note that so many bytes would be as they should be; True if the file were done."""
        if not file.settle(count):
            return False
        standing = file.standing
        if standing is None or not file.stays or standing.size != file.entry.size:
            file.begun = True
        if file.stays and standing is not None:
            file.identity = standing.identity
        return True

    def give_up(self, file: File, error: TidemarkError) -> bool:
        """It would not be restored; True the first time."""
        return file.fail(error)
