"""S3 as moto has it: everything in memory, quick to start, and no signature is checked."""

import sys
from pathlib import Path

from tests.servers.processes import answers, free_port, start, wait_until

_READY_SECONDS = 30.0


def serve(directory: Path) -> str:
    """Start it; the URL, once it answers. Ends with the calling thread."""
    port, log = free_port(), directory / "start.log"
    command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = start(command, log)
    wait_until(lambda: answers(port), process, log, seconds=_READY_SECONDS)
    return f"http://127.0.0.1:{port}"
