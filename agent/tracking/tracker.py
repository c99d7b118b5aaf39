"""Chooses for each volume what tells of its changes, and carries its epochs from backup to backup.

Watching begins before the sweep that it is to save the next backup from. What was told is forgotten
only with the commit that it went into. Whenever anything may have been missed, the volume is
watched anew and swept. Everything here is in memory: an agent that starts anew sweeps.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from agent.beneath import Tree
from agent.errors import UntrackableError
from agent.tracking.dirty import Dirty
from agent.tracking.epochs import Epoch, Way
from agent.tracking.source import Source, Swapped
from agent.tracking.suspects import Suspects
from agent.whereabouts import Whereabouts
from repository.snapshot import Detection

# Events arrive within milliseconds; where they take longer something is wrong with them.
BARRIER_SECONDS: Final = 10.0
# A volume that cannot be watched is asked about again: a limit may have been raised since.
_RETRY_SECONDS: Final = 300.0
_LATE: Final = "events did not arrive in time"


class Mode(NamedTuple):
    """What tells of a volume's changes."""

    source: str
    """`fanotify`, `inotify` or `sweep`."""
    reason: str
    """Why not a better one; empty where there is none."""


class Taken(NamedTuple):
    """What one backup has to look at, and what proves that this is all."""

    volume_id: bytes
    mode: Mode
    way: Way
    epoch: str
    """Empty where nothing is watched."""
    suspects: Suspects
    """Files that may be written to without any event."""
    whereabouts: Whereabouts
    """Where the last manifest has some of them."""


class Done(NamedTuple):
    """A backup that was committed."""

    root: bytes
    """Its root object."""
    swept: bool
    """Whether it looked at everything, whatever it was told."""
    again: Dirty
    """Where the next one must look, whatever happens until then."""


class Scanner(Protocol):
    """Looks for files that may be written to without any event."""

    def scan(self) -> Suspects:
        """Return what a scan that began after this call has found; blocks."""


class _Watched:
    """A volume with a source."""

    def __init__(self, source: Source, mode: Mode, path: bytes) -> None:
        self.source = source
        self.mode = mode
        self.path = path
        self.forget_whereabouts()
        self.epoch = _new_epoch()

    def forget_whereabouts(self) -> None:
        """The manifest is another one than those before."""
        self.whereabouts = Whereabouts(linked=not self.source.tells_inodes)


def _new_epoch() -> Epoch:
    return Epoch(secrets.token_hex(8))


class Tracker:
    """Tracks all volumes of this agent. Its methods block, and may be called from any thread."""

    def __init__(
        self,
        sources: Sequence[Source],
        scanner: Scanner,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sources`: the best one first."""
        self._sources = sources
        self._scanner = scanner
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._watched: dict[bytes, _Watched] = {}
        self._refused: dict[bytes, tuple[bytes, str, float]] = {}

    def watch(self, volume_id: bytes, path: bytes) -> Mode:
        """Watch a volume from now on, if that can be done, and say how."""
        with self._lock:
            watched = self._watched.get(volume_id)
            if watched is not None and watched.path == path:
                return watched.mode
            if watched is not None:
                self._forget(volume_id)
            refused = self._refused.get(volume_id)
            if refused is not None and refused[0] == path and self._monotonic() < refused[2]:
                return Mode("sweep", refused[1])
            return self._choose(volume_id, path)

    def _choose(self, volume_id: bytes, path: bytes) -> Mode:
        reasons: list[str] = []
        for source in self._sources:
            try:
                source.watch(volume_id, path)
            except UntrackableError as error:
                reasons.append(f"{source.name}: {error.message}")
                continue
            mode = Mode(source.name, "; ".join(reasons))
            self._watched[volume_id] = _Watched(source, mode, path)
            self._refused.pop(volume_id, None)
            return mode
        reason = "; ".join(reasons)
        self._refused[volume_id] = (path, reason, self._monotonic() + _RETRY_SECONDS)
        return Mode("sweep", reason)

    def mode(self, volume_id: bytes) -> Mode | None:
        """Return what tells of a volume's changes; None while nobody has asked."""
        with self._lock:
            watched = self._watched.get(volume_id)
            if watched is not None:
                return watched.mode
            refused = self._refused.get(volume_id)
            return None if refused is None else Mode("sweep", refused[1])

    def keep_only(self, volume_ids: Iterable[bytes]) -> None:
        """Forget all volumes but these."""
        with self._lock:
            kept = set(volume_ids)
            for volume_id in [each for each in self._watched if each not in kept]:
                self._forget(volume_id)
            for volume_id in [each for each in self._refused if each not in kept]:
                del self._refused[volume_id]

    def begin(self, volume_id: bytes, path: bytes, tree: Tree, head: bytes) -> Taken:
        """Decide what a backup looks at, whose root is open and which builds on `head`.

        One backup of a volume at a time. It ends with `committed`, or it does not, and then the
        next one looks at all of this again.
        """
        mode = self.watch(volume_id, path)
        with self._lock:
            watched = self._watched.get(volume_id)
        told = None if watched is None else self._told(watched, volume_id, tree)
        # Behind the barrier: what ended before that has told.
        suspects = self._scanner.scan()
        with self._lock:
            if watched is None or told is None:
                way = Way(None, mode.reason)
                return Taken(volume_id, mode, way, "", suspects, Whereabouts())
            way = watched.epoch.begin(told, head, suspects.unseen)
            if way.is_lost:
                self._forget(volume_id)
                mode = self._choose(volume_id, path)
                watched = self._watched.get(volume_id)
            if watched is None:
                return Taken(volume_id, mode, way, "", suspects, Whereabouts())
            epoch = watched.epoch.name
            return Taken(volume_id, mode, way, epoch, suspects, watched.whereabouts)

    def _told(self, watched: _Watched, volume_id: bytes, tree: Tree) -> Swapped:
        if not watched.source.barrier(BARRIER_SECONDS):
            return Swapped(Dirty(), _LATE)
        return watched.source.swap(volume_id, tree)

    def committed(self, taken: Taken, done: Done) -> None:
        """Drop what a committed backup has looked at, but for what it has to look at again."""
        with self._lock:
            watched = self._watched.get(taken.volume_id)
            if watched is not None and watched.epoch.name == taken.epoch:
                watched.epoch.committed(done.root, done.again, swept=done.swept)
                if done.swept:
                    watched.forget_whereabouts()

    def close(self) -> None:
        """Watch nothing any more."""
        with self._lock:
            self._watched.clear()
        for source in self._sources:
            source.close()

    def _forget(self, volume_id: bytes) -> None:
        watched = self._watched.pop(volume_id, None)
        if watched is not None:
            watched.source.forget(volume_id)


def proof_of(taken: Taken, detection: Detection) -> str:
    """Say what told of the changes that a snapshot holds, and why not something better. Pure."""
    way = taken.way
    if detection is Detection.SWEEP:
        return f"sweep: {way.reason or 'the last manifest is not all here'}"
    looked_at = way.dirty.size() if way.dirty is not None else 0
    return (
        f"events of {taken.mode.source} in epoch {taken.epoch}, behind a barrier: "
        f"{looked_at} places, and {taken.suspects.count()} suspects on this node"
    )
