"""Run a command; write its times, highest memory and reads, as JSON, to the file named first.

A small process of its own: the kernel counts what its parent held before a program replaced it, so
that whoever starts a program sees at least his own memory. Nothing but the standard library here.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(report: str, command: list[str]) -> int:
    """The exit code of the command."""
    own = bytes_read()
    before = time.monotonic()
    process = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(process, 0)
    seconds = time.monotonic() - before
    measured = {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "memory_bytes": usage.ru_maxrss * 1024,
        "bytes_read": bytes_read() - own,
    }
    Path(report).write_text(json.dumps(measured), encoding="ascii")
    return os.waitstatus_to_exitcode(status)


def bytes_read() -> int:
    """What this process and those that it waited for have read, cached or not."""
    for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise OSError("/proc/self/io has no rchar")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
