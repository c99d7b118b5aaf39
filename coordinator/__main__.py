"""tidemark-coordinator: flags to config to server to exit code."""

# ruff: noqa: E402
import gc

# What is loaded stays. To look for what could be let go, each 700 objects, is a sixth of a start.
gc.disable()

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from coordinator import server
from coordinator.config import load
from coordinator.errors import TidemarkError, first_error
from coordinator.logs import configure_logs, get_logger
from coordinator.process import bound_memory, end_with_parent
from repository.failpoints import arm

_SIGNALED = 130
# What a request leaves behind is mostly gone by itself. To look for what is not as often as the
# interpreter does by default is a fifteenth of what a coordinator does during backups.
_GC_OBJECTS = 10_000


def main() -> NoReturn:
    """Entry of the console script."""
    code = run(sys.argv[1:])
    sys.stderr.flush()
    # All that must end has ended. To take apart what was loaded takes a sixth as long as a start,
    # and whoever stops a service waits for it.
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the coordinator; its exit code."""
    parent = os.getppid()
    gc.freeze()
    gc.set_threshold(_GC_OBJECTS)
    gc.enable()
    configure_logs()
    bound_memory()
    try:
        failpoints = arm(os.environ)
        invocation = load(arguments, os.environ)
        if failpoints:
            get_logger().warning(
                "FAILPOINTS ARE ARMED: this coordinator is made to fail", at=failpoints
            )
        if invocation.check_only:
            return 0
        if invocation.config.exit_with_parent:
            end_with_parent(parent)
        asyncio.run(server.run(invocation.config))
    except (TidemarkError, ExceptionGroup) as error:
        failure = first_error(error)
        if not isinstance(failure, TidemarkError):
            raise
        hint = f"\nhint: {failure.hint}" if failure.hint else ""
        sys.stderr.write(f"error: {failure.message}{hint}\n")
        return failure.exit_code
    except KeyboardInterrupt:
        return _SIGNALED
    return 0


if __name__ == "__main__":
    main()
