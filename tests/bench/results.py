"""What was measured, and what follows from it. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from statistics import median
from types import MappingProxyType
from typing import Final, NamedTuple

from typing_extensions import override

OURS: Final = "tidemark"
RESTIC: Final = "restic"
ZSTD: Final = "zstd"
PLAIN: Final = "plain"
# The same, with the checksum that a store of every kind compares.
SUMMED: Final = "plain+md5"
MIB: Final = 1 << 20
# The case of a store behind a network, which is measured in its own way.
BUCKET: Final = "bucket"


class Step(StrEnum):
    """What is timed, in this order within a round."""

    FULL = "full"
    UNCHANGED = "unchanged"
    CHANGED = "changed"
    RESTORE = "restore"
    ONE = "one file"
    OVER = "over"
    # Of a bucket alone.
    LIMITED = "limited"
    GETS = "small files"


# Of every other case.
STEPS: Final = (Step.FULL, Step.UNCHANGED, Step.CHANGED, Step.RESTORE, Step.ONE, Step.OVER)


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
    cpu_seconds_per_gib: Mapping[str, float] = MappingProxyType({})
    """Of data, by process; of the servers of a bucket, too. Empty where it is not told."""


class Goal(NamedTuple):
    """What issue and design ask for: a ratio to another tool, at least or at most."""

    ratio: float
    at_most: bool = False
    to: str = RESTIC

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.ratio if self.at_most else ratio >= self.ratio

    @override
    def __str__(self) -> str:
        to = "" if self.to == RESTIC else f" of {self.to}"
        return f"{'≤' if self.at_most else '≥'}{self.ratio:g}{to}"


# What the details of a sample tell, beside time: of the cap, what went in the fullest and in the
# emptiest second; and requests for each 8 MiB that came.
HIGHEST: Final = "highest"
LOWEST: Final = "lowest"
GETS_PER_8_MIB: Final = "gets_per_8_mib"
TOLD: Final = {HIGHEST: "highest/s", LOWEST: "lowest/s", GETS_PER_8_MIB: "GET/8 MiB"}
STORED: Final = "stored"
ADDED: Final = "added"
READ: Final = "read"
MEMORY: Final = "memory"
CPU: Final = "CPU"
MEMORY_BYTES_MAX: Final = 256 * MIB
_KINDS: Final = ("text", "random", "pages", "small")
# Of what changed in a database of 1 GiB: 200 blocks of 64 KiB are 12.5 MiB.
LIMITS: Final = {("pages", READ): 16 * MIB, ("pages", ADDED): 16 * MIB}
BOUNDS: Final = {
    HIGHEST: Goal(1.05, at_most=True),
    LOWEST: Goal(0.95),
    GETS_PER_8_MIB: Goal(1.2, at_most=True),
}
GOALS: Final[dict[tuple[str, str], tuple[Goal, ...]]] = {
    # zstd is the limit: it neither cuts nor seals, and keeps no promise about what it wrote.
    ("text", Step.FULL): (Goal(1.5), Goal(0.6, to=ZSTD)),
    ("random", Step.FULL): (Goal(2),),
    ("small", Step.FULL): (Goal(2),),
    ("small", Step.UNCHANGED): (Goal(8),),
    (BUCKET, Step.FULL): (Goal(1), Goal(0.8, to=PLAIN), Goal(0.8, to=SUMMED)),
    **{(kind, Step.RESTORE): (Goal(1.3),) for kind in _KINDS},
    **{(kind, STORED): (Goal(1.05, at_most=True),) for kind in _KINDS},
}


class Figure(NamedTuple):
    """One line of the table: medians by tool, and how many times better than each peer we are."""

    case: str
    row: str
    medians: dict[str, float]
    ratios: dict[str, float]
    failed: frozenset[str]


def figures(samples: Sequence[Sample]) -> list[Figure]:
    """Times per step, bytes that a changed file cost and all stored ones, peak memory; by case."""
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
        found += [_figure(case, row, _told(of_case, row)) for row in TOLD]
        found.append(_figure(case, STORED, _stored_after(of_case, Step.CHANGED)))
        found.append(_figure(case, ADDED, _added(of_case)))
        found.append(_figure(case, READ, _read(of_case)))
        found.append(
            _figure(case, CPU, _by_process(of_case, lambda each: each.cpu_seconds_per_gib))
        )
        memory = _by_process(of_case, lambda each: each.memory_bytes)
        highest = {process: [max(peaks)] for process, peaks in memory.items()}
        found.append(_figure(case, MEMORY, highest))
    return found


def _by_process(
    samples: Iterable[Sample], told: Callable[[Sample], Mapping[str, float]]
) -> dict[str, list[float]]:
    """What samples tell of each process, by tool and process."""
    return _by_tool(
        (f"{sample.tool} {process}".strip(), float(value))
        for sample in samples
        for process, value in told(sample).items()
    )


def _stored_after(samples: Iterable[Sample], step: Step) -> dict[str, list[float]]:
    return _by_tool(
        (sample.tool, float(sample.stored_bytes))
        for sample in samples
        if sample.step is step and not sample.error
    )


def _added(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """What the backup of what had changed added, by tool."""
    before = {
        (sample.tool, sample.round): sample.stored_bytes
        for sample in samples
        if sample.step is Step.UNCHANGED and not sample.error
    }
    return _by_tool(
        (sample.tool, float(sample.stored_bytes - before[sample.tool, sample.round]))
        for sample in samples
        if sample.step is Step.CHANGED
        and not sample.error
        and (sample.tool, sample.round) in before
    )


def _read(samples: Iterable[Sample]) -> dict[str, list[float]]:
    """What the backup of what had changed read: by our own count, and by the kernel's of a peer."""
    return _by_tool(
        (sample.tool, float(str(sample.details["bytes_read"])))
        for sample in samples
        if sample.step is Step.CHANGED and "bytes_read" in sample.details
    )


def _told(samples: Iterable[Sample], detail: str) -> dict[str, list[float]]:
    """What samples tell by this name."""
    return _by_tool(
        (sample.tool, float(str(sample.details[detail])))
        for sample in samples
        if detail in sample.details
    )


def _figure(
    case: str, row: str, values: dict[str, list[float]], failed: frozenset[str] = frozenset()
) -> Figure:
    medians = {tool: median(each) for tool, each in values.items()}
    return Figure(case, row, medians, _ratios(row, medians), failed)


def _ratios(row: str, medians: dict[str, float]) -> dict[str, float]:
    """Peer's time over ours (more is better); our bytes over the peer's (less is better)."""
    ours = medians.get(OURS)
    if not ours or row in (MEMORY, CPU) or row in TOLD:
        return {}
    peers = {tool: value for tool, value in medians.items() if tool != OURS and value}
    if row in (STORED, ADDED, READ):
        return {tool: ours / value for tool, value in peers.items()}
    return {tool: value / ours for tool, value in peers.items()}


def verdict(figure: Figure) -> str:
    """Whether the figure is what was asked for; empty where nothing was."""
    if figure.row == MEMORY:
        ours = {tool: peak for tool, peak in figure.medians.items() if tool.startswith(OURS)}
        if not ours:
            return ""
        return _say(f"<{MEMORY_BYTES_MAX // MIB} MiB", max(ours.values()) < MEMORY_BYTES_MAX)
    if figure.row in TOLD:
        bound = BOUNDS[figure.row]
        return "".join(_say(str(bound), bound.is_met(each)) for each in figure.medians.values())
    limit = LIMITS.get((figure.case, figure.row))
    if limit is not None and OURS in figure.medians:
        return _say(f"≤{limit // MIB} MiB", figure.medians[OURS] <= limit)
    goals = GOALS.get((figure.case, figure.row), ())
    said = [
        _say(str(goal), goal.is_met(figure.ratios[goal.to]))
        for goal in goals
        if goal.to in figure.ratios
    ]
    return ", ".join(said)


def _say(goal: str, met: bool) -> str:
    return f"{goal} {'met' if met else 'MISSED'}"


def _by_tool(pairs: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for tool, value in pairs:
        found.setdefault(tool, []).append(value)
    return found


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
