"""One server of each kind for a whole run, whichever worker needs it first.

Workers of one run share a directory. Who comes first starts the server there, and the others wait.
It ends with the run's first process, not with the worker that happened to start it: that one may
be done while others are not.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.servers import radosgw
from tests.servers.processes import NotReadyError

# Of servers that this process started; an object that is forgotten while its process runs warns.
_STARTED: list[subprocess.Popen[str]] = []
_FAILED = "failed"


class Server(NamedTuple):
    """A server that answers."""

    kind: str
    url: str


def server(kind: str, temporary: pytest.TempPathFactory) -> Server:
    """The run's server of this kind, started if need be; skips where its packages are missing."""
    if kind == "radosgw" and (lacking := radosgw.missing()):
        pytest.skip(lacking)
    directory = _shared_directory(temporary) / kind
    directory.mkdir(parents=True, exist_ok=True)
    answer = directory / "url"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answer.exists():
            # Who comes after a failure need not wait for the next one.
            answer.write_text(_start(kind, directory) or _FAILED)
    url = answer.read_text()
    if url == _FAILED:
        raise NotReadyError(f"{kind} did not start; {directory} has its logs")
    return Server(kind, url)


def _shared_directory(temporary: pytest.TempPathFactory) -> Path:
    own = temporary.getbasetemp()
    return (own.parent if _is_worker() else own) / "servers"


def _is_worker() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ


def _start(kind: str, directory: Path) -> str:
    """The URL; empty where it did not start. Each of its steps has a deadline of its own."""
    run = os.getppid() if _is_worker() else os.getpid()
    command = [sys.executable, "-m", "tests.servers", kind, str(directory), str(run)]
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # A Ctrl-C is for the tests, which may want the server while they end.
            start_new_session=True,
        )
    _STARTED.append(process)
    assert process.stdout is not None
    with process.stdout as said:
        return said.readline().strip()
