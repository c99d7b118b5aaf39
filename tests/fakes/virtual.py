"""Time that passes only while everybody waits: an hour of sleeping takes a moment."""

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from typing_extensions import override

from agent.services import Clock

_T = TypeVar("_T")


class _Selector(selectors.SelectSelector):
    """Nothing ever happens on a socket here; to wait is to let the time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everybody waits for something that never comes")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Of tasks that wait for each other and for time, and for nothing outside."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    @override
    def time(self) -> float:
        return self._virtual.now


class VirtualClock(Clock):
    """The time of the running loop."""

    @override
    def now_ns(self) -> int:
        return int(self.monotonic() * 1e9)

    @override
    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def run_virtually(work: Coroutine[Any, Any, _T]) -> _T:
    """Run it to its end."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def busiest_second(sent: Mapping[float, int] | list[tuple[float, int]]) -> int:
    """The most bytes of any second, whenever it begins; `sent` in order of time."""
    items = list(sent.items() if isinstance(sent, Mapping) else sent)
    most = total = first = 0
    for at, size in items:
        total += size
        while items[first][0] <= at - 1.0:
            total -= items[first][1]
            first += 1
        most = max(most, total)
    return most
