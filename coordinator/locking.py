"""Until when objects are locked. Pure: decided from what is known of them, and the time.

A snapshot promises that for the lock's length from its commit on nobody can delete what it needs.
Its root and refs are its own and are locked for exactly that. Packs, and what founds the
repository, are needed by the next snapshots as well: they are locked for a slack longer, and again
once less than the length is left. So hourly snapshots cost an object one request in each slack, and
not one in each hour.

Times are nanoseconds since 1970; ends of locks are whole seconds, since stores know no others.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from coordinator.model import NANOSECONDS

# A quarter more of storage for what nobody needs any more is what the saved requests may cost; and
# for long locks a week, as one request a week and pack is little already.
_SLACK_SHARE: Final = 4
_SLACK_NS_MAX: Final = 7 * 86400 * NANOSECONDS

# Of what nobody has locked, or nobody knows to be.
UNLOCKED: Final = 0


class Held(NamedTuple):
    """An object, and until when it is known to be locked."""

    name: str
    locked_until: int = UNLOCKED


class Lock(NamedTuple):
    """What the settings ask for."""

    length_ns: int

    @property
    def slack_ns(self) -> int:
        """How much longer than needed what several snapshots share is locked."""
        return min(self.length_ns // _SLACK_SHARE, _SLACK_NS_MAX)

    def needed_until(self, committed_at: int) -> int:
        """What a snapshot promises that is committed then."""
        return _whole_seconds(committed_at + self.length_ns)

    def granted_until(self, now: int) -> int:
        """For how long an object is locked that is locked now, and shared."""
        return _whole_seconds(now + self.length_ns + self.slack_ns)

    def lapsing(self, objects: Iterable[Held], committed_at: int) -> list[str]:
        """Names of those that a snapshot committed then cannot rest on before they are locked."""
        needed = self.needed_until(committed_at)
        return [each.name for each in objects if each.locked_until < needed]


def _whole_seconds(nanoseconds: int) -> int:
    """The first whole second that is no earlier."""
    return -(-nanoseconds // NANOSECONDS) * NANOSECONDS
