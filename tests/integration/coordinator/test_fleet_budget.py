"""A fleet under a budget on virtual time: real grants, real throttles, messages that take a while.

In every second, whenever it begins, the fleet sends no more than 5 % above its cap; and at least
95 % of it while there is enough to send, once things have had SETTLING seconds to settle after a
change of the cap or a loss without a word.
"""

import asyncio
import math
import random
from collections.abc import Callable, Coroutine, Hashable

import pytest

from agent.throttle import Throttles
from coordinator.grants import LEASE_SECONDS, Flow, Grant, Grants, Report
from repository.ids import NodeId
from tests.fakes.throttled import hear, report_of
from tests.fakes.virtual import VirtualClock, busiest_second, run_virtually

CAP = 20_000_000
FLEET = "fleet"
# A lease, and one renewal.
SETTLING = 2.0
# How often the coordinator looks, as its loop does.
LOOK_SECONDS = 0.02

Scene = Callable[["Fleet"], Coroutine[None, None, None]]


class Fleet:
    """A coordinator's grants, and nodes that hear of them a little later."""

    def __init__(self, group: asyncio.TaskGroup, seed: int = 1) -> None:
        self.group = group
        self.random = random.Random(seed)
        self.clock = VirtualClock()
        self.grants = Grants()
        self.caps: dict[Hashable, float] = {FLEET: float(CAP)}
        self.nodes: dict[NodeId, Node] = {}
        self.sent: list[tuple[float, int]] = []
        self.is_coordinated = True

    def join(self, name: str, make_bytes_per_second: float = math.inf) -> "Node":
        node = Node(self, NodeId(name.encode()), make_bytes_per_second)
        self.nodes[node.node_id] = node
        caps = (FLEET, ("node", name))
        node.connected = True
        first = self.grants.join(node.node_id, caps, self.caps, self.clock.monotonic())
        if first is not None:
            self.deliver(node, first)
        node.tasks.append(self.group.create_task(node.work(), name=name))
        node.tasks.append(self.group.create_task(node.throttles.run(), name=f"ends of {name}"))
        return node

    def lose(self, node: "Node") -> None:
        """It dies, or its network does."""
        node.connected = False
        self.grants.lose(node.node_id, self.clock.monotonic())

    def later(self, then: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(self.random.uniform(0.001, 0.02), then)

    def deliver(self, node: "Node", grant: Grant | None) -> None:
        self.later(lambda: node.hear(grant))

    async def coordinate(self) -> None:
        while self.is_coordinated:
            for node_id, grant in self.grants.share(self.caps, self.clock.monotonic()):
                self.deliver(self.nodes[node_id], grant)
            await asyncio.sleep(LOOK_SECONDS)

    def used_since(self, begin: float, end: float) -> list[tuple[float, int]]:
        return [(at, size) for at, size in self.sent if begin < at <= end]

    def least_second(self, begin: float, end: float) -> float:
        """The fewest bytes of a second between the two, in steps of a tenth."""
        return min(
            sum(size for _, size in self.used_since(begin + step / 10, begin + step / 10 + 1))
            for step in range(int((end - begin - 1) * 10) + 1)
        )


class Node:
    """One node, which makes packs so fast, and sends them as it may."""

    def __init__(self, fleet: Fleet, node_id: NodeId, make_bytes_per_second: float) -> None:
        self.fleet = fleet
        self.node_id = node_id
        self.throttles = Throttles(fleet.clock)
        self.throttles.tell_with(lambda: fleet.later(self.tell))
        self.make_bytes_per_second = make_bytes_per_second
        self.connected = False
        self.restores = False
        self.sent_bytes = 0
        self.tasks: list[asyncio.Task[None]] = []

    def hear(self, grant: Grant | None) -> None:
        if self.connected:
            hear(self.throttles, grant)

    def tell(self) -> None:
        report = report_of(self.throttles)
        if report is not None and self.connected:
            self.fleet.grants.hear(self.node_id, report)

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            throttle = self.throttles.restore if self.restores else self.throttles.upload
            piece = throttle.piece_bytes
            if self.make_bytes_per_second < math.inf:
                await asyncio.sleep(piece / self.make_bytes_per_second)
            if not throttle.is_limited:
                await asyncio.sleep(0.01)
                continue
            piece = await throttle.take_some(piece)
            self.sent_bytes += piece
            self.fleet.sent.append((loop.time(), piece))

    def finish(self) -> None:
        """Have no more to send; the agent lives on."""
        self.tasks[0].cancel()

    def stop(self) -> None:
        """Die."""
        for task in self.tasks:
            task.cancel()


def play(scene: Scene, seed: int = 1) -> Fleet:
    async def run() -> Fleet:
        async with asyncio.TaskGroup() as group:
            fleet = Fleet(group, seed)
            running = group.create_task(fleet.coordinate(), name="coordinator")
            await scene(fleet)
            running.cancel()
            for node in fleet.nodes.values():
                node.stop()
        return fleet

    return run_virtually(run())


def test_three_nodes_share_a_cap_evenly_and_use_all_of_it() -> None:
    async def scene(fleet: Fleet) -> None:
        for name in ("a", "b", "c"):
            fleet.join(name)
        await asyncio.sleep(10)

    fleet = play(scene)

    assert busiest_second(fleet.sent) <= CAP * 1.05
    assert fleet.least_second(SETTLING, 10) >= CAP * 0.95
    shares = [node.sent_bytes for node in fleet.nodes.values()]
    assert min(shares) >= max(shares) * 0.9


@pytest.mark.timeout(60)
def test_hundreds_that_come_and_go_never_exceed_the_cap_and_use_it() -> None:
    async def scene(fleet: Fleet) -> None:
        present = [fleet.join(f"first {number}") for number in range(100)]
        for number in range(120):
            await asyncio.sleep(fleet.random.uniform(0, 0.12))
            leaving = present.pop(fleet.random.randrange(len(present)))
            leaving.finish()
            if number % 2:
                asyncio.get_running_loop().call_later(0.5, fleet.lose, leaving)
            present.append(fleet.join(f"later {number}"))

    fleet = play(scene, seed=1)

    end = fleet.sent[-1][0]
    assert busiest_second(fleet.sent) <= CAP * 1.05
    assert fleet.least_second(SETTLING, end) >= CAP * 0.95


def test_what_slow_nodes_leave_goes_to_the_fast_ones() -> None:
    async def scene(fleet: Fleet) -> None:
        for name in ("a", "b", "c"):
            fleet.join(name, make_bytes_per_second=1_000_000)
        fleet.join("fast")
        await asyncio.sleep(12)

    fleet = play(scene)

    assert busiest_second(fleet.sent) <= CAP * 1.05
    # They begin with pieces of a second, as they knew of no limit yet.
    assert fleet.least_second(1 + SETTLING, 12) >= CAP * 0.95
    slow = [node.sent_bytes for node in fleet.nodes.values()][:3]
    assert min(slow) >= 12 * 1_000_000 * 0.8


def test_a_cap_that_is_lowered_and_raised_holds_after_a_moment() -> None:
    async def scene(fleet: Fleet) -> None:
        for number in range(10):
            fleet.join(f"{number}")
        await asyncio.sleep(4)
        fleet.caps[FLEET] = CAP / 4
        await asyncio.sleep(4)
        fleet.caps[FLEET] = CAP
        await asyncio.sleep(4)

    fleet = play(scene)

    # What was under way when it was lowered counts for a tenth of a second, not more.
    assert busiest_second(fleet.used_since(4.1, 8.0)) <= CAP / 4 * 1.05
    assert fleet.least_second(4 + SETTLING, 8) >= CAP / 4 * 0.95
    assert busiest_second(fleet.used_since(8, 12)) <= CAP * 1.05
    assert fleet.least_second(8 + SETTLING, 12) >= CAP * 0.95


def test_a_limit_that_is_set_under_way_holds_and_one_that_is_lifted_is_gone() -> None:
    async def scene(fleet: Fleet) -> None:
        fleet.caps = {}
        for number in range(10):
            fleet.join(f"{number}")
        await asyncio.sleep(1)
        unlimited = [each.throttles.upload.is_limited for each in fleet.nodes.values()]
        fleet.caps[FLEET] = CAP
        await asyncio.sleep(5)
        fleet.caps = {}
        await asyncio.sleep(1)
        lifted = [each.throttles.upload.is_limited for each in fleet.nodes.values()]

        assert not any(unlimited)
        assert not any(lifted)

    fleet = play(scene)

    assert busiest_second(fleet.sent) <= CAP * 1.05
    assert fleet.least_second(1 + SETTLING, 6) >= CAP * 0.95


def test_a_restore_goes_first_and_backups_go_on() -> None:
    async def scene(fleet: Fleet) -> None:
        for name in ("a", "b"):
            fleet.join(name)
        restoring = fleet.join("restoring")
        restoring.restores = True
        await asyncio.sleep(8)

    fleet = play(scene)

    assert busiest_second(fleet.sent) <= CAP * 1.05
    restored = fleet.nodes[NodeId(b"restoring")].sent_bytes
    backed_up = [fleet.nodes[NodeId(name)].sent_bytes for name in (b"a", b"b")]
    assert restored >= CAP * 6 * 0.9
    assert min(backed_up) >= CAP * 6 * 0.02


def test_a_lost_node_leaves_the_others_what_it_had_but_for_its_floor() -> None:
    async def scene(fleet: Fleet) -> None:
        nodes = [fleet.join(name) for name in ("a", "b", "c")]
        await asyncio.sleep(4)
        # It goes on sending: to a store, which does not know of its loss.
        fleet.lose(nodes[0])
        await asyncio.sleep(6)

    fleet = play(scene)

    assert busiest_second(fleet.sent) <= CAP * 1.05
    assert fleet.least_second(4 + SETTLING, 10) >= CAP * 0.95


def test_a_node_that_died_leaves_95_percent_to_the_others() -> None:
    async def scene(fleet: Fleet) -> None:
        nodes = [fleet.join(name) for name in ("a", "b", "c")]
        await asyncio.sleep(4)
        nodes[0].stop()
        fleet.lose(nodes[0])
        await asyncio.sleep(6)

    fleet = play(scene)

    assert fleet.least_second(4 + SETTLING, 10) >= CAP * 0.95


def test_without_a_coordinator_all_fall_to_the_floor() -> None:
    async def scene(fleet: Fleet) -> None:
        for number in range(50):
            fleet.join(f"{number}")
        await asyncio.sleep(3)
        fleet.is_coordinated = False
        await asyncio.sleep(6)

    fleet = play(scene)

    used = busiest_second(fleet.used_since(3 + LEASE_SECONDS + 0.1, 9))
    assert CAP * 0.03 <= used <= CAP * 0.05


def test_a_limit_that_is_lifted_while_a_node_is_lost_is_told_to_those_that_are_not() -> None:
    grants = Grants()
    caps: dict[Hashable, float] = {FLEET: float(CAP)}
    lost, found = NodeId(b"lost"), NodeId(b"found")
    for node_id in (lost, found):
        grants.join(node_id, (FLEET,), caps, 0.0)
        grants.hear(node_id, Report(1, backup=Flow(wants=True)))
    grants.share(caps, 0.0)
    grants.lose(lost, 0.1)

    assert grants.share({}, 0.2) == [(found, None)]


def test_a_node_that_comes_back_is_told_to_wait_and_counts_what_it_may_still_use() -> None:
    grants = Grants()
    caps: dict[Hashable, float] = {FLEET: float(CAP)}
    back, other = NodeId(b"back"), NodeId(b"other")
    grants.join(back, (FLEET,), caps, 0.0)
    grants.hear(back, Report(1, backup=Flow(wants=True)))
    [(_, grant)] = grants.share(caps, 0.0)
    assert grant is not None
    grants.lose(back, 0.1)
    again = grants.join(back, (FLEET,), caps, 0.2)
    grants.join(other, (FLEET,), caps, 0.2)
    grants.hear(other, Report(1, backup=Flow(wants=True)))
    before = dict(grants.share(caps, 0.3))
    grants.hear(back, Report(3))
    after = dict(grants.share(caps, 0.4))

    assert (grant.backup, again is not None and again.backup) == (CAP, 0)
    assert other not in before
    freed = after[other]
    assert freed is not None
    assert freed.backup == CAP


def test_a_nodes_own_cap_is_its_alone() -> None:
    async def scene(fleet: Fleet) -> None:
        fleet.caps["node", "a"] = 2_000_000.0
        for name in ("a", "b"):
            fleet.join(name)
        await asyncio.sleep(6)

    fleet = play(scene)

    assert fleet.nodes[NodeId(b"a")].sent_bytes <= 2_000_000 * 6 * 1.02
    assert fleet.least_second(SETTLING, 6) >= CAP * 0.95


def test_an_agent_that_knows_of_no_limits_holds_nobody_up_and_shows() -> None:
    async def scene(fleet: Fleet) -> None:
        fleet.join("deaf").connected = False
        fleet.join("a")
        await asyncio.sleep(6)

    fleet = play(scene)

    obeys = {node_id: use.obeys for node_id, use in fleet.grants.uses()}
    assert obeys == {NodeId(b"deaf"): False, NodeId(b"a"): True}
    assert fleet.least_second(SETTLING, 6) >= CAP * 0.95
