"""`python -m tests.servers KIND DIRECTORY PID`: one server, for as long as that process lives.

It prints the server's URL once it answers. Everything that it starts is killed when it ends.
"""

import os
import select
import sys
from pathlib import Path

from tests.servers import moto, radosgw, rclone
from tests.servers.processes import NotReadyError

SERVE = {"moto": moto.serve, "radosgw": radosgw.serve, "rclone": rclone.serve}


def serve(kind: str, directory: Path) -> str:
    """Start it, twice if need be: a port that was free may be somebody else's by then."""
    first, second = (directory / str(attempt) for attempt in (1, 2))
    first.mkdir()
    try:
        return SERVE[kind](first)
    except NotReadyError:
        second.mkdir()
        return SERVE[kind](second)


def main(kind: str, directory: str, watched: str) -> None:
    process = os.pidfd_open(int(watched))
    sys.stdout.write(serve(kind, Path(directory)) + "\n")
    sys.stdout.flush()
    select.select([process], [], [])


if __name__ == "__main__":
    main(*sys.argv[1:])
