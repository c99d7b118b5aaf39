"""What the campaign does at which failpoint: scenes, cases, and the plan of all cases. Pure."""

import random
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from typing_extensions import override

from repository.failpoints import AGENT, COORDINATOR, STORE

ACTIONS: Final = ("kill", "error", "pause")
# At a place in a scene that is not its own.
_ELSEWHERE: Final = ("kill", "error")
# Between two steps in memory: there a process can die, and no call can fail.
NOTHING_FAILS: Final = frozenset(
    {
        "coordinator.job.created",
        "coordinator.job.closed",
        "coordinator.task.sent",
    }
)
_HITS: Final = (1, 2, 3, 4)


class Scene(StrEnum):
    """What goes on when a place is passed."""

    FOUND = "found"
    JOIN = "join"
    START = "start"
    UPGRADE = "upgrade"
    RENEWAL = "renewal"
    CONNECT = "connect"
    BACKUP = "backup"
    LOST_STATE = "lost-state"
    RESTORE = "restore"
    IN_PLACE = "in-place"
    VERIFY = "verify"


# The first prefix that fits decides; each failpoint must have one.
_SCENES: Final = (
    ("coordinator.secret.", Scene.FOUND),
    ("coordinator.founding.", Scene.FOUND),
    ("coordinator.upgrade.", Scene.UPGRADE),
    ("coordinator.catalog.", Scene.START),
    ("coordinator.start.", Scene.START),
    ("coordinator.node.enrol", Scene.JOIN),
    ("coordinator.node.certified", Scene.JOIN),
    ("coordinator.renewal.", Scene.RENEWAL),
    ("agent.join.", Scene.JOIN),
    ("agent.renewal.", Scene.RENEWAL),
    ("agent.connect.received", Scene.BACKUP),
    ("agent.connect.", Scene.CONNECT),
    ("agent.task.", Scene.BACKUP),
    ("agent.backup.", Scene.BACKUP),
    ("agent.session.", Scene.BACKUP),
    ("agent.base.", Scene.LOST_STATE),
    ("agent.changes.", Scene.BACKUP),
    ("agent.batch.", Scene.BACKUP),
    ("agent.large.", Scene.BACKUP),
    ("agent.frame.", Scene.BACKUP),
    ("agent.pack.", Scene.BACKUP),
    ("agent.chunks.", Scene.BACKUP),
    ("agent.nodes.", Scene.BACKUP),
    ("agent.manifest.", Scene.BACKUP),
    ("agent.root.", Scene.BACKUP),
    ("agent.commit.", Scene.BACKUP),
    ("agent.head.", Scene.BACKUP),
    ("agent.end.", Scene.BACKUP),
    ("agent.restore.", Scene.RESTORE),
    ("agent.target.", Scene.RESTORE),
    ("agent.directory.", Scene.RESTORE),
    ("agent.file.", Scene.RESTORE),
    ("agent.links.", Scene.RESTORE),
    ("coordinator.node.", Scene.CONNECT),
    ("coordinator.job.", Scene.BACKUP),
    ("coordinator.task.", Scene.BACKUP),
    ("coordinator.session.", Scene.BACKUP),
    ("coordinator.base.", Scene.LOST_STATE),
    ("coordinator.pack.", Scene.BACKUP),
    ("coordinator.commit.", Scene.BACKUP),
    ("coordinator.grant.", Scene.RESTORE),
    ("coordinator.restore.", Scene.RESTORE),
    ("coordinator.verify.", Scene.VERIFY),
    ("store.read", Scene.RESTORE),
    ("store.", Scene.BACKUP),
)


def scene_of(name: str) -> Scene:
    """What to do so that a failpoint is passed; KeyError for one that nobody thought of."""
    for prefix, scene in _SCENES:
        if name.startswith(prefix):
            return scene
    raise KeyError(name)


class Case(NamedTuple):
    """One run."""

    scene: Scene
    name: str
    action: str
    at: int = 1

    @property
    def by_agent(self) -> bool:
        """Whose it is."""
        return self.name.startswith("agent.")

    @override
    def __str__(self) -> str:
        return f"{self.scene} {self.name}={self.action}@{self.at}"


def first_hits() -> list[Case]:
    """Every failpoint in its own scene with every action, at its first hit."""
    return [
        Case(scene_of(name), name, action)
        for name in AGENT + COORDINATOR + STORE
        for action in _actions(name, is_home=True)
    ]


def plan(passed: Mapping[Scene, Mapping[str, int]]) -> list[Case]:
    """All cases. `passed`: how often each failpoint is passed in each scene when all goes well.

    In its own scene: the first four hits and the last, with every action; elsewhere the first and
    the last.
    """
    return [
        Case(scene, name, action, at)
        for scene, names in passed.items()
        for name, count in sorted(names.items())
        for action in _actions(name, is_home=scene_of(name) is scene)
        for at in _hits(count, is_home=scene_of(name) is scene)
    ]


def unreached(passed: Mapping[Scene, Mapping[str, int]]) -> list[str]:
    """Failpoints that no run passes in their own scenes."""
    return [
        name
        for name in AGENT + COORDINATOR + STORE
        if not passed.get(scene_of(name), {}).get(name, 0)
    ]


def ordered(cases: Sequence[Case], seed: int) -> list[Case]:
    """The order to run them in: first hits first, so that whoever stops early has seen each."""
    mixed = random.Random(seed).sample(cases, len(cases))
    return sorted(mixed, key=lambda case: (scene_of(case.name) is not case.scene, case.at > 1))


def sample(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """Some of them, of both daemons."""
    chosen = random.Random(seed)
    agents = [case for case in cases if case.by_agent]
    others = [case for case in cases if not case.by_agent]
    return chosen.sample(agents, count - count // 2) + chosen.sample(others, count // 2)


def _actions(name: str, *, is_home: bool) -> list[str]:
    actions = ACTIONS if is_home else _ELSEWHERE
    return [each for each in actions if each != "error" or name not in NOTHING_FAILS]


def _hits(count: int, *, is_home: bool) -> list[int]:
    wanted = {*_HITS, count} if is_home else {1, count}
    return sorted(at for at in wanted if at <= count)
