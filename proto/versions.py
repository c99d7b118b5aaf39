"""Which version of the protocol an agent and a coordinator speak with each other. Pure.

Each side tells the oldest and the newest version that it speaks; they use the newest that both
speak. A change that the other side may ignore, such as a new field, is no new version. One that it
must understand is: raise `newest`, and `oldest` only when the former version is spoken no more.
"""

from enum import Enum
from typing import Final, NamedTuple

from typing_extensions import override


class Versions(NamedTuple):
    """What one side speaks: every version from the oldest to the newest."""

    oldest: int
    newest: int

    @override
    def __str__(self) -> str:
        same = self.oldest == self.newest
        return f"{self.newest}" if same else f"{self.oldest} to {self.newest}"


class Side(Enum):
    """Who is too old to be understood, and must be upgraded."""

    AGENT = "agent"
    COORDINATOR = "coordinator"


# What this program speaks.
PROTOCOL: Final = Versions(oldest=1, newest=1)


def told(oldest: int, newest: int) -> Versions:
    """Return what a message says; ValueError for what no program means.

    Zero is what a field holds that was not set: of a side that tells one version alone, or none.
    """
    if oldest > newest:
        raise ValueError(f"version {oldest} is not older than {newest}")
    return Versions(oldest or newest, newest)


def agree(agent: Versions, coordinator: Versions) -> int | Side:
    """Return the version that both speak; if there is none, who is too old."""
    newest = min(agent.newest, coordinator.newest)
    if newest >= max(agent.oldest, coordinator.oldest):
        return newest
    return Side.AGENT if agent.newest < coordinator.oldest else Side.COORDINATOR
