"""Files restored whole, in one piece: here while there are few, by a writer once there are many."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from agent.errors import TargetError
from agent.side import SLOT_BYTES, SideGoneError, SideOnDemand
from agent.standing import TargetFullError
from agent.turn import Turn
from agent.writer import Made, Setup, start_writer, write_by
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
        self._target = target
        self._turn = turn
        setup = Setup(target.path)
        self.writer = SideOnDemand(
            lambda: start_writer(target.tree.root, setup),
            log,
            "files are made without it, more slowly",
            worth_at=_WRITER_FROM,
            begins_at=writer_from,
        )

    def close(self) -> None:
        """End the writer, if there is one."""
        self.writer.close()

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
        writer = self.writer.at_hand(len(wholes))
        if writer is None:
            return None
        try:
            made = write_by(writer, [(file.key, file.entry, data) for file, data in wholes])
        except SideGoneError as error:
            self.writer.do_without(error)
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
