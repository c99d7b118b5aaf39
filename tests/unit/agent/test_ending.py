"""What waits for a thread leaves with it, and leaves nothing behind."""

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.ending import to_its_end

pytestmark = pytest.mark.asyncio


async def test_what_the_thread_returns_or_raises_is_handed_on() -> None:
    loop = asyncio.get_running_loop()

    assert await to_its_end(loop.run_in_executor(None, lambda: 7)) == 7
    with pytest.raises(OSError, match="no"):
        await to_its_end(loop.run_in_executor(None, fail))


async def test_a_canceled_wait_lasts_as_long_as_the_thread_whose_failure_is_not_complained_of() -> (
    None
):
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait()
        fail()

    with ThreadPoolExecutor(1) as thread:
        waiting = loop.create_task(to_its_end(loop.run_in_executor(thread, work), go.set))
        await asyncio.to_thread(begun.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    del waiting
    gc.collect()

    assert go.is_set()
    assert complaints == []


async def test_whoever_cancels_twice_waits_as_well() -> None:
    loop = asyncio.get_running_loop()
    begun, go, canceled = threading.Event(), threading.Event(), asyncio.Event()

    def work() -> None:
        begun.set()
        go.wait()

    with ThreadPoolExecutor(1) as thread:
        running = loop.run_in_executor(thread, work)
        waiting = loop.create_task(to_its_end(running, canceled.set))
        await asyncio.to_thread(begun.wait)
        waiting.cancel()
        await canceled.wait()
        waiting.cancel()
        await asyncio.sleep(0.05)
        left_early = waiting.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    assert not left_early
    assert running.done()


def fail() -> None:
    raise OSError("no")
