"""The reader process: batches of keys in, contents and what they are out (see `reader.py`)."""

from collections.abc import Callable

from agent.beneath import Tree, TreeCursor
from agent.cutting import small_pieces
from agent.errors import SourceError
from agent.reader import Order, Outcome, Result, Setup, Wanted
from agent.reading import Stat, VanishedError, read_small
from agent.side import serve
from repository.ids import IdKeys, ObjectType


def main() -> None:
    """Read until the agent has heard enough."""
    serve(Setup, Order, _begin)


def _begin(setup: Setup, root: int) -> Callable[[Order, memoryview], list[Result]]:
    tree, ids = Tree(root), IdKeys(setup.id_key, b"", b"")

    def answer(order: Order, room: memoryview) -> list[Result]:
        with TreeCursor(tree) as cursor:
            return _read_batch(cursor, order, room, setup, ids)

    return answer


def _read_batch(
    cursor: TreeCursor, order: Order, room: memoryview, setup: Setup, ids: IdKeys
) -> list[Result]:
    results: list[Result] = []
    position = 0
    for wanted in order.files:
        result = _read(cursor, wanted, room[position:], setup, ids)
        position += result.length
        results.append(result)
    return results


def _read(
    cursor: TreeCursor, wanted: Wanted, room: memoryview, setup: Setup, ids: IdKeys
) -> Result:
    try:
        content = read_small(
            cursor,
            wanted.key,
            setup.size_bytes_max,
            suspect=wanted.suspect,
            scanned_ns=setup.scanned_ns,
        )
    except VanishedError as error:
        return Result(Outcome.VANISHED, message=error.message, hint=error.hint)
    except SourceError as error:
        return Result(Outcome.FAILED, message=error.message, hint=error.hint)
    if content is None:
        return Result(Outcome.NOT_SMALL)
    length = len(content.data)
    if length > len(room):
        return Result(Outcome.NO_ROOM)
    room[:length] = content.data
    return Result(
        Outcome.READ,
        Stat.of(content.stat),
        length,
        content.fuzzy,
        content.settled,
        content.bytes_read,
        content.had.attributes,
        list(content.had.refused),
        content.generation,
        [
            ids.chunk_id(ObjectType.DATA, piece)
            for piece in small_pieces(content.data, paged=wanted.paged)
        ],
    )


if __name__ == "__main__":
    main()
