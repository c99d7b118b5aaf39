"""Opening by handle while names come and go, on the filesystem of the tests."""

import errno
import os
import threading
from collections import Counter, deque
from pathlib import Path

from agent.syscalls import file_handle, open_by_handle

CALLS = 60_000
"""One in 6,000 was answered wrongly at the least."""


def come_and_go(place: Path, seen: deque[bytes], stop: threading.Event) -> None:
    place.mkdir()
    number = 0
    while not stop.is_set():
        number += 1
        directory = place / str(number)
        directory.mkdir()
        held = os.open(directory, os.O_PATH)
        handle = file_handle(held)
        os.close(held)
        directory.rmdir()
        assert handle is not None
        seen.append(handle)


def open_all(mounted: int, seen: deque[bytes], calls: int) -> Counter[str]:
    answers: Counter[str] = Counter()
    while answers.total() < calls:
        for handle in list(seen):
            try:
                os.close(open_by_handle(mounted, handle))
                answers["open"] += 1
            except OSError as error:
                answers[errno.errorcode[error.errno or 0]] += 1
    return answers


def test_a_directory_is_there_or_gone_while_others_take_its_number(tmp_path: Path) -> None:
    seen: deque[bytes] = deque(maxlen=64)
    stop = threading.Event()
    places = [tmp_path / "one", tmp_path / "other"]
    writers = [threading.Thread(target=come_and_go, args=(place, seen, stop)) for place in places]
    mounted = os.open(tmp_path, os.O_RDONLY)
    for writer in writers:
        writer.start()
    try:
        answers = open_all(mounted, seen, CALLS)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
        os.close(mounted)

    assert set(answers) <= {"open", "ESTALE"}, answers
