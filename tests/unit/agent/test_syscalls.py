"""System calls that Python does not have, on real files."""

import errno
import os
from pathlib import Path

import pytest

from agent.syscalls import begin_writeback, punch_hole, sync_filesystem


def test_writeback_begins_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        begin_writeback(file.fileno(), 4096, 50_000)
        sync_filesystem(file.fileno())

    assert path.read_bytes() == b"x" * 100_000


def test_what_has_no_disk_needs_no_writeback() -> None:
    reading, writing = os.pipe()
    begin_writeback(writing, 0, 1)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("call", [lambda fd: begin_writeback(fd, 0, 1), sync_filesystem])
def test_an_error_is_raised(call: "object", tmp_path: Path) -> None:
    assert callable(call)
    with (tmp_path / "file").open("wb") as file:
        number = file.fileno()
    with pytest.raises(OSError) as raised:  # noqa: PT011 - its number is looked at
        call(number)
    assert raised.value.errno == errno.EBADF


def test_a_hole_reads_as_zeros_and_takes_no_space(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 131_072)
    os.sync()
    with path.open("r+b") as file:
        assert punch_hole(file.fileno(), 0, 65_536)
        os.fsync(file.fileno())

    assert path.read_bytes() == bytes(65_536) + b"x" * 65_536
    assert path.stat().st_blocks * 512 < 131_072
