"""A process that exchanges names while others look."""

import mmap
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("flipper.c")


class Flipper:
    """A running flipper."""

    def __init__(self, process: subprocess.Popen[bytes], counter: mmap.mmap) -> None:
        self._process = process
        self._counter = counter

    @property
    def flips(self) -> int:
        """Exchanges so far."""
        return int.from_bytes(self._counter[:8], "little")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold it still for a while."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)
        yield
        self._process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="session")
def flipper_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here (Debian: gcc, libc6-dev)")
    program = tmp_path_factory.mktemp("flipper") / "flipper"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(SOURCE)]
    subprocess.run(command, check=True)
    return program


@pytest.fixture
def flip(flipper_program: Path, tmp_path: Path) -> Callable[[Path, Path], object]:
    """Exchange two paths until the context ends."""

    @contextmanager
    def flip(one: Path, other: Path) -> Iterator[Flipper]:
        path = tmp_path / "flips"
        path.write_bytes(bytes(8))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as counter:
            command = [str(flipper_program), str(one), str(other), str(path)]
            process = subprocess.Popen(command)
            try:
                yield Flipper(process, counter)
            finally:
                process.kill()
                process.wait()

    return flip
