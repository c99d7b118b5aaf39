"""Limits of repositories on virtual time: nodes change over, work with two, are lost or canceled.

What goes to a repository, in every second, is no more than 5 % above its cap, whoever sends it; and
at least 95 % of it while nodes work with one repository at a time, and there is enough to send.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Hashable
from functools import partial

import pytest

from agent.throttle import Throttle, Throttles
from coordinator.grants import LEASE_SECONDS, Flow, Grant, Grants, Report
from repository.ids import NodeId
from tests.fakes.throttled import hear, report_of
from tests.fakes.virtual import VirtualClock, busiest_second, run_virtually

MB = 1_000_000
FLEET = "fleet"
# A lease, and one renewal.
SETTLING = 2.0
# How often the coordinator looks, as its loop does.
LOOK_SECONDS = 0.02
# As fast as a node sends that nothing limits.
LINE_BYTES = 100 * MB

Scene = Callable[["Fleet"], Coroutine[None, None, None]]
Sent = list[tuple[float, int]]


class Fleet:
    """A coordinator's grants, and nodes that get tasks for one repository or another."""

    def __init__(self, group: asyncio.TaskGroup, caps: dict[Hashable, float], seed: int) -> None:
        self.group = group
        self.random = random.Random(seed)
        self.clock = VirtualClock()
        self.grants = Grants()
        self.caps = caps
        self.nodes: dict[NodeId, Node] = {}
        self.sent: list[tuple[float, int, str]] = []
        self.is_coordinated = True

    def join(self, name: str) -> "Node":
        node = Node(self, NodeId(name.encode()))
        self.nodes[node.node_id] = node
        self.connect(node)
        return node

    def connect(self, node: "Node") -> None:
        """With the same tasks as before."""
        node.down, node.up = Line(self.random), Line(self.random)
        now = self.clock.monotonic()
        grant = self.grants.join(node.node_id, self.under(node), self.caps, now)
        if grant is not None or node.tasks:
            node.down.send(partial(node.hear, grant))

    def lose(self, node: "Node") -> None:
        """Its connection is cut, with what is under way on it; it goes on with what it does."""
        node.down.cut()
        node.up.cut()
        self.grants.lose(node.node_id, self.clock.monotonic())

    def start(self, node: "Node", repository: str, *, restores: bool = False) -> "Task":
        """Give it a task."""
        task = Task(node, repository, node.throttles.restore if restores else node.throttles.upload)
        node.tasks.append(task)
        now = self.clock.monotonic()
        grant = self.grants.put_under(node.node_id, self.under(node), self.caps, now)
        if grant is not None:
            node.down.send(partial(node.hear, grant))
        node.down.send(task.begin)
        return task

    def cancel(self, task: "Task") -> None:
        """Have nothing to do with a task any more, and let its node hear of it."""
        task.node.tasks.remove(task)
        task.node.down.send(task.stop)

    def under(self, node: "Node") -> tuple[Hashable, ...]:
        repositories = sorted({task.repository for task in node.tasks} or {"first"})
        return (FLEET, *repositories, ("node", bytes(node.node_id)))

    async def coordinate(self) -> None:
        while True:
            if self.is_coordinated:
                self.share()
            await asyncio.sleep(LOOK_SECONDS)

    def share(self) -> None:
        for node in self.nodes.values():
            if node.down.is_up:
                self.grants.leave_under(node.node_id, self.under(node), self.caps)
        for node_id, grant in self.grants.share(self.caps, self.clock.monotonic()):
            node = self.nodes[node_id]
            node.down.send(partial(node.hear, grant))

    def to(self, repository: str | None = None, begin: float = 0, end: float = 1e9) -> Sent:
        """What was sent to one, or to all of them."""
        return [
            (at, size)
            for at, size, where in self.sent
            if begin < at <= end and (repository is None or where == repository)
        ]

    def least_second(self, repository: str | None, begin: float, end: float) -> float:
        """The fewest bytes of a second between the two, in steps of a tenth."""
        tenths = [0] * (int((end - begin) * 10) + 1)
        for at, size in self.to(repository, begin, end):
            tenths[int((at - begin) * 10)] += size
        # The last tenth is not whole.
        return min(sum(tenths[step : step + 10]) for step in range(len(tenths) - 10))


class Line:
    """One direction of a connection: messages take a while, and come in order."""

    def __init__(self, randomness: random.Random) -> None:
        self.random = randomness
        self.is_up = True
        self.last = 0.0

    def send(self, then: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.last = max(self.last + 1e-6, loop.time() + self.random.uniform(0.001, 0.02))
        loop.call_at(self.last, self._arrive, then)

    def cut(self) -> None:
        self.is_up = False

    def _arrive(self, then: Callable[[], None]) -> None:
        if self.is_up:
            then()


class Node:
    """One node; all that it does goes by the same throttles."""

    def __init__(self, fleet: Fleet, node_id: NodeId) -> None:
        self.fleet = fleet
        self.node_id = node_id
        self.throttles = Throttles(fleet.clock)
        self.throttles.tell_with(lambda: self.up.send(self.tell))
        self.down = self.up = Line(fleet.random)
        # As the coordinator knows them.
        self.tasks: list[Task] = []
        self.ends = fleet.group.create_task(self.throttles.run(), name=f"ends of {node_id!r}")
        self.running: list[asyncio.Task[None]] = [self.ends]

    def hear(self, grant: Grant | None) -> None:
        hear(self.throttles, grant)

    def tell(self) -> None:
        if (report := report_of(self.throttles)) is not None:
            self.fleet.grants.hear(self.node_id, report)

    def stop(self) -> None:
        """Die."""
        for each in self.running:
            each.cancel()


class Task:
    """A backup or a restore, which sends as fast as it may."""

    def __init__(self, node: Node, repository: str, throttle: Throttle) -> None:
        self.node = node
        self.repository = repository
        self.throttle = throttle
        self.sent_bytes = 0
        self.work: asyncio.Task[None] | None = None
        self.is_stopped = False

    def begin(self) -> None:
        self.work = self.node.fleet.group.create_task(self._work(), name=self.repository)
        self.node.running.append(self.work)

    def stop(self) -> None:
        self.is_stopped = True
        if self.work is not None:
            self.work.cancel()

    def finish(self) -> None:
        """Have sent all; the coordinator hears of it a little later."""
        self.stop()
        self.node.up.send(lambda: self.node.tasks.remove(self))

    async def _work(self) -> None:
        loop, sent = asyncio.get_running_loop(), self.node.fleet.sent
        while not self.is_stopped:
            piece = self.throttle.piece_bytes
            if not self.throttle.is_limited:
                await asyncio.sleep(piece / LINE_BYTES)
            else:
                piece = await self.throttle.take_some(piece)
            self.sent_bytes += piece
            sent.append((loop.time(), piece, self.repository))


def play(scene: Scene, caps: dict[Hashable, float], seed: int = 1) -> Fleet:
    async def run() -> Fleet:
        async with asyncio.TaskGroup() as group:
            fleet = Fleet(group, caps, seed)
            running = group.create_task(fleet.coordinate(), name="coordinator")
            await scene(fleet)
            running.cancel()
            for node in fleet.nodes.values():
                node.stop()
        return fleet

    return run_virtually(run())


@pytest.mark.timeout(60)
def test_hundreds_that_change_over_hold_each_cap_and_use_it() -> None:
    caps: dict[Hashable, float] = {FLEET: 60.0 * MB, "first": 16.0 * MB, "second": 4.0 * MB}
    caps.update({("node", f"first {number}".encode()): 0.5 * MB for number in range(0, 100, 9)})

    async def scene(fleet: Fleet) -> None:
        names = ("first", "second", "third")
        tasks = [
            fleet.start(fleet.join(f"first {number}"), names[number % 3]) for number in range(100)
        ]
        for number in range(100):
            await asyncio.sleep(fleet.random.uniform(0, 0.12))
            ended = tasks.pop(fleet.random.randrange(len(tasks)))
            ended.finish()
            if number % 3 == 0:
                asyncio.get_running_loop().call_later(0.5, fleet.lose, ended.node)
                node = fleet.join(f"later {number}")
            else:
                await asyncio.sleep(0.02)
                node = ended.node
            tasks.append(fleet.start(node, fleet.random.choice(names)))

    fleet = play(scene, caps)

    end = fleet.sent[-1][0]
    assert busiest_second(fleet.to()) <= 60 * MB * 1.05
    assert busiest_second(fleet.to("first")) <= 16 * MB * 1.05
    assert busiest_second(fleet.to("second")) <= 4 * MB * 1.05
    assert fleet.least_second(None, SETTLING, end) >= 60 * MB * 0.95
    assert fleet.least_second("first", SETTLING, end) >= 16 * MB * 0.95
    assert fleet.least_second("second", SETTLING, end) >= 4 * MB * 0.95


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_to_hundreds_no_cap_is_exceeded(seed: int) -> None:
    caps: dict[Hashable, float] = {FLEET: 60.0 * MB, "first": 16.0 * MB, "second": 4.0 * MB}

    async def scene(fleet: Fleet) -> None:
        names = ("first", "second", "third")
        choice = fleet.random.choice
        nodes = [fleet.join(f"{number}") for number in range(100)]
        for number in range(300):
            await asyncio.sleep(fleet.random.uniform(0, 0.04))
            node = choice(nodes)
            if not node.down.is_up:
                fleet.connect(node)
            what = fleet.random.random()
            if len(node.tasks) < 2:
                fleet.start(node, choice(names), restores=what < 0.3)
            elif what < 0.4:
                choice(node.tasks).finish()
            elif what < 0.7:
                fleet.cancel(choice(node.tasks))
            if what > 0.8:
                # Now and then just as it changes over.
                asyncio.get_running_loop().call_later(
                    fleet.random.uniform(0, 0.04), fleet.lose, node
                )
            if number % 50 == 0:
                nodes.append(fleet.join(f"later {number}"))

    fleet = play(scene, caps, seed)

    assert busiest_second(fleet.to()) <= 60 * MB * 1.05
    assert busiest_second(fleet.to("first")) <= 16 * MB * 1.05
    assert busiest_second(fleet.to("second")) <= 4 * MB * 1.05


def test_a_node_that_goes_on_from_an_unlimited_repository_is_limited_at_once() -> None:
    async def scene(fleet: Fleet) -> None:
        nodes = [fleet.join(f"{number}") for number in range(10)]
        for node in nodes[:5]:
            fleet.start(node, "second")
        former = [fleet.start(node, "third") for node in nodes[5:]]
        await asyncio.sleep(2)
        # The former task goes on for a while beside the one that is limited.
        for task in former:
            fleet.start(task.node, "second")
        await asyncio.sleep(2)
        for task in former:
            task.finish()
        await asyncio.sleep(4)

    fleet = play(scene, {"second": 4.0 * MB})

    assert busiest_second(fleet.to("third", 0, 2)) > 100 * MB
    assert busiest_second(fleet.to("second")) <= 4 * MB * 1.05
    assert fleet.least_second("second", 4.5, 8) >= 4 * MB * 0.95


def test_one_that_works_with_two_repositories_gets_its_part_of_the_slower_one() -> None:
    async def scene(fleet: Fleet) -> None:
        fleet.start(fleet.join("fast"), "first")
        fleet.start(fleet.join("slow"), "second")
        both = fleet.join("both")
        fleet.start(both, "first")
        fleet.start(both, "second")
        await asyncio.sleep(10)

    fleet = play(scene, {"first": 16.0 * MB, "second": 1.0 * MB})

    mine = [task.sent_bytes for task in fleet.nodes[NodeId(b"both")].tasks]
    assert busiest_second(fleet.to("first")) <= 16 * MB * 1.05
    assert busiest_second(fleet.to("second")) <= 1 * MB * 1.05
    assert fleet.least_second("first", SETTLING, 10) >= 15 * MB * 0.95
    assert sum(mine) >= 8 * 0.5 * MB * 0.9
    assert min(mine) >= max(mine) * 0.8


def test_what_a_canceled_task_still_sends_counts_until_its_node_has_heard() -> None:
    async def scene(fleet: Fleet) -> None:
        tasks = [fleet.start(fleet.join(name), "second") for name in ("a", "b")]
        fleet.start(tasks[0].node, "third")
        await asyncio.sleep(3)
        # The line to it stands still, and the cancel with it.
        tasks[0].node.down.last += 1.0
        fleet.cancel(tasks[0])
        await asyncio.sleep(4)

    fleet = play(scene, {"second": 4.0 * MB})

    assert busiest_second(fleet.to("second")) <= 4 * MB * 1.05
    assert fleet.least_second("second", 3 + 1 + 0.2, 7) >= 4 * MB * 0.95


def test_one_that_is_lost_while_it_changes_over_counts_for_both() -> None:
    async def scene(fleet: Fleet) -> None:
        tasks = [fleet.start(fleet.join(name), "first") for name in ("a", "b")]
        others = [fleet.start(fleet.join(name), "second") for name in ("c", "d")]
        await asyncio.sleep(3)
        fleet.start(tasks[0].node, "second")
        fleet.lose(tasks[0].node)
        await asyncio.sleep(3)
        others[0].finish()
        fleet.connect(tasks[0].node)
        await asyncio.sleep(3)

    fleet = play(scene, {"first": 16.0 * MB, "second": 4.0 * MB})

    for repository, cap in (("first", 16 * MB), ("second", 4 * MB)):
        assert busiest_second(fleet.to(repository)) <= cap * 1.05
        assert fleet.least_second(repository, 3 + SETTLING, 6) >= cap * 0.95


def test_without_a_coordinator_each_repository_gets_the_floor() -> None:
    async def scene(fleet: Fleet) -> None:
        for number in range(30):
            fleet.start(fleet.join(f"{number}"), ("first", "second")[number % 2])
        await asyncio.sleep(3)
        fleet.is_coordinated = False
        await asyncio.sleep(5)

    fleet = play(scene, {"first": 16.0 * MB, "second": 4.0 * MB})

    lost = 3 + LEASE_SECONDS + 0.1
    assert 0 < busiest_second(fleet.to("first", lost, 8)) <= 16 * MB * 0.05
    assert 0 < busiest_second(fleet.to("second", lost, 8)) <= 4 * MB * 0.05


def test_a_repositorys_cap_that_is_lowered_and_raised_holds_after_a_moment() -> None:
    async def scene(fleet: Fleet) -> None:
        for number in range(10):
            fleet.start(fleet.join(f"{number}"), ("second", "third")[number % 2])
        await asyncio.sleep(3)
        fleet.caps["second"] = 1.0 * MB
        await asyncio.sleep(4)
        fleet.caps["second"] = 4.0 * MB
        await asyncio.sleep(4)

    fleet = play(scene, {FLEET: 40.0 * MB, "second": 4.0 * MB})

    assert busiest_second(fleet.to()) <= 40 * MB * 1.05
    assert busiest_second(fleet.to("second", 3.1, 7)) <= 1 * MB * 1.05
    assert fleet.least_second("second", 3 + SETTLING, 7) >= 1 * MB * 0.95
    assert fleet.least_second("second", 7 + SETTLING, 11) >= 4 * MB * 0.95
    assert fleet.least_second(None, SETTLING, 11) >= 40 * MB * 0.95


def test_a_restore_goes_first_in_its_repository_and_backups_elsewhere_go_on() -> None:
    async def scene(fleet: Fleet) -> None:
        for number in range(4):
            fleet.start(fleet.join(f"{number}"), ("first", "second")[number % 2])
        fleet.start(fleet.join("restoring"), "second", restores=True)
        await asyncio.sleep(8)

    fleet = play(scene, {"first": 16.0 * MB, "second": 4.0 * MB})

    [restore] = fleet.nodes[NodeId(b"restoring")].tasks
    assert busiest_second(fleet.to("second")) <= 4 * MB * 1.05
    assert restore.sent_bytes >= 4 * MB * 6 * 0.9
    assert fleet.least_second("first", SETTLING, 8) >= 16 * MB * 0.95


def wanting(heard: int) -> Report:
    return Report(heard, backup=Flow(wants=True))


def test_what_a_node_had_elsewhere_is_not_given_to_it_under_a_cap_that_is_new_to_it() -> None:
    grants, coming, there = Grants(), NodeId(b"coming"), NodeId(b"there")
    caps: dict[Hashable, float] = {"first": 16.0 * MB, "second": 16.0 * MB}
    for node_id, repository in ((coming, "first"), (there, "second")):
        grants.join(node_id, (repository,), caps, 0.0)
        grants.hear(node_id, wanting(1))
    grants.share(caps, 0.1)
    for node_id in (coming, there):
        grants.hear(node_id, wanting(2))
    held_back = grants.put_under(coming, ("first", "second"), caps, 0.2)
    unheard = dict(grants.share(caps, 0.3))
    grants.hear(coming, wanting(3))
    before = dict(grants.share(caps, 0.4))
    grants.hear(there, wanting(3))
    after = dict(grants.share(caps, 0.5))

    assert held_back is not None
    assert held_back.backup == 0
    assert (coming in unheard, unheard[there]) == (False, Grant(3, 8 * MB, 0, 320_000))
    assert before == {}
    assert after == {coming: Grant(4, 8 * MB, 0, 320_000)}


def test_a_limit_that_was_set_since_a_former_task_is_told_before_the_next_one() -> None:
    grants, node_id = Grants(), NodeId(b"node")
    caps: dict[Hashable, float] = {"second": 4.0 * MB}
    grants.join(node_id, ("second",), {}, 0.0)

    told = grants.put_under(node_id, ("second",), caps, 0.1)
    once_more = grants.put_under(node_id, ("second",), caps, 0.1)

    assert told == Grant(1, 0, 0, 160_000)
    assert once_more is None


def test_one_that_paused_and_is_lost_before_it_heard_of_less_counts_what_it_had() -> None:
    grants, lost, other = Grants(), NodeId(b"lost"), NodeId(b"other")
    caps: dict[Hashable, float] = {FLEET: 16.0 * MB}
    for node_id in (lost, other):
        grants.join(node_id, (FLEET,), caps, 0.0)
    grants.hear(lost, wanting(1))
    grants.share(caps, 0.1)
    grants.hear(lost, wanting(2))
    grants.hear(lost, Report(2))
    grants.share(caps, 0.2)
    grants.lose(lost, 0.2)
    grants.hear(other, wanting(1))
    before = dict(grants.share(caps, 0.3))
    after = dict(grants.share(caps, 0.2 + LEASE_SECONDS))

    assert before == {}
    freed = after[other]
    assert freed is not None
    assert freed.backup >= 16 * MB * 0.95
