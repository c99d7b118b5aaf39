"""A directory served as S3 by rclone: signatures are checked, and little else.

It replaces what is there whatever a request's conditions say, has no versions, and passes over
checksums: what a store can do without everything that is optional shows here.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.servers.keys import ACCESS_KEY, SECRET_KEY
from tests.servers.processes import answers, free_port, start, wait_until
from tests.servers.tls import make_certificate

_READY_SECONDS = 30.0


def serve(directory: Path) -> str:
    """Start it; the URL, once it answers. Ends with the calling thread."""
    return serve_with(directory, [])[0]


def serve_tls(directory: Path) -> tuple[str, Path, subprocess.Popen[bytes]]:
    """The same over TLS; its URL, the file with its authority, and its process."""
    certificate, key = make_certificate(directory)
    url, process = serve_with(directory, ["--cert", certificate, "--key", key])
    return url.replace("http:", "https:"), certificate, process


def serve_with(directory: Path, flags: Sequence[str | Path]) -> tuple[str, subprocess.Popen[bytes]]:
    """Start it with more flags."""
    port, log, data = free_port(), directory / "start.log", directory / "data"
    data.mkdir()
    command: list[str | Path] = [
        *(Path(sys.executable).with_name("rclone"), "serve", "s3", data),
        *("--config", directory / "rclone.conf"),
        *("--addr", f"127.0.0.1:{port}"),
        *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"),
        *flags,
    ]
    process = start(command, log)
    wait_until(lambda: answers(port), process, log, seconds=_READY_SECONDS)
    return f"http://127.0.0.1:{port}", process
