"""Backups give way to whatever else their node does: last in line for the processor and the disk.

A thread gives way, not the agent: somebody waits for a restore, and for the agent's answers. On a
node that does nothing else it costs nothing. What a thread starts gives way as well: the reader
process of a backup does, the writers of a restore do not.
"""

import threading
from collections.abc import Callable
from typing import Final

import psutil

# A tenth of what others get of a busy processor, and not so little that a backup never ends.
_NICE: Final = 10


def give_way(warn: Callable[[str], None]) -> None:
    """Let the calling thread give way from now on; `warn` says why it does not, where it cannot."""
    try:
        # Of the kernel's priorities each thread has its own, under the id by which it goes there.
        thread = psutil.Process(threading.get_native_id())
        thread.nice(max(_NICE, thread.nice()))
        thread.ionice(psutil.IOPRIO_CLASS_IDLE)
    except (psutil.Error, OSError) as error:
        warn(f"backups do not give way to others here: {error}")


class WarnOnce:
    """Says the first thing that it is told, and nothing else."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._lock = threading.Lock()
        self._is_said = False

    def __call__(self, reason: str) -> None:
        """From any thread."""
        with self._lock:
            is_first, self._is_said = not self._is_said, True
        if is_first:
            self._warn(reason)
