"""What a restore has done so far: counted from many threads, told as progress and at the end."""

import threading
from typing import Final

from agent.services import (
    PathChange,
    PathProblem,
    Progress,
    RestoreStatistics,
    Services,
    added_up,
)
from repository.errors import TidemarkError

_PROBLEMS_MAX: Final = 100
# Of a rehearsal: what a person would read, and a message of a few hundred KiB at the most.
_CHANGES_MAX: Final = 1000

ADDED: Final = "added"
MODIFIED: Final = "modified"
REMOVED: Final = "removed"


class Tally:
    """The statistics of one restore."""

    def __init__(self, services: Services, *, lists_changes: bool) -> None:
        self.statistics = RestoreStatistics(dry_run=lists_changes)
        self._services = services
        self._lists_changes = lists_changes
        self._lock = threading.Lock()
        self._bytes_done = 0
        self.totals: tuple[int | None, int | None] = (None, None)
        """Files and bytes there are to restore, where that is known."""

    def file(self, key: bytes, change: str | None, *, size: int = 0) -> None:
        """A file is as it should be; `change` says what that took, None for nothing."""
        with self._lock:
            self.statistics.files_restored += 1
            self.statistics.bytes_restored = added_up(self.statistics.bytes_restored, size)
            self.statistics.files_unchanged += change is None
        self.change(key, change)

    def wrote(self, count: int) -> None:
        """So many bytes were written."""
        with self._lock:
            self.statistics.bytes_written += count
            self._bytes_done = added_up(self._bytes_done, count)

    def found(self, count: int) -> None:
        """So many bytes need not be written."""
        with self._lock:
            self._bytes_done = added_up(self._bytes_done, count)

    def removed(self, key: bytes, is_directory: bool) -> None:  # noqa: FBT001 - a callback
        """A name was removed."""
        with self._lock:
            self.statistics.files_removed += not is_directory
        self.change(key, REMOVED)

    def change(self, key: bytes, change: str | None) -> None:
        """Something becomes different; a rehearsal lists it."""
        if change is None or not self._lists_changes:
            return
        with self._lock:
            self.statistics.changes_total += 1
            if len(self.statistics.changes) < _CHANGES_MAX:
                self.statistics.changes.append(PathChange(key.replace(b"\0", b"/"), change))

    def problem(self, key: bytes, error: TidemarkError) -> None:
        """A path could not be restored."""
        with self._lock:
            self.statistics.errors_total += 1
            if len(self.statistics.errors) < _PROBLEMS_MAX:
                problem = PathProblem(key.replace(b"\0", b"/"), error.message, error.hint)
                self.statistics.errors.append(problem)

    def warn(self, key: bytes, message: str) -> None:
        """Something is worth knowing about a path."""
        with self._lock:
            if len(self.statistics.warnings) < _PROBLEMS_MAX:
                path = key.replace(b"\0", b"/")
                self.statistics.warnings.append(PathProblem(path, message))

    def tell(self, activity: str = "restoring") -> None:
        """Say how far it has come."""
        files, size = self.totals
        self._services.progress(
            Progress(
                activity,
                files_done=self.statistics.files_restored,
                files_total=files,
                bytes_done=self._bytes_done,
                bytes_total=size,
            )
        )
