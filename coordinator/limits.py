"""Limits of the network: for the fleet, a repository or a node, always or in a window. Pure.

A window is of wall time in a zone, so that "at night" stays at night when clocks are put forward
or back: a limit is in force whenever a clock on the wall there shows a time in its window. Where a
clock jumps into a window it begins with the jump; an hour that is shown twice counts twice.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from typing_extensions import override

from coordinator.errors import UsageError
from proto.rates import RATE_MAX, RATE_MIN, format_rate

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVERY_DAY: Final = frozenset(range(7))
_DAY_MINUTES: Final = 24 * 60
# A window comes again within a week, on whatever days it is.
_HORIZON_DAYS: Final = 8
# Of one scope: more could not be read any more.
_RULES_MAX: Final = 50


class Scope(StrEnum):
    """Whose traffic a limit is for."""

    FLEET = "fleet"
    REPOSITORY = "repository"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Window:
    """From a minute of the day until before another; of the next day if that is not later."""

    begin: int
    """Minutes since midnight, as a clock on the wall shows them."""
    end: int
    zone: str = "UTC"
    days: frozenset[int] = EVERY_DAY
    """Of those on which it begins; Monday is 0."""

    def holds(self, instant: datetime) -> bool:
        """Whether it is open; `instant` has a zone."""
        wall = instant.astimezone(ZoneInfo(self.zone))
        minute, day = wall.hour * 60 + wall.minute, wall.weekday()
        if self.begin < self.end:
            return self.begin <= minute < self.end and day in self.days
        if minute >= self.begin:
            return day in self.days
        return minute < self.end and (day - 1) % 7 in self.days

    def edges(self, instant: datetime) -> Iterator[datetime]:
        """Yield each moment of the next days at which it may open or close, in any order."""
        zone = ZoneInfo(self.zone)
        today = instant.astimezone(zone).date()
        for number in range(-1, _HORIZON_DAYS + 1):
            day = today + timedelta(days=number)
            for minute in (self.begin, self.end):
                wall = datetime.combine(day, time(*divmod(minute, 60)), zone)
                for fold in (0, 1):
                    yield wall.replace(fold=fold).astimezone(UTC)
            yield from _jumps(day, zone)

    @override
    def __str__(self) -> str:
        return f"{_clock(self.begin)}-{_clock(self.end)} {format_days(self.days)} {self.zone}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit in bytes per second, or none; always or in a window."""

    rate: int | None
    window: Window | None = None

    @override
    def __str__(self) -> str:
        rate = "off" if self.rate is None else format_rate(self.rate)
        return rate if self.window is None else f"{rate} {self.window}"


@dataclass(frozen=True, slots=True)
class Limit:
    """All rules of one scope: of one node, say."""

    scope: Scope
    subject: bytes
    """Id of the node or repository; empty for the fleet."""
    rules: tuple[Rule, ...]

    def in_force(self, instant: datetime) -> Rule | None:
        """The rule that counts now; None if there is none, or it says that there is no limit.

        Of those whose window is open the one that was set last, or else that without a window.
        """
        found: Rule | None = None
        for rule in self.rules:
            if rule.window is None:
                found = found or rule
            elif rule.window.holds(instant):
                found = rule
        return None if found is None or found.rate is None else found

    def rate(self, instant: datetime) -> int | None:
        """Bytes per second now; None without a limit."""
        rule = self.in_force(instant)
        return None if rule is None else rule.rate

    def changes_at(self, instant: datetime) -> datetime | None:
        """The first moment after this one at which the rate is another; None if none is near."""
        now = self.rate(instant)
        windows = [rule.window for rule in self.rules if rule.window is not None]
        edges = {edge for window in windows for edge in window.edges(instant) if edge > instant}
        return next((edge for edge in sorted(edges) if self.rate(edge) != now), None)


def with_rule(rules: Sequence[Rule], rule: Rule) -> tuple[Rule, ...]:
    """The rules after one more was set: it replaces the one of the same window.

    What is set off without a window takes all of them away; off in a window means that the limit
    which counts otherwise does not count there.
    """
    if rule.window is None and rule.rate is None:
        return ()
    kept = [each for each in rules if each.window != rule.window]
    kept = [rule, *kept] if rule.window is None else [*kept, rule]
    if all(each.rate is None for each in kept):
        return ()
    if len(kept) > _RULES_MAX:
        raise UsageError(
            f"there are {_RULES_MAX} windows already", hint="take them away first, with off"
        )
    return tuple(kept)


def check_rule(rule: Rule) -> Rule:
    """Return it, if it can be; UsageError."""
    if rule.rate is not None and not RATE_MIN <= rule.rate <= RATE_MAX:
        raise UsageError(
            f"a limit of {format_rate(rule.rate)} is not possible",
            hint=f"it can be from {format_rate(RATE_MIN)} to {format_rate(RATE_MAX)}, or off",
        )
    window = rule.window
    if window is None:
        return rule
    if not all(0 <= minute < _DAY_MINUTES for minute in (window.begin, window.end)):
        raise UsageError("a window begins and ends within a day", hint="write times as 22:00")
    if not (window.days and window.days <= EVERY_DAY):
        raise UsageError("a window is open on no day", hint="write days as mon-fri or sat,sun")
    try:
        ZoneInfo(window.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"{window.zone!r} is no time zone that the coordinator knows",
            hint="write one as Europe/Berlin, or UTC; a small system needs its tzdata package",
        ) from error
    return rule


def next_change(limits: Iterable[Limit], instant: datetime) -> datetime | None:
    """When any of the limits has another rate."""
    return min(
        (at for each in limits if (at := each.changes_at(instant)) is not None), default=None
    )


def format_days(days: frozenset[int]) -> str:
    """As `mon-fri`, `sat,sun`, or `daily`."""
    if days == EVERY_DAY:
        return "daily"
    ordered = sorted(days)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{DAYS[ordered[0]]}-{DAYS[ordered[-1]]}"
    return ",".join(DAYS[day] for day in ordered)


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _jumps(day: date, zone: ZoneInfo) -> Iterator[datetime]:
    """Yield when clocks are put forward or back on that day, to the second."""
    low = datetime.combine(day, time(), zone).astimezone(UTC)
    high = low + timedelta(days=1)
    if low.astimezone(zone).utcoffset() == high.astimezone(zone).utcoffset():
        return
    before = low.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) // 2
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    yield high.replace(microsecond=0)
