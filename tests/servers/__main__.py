"""`python -m tests.servers KIND DIRECTORY PID`: one server, for as long as that process lives.

It prints the server's URL once it answers. Everything that it starts is killed when it ends.
"""

import os
import select
import sys
from pathlib import Path

from tests.servers import moto, radosgw, rclone

SERVE = {"moto": moto.serve, "radosgw": radosgw.serve, "rclone": rclone.serve}


def main(kind: str, directory: str, watched: str) -> None:
    process = os.pidfd_open(int(watched))
    sys.stdout.write(SERVE[kind](Path(directory)) + "\n")
    sys.stdout.flush()
    select.select([process], [], [])


if __name__ == "__main__":
    main(*sys.argv[1:])
