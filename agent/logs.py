"""How the agent logs: one event per line on stderr, text for people, JSON for everything else."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Without this module, as if it were not installed."""
    held = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # what the import system asks for
    try:
        yield
    finally:
        del sys.modules[name]
        if held is not None:
            sys.modules[name] = held


# structlog takes rich in wherever it is installed, for traces that show local variables. There are
# keys among those, so nobody wants them, and it takes longer to load than all the rest of logging.
with _absent("rich"):
    import structlog


def get_logger() -> Any:
    """A logger as `configure_logs` will have configured it by the time it is used."""
    return structlog.get_logger()


def log_context(**fields: str) -> Any:
    """A context manager: what is logged within names these fields too."""
    return structlog.contextvars.bound_contextvars(**fields)


def configure_logs() -> None:
    """Once, at the start of the process."""
    if sys.stderr.isatty():
        # Plain traces: others show local variables, and there are keys among them.
        plain = structlog.dev.plain_traceback
        shape: list[structlog.types.Processor] = [
            structlog.dev.ConsoleRenderer(exception_formatter=plain)
        ]
    else:
        shape = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shape,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
