"""Whether a filesystem has room for clones. Pure.

A clone costs nothing when it is made, and as much as is rewritten of its file while it is kept: the
blocks that were. So what its file had changed from one backup to the next is what it will cost; of
a new one all of it is counted, and half as much after each backup that finds it as it was.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

# A filesystem that is nearly full is slow, and its owner's: below this share, in percent, of free
# space there are no clones.
_FREE_PERCENT_MIN: Final = 20
# Nobody writes evenly: twice of what changed last time must fit.
_MARGIN: Final = 2


class Room(NamedTuple):
    """A filesystem's size and free space, in bytes."""

    total: int
    free: int


def has_room(room: Room, changed: Iterable[int]) -> bool:
    """Tell whether clones may be kept of files that change by so many bytes between two backups."""
    is_roomy = room.free * 100 > room.total * _FREE_PERCENT_MIN
    return is_roomy and room.free > _MARGIN * sum(changed)
