"""What a workload does: a seed's operations, as plain data. Pure.

Paths are drawn from a few names, so that steps of several threads meet at the same ones. A path may
lead nowhere by then: then that step fails, as it may.
"""

import random
from collections.abc import Mapping
from typing import Final, NamedTuple

from tests.tracking.operations import OPERATIONS, Trait

THREADS: Final = 3
_STEPS: Final = 45
# In that order a walk that compares paths instead of components goes wrong.
_DIRECTORIES: Final = ("a", "a-b")
_FILES: Final = ("f", "a", "g.db", "h\udcff")
_LEVELS_MAX: Final = 3


class Step(NamedTuple):
    """One operation: what is done, where, and a number that decides the rest."""

    kind: str
    path: str
    other: str
    number: int


class Burst(NamedTuple):
    """What each thread does between two quiet moments."""

    threads: list[list[Step]]


def left_out(source: str) -> Trait:
    """What a workload must leave alone, since a source cannot tell of it (see inotify's docstring).

    A file that had one name and is written to by another, which is outside or gone at once: so what
    gets further names keeps them.
    """
    return Trait.UNTOLD if source == "inotify" else Trait(0)


def plan(seed: int, bursts: int, without: Trait) -> list[Burst]:
    """All of a seed's bursts; with more of them, the first ones are the same."""
    kinds = {name: each.weight for name, each in OPERATIONS.items() if not each.traits & without}
    stays = bool(without & Trait.UNTOLD)
    return [_burst(random.Random(f"{seed} {number}"), kinds, stays) for number in range(bursts)]


def beginning(seed: int) -> Burst:
    """What fills a volume before its first backup."""
    return _burst(random.Random(seed), {"create": 3, "hold": 1}, stays=False)


def _burst(chance: random.Random, kinds: Mapping[str, int], stays: bool) -> Burst:
    return Burst([[_step(chance, kinds, stays) for _ in range(_STEPS)] for _ in range(THREADS)])


def _step(chance: random.Random, kinds: Mapping[str, int], stays: bool) -> Step:
    (kind,) = chance.choices([*kinds], [*kinds.values()])
    traits = OPERATIONS[kind].traits
    draw = _directory if Trait.DIRECTORIES in traits else _file
    path, other, number = draw(chance), draw(chance), chance.getrandbits(32)
    if stays and Trait.LINKS in traits:
        other = f"link-{number}"  # which nothing else is done to
    return Step(kind, path, other, number)


def _directory(chance: random.Random) -> str:
    levels = chance.choices(range(1, _LEVELS_MAX + 1), (5, 2, 1))[0]
    return "/".join(chance.choices(_DIRECTORIES, k=levels))


def _file(chance: random.Random) -> str:
    name = chance.choice(_FILES)
    return name if chance.random() < 0.2 else f"{_directory(chance)}/{name}"
