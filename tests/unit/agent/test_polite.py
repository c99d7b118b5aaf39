import os
import subprocess
import threading
from collections.abc import Callable

import psutil

from agent.polite import WarnOnce, give_way


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_thread_gives_way_and_the_process_does_not() -> None:
    seen: list[tuple[int, int]] = []
    warnings: list[str] = []
    before = psutil.Process().nice()

    def work() -> None:
        give_way(warnings.append)
        thread = psutil.Process(threading.get_native_id())
        seen.append((thread.nice(), thread.ionice().ioclass))

    in_a_thread(work)

    assert seen == [(10, psutil.IOPRIO_CLASS_IDLE)]
    assert psutil.Process().nice() == before
    assert psutil.Process().ionice().ioclass != psutil.IOPRIO_CLASS_IDLE
    assert not warnings


def test_what_it_starts_gives_way_too() -> None:
    told: list[str] = []

    def work() -> None:
        give_way(told.append)
        told.append(subprocess.run(["nice"], capture_output=True, text=True, check=True).stdout)

    in_a_thread(work)

    assert told == ["10\n"]


def test_one_that_gives_way_more_is_left_so() -> None:
    seen: list[int] = []

    def work() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        give_way(lambda _: None)
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    in_a_thread(work)

    assert seen == [15]


def test_a_warning_is_said_once() -> None:
    said: list[str] = []
    warn = WarnOnce(said.append)

    for number in range(3):
        warn(f"reason {number}")

    assert said == ["reason 0"]
