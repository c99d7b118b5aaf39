"""The reader process: batches of keys in, contents and what they are out (see `reader.py`).

It is started by an agent only, with its end of a socket, the volume's root and the shared memory as
descriptors. It ends when the agent does, since then the socket ends.
"""

import mmap
import signal
import socket
import sys

from agent.beneath import Tree, TreeCursor
from agent.cutting import small_pieces
from agent.errors import SourceError
from agent.reader import (
    SLOT_BYTES,
    SLOTS,
    Greeting,
    Order,
    Outcome,
    Result,
    Setup,
    receive,
    send,
)
from agent.reading import Stat, VanishedError, read_small
from repository.ids import IdKeys, ObjectType


def main() -> None:
    """Read until the agent has heard enough."""
    theirs, root, memory = map(int, sys.argv[1:])
    # A Ctrl-C at a terminal reaches the whole group; the agent says when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=theirs) as agent, Tree(root) as tree:
        try:
            _serve(agent, tree, mmap.mmap(memory, SLOTS * SLOT_BYTES))
        except ConnectionError:
            return


def _serve(agent: socket.socket, tree: Tree, memory: mmap.mmap) -> None:
    setup = receive(agent, Setup)
    if setup is None:
        return
    ids = IdKeys(setup.id_key, b"", b"")
    send(agent, Greeting())
    while (order := receive(agent, Order)) is not None:
        start = order.slot * SLOT_BYTES
        with TreeCursor(tree) as cursor, memoryview(memory)[start : start + SLOT_BYTES] as room:
            send(agent, _read_batch(cursor, order, room, setup, ids))


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
        content.attributes,
        [ids.chunk_id(ObjectType.DATA, piece) for piece in small_pieces(content.data, paged=paged)],
    )


if __name__ == "__main__":
    main()
