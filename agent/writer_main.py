"""The writer process: batches of frames in, what became of their files out (see `writer.py`)."""

from collections.abc import Callable, Iterator

from agent.errors import TargetError
from agent.side import serve
from agent.standing import TargetFullError
from agent.writer import FrameOrder, Made, Order, Outcome, Setup
from agent.writing import File, Target
from repository.entries import Entry
from repository.errors import DamagedError
from repository.frames import FrameReader
from repository.ids import IdKeys, ObjectType
from repository.reader import Chunks, slice_extent


def main() -> None:
    """Write until the agent has asked for enough."""
    serve(Setup, Order, _begin)


def _begin(setup: Setup, root: int) -> Callable[[Order, memoryview], list[Made]]:
    maker = Maker(setup, root)

    def answer(order: Order, room: memoryview) -> list[Made]:
        made: list[Made] = []
        position = 0
        for frame in order.frames:
            end = position + frame.length
            made += maker.make(frame, room[position:end])
            position = end
        return made

    return answer


class Maker:
    """Makes files of what is in frames."""

    def __init__(self, setup: Setup, root: int) -> None:
        """Take over the target's open directory."""
        self.warnings: list[str] = []
        """Of the file at hand."""
        self._target = Target(root, setup.path, lambda _, message: self.warnings.append(message))
        self._reader = FrameReader(
            setup.repository, IdKeys(setup.id_key, b"", b""), reuses_buffer=True
        )

    def make(self, frame: FrameOrder, sealed: memoryview) -> Iterator[Made]:
        """What becomes of each file of a frame, one after the other as it is asked for."""
        try:
            chunks = self._reader.open(sealed, frame.key, frame.identity, ObjectType.DATA)
        except DamagedError as error:
            damaged = Made(Outcome.DAMAGED, message=error.message, hint=error.hint)
            return iter([damaged] * len(frame.files))
        return (self._one(key, entry, chunks) for key, entry in frame.files)

    def _one(self, key: bytes, entry: Entry, chunks: Chunks) -> Made:
        # Those of a file that failed are not the next one's.
        self.warnings.clear()
        file = File(key, entry)
        try:
            self._target.write_whole(file, (_content(entry, chunks),))
        except TargetFullError as error:
            return Made(Outcome.FULL, message=error.message, hint=error.hint)
        except TargetError as error:
            return Made(Outcome.FAILED, message=error.message, hint=error.hint)
        except DamagedError as error:
            return Made(Outcome.DAMAGED, message=error.message, hint=error.hint)
        return Made(identity=file.identity, warnings=self.warnings[:])


def _content(entry: Entry, chunks: Chunks) -> memoryview:
    assert entry.content is not None
    [extent] = entry.content.extents
    return slice_extent(extent, chunks)


if __name__ == "__main__":
    main()
