"""A wire between an agent and the coordinator that notes what goes over it, and can be cut."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PIECE_BYTES = 64 * 1024


class Wire:
    """Passes connections on, byte by byte, and knows when how many went up and came down."""

    def __init__(self, target: str, listens: str = "127.0.0.1") -> None:
        self._listens = listens
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.up: list[tuple[float, int]] = []
        self.down: list[tuple[float, int]] = []
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._begun = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="wire")

    def open(self) -> None:
        """Listen, in a thread of its own."""
        self._thread.start()
        assert self._begun.wait(10)

    def close(self) -> None:
        """Cut all connections, and listen no more. Twice is once."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        # What waits here while this thread does not run would go in the next moment, too: a busy
        # machine must not make a wire of what it measures. It takes a few percent of a core.
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, self._listens, 0)
        self.address = "{}:{}".format(*server.sockets[0].getsockname())
        self._begun.set()
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        with suppress(asyncio.CancelledError, ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, far_writer, self.up), name="up")
                group.create_task(self._pass(far_reader, writer, self.down), name="down")
        for each in (writer, far_writer):
            each.close()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        passed: list[tuple[float, int]],
    ) -> None:
        while data := await reader.read(_PIECE_BYTES):
            passed.append((time.monotonic(), len(data)))
            if passed is self.up:
                self.look_at(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    def look_at(self, data: bytes) -> None:
        """What goes up, for whoever wants to know more of it."""


@contextmanager
def wires(target: str, count: int) -> Iterator[list[Wire]]:
    """So many of them, to one coordinator."""
    made = [Wire(target) for _ in range(count)]
    for wire in made:
        wire.open()
    try:
        yield made
    finally:
        for wire in made:
            wire.close()


def per_second(passed: list[list[tuple[float, int]]], begin: float, end: float) -> list[int]:
    """What all of them passed together in each second between the two, in steps of a tenth."""
    merged = sorted(each for one in passed for each in one)
    starts = [begin + step / 10 for step in range(int((end - begin - 1) * 10) + 1)]
    return [sum(size for at, size in merged if start < at <= start + 1) for start in starts]
