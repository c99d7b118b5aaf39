"""What was measured, and what follows from it. Pure."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from statistics import median
from typing import Final, NamedTuple

from typing_extensions import override

OURS: Final = "tidemark"
MIB: Final = 1 << 20


class Step(StrEnum):
    """What is timed, in this order within a round."""

    FULL = "full"
    UNCHANGED = "unchanged"
    CHANGED = "changed"
    RESTORE = "restore"


class Sample(NamedTuple):
    """One command of one tool in one round."""

    case: str
    tool: str
    step: Step
    round: int
    seconds: float | None
    stored_bytes: int
    memory_bytes: dict[str, int]
    """Peak by process."""
    details: dict[str, object]
    error: str


class Goal(NamedTuple):
    """What issue and design ask for: a ratio to restic, at least or at most."""

    ratio: float
    at_most: bool = False

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.ratio if self.at_most else ratio >= self.ratio

    @override
    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'}{self.ratio:g}"


STORED: Final = "stored"
MEMORY: Final = "memory"
MEMORY_BYTES_MAX: Final = 256 * MIB
GOALS: Final[dict[tuple[str, str], Goal]] = {
    ("random", Step.FULL): Goal(1.5),
    ("small", Step.FULL): Goal(1.5),
    **{(case, Step.UNCHANGED): Goal(5) for case in ("text", "random", "small")},
    **{(case, Step.RESTORE): Goal(1) for case in ("text", "random", "small")},
    **{(case, STORED): Goal(1.05, at_most=True) for case in ("text", "random", "small")},
}


class Figure(NamedTuple):
    """One line of the table: medians by tool, and how many times better than each peer we are."""

    case: str
    row: str
    medians: dict[str, float]
    ratios: dict[str, float]
    failed: frozenset[str]


def figures(samples: Sequence[Sample]) -> list[Figure]:
    """Times per step, stored bytes after the last backup, peak memory; by case."""
    found: list[Figure] = []
    for case in _ordered(sample.case for sample in samples):
        of_case = [sample for sample in samples if sample.case == case]
        for step in Step:
            seconds = _by_tool(
                (sample.tool, sample.seconds)
                for sample in of_case
                if sample.step is step and sample.seconds is not None
            )
            failed = {each.tool for each in of_case if each.step is step and each.error}
            found.append(_figure(case, step, seconds, frozenset(failed)))
        stored = _by_tool(
            (sample.tool, float(sample.stored_bytes))
            for sample in of_case
            if sample.step is Step.CHANGED and not sample.error
        )
        found.append(_figure(case, STORED, stored))
        memory = _by_tool(
            (f"{sample.tool} {process}".strip(), float(peak))
            for sample in of_case
            for process, peak in sample.memory_bytes.items()
        )
        highest = {process: [max(peaks)] for process, peaks in memory.items()}
        found.append(_figure(case, MEMORY, highest))
    return found


def _figure(
    case: str, row: str, values: dict[str, list[float]], failed: frozenset[str] = frozenset()
) -> Figure:
    medians = {tool: median(each) for tool, each in values.items()}
    return Figure(case, row, medians, _ratios(row, medians), failed)


def _ratios(row: str, medians: dict[str, float]) -> dict[str, float]:
    """Peer's time over ours (higher is better); our bytes over the peer's (lower is better)."""
    ours = medians.get(OURS)
    if not ours or row == MEMORY:
        return {}
    peers = {tool: value for tool, value in medians.items() if tool != OURS and value}
    if row == STORED:
        return {tool: ours / value for tool, value in peers.items()}
    return {tool: value / ours for tool, value in peers.items()}


def verdict(figure: Figure) -> str:
    """Whether the figure is what was asked for; empty where nothing was."""
    if figure.row == MEMORY:
        ours = {tool: peak for tool, peak in figure.medians.items() if tool.startswith(OURS)}
        if not ours:
            return ""
        return _say(f"<{MEMORY_BYTES_MAX // MIB} MiB", max(ours.values()) < MEMORY_BYTES_MAX)
    goal = GOALS.get((figure.case, figure.row))
    if goal is None or "restic" not in figure.ratios:
        return ""
    return _say(str(goal), goal.is_met(figure.ratios["restic"]))


def _say(goal: str, met: bool) -> str:
    return f"{goal} {'met' if met else 'MISSED'}"


def _by_tool(pairs: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for tool, value in pairs:
        found.setdefault(tool, []).append(value)
    return found


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
