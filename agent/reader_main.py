"""The reader process: batches of keys in, contents and what they are out (see `reader.py`)."""

from collections.abc import Callable

from agent.beneath import Tree, TreeCursor
from agent.cutting import small_pieces
from agent.errors import SourceError
from agent.reader import Order, Outcome, Result, Setup
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
    for key, paged in order.files:
        result = _read(cursor, key, room[position:], setup.size_bytes_max, ids, paged=paged)
        position += result.length
        results.append(result)
    return results


def _read(
    cursor: TreeCursor,
    key: bytes,
    room: memoryview,
    size_bytes_max: int,
    ids: IdKeys,
    *,
    paged: bool,
) -> Result:
    try:
        content = read_small(cursor, key, size_bytes_max)
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
        [ids.chunk_id(ObjectType.DATA, piece) for piece in small_pieces(content.data, paged=paged)],
    )


if __name__ == "__main__":
    main()
