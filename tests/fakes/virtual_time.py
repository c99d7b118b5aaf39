"""An event loop whose time costs nothing, and whose order is drawn from a seed.

When nothing is ready, its clock jumps to the next timer. Of what is ready it takes any, drawn from
the seed: each seed is another order in which tasks may meet, and the same seed always the same one.
There is no input or output. What is given to a thread runs at once, as one more callback. When
nothing is left to wait for, all of it hangs, and that is an error.
"""

import asyncio
import heapq
import itertools
import random
import sys
import weakref
from asyncio import Future, Handle, Task, TimerHandle
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

from typing_extensions import override

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
# A run that takes so many is one that goes round in circles.
_STEPS_MAX: Final = 5_000_000


class HangError(Exception):
    """Everything waits, and nothing will come; or there is no end to what comes."""


def run(main: Coroutine[Any, Any, _T], seed: int) -> _T:
    """Run it to its end, in the order of this seed."""

    def loop() -> asyncio.AbstractEventLoop:
        # What is not there, input and output, is what runs here have no use for.
        return VirtualTimeLoop(seed)  # type: ignore[abstract]

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)


class VirtualTimeLoop(asyncio.AbstractEventLoop):
    """One such loop."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._now = 0.0
        self._ready: list[Handle] = []
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._numbers = itertools.count()
        self._generators: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        self._is_running = False
        self._is_stopping = False
        self._is_closed = False
        self.steps = 0

    @override
    def time(self) -> float:
        return self._now

    # ---- running --------------------------------------------------------------------------------

    @override
    def run_forever(self) -> None:
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._generators.add, finalizer=self._finalize)
        asyncio._set_running_loop(self)
        self._is_running = True
        try:
            while not self._is_stopping:
                self._step()
        finally:
            self._is_running = self._is_stopping = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > _STEPS_MAX:
            raise HangError("there is no end to it")
        if not self._ready:
            self._jump()
        chosen = int(self._random.random() * len(self._ready))
        handle, self._ready[chosen] = self._ready[chosen], self._ready[-1]
        self._ready.pop()
        if not handle.cancelled():
            handle._run()

    def _jump(self) -> None:
        """To the next timer, and to all that are due with it."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if not self._timers:
            raise HangError("everything waits, and nothing will come")
        self._now = max(self._now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._now:
            self._ready.append(heapq.heappop(self._timers)[2])

    @override
    def run_until_complete(self, future: Any) -> Any:
        task = asyncio.ensure_future(future, loop=self)  # noqa: TID251 - what a loop is for

        def stop(_: Any) -> None:
            self.stop()

        task.add_done_callback(stop)
        try:
            self.run_forever()
        finally:
            task.remove_done_callback(stop)
        return task.result()

    @override
    def stop(self) -> None:
        self._is_stopping = True

    @override
    def is_running(self) -> bool:
        return self._is_running

    @override
    def is_closed(self) -> bool:
        return self._is_closed

    @override
    def close(self) -> None:
        self._is_closed = True
        self._ready.clear()
        self._timers.clear()

    @override
    async def shutdown_asyncgens(self) -> None:
        for generator in list(self._generators):
            await generator.aclose()

    @override
    async def shutdown_default_executor(self) -> None:
        """There is none."""

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._is_closed:
            self.create_task(generator.aclose())

    # ---- callbacks ------------------------------------------------------------------------------

    @override
    def call_soon(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> Handle:
        handle = Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    @override
    def call_soon_threadsafe(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> Handle:
        return self.call_soon(callback, *args, context=context)

    @override
    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    @override
    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> TimerHandle:
        timer = TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """asyncio tells of each; it is passed over when its time comes."""

    @override
    def create_future(self) -> "Future[Any]":
        return Future(loop=self)

    @override
    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        **options: Any,
    ) -> "Task[_T]":
        return Task(coro, loop=self, **options)

    @override
    def run_in_executor(
        self, executor: Any, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts
    ) -> "Future[_T]":
        future: Future[_T] = Future(loop=self)

        def work() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - handed on to whoever waits
                future.set_exception(error)

        self.call_soon(work)
        return future

    # ---- what went wrong ------------------------------------------------------------------------

    @override
    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        raise HangError(context["message"]) from error

    @override
    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    @override
    def get_debug(self) -> bool:
        return False

    @override
    def set_debug(self, enabled: bool) -> None:
        """Nothing more is to be seen than there is."""
