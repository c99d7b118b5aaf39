"""Files restored whole, in one piece: here while there are few, by a writer once there are many."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from agent.errors import TargetError
from agent.side import SLOT_BYTES, SideGoneError
from agent.standing import TargetFullError
from agent.turn import Turn
from agent.writer import Made, NewFile, Setup, WriterProcess
from agent.writing import File, Target

# A writer takes as long to start as so many files take to be made.
_WRITER_FROM: Final = 2048
# A file that is larger costs little beside its content.
_SIZE_MAX: Final = SLOT_BYTES // 8


class Whole(NamedTuple):
    """A file and all its content."""

    file: File
    data: memoryview


class WholeFiles:
    """Writes the files of one target that come in one piece. Used from many threads."""

    def __init__(
        self,
        target: Target,
        turn: Turn,
        log: Callable[[str, str], None],
        *,
        writer_from: int | None = None,
    ) -> None:
        """`writer_from`: how many files are made here before a writer is worth its start."""
        if writer_from is None and len(os.sched_getaffinity(0)) > 1:  # else nothing is to be won
            writer_from = _WRITER_FROM
        self._target = target
        self._turn = turn
        self._log = log
        self._lock = threading.Lock()
        self.writer: WriterProcess | None = None
        """The writer, once it was worth its start."""
        self._until_writer = writer_from

    def close(self) -> None:
        """End the writer, if there is one."""
        with self._lock:
            self._until_writer = None
            writer, self.writer = self.writer, None
        if writer is not None:
            writer.side.close()

    def write(self, wholes: Iterable[Whole]) -> Iterator[tuple[Whole, TargetError | None]]:
        """Make files, or what takes the place of what stands there; each with its error, if any.

        Raises TargetFullError. The caller must not have the turn.
        """
        new: list[Whole] = []
        others: list[Whole] = []
        for whole in wholes:
            quick = whole.file.is_new and len(whole.data) <= _SIZE_MAX
            (new if quick else others).append(whole)
        for batch in _that_fit(new):
            yield from self._by_writer(batch) or self._here(batch)
        yield from self._here(others)

    def _here(self, wholes: Sequence[Whole]) -> list[tuple[Whole, TargetError | None]]:
        if not wholes:
            return []
        with self._turn.taken():
            return [(whole, self._one_here(whole)) for whole in wholes]

    def _one_here(self, whole: Whole) -> TargetError | None:
        try:
            self._target.write_whole(whole.file, (whole.data,))
        except TargetFullError:
            raise
        except TargetError as error:
            return error
        return None

    def _by_writer(self, wholes: Sequence[Whole]) -> list[tuple[Whole, TargetError | None]] | None:
        writer = self._writer_at_hand(len(wholes))
        if writer is None:
            return None
        try:
            made = writer.write([(_new_file(whole.file), whole.data) for whole in wholes])
        except SideGoneError as error:
            self._do_without(error)
            # Some may have been made, and half made, before it ended: they make place.
            for file, _ in wholes:
                file.takes_name = self._target.look(file.key) is not None
            return None
        pairs = zip(wholes, made, strict=True)
        return [(whole, self._outcome(whole.file, each)) for whole, each in pairs]

    def _outcome(self, file: File, made: Made) -> TargetError | None:
        for warning in made.warnings:
            self._target.warn(file.key, warning)
        if made.is_full:
            raise TargetFullError(made.error, hint=made.hint)
        if made.error:
            return TargetError(made.error, hint=made.hint)
        file.begun = True
        file.identity = made.identity
        return None

    def _writer_at_hand(self, wanted: int) -> WriterProcess | None:
        """A writer that is ready; starts one when it has become worth it."""
        with self._lock:
            if self.writer is None and self._until_writer is not None:
                self._until_writer -= wanted
                if self._until_writer <= 0:
                    self._until_writer = None
                    try:
                        setup = Setup(self._target.path)
                        self.writer = WriterProcess(self._target.tree.root, setup)
                    except SideGoneError as error:
                        self._warn(error)
            writer = self.writer
        return writer if writer is not None and writer.side.is_ready() else None

    def _do_without(self, error: SideGoneError) -> None:
        with self._lock:
            writer, self.writer = self.writer, None
        if writer is not None:
            self._warn(error)
            writer.side.close()

    def _warn(self, error: SideGoneError) -> None:
        self._log("warning", f"{error.message}; files are made without it, more slowly")


def _that_fit(wholes: Sequence[Whole]) -> Iterator[list[Whole]]:
    """Batches whose contents fit a slot."""
    batch: list[Whole] = []
    room = SLOT_BYTES
    for whole in wholes:
        if batch and len(whole.data) > room:
            yield batch
            batch, room = [], SLOT_BYTES
        batch.append(whole)
        room -= len(whole.data)
    if batch:
        yield batch


def _new_file(file: File) -> NewFile:
    entry = file.entry
    return NewFile(
        file.key,
        entry.size,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.links,
        entry.xattrs,
    )
