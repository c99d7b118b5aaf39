"""The writer process: batches of files in, what became of them out (see `writer.py`)."""

from collections.abc import Callable

from agent.errors import TargetError
from agent.side import serve
from agent.standing import TargetFullError
from agent.writer import Made, NewFile, Order, Setup
from agent.writing import File, Target
from repository.entries import Entry, EntryType


def main() -> None:
    """Write until the agent has asked for enough."""
    serve(Setup, Order, _begin)


def _begin(setup: Setup, root: int) -> Callable[[Order, memoryview], list[Made]]:
    warnings: list[str] = []
    target = Target(root, setup.path, lambda _key, message: warnings.append(message))

    def answer(order: Order, room: memoryview) -> list[Made]:
        made: list[Made] = []
        position = 0
        for file in order.files:
            end = position + file.size
            made.append(_make(target, file, room[position:end], warnings))
            warnings.clear()
            position = end
        return made

    return answer


def _make(target: Target, wanted: NewFile, data: memoryview, warnings: list[str]) -> Made:
    file = File(wanted.key, _entry(wanted))
    try:
        target.write_whole(file, (data,))
    except TargetError as error:
        is_full = isinstance(error, TargetFullError)
        return Made(None, [], error.message, error.hint, is_full)
    return Made(file.identity, list(warnings))


def _entry(wanted: NewFile) -> Entry:
    return Entry(
        type=EntryType.FILE,
        mode=wanted.mode,
        uid=wanted.uid,
        gid=wanted.gid,
        mtime_ns=wanted.mtime_ns,
        size=wanted.size,
        inode=0,
        ctime_ns=0,
        links=wanted.links,
        flags=0,
        device=0,
        target=None,
        xattrs=wanted.attributes,
        long_xattrs=None,
        content=None,
    )


if __name__ == "__main__":
    main()
