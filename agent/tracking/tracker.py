"""Chooses for each volume what tells of its changes, and carries its epochs from backup to backup.

Watching begins before the sweep that it is to save the next backup from. What was told is forgotten
only with the commit that it went into. Whenever anything may have been missed, the volume is
watched anew and swept. All that was told is in memory: an agent that starts anew sweeps.

Where an audit finds that events missed a change, the volume is swept from then on, and watched all
the same, so that another audit can find that they tell of everything again. That outlives the
agent.
"""

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import Final, NamedTuple, Protocol

from agent.beneath import Tree
from agent.errors import UntrackableError, VolumeError
from agent.state import Missed, State
from agent.tracking.dirty import Dirty
from agent.tracking.epochs import Epoch, Way, Why
from agent.tracking.source import Source, Swapped
from agent.tracking.suspects import Suspects
from agent.whereabouts import Whereabouts
from repository.snapshot import Detection

# Events arrive within milliseconds; where they take longer something is wrong with them.
BARRIER_SECONDS: Final = 10.0
# A volume that cannot be watched is asked about again: a limit may have been raised since.
_RETRY_SECONDS: Final = 300.0
_LATE: Final = "events did not arrive in time"
_ANEW: Final = "it is watched anew since the backup began"
_DAY_NS: Final = 24 * 3600 * 1_000_000_000
_EPOCH: Final = date(1970, 1, 1)


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
    whereabouts: Whereabouts | None
    """Where the last manifest has some of them; a sweep learns it for those after it."""


class Done(NamedTuple):
    """A backup that was committed."""

    root: bytes
    """Its root object."""
    swept: bool
    """Whether it looked at everything, whatever it was told."""
    again: Dirty
    """Where the next one must look, whatever happens until then."""


class Since(NamedTuple):
    """What was told while a backup runs; the next one looks at it."""

    dirty: Dirty
    suspects: Suspects
    lost: str | None
    """Why more may have changed than that."""


class Figures(NamedTuple):
    """What there is to measure."""

    places: Mapping[bytes, int]
    """By volume, how many of those that were told wait; what the source still has is not looked
    at."""
    missed: Mapping[bytes, int]
    """By volume, how many changes events did not tell of, or nothing did."""
    sweeps: Mapping[str, int]
    """How many sweeps began, by why."""
    suspects: int
    """Of the last scan."""


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
        self.whereabouts = self.nowhere()
        self.epoch = _new_epoch()
        self.is_late = False
        """Whether its events did not arrive in time: no loss that the source knows of itself."""

    def nowhere(self) -> Whereabouts:
        """What has to be learned of a manifest."""
        return Whereabouts(linked=not self.source.tells_inodes)


def _in_words(refusals: Sequence[tuple[str, str]]) -> str:
    """Say which source refused why; what all of them say is said once."""
    messages = {message for _, message in refusals}
    if len(messages) < len(refusals) and len(messages) == 1:
        return messages.pop()
    return "; ".join(f"{name}: {message}" for name, message in refusals)


def _told_of(missed: Missed) -> str:
    changes = "a change" if missed.changes == 1 else f"{missed.changes:,} changes"
    return f"events missed {changes} on {_EPOCH + timedelta(missed.day)}"


def _new_epoch() -> Epoch:
    return Epoch(secrets.token_hex(8))


class Tracker:
    """Tracks all volumes of this agent. Its methods block, and may be called from any thread."""

    def __init__(
        self,
        sources: Sequence[Callable[[], Source]],
        scanner: Scanner,
        state: State | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sources` makes them, the best one first; the next only where that is refused.

        Without `state` this one's end is that of what audits have found. Raises StateError.
        """
        self._makers = sources
        self.sources: list[Source] = []
        """Those made so far."""
        self._scanner = scanner
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._watched: dict[bytes, _Watched] = {}
        self._refused: dict[bytes, tuple[bytes, str, float]] = {}
        self._state = state
        self._distrusted = {} if state is None else state.missed()
        """Volumes whose events missed something."""
        self._missed: Counter[bytes] = Counter()
        self._sweeps: Counter[str] = Counter()
        self._suspects = 0

    def watch(self, volume_id: bytes, path: bytes) -> Mode:
        """Watch a volume from now on, if that can be done, and say how."""
        with self._lock:
            return self._trusted(volume_id, self._watch(volume_id, path))

    def _watch(self, volume_id: bytes, path: bytes) -> Mode:
        watched = self._watched.get(volume_id)
        if watched is not None and watched.path == path:
            return watched.mode
        if watched is not None:
            self._forget(volume_id)
        refused = self._refused.get(volume_id)
        if refused is not None and refused[0] == path and self._monotonic() < refused[2]:
            return Mode("sweep", refused[1])
        return self._choose(volume_id, path)

    def _trusted(self, volume_id: bytes, mode: Mode) -> Mode:
        """The mode, unless events have missed something."""
        missed = self._distrusted.get(volume_id)
        return mode if missed is None else Mode("sweep", _told_of(missed))

    def _choose(self, volume_id: bytes, path: bytes) -> Mode:
        reason = ""
        refusals: list[tuple[str, str]] = []
        for source in self._each_source():
            try:
                source.watch(volume_id, path)
            except VolumeError as error:
                reason = error.message
                break
            except UntrackableError as error:
                refusals.append((source.name, error.message))
                reason = _in_words(refusals)
                continue
            mode = Mode(source.name, _in_words(refusals))
            self._watched[volume_id] = _Watched(source, mode, path)
            self._refused.pop(volume_id, None)
            return mode
        self._refused[volume_id] = (path, reason, self._monotonic() + _RETRY_SECONDS)
        return Mode("sweep", reason)

    def _each_source(self) -> Iterator[Source]:
        for number, make in enumerate(self._makers):
            if number == len(self.sources):
                self.sources.append(make())
            yield self.sources[number]

    def keep_only(self, volume_ids: Iterable[bytes]) -> None:
        """Forget all volumes but these."""
        with self._lock:
            kept = set(volume_ids)
            for volume_id in [each for each in self._watched if each not in kept]:
                self._forget(volume_id)
            for volume_id in [each for each in self._refused if each not in kept]:
                del self._refused[volume_id]

    def begin(
        self, volume_id: bytes, path: bytes, tree: Tree, head: bytes, *, audit: bool = False
    ) -> Taken:
        """Decide what a backup looks at, whose root is open and which builds on `head`.

        With `audit` a sweep is wanted to look beside the events, if these are known.

        One backup of a volume at a time. It ends with `committed`, or it does not, and then the
        next one looks at all of this again.
        """
        self.watch(volume_id, path)
        with self._lock:
            watched = self._watched.get(volume_id)
        told = None if watched is None else self._told(watched, volume_id, tree)
        # Behind the barrier: what ended before that has told.
        suspects = self._scan()
        with self._lock:
            way = self._way(watched, told, head, suspects.unseen, audit=audit)
            if watched is not None and way.is_lost:
                self._begin_anew(watched, volume_id, path)
                watched = self._watched.get(volume_id)
            mode = self.watch(volume_id, path)
            missed = self._distrusted.get(volume_id)
            if missed is not None and not way.audits:
                # Who asked for an audit is told what keeps it from being one.
                reason = _told_of(missed)
                if audit and way.reason:
                    reason = f"{way.reason}; {reason}"
                way = Way(None, reason, Why.MISSED)
            elif watched is None and not way.reason:
                way = way._replace(reason=mode.reason)
            if way.why is not Why.NOT:
                self._sweeps[way.why] += 1
            if watched is None:
                return Taken(volume_id, mode, way, "", suspects, None)
            by_events = way.dirty is not None and not way.audits
            whereabouts = watched.whereabouts if by_events else watched.nowhere()
            return Taken(volume_id, mode, way, watched.epoch.name, suspects, whereabouts)

    def _begin_anew(self, watched: _Watched, volume_id: bytes, path: bytes) -> None:
        """Begin another epoch. A source that lost something watches anew already, if it can."""
        if watched.is_late or watched.epoch.follows_loss:
            self._forget(volume_id)
            self._choose(volume_id, path)
            return
        anew = self._watched[volume_id] = _Watched(watched.source, watched.mode, path)
        anew.epoch.follows_loss = True

    @staticmethod
    def _way(
        watched: _Watched | None,
        told: Swapped | None,
        head: bytes,
        unseen: str | None,
        *,
        audit: bool,
    ) -> Way:
        if watched is None or told is None:
            return Way(None, "", Why.UNTRACKED)
        return watched.epoch.begin(told, head, unseen, audit=audit)

    def _scan(self) -> Suspects:
        suspects = self._scanner.scan()
        self._suspects = suspects.count()
        return suspects

    def since(self, taken: Taken, tree: Tree) -> Since:
        """Return what was told since a backup began or this was called last, and keep it.

        The next backup looks at it, whatever becomes of this one.
        """
        with self._lock:
            watched = self._watched.get(taken.volume_id)
        if watched is None or watched.epoch.name != taken.epoch:
            return Since(Dirty(), taken.suspects, _ANEW)
        told = self._told(watched, taken.volume_id, tree)
        with self._lock:
            watched.epoch.tell(told)
        suspects = self._scan()
        return Since(told.dirty, suspects, told.lost or suspects.unseen)

    def audited(self, taken: Taken, missed: int, now_ns: int) -> None:
        """Take note of what an audit found: trust a volume's events again, or no more.

        Raises StateError where that cannot be kept. Blocks.
        """
        found = Missed(missed, now_ns // _DAY_NS) if missed else None
        with self._lock:
            if found is not None:
                self._distrusted[taken.volume_id] = found
                self._missed[taken.volume_id] += missed
        # Without the lock: a disk may take its time. Trust comes back once that has lasted.
        if self._state is not None:
            self._state.keep_missed(taken.volume_id, found).result()
        with self._lock:
            if found is None:
                self._distrusted.pop(taken.volume_id, None)

    def altered(self, taken: Taken, missed: int) -> None:
        """Take note of files that changed without a sign of it, which no sweep would find."""
        with self._lock:
            self._missed[taken.volume_id] += missed

    def figures(self) -> Figures:
        """Return what there is to measure now."""
        with self._lock:
            return Figures(
                {each: watched.epoch.places() for each, watched in self._watched.items()},
                dict(self._missed),
                dict(self._sweeps),
                self._suspects,
            )

    def _told(self, watched: _Watched, volume_id: bytes, tree: Tree) -> Swapped:
        if not watched.source.barrier(BARRIER_SECONDS):
            watched.is_late = True
            return Swapped(Dirty(), _LATE)
        return watched.source.swap(volume_id, tree)

    def committed(self, taken: Taken, done: Done) -> None:
        """Drop what a committed backup has looked at, but for what it has to look at again."""
        with self._lock:
            watched = self._watched.get(taken.volume_id)
            if watched is not None and watched.epoch.name == taken.epoch:
                watched.epoch.committed(done.root, done.again, swept=done.swept)
                if taken.whereabouts is not None:
                    watched.whereabouts = taken.whereabouts

    def close(self) -> None:
        """Watch nothing any more."""
        with self._lock:
            self._watched.clear()
        for source in self.sources:
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
