"""When a store that keeps failing is left alone. Purely: time is an argument.

    closed ──── so many failures in a row ───► open ◄──────────────┐
      ▲                                         │ its time is over  │ the probe failed
      └──── the probe was answered ──── half open ─────────────────┘

Closed, all calls go through. Open, none does. Half open, a single one does: the probe. What a call
comes to counts only in the time in which it was let through: an answer that was asked for before
the store failed says nothing of the store as it is now.
"""

from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Final, NamedTuple

# More than any ceiling, and still a number of sensible size.
_DOUBLINGS_MAX: Final = 60


class Phase(StrEnum):
    """Of a circuit."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class Outcome(Enum):
    """What a call says of the store."""

    ANSWERED = "answered"
    """It works, whatever it said."""
    FAILED = "failed"
    NOTHING = "nothing"
    """The call ended without getting that far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to leave a store alone, and for how long."""

    failures_max: int = 5
    """In a row. Fewer would be the bad luck of some calls that began together."""
    open_seconds_first: float = 5.0
    """A gateway that is started anew is back by then."""
    open_seconds_max: float = 120.0
    """Doubled up to here. Longer would keep work waiting for a store that is back."""

    def open_seconds(self, openings: int) -> float:
        """How long it stays open, the so many-th time in a row, counted from 1."""
        doubled = self.open_seconds_first * (1 << min(openings - 1, _DOUBLINGS_MAX))
        return min(self.open_seconds_max, doubled)


class Ticket(NamedTuple):
    """A call was let through, and when."""

    period: int


@dataclass(frozen=True, slots=True)
class Circuit:
    """All that is known of a store's health. Times are seconds of one clock."""

    phase: Phase = Phase.CLOSED
    failures: int = 0
    """In a row, while closed; those that opened it, while it is not."""
    failing_since: float = 0.0
    """The first of these failures."""
    retry_at: float = 0.0
    """When an open one lets the probe through."""
    openings: int = 0
    """Since it was closed last."""
    period: int = 0
    """Grows with every change of phase."""

    def admit(self, now: float) -> tuple["Circuit", Ticket | None]:
        """Whether a call may be made now; None if not."""
        if self.phase is Phase.CLOSED:
            return self, Ticket(self.period)
        if self.phase is Phase.OPEN and now >= self.retry_at:
            half_open = _entering(self, Phase.HALF_OPEN)
            return half_open, Ticket(half_open.period)
        return self, None

    def settle(self, ticket: Ticket, outcome: Outcome, now: float, limits: Limits) -> "Circuit":
        """What becomes of it when a call has ended."""
        if ticket.period != self.period:
            return self
        if outcome is Outcome.NOTHING:
            # The probe is still to be made, and at once.
            return _entering(self, Phase.OPEN) if self.phase is Phase.HALF_OPEN else self
        if outcome is Outcome.ANSWERED:
            if self.phase is Phase.CLOSED:
                return replace(self, failures=0) if self.failures else self
            return Circuit(period=self.period + 1)
        return self._fail(now, limits)

    def _fail(self, now: float, limits: Limits) -> "Circuit":
        failed = replace(
            self,
            failures=self.failures + 1,
            failing_since=self.failing_since if self.failures else now,
        )
        if self.phase is Phase.CLOSED and failed.failures < limits.failures_max:
            return failed
        openings = self.openings + 1
        opened = replace(failed, openings=openings, retry_at=now + limits.open_seconds(openings))
        return _entering(opened, Phase.OPEN)


def _entering(circuit: Circuit, phase: Phase) -> Circuit:
    return replace(circuit, phase=phase, period=circuit.period + 1)
