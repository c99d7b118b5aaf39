"""How a line is shared: by weight, max-min fair, under caps that lie within one another. Pure.

Max-min fair means that nobody could get more without taking it from somebody who has, for their
weight, no more. What one does not want goes to the others, so a cap is used up for as long as
there is enough demand under it. Restores go first, since somebody waits for them; backups beside
them keep a small part, so that they are slow and not dead.
"""

import heapq
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

# What backups keep of each cap beside restores that want all of it.
BACKUP_PART: Final = 0.05
# Of a cap: what is left of it by rounding is nothing.
_TINY: Final = 1e-9

K = TypeVar("K", bound=Hashable)
Cap = Hashable


@dataclass(frozen=True, slots=True)
class Demand(Generic[K]):
    """What one flow could use, in bytes per second, and the caps that it is under."""

    key: K
    wanted: float
    """math.inf for one that takes whatever it gets."""
    caps: tuple[Cap, ...] = ()
    weight: float = 1.0


def share(
    restores: Sequence[Demand[K]], backups: Sequence[Demand[K]], caps: Mapping[Cap, float]
) -> dict[K, float]:
    """The rate of each, in bytes per second; no two have the same key.

    A cap that is not in `caps` caps nothing; without any a rate may be infinite.
    """
    parts = {cap: rate * BACKUP_PART for cap, rate in caps.items()}
    kept = max_min(backups, parts) if restores else {}
    first = max_min(restores, left_of(caps, backups, kept))
    return first | max_min(backups, left_of(caps, restores, first))


def left_of(
    caps: Mapping[Cap, float], demands: Iterable[Demand[K]], rates: Mapping[K, float]
) -> dict[Cap, float]:
    """What the rates leave of the caps."""
    left = dict(caps)
    for demand in demands:
        for cap in demand.caps:
            if cap in left:
                left[cap] = max(0.0, left[cap] - rates.get(demand.key, 0.0))
    return left


def max_min(demands: Iterable[Demand[K]], caps: Mapping[Cap, float]) -> dict[K, float]:
    """Raise all rates together, each as its weight says, until what each wants or a cap is met."""
    filling = _Filling(list(demands), caps)
    while filling.waiting:
        filling.step()
    return filling.rates


class _Filling(Generic[K]):
    """Rates that rise together. A level is a rate for each unit of weight."""

    def __init__(self, demands: Sequence[Demand[K]], caps: Mapping[Cap, float]) -> None:
        self.rates: dict[K, float] = {}
        self.waiting = {demand.key: demand for demand in demands}
        self._under: dict[Cap, list[Demand[K]]] = {}
        for demand in demands:
            for cap in demand.caps:
                if cap in caps:
                    self._under.setdefault(cap, []).append(demand)
        self._left = {cap: caps[cap] for cap in self._under}
        self._weight = {cap: sum(each.weight for each in self._under[cap]) for cap in self._under}
        # What is met next: the level, a number for what cannot be compared, and who or what it is.
        self._next: list[tuple[float, int, Demand[K] | None, Cap]] = []
        self._number = 0
        for demand in demands:
            self._expect(demand.wanted / demand.weight, demand, None)
        for cap in self._under:
            self._expect(self._level(cap), None, cap)

    def step(self) -> None:
        """Raise the level to where somebody has what it wants, or a cap is used up."""
        level, _, reached, cap = heapq.heappop(self._next)
        if reached is not None:
            if reached.key in self.waiting:
                self._settle(reached, reached.wanted)
        # Who was settled since then took less than its part: this cap is met later, if ever.
        elif self._weight[cap] > _TINY and self._level(cap) <= level * (1 + _TINY) + _TINY:
            for each in self._under[cap]:
                if each.key in self.waiting:
                    self._settle(each, min(each.wanted, level * each.weight))

    def _level(self, cap: Cap) -> float:
        """Where a cap is used up."""
        return self._left[cap] / self._weight[cap]

    def _expect(self, level: float, demand: Demand[K] | None, cap: Cap | None) -> None:
        self._number += 1
        heapq.heappush(self._next, (level, self._number, demand, cap))

    def _settle(self, demand: Demand[K], rate: float) -> None:
        self.rates[demand.key] = rate
        del self.waiting[demand.key]
        for cap in demand.caps:
            if cap in self._left:
                self._left[cap] = max(0.0, self._left[cap] - rate)
                self._weight[cap] -= demand.weight
                if self._weight[cap] > _TINY:
                    self._expect(self._level(cap), None, cap)
