"""What tells that something changed in a volume, whichever part of the kernel it asks."""

from typing import ClassVar, NamedTuple, Protocol

from agent.beneath import Tree
from agent.tracking.dirty import Dirty


class Swapped(NamedTuple):
    """What was told of a volume since the last swap."""

    dirty: Dirty
    lost: str | None
    """Why more may have changed than that, in words for a person: nothing but a sweep helps."""


class Source(Protocol):
    """Watches volumes. All methods block and may be called from any thread.

    A source never loses a change without saying so, leaves no name in a volume, and holds no
    descriptor there between two calls: one that is open would keep it from being unmounted. While
    there is much to look at it may open a root for a moment by itself.
    """

    name: ClassVar[str]
    tells_inodes: ClassVar[bool] = True
    """Whether a file is told that was changed through a name which is in no volume, or gone."""

    def watch(self, volume_id: bytes, path: bytes) -> None:
        """Tell of every change that begins after this returns; what was told before is forgotten.

        Raises UntrackableError where this source cannot tell of that volume, and VolumeError where
        there is none.
        """

    def forget(self, volume_id: bytes) -> None:
        """Watch a volume no longer; nothing if it was not watched."""

    def barrier(self, timeout_seconds: float) -> bool:
        """Wait until everything is here that was told of what happened before this call.

        False where that cannot be known in time.
        """

    def swap(self, volume_id: bytes, tree: Tree) -> Swapped:
        """Return what was told of a volume, whose root `tree` holds, and begin a new set.

        After a loss the new set is of what `tree` holds, as if watch() had been called: a sweep
        that begins after this returns is enough. Where it cannot be watched, each swap is lost.
        """

    def close(self) -> None:
        """End."""
