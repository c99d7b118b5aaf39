"""How long a store is waited for, and how often it is asked again. Purely: time is an argument.

An operation is tried until its deadline. Each try has a limit of its own, so that an answer that
never comes costs one try and not the operation. Between tries there is full jitter: a wait drawn
evenly from nothing up to a ceiling that doubles. So those that failed together do not come back
together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from repository.store.interface import Operation

# Until the first byte of an answer. S3 answers in 0.1 s or so, and rarely in some seconds; a page
# of a listing is gathered from many places first.
_ANSWER_SECONDS: Final[Mapping[Operation, float]] = MappingProxyType(
    {
        Operation.PUT: 20.0,
        Operation.GET: 15.0,
        Operation.HEAD: 10.0,
        Operation.LIST: 30.0,
        Operation.DELETE: 15.0,
    }
)
# 2^60 times anything is more than any ceiling, and still a float.
_DOUBLINGS_MAX: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How much of it there is."""

    wait_seconds_first: float = 0.1
    """Ceiling of the first wait: a lost connection is back at once."""
    wait_seconds_max: float = 20.0
    """Ceiling of all waits; that of Amazon's own clients. A store that asks to slow down recovers
    within a minute."""
    total_seconds: float = 120.0
    """For all tries and waits of an operation, beside what one good try may take. Less than a
    session's lease: whoever waits for a store still may write afterwards."""
    begin_seconds: float | None = None
    """No further try begins after so long, whatever time is left; None where that is all of it.
    For whoever waits for large objects, too: the time for many bytes is not for many tries."""
    answer_seconds: Mapping[Operation, float] = field(default_factory=lambda: _ANSWER_SECONDS)
    bytes_per_second_min: float = 64 * 1024
    """The slowest line that counts as one; as agents hold it with the coordinator."""
    unknown_bytes: int = 256 * 1024
    """Taken for the size of an object that nobody has told. Most are far smaller; for those that
    are not, each try may take twice as long as the one before."""

    def limit_seconds(self, operation: Operation, size_bytes: int | None, tries: int) -> float:
        """How long one try may take, after so many others."""
        if size_bytes is None:
            size_bytes = self.unknown_bytes << min(tries, _DOUBLINGS_MAX)
        return self.answer_seconds[operation] + size_bytes / self.bytes_per_second_min

    def deadline_seconds(self, operation: Operation, size_bytes: int | None) -> float:
        """How long an operation may take, all tries and waits together."""
        return self.total_seconds + self.limit_seconds(operation, size_bytes, 0)

    def spare_seconds(self, operation: Operation, size_bytes: int | None, passed: float) -> float:
        """Within how long the next try has to begin, when so much time has passed."""
        end = self.deadline_seconds(operation, size_bytes)
        if self.begin_seconds is not None:
            end = min(end, self.begin_seconds)
        return end - passed

    def wait_ceiling_seconds(self, tries: int) -> float:
        """The longest wait after so many tries, at least one."""
        doubled = self.wait_seconds_first * (1 << min(tries - 1, _DOUBLINGS_MAX))
        return min(self.wait_seconds_max, doubled)

    def next_wait_seconds(self, tries: int, left_seconds: float, draw: float) -> float | None:
        """How long to wait after so many failed tries; None where it is time to give up.

        Args:
            tries: That were made, at least one.
            left_seconds: Within which the next try has to begin.
            draw: From 0 to 1, evenly.
        """
        wait = draw * self.wait_ceiling_seconds(tries)
        # Up to the deadline and then no try would be time wasted.
        return wait if wait < left_seconds else None
