import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.disk import DiskThrottle


def test_readers_together_keep_to_the_rate() -> None:
    throttle = DiskThrottle(10_000_000, time.monotonic)
    began = time.monotonic()

    with ThreadPoolExecutor(4) as readers:
        list(readers.map(throttle.take, [100_000] * 40))

    seconds = time.monotonic() - began
    assert 0.37 <= seconds <= 0.8
    assert throttle.waited_seconds > 0


def test_what_nobody_read_is_not_saved_up() -> None:
    now = [0.0]
    throttle = DiskThrottle(1000, lambda: now[0])
    now[0] = 3600.0
    throttle.take(20)
    waited = throttle.waited_seconds
    throttle.end()
    throttle.take(500)

    assert waited == 0
    assert throttle.waited_seconds == pytest.approx(0.5)


def test_an_end_lets_everybody_go() -> None:
    throttle = DiskThrottle(1, time.monotonic)
    reader = threading.Thread(target=throttle.take, args=(3600,))
    reader.start()

    throttle.end()

    reader.join(5)
    assert not reader.is_alive()
