"""Makes the tracker of an agent, with all sources of changes that there are."""

import importlib
from functools import partial
from pathlib import Path
from typing import Final

from agent.state import State
from agent.tracking.fanotify import FanotifySource
from agent.tracking.source import Source
from agent.tracking.suspects import SuspectScanner, scan
from agent.tracking.tracker import Tracker

# The host's first process may refuse to be looked at by anybody. It starts others, and writes to no
# volume of a container; what it did write to one through a mapping would not be noticed.
_VOUCHED_FOR: Final = frozenset({1})


def open_tracker(directory: Path, state: State) -> Tracker:
    """Make a tracker; the agent's own directory is where cookies are made. Raises StateError."""

    def inotify() -> Source:
        # Only here: where fanotify is allowed, watchdog is never loaded.
        made: Source = importlib.import_module("agent.tracking.inotify").InotifySource(directory)
        return made

    scanner = SuspectScanner(partial(scan, vouched_for=_VOUCHED_FOR))
    return Tracker([partial(FanotifySource, directory), inotify], scanner, state)
