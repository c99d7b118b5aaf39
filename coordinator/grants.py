"""Who may use how much of the network just now, and who may still use more than that. Pure.

A node's rate is lowered by a message that takes its time, or gets lost. So what it may be using is
what it was granted before, until it says that it has heard of less; only what is surely free is
granted to others. Thus the rates in use never add up to more than a cap. A grant is good for a
lease: a node that hears nothing more falls to a floor by itself, which is counted, too.

Which caps a node is under changes with what it works for. What it may be using was never free under
one that is new to it: it begins there with nothing. One that it has left counts until the node
has heard of a grant since, and so of all that it was told before, such as to stop.

Times are seconds of a clock that never goes back.
"""

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from coordinator.budget import Demand, left_of, max_min, share
from proto.rates import RATE_MAX
from repository.ids import NodeId

# Renewed three times before it ends, so that two may be late.
LEASE_SECONDS: Final = 1.5
RENEWAL_SECONDS: Final = 0.5
# What nodes that lost their coordinator go on with, unless told otherwise: slow, and not dead.
FLOOR_BYTES: Final = 1024 * 1024
# Of each cap, for all that are under it: if all but one are lost, that one still may use 95 %.
_FLOOR_PART: Final = 0.04
# A lost node may work for as long as its task has a grace (running.Limits); then it has stopped.
_LOST_SECONDS: Final = 30.0
# Smaller changes wait for the next renewal: each is a message, and one more to confirm it.
_CHANGE_PART: Final = 0.02
# Beside what a flow used, so that it can grow. If it had to wait for its rate for so much of the
# time, it grows faster. One that seems to want much less now may only have paused.
_GROWTH: Final = 1.1
_HEADROOM_BYTES: Final = 16 * 1024
_BLOCKED: Final = 0.4
_BLOCKED_GROWTH: Final = 1.5
_DECLINE: Final = 0.25
# More than any line carries: what is told is not believed without end.
_USED_MAX: Final = float(RATE_MAX)
# Less was measured in too short a time to mean anything.
_MEASURED_SECONDS: Final = 0.2


# A node that has not answered so many grants has an agent that knows of none.
_DEAF: Final = 5


class Way(StrEnum):
    """What a node sends or fetches."""

    BACKUP = "backup"
    RESTORE = "restore"


_Key = tuple[NodeId, Way]


class Grant(NamedTuple):
    """What a node may use until the lease is over, in bytes per second."""

    number: int
    backup: int
    restore: int
    floor: int
    """From then on, each way."""
    lease_seconds: float = LEASE_SECONDS


@dataclass(frozen=True, slots=True)
class Flow:
    """What a node tells of its traffic one way."""

    wants: bool
    """Something flows or waits to."""
    used_bytes: int = 0
    """Since it began to measure."""
    blocked_seconds: float = 0.0
    """Of that time, how long its rate was what it waited for."""


_NOTHING: Final = Flow(wants=False)


@dataclass(frozen=True, slots=True)
class Report:
    """What a node tells."""

    heard: int
    """The newest grant that it goes by."""
    seconds: float = 0.0
    """For how long it has measured."""
    backup: Flow = _NOTHING
    restore: Flow = _NOTHING


class Use(NamedTuple):
    """How a node stands, in bytes per second."""

    backup_rate: int | None
    restore_rate: int | None
    """None without a limit."""
    backup_used: float
    restore_used: float
    obeys: bool
    """Whether its agent knows of limits at all."""


@dataclass(slots=True)
class _Flow:
    """A node's traffic one way, in bytes per second."""

    wanted: float = 0.0
    granted: int = 0
    held: float = 0.0
    """The most that the node may be using."""
    used: float = 0.0
    former: float = math.inf
    """What it wanted before it wanted nothing."""

    def hear(self, told: Flow, seconds: float) -> None:
        """Take note of a report."""
        if not told.wants:
            self.former = self.wanted or self.former
            self.wanted = self.used = 0.0
            return
        measured = seconds >= _MEASURED_SECONDS
        if measured:
            self.used = min(told.used_bytes / seconds, _USED_MAX)
        if not self.granted or not self.wanted:
            self.wanted = self.wanted or self.former
        elif measured:
            self.wanted = self._next_wanted(told.blocked_seconds / seconds)

    def _next_wanted(self, blocked: float) -> float:
        """What it may want, if so much of the time it waited for its rate."""
        if blocked >= _BLOCKED:
            # One that never had enough may want anything.
            return max(self.wanted, self.granted * _BLOCKED_GROWTH)
        used = self.used * _GROWTH + _HEADROOM_BYTES
        return max(used, self.granted * _DECLINE)


@dataclass(slots=True)
class _Node:
    """A connected node, or one that was lost a moment ago."""

    under: tuple[Hashable, ...]
    """What it works under now."""
    left: dict[Hashable, int] = field(default_factory=dict)
    """What it worked under before: it counts until the node has heard of that grant."""
    is_moved: bool = False
    """Some of its caps are new: until it goes by its newest grant, it was given nothing there."""
    flows: dict[Way, _Flow] = field(default_factory=lambda: {way: _Flow() for way in Way})
    number: int = 0
    """Of the newest grant, and of the newest that it has heard of."""
    heard: int = 0
    floor: int = 0
    granted_at: float = -math.inf
    lost_at: float | None = None
    is_limited: bool = False
    """It was told of a limit on this connection."""

    @property
    def caps(self) -> tuple[Hashable, ...]:
        """All that its traffic counts against."""
        return (*self.under, *self.left)

    def move(self, under: tuple[Hashable, ...], caps: Mapping[Hashable, float]) -> bool:
        """Let it work under these from now on; whether one of the caps is new to it."""
        new = set(under) - set(self.caps)
        for cap in caps.keys() & (set(self.under) - set(under)):
            self.left[cap] = self.number + 1
        self.left = {cap: number for cap, number in self.left.items() if cap not in under}
        self.under = under
        is_new = not caps.keys().isdisjoint(new)
        self.is_moved |= is_new
        return is_new

    @property
    def wants(self) -> bool:
        """Whether anything flows, or waits to."""
        return any(flow.wanted for flow in self.flows.values())

    @property
    def holds(self) -> bool:
        """Whether it may be using anything."""
        return any(flow.held for flow in self.flows.values())

    def counted(self) -> tuple[object, ...]:
        """What is shared by."""
        flows = [(flow.wanted, flow.held) for flow in self.flows.values()]
        return (*flows, self.caps, self.is_moved)

    def expire(self, now: float) -> None:
        """Count the floor of a node whose lease is over, and that may not know of another."""
        over = now >= self.granted_at + LEASE_SECONDS
        if over and (self.lost_at is not None or self.heard != self.number):
            for flow in self.flows.values():
                flow.held = min(flow.held, self.floor)

    def is_due(self, rates: Mapping[Way, int], now: float) -> bool:
        """Whether it must be told of these rates."""
        if not self.is_limited or any(_differs(self.flows[way].granted, rates[way]) for way in Way):
            return True
        if any(number > self.number for number in self.left.values()):
            return True
        if now < self.granted_at + RENEWAL_SECONDS:
            return False
        lost = self.heard != self.number and self.number < _DEAF
        return lost or any(flow.wanted or flow.held for flow in self.flows.values())

    def grant(self, rates: Mapping[Way, int], floor: int, now: float) -> Grant:
        """Let it have these."""
        self.number += 1
        self.granted_at, self.floor, self.is_limited = now, floor, True
        for way, flow in self.flows.items():
            flow.granted = rates[way]
            flow.held = max(flow.held, rates[way])
        return Grant(self.number, rates[Way.BACKUP], rates[Way.RESTORE], floor)


class Grants:
    """The rates of all nodes. `None` for a grant means that nothing limits the node any more."""

    def __init__(self, floor_bytes: int = FLOOR_BYTES) -> None:
        self._floor_bytes = floor_bytes
        self._nodes: dict[NodeId, _Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def join(
        self,
        node_id: NodeId,
        under: tuple[Hashable, ...],
        caps: Mapping[Hashable, float],
        now: float,
    ) -> Grant | None:
        """A node has connected; it is told to wait for its part, if it is under any of the caps.

        It may go by what it was told on a former connection.
        """
        node = self._nodes.setdefault(node_id, _Node(under))
        node.move(under, caps)
        node.lost_at, node.is_limited = None, False
        for flow in node.flows.values():
            flow.wanted = flow.used = 0.0
        if caps.keys().isdisjoint(node.caps):
            return None
        return self._hold_back(node, caps, now)

    def put_under(
        self,
        node_id: NodeId,
        under: tuple[Hashable, ...],
        caps: Mapping[Hashable, float],
        now: float,
    ) -> Grant | None:
        """A node is about to work under these; it waits for its part, if one of them is new to it.

        None where it has heard of all that limits it.
        """
        node = self._nodes[node_id]
        is_new = node.move(under, caps)
        if not is_new and (node.is_limited or caps.keys().isdisjoint(node.caps)):
            return None
        return self._hold_back(node, caps, now)

    def leave_under(
        self, node_id: NodeId, under: tuple[Hashable, ...], caps: Mapping[Hashable, float]
    ) -> None:
        """A node works under none but these any more; what is new in them it is not under yet."""
        node = self._nodes[node_id]
        node.move(tuple(cap for cap in node.under if cap in under), caps)

    def _hold_back(self, node: _Node, caps: Mapping[Hashable, float], now: float) -> Grant:
        return node.grant(dict.fromkeys(Way, 0), self._floor(node, caps, len(self._nodes)), now)

    def lose(self, node_id: NodeId, now: float) -> None:
        """A node's connection has ended."""
        node = self._nodes.get(node_id)
        # One that has just paused may go on at what it had, if it has not heard of less.
        if node is not None and (node.wants or node.holds):
            node.lost_at = now
        else:
            self._nodes.pop(node_id, None)

    def hear(self, node_id: NodeId, report: Report) -> bool:
        """Take note of what a node tells; whether anything is to be shared otherwise now."""
        node = self._nodes.get(node_id)
        if node is None or node.lost_at is not None or report.heard > node.number:
            return False
        before = node.counted()
        node.heard = max(node.heard, report.heard)
        node.left = {cap: number for cap, number in node.left.items() if number > node.heard}
        node.is_moved &= report.heard != node.number
        for way, told in ((Way.BACKUP, report.backup), (Way.RESTORE, report.restore)):
            flow = node.flows[way]
            if report.heard == node.number:
                flow.held = flow.granted
            flow.hear(told, report.seconds)
        return before != node.counted()

    def share(
        self, caps: Mapping[Hashable, float], now: float
    ) -> list[tuple[NodeId, Grant | None]]:
        """Who is to be told of other rates, or of the same for longer."""
        self._forget(now)
        limited: dict[NodeId, _Node] = {}
        told: list[tuple[NodeId, Grant | None]] = []
        for node_id, node in self._nodes.items():
            node.expire(now)
            if not caps.keys().isdisjoint(node.caps):
                limited[node_id] = node
            elif node.is_limited and node.lost_at is None:
                node.is_limited, node.is_moved = False, False
                told.append((node_id, None))
        rates = _rates(limited, caps)
        for node_id, node in limited.items():
            if node.lost_at is None and node.is_due(rates[node_id], now):
                floor = self._floor(node, caps, len(limited))
                told.append((node_id, node.grant(rates[node_id], floor, now)))
        return told

    def uses(self) -> Iterator[tuple[NodeId, Use]]:
        """How each connected node stands."""
        for node_id, node in self._nodes.items():
            if node.lost_at is None:
                backup, restore = node.flows[Way.BACKUP], node.flows[Way.RESTORE]
                yield (
                    node_id,
                    Use(
                        backup_rate=backup.granted if node.is_limited else None,
                        restore_rate=restore.granted if node.is_limited else None,
                        backup_used=backup.used,
                        restore_used=restore.used,
                        obeys=node.heard > 0 or node.number < _DEAF,
                    ),
                )

    def _forget(self, now: float) -> None:
        for node_id, node in list(self._nodes.items()):
            if node.lost_at is not None and now >= node.lost_at + _LOST_SECONDS:
                del self._nodes[node_id]

    def _floor(self, node: _Node, caps: Mapping[Hashable, float], nodes: int) -> int:
        part = _FLOOR_PART / nodes
        return int(min(self._floor_bytes, *(caps[cap] * part for cap in node.caps if cap in caps)))


def _differs(granted: int, rate: int) -> bool:
    if not granted or not rate:
        return granted != rate
    return abs(rate - granted) > _CHANGE_PART * granted


def _rates(
    nodes: Mapping[NodeId, _Node], caps: Mapping[Hashable, float]
) -> dict[NodeId, dict[Way, int]]:
    """What each node may have now: no more than is fair, and than is surely free."""
    flows = {
        (node_id, way): (node, flow)
        for node_id, node in nodes.items()
        for way, flow in node.flows.items()
    }
    lost = {key: flow.held for key, (node, flow) in flows.items() if node.lost_at is not None}
    held = {key: flow.held for key, (node, flow) in flows.items() if node.lost_at is None}
    own = {key: 0.0 if flows[key][0].is_moved else rate for key, rate in held.items()}
    wanted = {key: flow.wanted for key, (_, flow) in flows.items() if key in held}

    def demands(amounts: Mapping[_Key, float], *ways: Way) -> list[Demand[_Key]]:
        return [
            Demand(key, amount, flows[key][0].caps)
            for key, amount in amounts.items()
            if amount > 0 and key[1] in ways
        ]

    def shared(amounts: Mapping[_Key, float], left: Mapping[Hashable, float]) -> dict[_Key, float]:
        return share(demands(amounts, Way.RESTORE), demands(amounts, Way.BACKUP), left)

    caps = left_of(caps, demands(lost, *Way), lost)
    fair = shared(wanted, caps)
    # What is measured is only so good: who could use more than it seemed may have what is left.
    everybody = demands(dict.fromkeys(fair, math.inf), *Way)
    rest = max_min(everybody, left_of(caps, everybody, fair))
    fair = {key: rate + rest[key] for key, rate in fair.items()}
    missing = {key: rate - held[key] for key, rate in fair.items()}
    more = shared(missing, left_of(caps, demands(held, *Way), held))
    return {
        node_id: {
            way: int(
                min(
                    fair.get((node_id, way), 0.0),
                    own[node_id, way] + more.get((node_id, way), 0.0),
                )
            )
            for way in Way
        }
        for node_id, node in nodes.items()
        if node.lost_at is None
    }
