"""Files restored whole, in one piece: here while there are few, by writers once there are many."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from agent.errors import TargetError
from agent.side import SLOT_BYTES, SideGoneError, SideOnDemand
from agent.standing import TargetFullError
from agent.turn import Turn
from agent.writer import FrameOrder, Made, Outcome, Setup, start_writer, write_by
from agent.writing import File, Target
from repository.errors import DamagedError, TidemarkError
from repository.frames import FrameIdentity
from repository.keys import FrameKey
from repository.layout import ReaderKeys

# A writer takes as long to start as so many files take to be made.
_WRITERS_FROM: Final = 2048
# They come up while the first files are planned; a machine that needs longer is better off waiting.
_START_SECONDS: Final = 10.0
# More would not be kept busy by one agent.
_WRITERS_MAX: Final = 4
# Batches for each: one that it works on, and one that it need not wait for.
_BATCHES: Final = 2
# A file that is larger costs little beside its content.
WHOLE_BYTES_MAX: Final = SLOT_BYTES // 8

Outcomes = list[tuple[File, TidemarkError | None]]


class Whole(NamedTuple):
    """A file and all its content."""

    file: File
    data: memoryview


class FileFrame(NamedTuple):
    """A frame as it was fetched, and files whose whole content is in it."""

    sealed: memoryview
    key: FrameKey
    identity: FrameIdentity
    files: list[File]

    def order(self) -> FrameOrder:
        """What a writer is asked for."""
        wanted = [(file.key, file.entry) for file in self.files]
        return FrameOrder(len(self.sealed), self.key, self.identity, wanted)


class WholeFiles:
    """Writes the files of one target that come in one piece. Used from many threads."""

    def __init__(
        self,
        target: Target,
        keys: ReaderKeys,
        turn: Turn,
        log: Callable[[str, str], None],
        *,
        writers_from: int | None = None,
    ) -> None:
        """`writers_from`: for how many files writers are worth their start."""
        self._target = target
        self._turn = turn
        setup = Setup(target.path, keys.repository, keys.ids.data)
        count = min(_WRITERS_MAX, len(os.sched_getaffinity(0)))
        self.writers = SideOnDemand(
            lambda: start_writer(target.tree.root, setup),
            log,
            "files are made without it, more slowly",
            worth_at=_WRITERS_FROM,
            begins_at=writers_from,
            count=count,
        )
        self.asking = ThreadPoolExecutor(_BATCHES * count, thread_name_prefix="restore-asking")
        """Threads that wait for writers: they need no core of their own."""

    def close(self) -> None:
        """End the writers, if there are any."""
        self.asking.shutdown()
        self.writers.close()

    def expect(self, files: int) -> None:
        """Take note that so many small files are going to be made."""
        self.writers.expect(files)

    def write(self, wholes: Sequence[Whole]) -> Outcomes:
        """Make files, or what takes the place of what stands there; each with its error, if any.

        Raises TargetFullError. The caller must not have the turn.
        """
        if not wholes:
            return []
        with self._turn.taken():
            return [(whole.file, self._written(whole)) for whole in wholes]

    def _written(self, whole: Whole) -> TargetError | None:
        try:
            self._target.write_whole(whole.file, (whole.data,))
        except TargetFullError:
            raise
        except TargetError as error:
            return error
        return None

    def write_frames(self, frames: Sequence[FileFrame]) -> Outcomes | None:
        """Make new files, each with its error, if any; None where there is no writer to do it.

        The frames fit a slot together, as `that_fit` says. Blocks for as long as a writer takes.
        Raises TargetFullError.
        """
        writer = self.writers.at_hand(_START_SECONDS)
        if writer is None:
            return None
        files = [file for frame in frames for file in frame.files]
        try:
            made = write_by(writer, [(frame.sealed, frame.order()) for frame in frames])
        except SideGoneError as error:
            self.writers.do_without(writer, error)
            # Some may have been made, and half made, before it ended: they make place.
            for file in files:
                file.takes_name = self._target.look(file.key) is not None
            return None
        return [(file, self._outcome(file, each)) for file, each in zip(files, made, strict=True)]

    def _outcome(self, file: File, made: Made) -> TidemarkError | None:
        for warning in made.warnings:
            self._target.warn(file.key, warning)
        match made.outcome:
            case Outcome.MADE:
                file.begun = True
                file.identity = made.identity
                return None
            case Outcome.FULL:
                raise TargetFullError(made.message, hint=made.hint)
            case Outcome.FAILED:
                return TargetError(made.message, hint=made.hint)
            case Outcome.DAMAGED:
                return DamagedError(made.message, hint=made.hint)


def that_fit(frames: Iterable[FileFrame]) -> Iterator[list[FileFrame]]:
    """Batches of frames that fit a slot; each of them does."""
    batch: list[FileFrame] = []
    room = SLOT_BYTES
    for frame in frames:
        if batch and len(frame.sealed) > room:
            yield batch
            batch, room = [], SLOT_BYTES
        batch.append(frame)
        room -= len(frame.sealed)
    if batch:
        yield batch
