"""`tidemark-agent`: flags to settings to daemon to exit code. The one place that maps errors."""

# ruff: noqa: E402
import gc

# What is loaded stays. To look for what could be let go, each 700 objects, is a tenth of a start.
gc.disable()

import asyncio
import ctypes
import os
import signal
import sys
from typing import Final, NoReturn

from agent import config, daemon
from agent.errors import first_error
from agent.logs import configure_logs, get_logger
from agent.side import GC_OBJECTS
from repository.errors import TidemarkError
from repository.failpoints import arm

_PR_SET_PDEATHSIG: Final = 1
# From <malloc.h>.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
# More than what one call of a restore fetches, or the window that large files are read through:
# these are made and let go all the time, and the kernel clears each page that it gives out anew.
_MMAP_BYTES: Final = 10 * 1024 * 1024
_INIT: Final = 1


def main() -> NoReturn:
    """Run the agent, and leave with its exit code."""
    code = run(sys.argv[1:])
    sys.stderr.flush()
    # All that must end has ended. To take apart what was loaded takes a fifth as long as a start,
    # and whoever stops a service waits for it.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run the agent; return its exit code."""
    configure_logs()
    _bound_memory()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS)
    gc.enable()
    failure: TidemarkError | None = None
    try:
        failpoints = arm(os.environ)
        invocation = config.load(arguments, os.environ)
        if failpoints:
            get_logger().warning("FAILPOINTS ARE ARMED: this agent is made to fail", at=failpoints)
        if invocation.check_only:
            return 0
        if invocation.config.exit_with_parent and not _tie_to_parent():
            return 0
        asyncio.run(daemon.run(invocation.config))
    except* TidemarkError as errors:
        first = first_error(errors)
        assert isinstance(first, TidemarkError)
        failure = first
    if failure is None:
        return 0
    get_logger().error(failure.message, hint=failure.hint)
    return failure.exit_code


def _tie_to_parent() -> bool:
    """Get a SIGTERM when the parent dies, however it dies; False if it is dead already."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        return False
    # Whoever lost its parent before it came here was given to init, which leads another group.
    return parent != _INIT or os.getpgid(_INIT) == os.getpgrp()


def _bound_memory() -> None:
    """Let glibc give memory back: a daemon is idle most of the time.

    Without this every thread keeps an arena of its own, and one freed pack of 32 MiB teaches the
    allocator to keep all later ones.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, which has no such habits
        return
    mallopt(_M_ARENA_MAX, 4)
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, 16777216)


if __name__ == "__main__":
    main()
