"""The fleet's budget of network: limits from the catalog, demands of nodes, grants to them.

What is decided stands in limits.py, budget.py and grants.py. This loop tells them the time, and
tells the nodes what comes of it. While nothing is limited no node is told anything, and it waits.
"""

import asyncio
import math
from collections.abc import Callable, Hashable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from coordinator.catalog import Catalog
from coordinator.grants import Grant, Grants, Report, Use
from coordinator.limits import Limit, Rule, Scope, check_rule, next_change
from coordinator.links import AgentLink, GrantBandwidth
from coordinator.logs import get_logger
from coordinator.metrics import Metrics
from coordinator.model import NANOSECONDS, Node
from repository.ids import NodeId, RepositoryId

log = get_logger()

# Reports that come together are answered together; for each node, sharing takes about so long.
_TOGETHER_SECONDS: Final = 0.02
_TOGETHER_SECONDS_PER_NODE: Final = 0.0001
# Beside what is reported: leases are renewed, and those of lost nodes end.
_LOOK_SECONDS: Final = 0.1
# The clock on the wall may be set anew while we wait for a window to open.
_CLOCK_SECONDS: Final = 60.0
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class Bandwidth:
    """Runs as long as the server. Used from one event loop only."""

    def __init__(
        self,
        catalog: Catalog,
        first: RepositoryId,
        metrics: Metrics,
        *,
        working_with: Callable[[NodeId], AbstractSet[RepositoryId | None]],
        clock: Callable[[], int],
        floor_bytes: int,
    ) -> None:
        self._catalog = catalog
        self._working_with = working_with
        self._first = first
        self._metrics = metrics
        self._clock = clock
        self._grants = Grants(floor_bytes)
        self._links: dict[NodeId, AgentLink] = {}
        self._limits: list[Limit] = []
        self._caps: dict[Hashable, float] = {}
        # The clock on the wall decides, and is looked at now and then whatever it said before.
        self._caps_until = _NEVER
        self._looked_at = -math.inf
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """Read the limits; once, before anything runs."""
        self._limits = await self._catalog.bandwidth.limits()
        self._look_at_clock()

    async def run(self) -> None:
        """Never returns."""
        while True:
            self._look_at_clock()
            self._share()
            self._changed.clear()
            together = _TOGETHER_SECONDS + len(self._links) * _TOGETHER_SECONDS_PER_NODE
            await asyncio.sleep(together if self._caps else 0)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._changed.wait()

    # ---- limits ---------------------------------------------------------------------------------

    def limits(self) -> list[Limit]:
        """All that there are."""
        return list(self._limits)

    def now(self) -> datetime:
        """The coordinator's time."""
        return datetime.fromtimestamp(self._clock() / NANOSECONDS, UTC)

    async def add_rule(self, scope: Scope, subject: bytes, rule: Rule, *, by: str) -> Limit:
        """Set a rule, from this moment on; UsageError."""
        limit = await self._catalog.bandwidth.add_rule(scope, subject, check_rule(rule))
        others = [each for each in self._limits if (each.scope, each.subject) != (scope, subject)]
        self._limits = [*others, limit] if limit.rules else others
        log.info("bandwidth set", scope=scope, subject=subject.hex(), rule=str(rule), by=by)
        self._caps_until = self.now()
        self._changed.set()
        return limit

    def _look_at_clock(self) -> None:
        """Take the limits as they are now, if they may be others than before."""
        now, at = self.now(), _monotonic()
        if at < self._looked_at + _CLOCK_SECONDS and now < self._caps_until:
            return
        before, self._looked_at = self._caps, at
        rates = {(each.scope, each.subject): each.rate(now) for each in self._limits}
        self._caps = {cap: float(rate) for cap, rate in rates.items() if rate is not None}
        self._caps_until = next_change(self._limits, now) or _NEVER
        if before != self._caps:
            log.info("bandwidth limits", in_force=[f"{s} {r:.0f} B/s" for s, r in self._in_force()])

    def _in_force(self) -> Iterator[tuple[str, float]]:
        for each in self._limits:
            if (rate := self._caps.get((each.scope, each.subject))) is not None:
                link = self._links.get(NodeId(each.subject))
                subject = each.subject.hex() if link is None else link.node.name
                yield f"{each.scope} {subject}".strip(), rate

    def _pause(self) -> float:
        if self._caps and self._links:
            return _LOOK_SECONDS
        seconds = (self._caps_until - self.now()).total_seconds()
        return max(_LOOK_SECONDS, min(_CLOCK_SECONDS, seconds))

    # ---- nodes ----------------------------------------------------------------------------------

    def join(self, link: AgentLink, *, is_at_work: bool) -> None:
        """A node has connected: it hears of a limit before it is given anything to do.

        One that is at work goes by its floor, if it was limited before; it hears of no limit, too.
        """
        self._look_at_clock()  # it may just have been set otherwise
        node_id = link.node.node_id
        self._links[node_id] = link
        link.before_task = self._begin_task
        under = self._under(node_id)
        grant = self._grants.join(node_id, under, self._caps, _monotonic())
        if grant is not None or is_at_work:
            link.send(GrantBandwidth(grant))
        self._changed.set()

    def _begin_task(self, link: AgentLink) -> None:
        """A node is about to be sent a task: it hears first of what limits it with that.

        It works with another repository then, perhaps, whose limit it has not been under.
        """
        node_id = link.node.node_id
        if self._links.get(node_id) is not link:
            return
        self._look_at_clock()
        grant = self._grants.put_under(node_id, self._under(node_id), self._caps, _monotonic())
        if grant is not None:
            link.send(GrantBandwidth(grant))
        self._changed.set()

    def _under(self, node_id: NodeId) -> tuple[Hashable, ...]:
        """The limits that a node's traffic counts against: of all repositories that it works with.

        With several at once it is not known which of them gets how much, so all of it counts for
        each. One that does nothing is taken to be with the first.
        """
        at_work = self._working_with(node_id) or {None}
        repositories = sorted({each or self._first for each in at_work})
        return (
            (Scope.FLEET, b""),
            *((Scope.REPOSITORY, bytes(each)) for each in repositories),
            (Scope.NODE, bytes(node_id)),
        )

    def leave(self, link: AgentLink) -> None:
        """A connection has ended; nothing, if the node has a newer one."""
        if self._links.get(link.node.node_id) is link:
            del self._links[link.node.node_id]
            self._grants.lose(link.node.node_id, _monotonic())
            self._changed.set()

    def hear(self, node_id: NodeId, report: Report) -> None:
        """A node tells what it could use."""
        if self._grants.hear(node_id, report):
            self._changed.set()

    def uses(self) -> list[tuple[Node, Use]]:
        """How the connected nodes stand, by name."""
        found = [(self._links[node_id].node, use) for node_id, use in self._grants.uses()]
        return sorted(found, key=lambda each: each[0].name)

    def _share(self) -> None:
        for node_id in self._links if self._caps else ():
            self._grants.leave_under(node_id, self._under(node_id), self._caps)
        told: list[tuple[NodeId, Grant | None]] = self._grants.share(self._caps, _monotonic())
        for node_id, grant in told:
            self._links[node_id].send(GrantBandwidth(grant))
        self._metrics.set_bandwidth(
            dict(self._in_force()),
            {
                (node.name, way): used
                for node, use in self.uses()
                if use.backup_rate is not None
                for way, used in (("backup", use.backup_used), ("restore", use.restore_used))
            },
        )


def _monotonic() -> float:
    """Seconds of a clock that never goes back."""
    return asyncio.get_running_loop().time()
