"""What is known to have changed in a volume, from one backup to the next. Pure.

An epoch begins when a volume is watched, and ends when anything may have been missed. In it, a
committed backup is the base: whatever changed since is in what was kept or in what the source still
has. The first backup of an epoch sweeps, since nothing vouches for what came before it.

    watched ──sweep──► base ──► swap: kept + told ──backup──► committed: a new base, nothing kept
       ▲                             │                 └────► failed: kept again, the same base
       └────────── lost ─────────────┘
"""

from typing import Final, NamedTuple

import msgspec

from agent.tracking.dirty import CAP, Dirty
from agent.tracking.source import Swapped

# Every so many backups a sweep looks beside the events, and counts what they missed.
AUDIT_EVERY: Final = 50


class Way(NamedTuple):
    """How a backup learns what changed."""

    dirty: Dirty | None
    """Where to look; None means everywhere: a sweep."""
    reason: str
    """Why a sweep, in words for a person; empty where events tell."""
    is_lost: bool = False
    """Whether the epoch ended here: the volume must be watched anew before it is swept."""
    audits: bool = False
    """Whether the sweep is to be held against what the events told."""


class Epoch(msgspec.Struct):
    """One volume while it is watched without a gap."""

    name: str
    """Tells one from another; recorded in the snapshots that rest on it."""
    base: bytes = b""
    """Root object of the snapshot since which changes are known; empty before the first."""
    kept: Dirty = msgspec.field(default_factory=Dirty)
    """What a backup has to look at again: those before could not read it, or did not commit."""
    since_sweep: int = 0
    """Backups by events since the last sweep."""

    def begin(self, told: Swapped, head: bytes, unseen: str | None) -> Way:
        """Decide how to back up on top of `head`, the volume's last root object.

        `told`: what the source had, from behind the barrier. `unseen`: why writes that raise no
        event would not be noticed, or None.
        """
        if told.lost is not None:
            return Way(None, told.lost, is_lost=True)
        self.kept.merge(told.dirty)
        unproven = self._unproven(head, unseen)
        if unproven is not None:
            return Way(None, unproven)
        if self.since_sweep >= AUDIT_EVERY:
            return Way(self.kept, "every so often a sweep looks beside the events", audits=True)
        return Way(self.kept, "")

    def _unproven(self, head: bytes, unseen: str | None) -> str | None:
        if not self.base:
            return "it is watched since just now"
        if self.base != head:
            return "changes are known since another snapshot than the last one"
        if self.kept.size() > CAP:
            return f"more than {CAP} places have changed"
        return unseen

    def committed(self, root: bytes, again: Dirty, *, swept: bool) -> None:
        """Take note of the commit of what `begin` said; `again` has to be looked at once more."""
        self.since_sweep = 0 if swept else self.since_sweep + 1
        self.base, self.kept = root, again
