"""The writer process: batches of files in, what became of them out (see `writer.py`)."""

from collections.abc import Callable

from agent.errors import TargetError
from agent.side import serve
from agent.standing import TargetFullError
from agent.writer import Made, Order, Setup
from agent.writing import File, Target


def main() -> None:
    """Write until the agent has asked for enough."""
    serve(Setup, Order, _begin)


def _begin(setup: Setup, root: int) -> Callable[[Order, memoryview], list[Made]]:
    warnings: list[str] = []
    target = Target(root, setup.path, lambda _key, message: warnings.append(message))

    def answer(order: Order, room: memoryview) -> list[Made]:
        made: list[Made] = []
        position = 0
        for key, entry in order.files:
            end = position + entry.size
            made.append(_make(target, File(key, entry), room[position:end], warnings))
            warnings.clear()
            position = end
        return made

    return answer


def _make(target: Target, file: File, data: memoryview, warnings: list[str]) -> Made:
    try:
        target.write_whole(file, (data,))
    except TargetError as error:
        is_full = isinstance(error, TargetFullError)
        return Made(None, [], error.message, error.hint, is_full)
    return Made(file.identity, list(warnings))


if __name__ == "__main__":
    main()
