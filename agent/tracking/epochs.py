"""What is known to have changed in a volume, from one backup to the next. Pure.

An epoch begins when a volume is watched, and ends when anything may have been missed. In it, a
committed backup is the base: whatever changed since is in what was kept or in what the source still
has. The first backup of an epoch sweeps, since nothing vouches for what came before it.

    watched ──sweep──► base ──► swap: kept + told ──backup──► committed: a new base, nothing kept
       ▲                             │                 └────► failed: kept again, the same base
       └────────── lost ─────────────┘
"""

from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from agent.tracking.dirty import CAP, Dirty
from agent.tracking.source import Swapped

# Every so many backups a sweep looks beside the events, and counts what they missed.
AUDIT_EVERY: Final = 50


_AUDITS: Final = "every so often a sweep looks beside the events"
_MANY: Final = f"more than {CAP} places have changed"
_AUDIT_ASKED: Final = "an audit was asked for"


class Why(StrEnum):
    """Why a backup sweeps, in a word for a metric."""

    NOT = ""
    """It does not."""
    UNTRACKED = "untracked"
    """Nothing tells of changes."""
    FIRST = "first"
    """Nothing vouches for what came before."""
    LOST = "lost"
    """Events were."""
    UNPROVABLE = "unprovable"
    """Some changes raise no event, and could not be looked for."""
    MANY = "many"
    """To look everywhere costs less."""
    AUDIT = "audit"
    MISSED = "missed"
    """An audit found that events cannot be trusted."""


class Way(NamedTuple):
    """How a backup learns what changed."""

    dirty: Dirty | None
    """Where to look; None means everywhere: a sweep."""
    reason: str
    """Why a sweep, in words for a person; empty where events tell."""
    why: Why = Why.NOT
    is_lost: bool = False
    """Whether the epoch ended here: the volume must be watched anew before it is swept."""
    audits: bool = False
    """Whether it sweeps all the same, to hold what it finds against what the events told."""


class Epoch(msgspec.Struct):
    """One volume while it is watched without a gap."""

    name: str
    """Tells one from another; recorded in the snapshots that rest on it."""
    base: bytes = b""
    """Root object of the snapshot since which changes are known; empty before the first."""
    kept: Dirty = msgspec.field(default_factory=Dirty)
    """What a backup has to look at again: those before could not read it, or did not commit."""
    since: Dirty = msgspec.field(default_factory=Dirty)
    """What was told while a backup ran, which nobody has looked at yet."""
    lost: str | None = None
    """Why more may have changed meanwhile than that."""
    follows_loss: bool = False
    """Whether the one before ended by a loss, and no backup by events was committed since."""
    since_sweep: int = 0
    """Backups by events since the last sweep."""

    def begin(self, told: Swapped, head: bytes, unseen: str | None, *, audit: bool = False) -> Way:
        """Decide how to back up on top of `head`, the volume's last root object.

        `told`: what the source had, from behind the barrier. `unseen`: why writes that raise no
        event would not be noticed, or None. With `audit` a sweep is wanted to look beside the
        events.
        """
        self.tell(told)
        self.kept.merge(self.since)
        self.since = Dirty()
        if self.lost is not None:
            return Way(None, self.lost, Why.LOST, is_lost=True)
        unproven = self._unproven(head, unseen)
        if unproven is not None:
            return unproven
        if audit or self.since_sweep >= AUDIT_EVERY:
            return Way(self.kept, _AUDIT_ASKED if audit else _AUDITS, Why.AUDIT, audits=True)
        return Way(self.kept, "")

    def tell(self, told: Swapped) -> None:
        """Keep what the source had for the backup that begins next."""
        self.since.merge(told.dirty)
        self.lost = self.lost or told.lost
        if self.since.size() > CAP:
            self.since, self.lost = Dirty(), self.lost or _MANY

    def _unproven(self, head: bytes, unseen: str | None) -> Way | None:
        if not self.base:
            return Way(None, "it is watched since just now", Why.FIRST)
        if self.base != head:
            reason = "changes are known since another snapshot than the last one"
            return Way(None, reason, Why.FIRST)
        if self.kept.size() > CAP:
            return Way(None, _MANY, Why.MANY)
        return None if unseen is None else Way(None, unseen, Why.UNPROVABLE)

    def places(self) -> int:
        """How many places wait to be looked at, of those that were told."""
        return self.kept.size() + self.since.size()

    def committed(self, root: bytes, again: Dirty, *, swept: bool) -> None:
        """Take note of the commit of what `begin` said; `again` has to be looked at once more."""
        self.since_sweep = 0 if swept else self.since_sweep + 1
        self.base, self.kept = root, again
        self.follows_loss = self.follows_loss and swept
