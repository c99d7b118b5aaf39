"""The table that fits a terminal. Pure."""

from collections.abc import Sequence
from typing import Final

from tests.bench.results import (
    ADDED,
    CPU,
    MEMORY,
    MIB,
    OURS,
    READ,
    STORED,
    TOLD,
    Figure,
    Sample,
    verdict,
)

# In this order; a peer's only one has no name, and the last ones are servers of the bucket.
_PROCESSES: Final = ("", "agent", "coordinator", "command", "radosgw", "ceph-osd")


def render(figures: Sequence[Figure], tools: Sequence[str]) -> str:
    """Medians by tool; ratios to the peers; goals."""
    others = [tool for tool in tools if tool != OURS]
    shown = [OURS, *others] if OURS in tools else others
    peers = others if OURS in tools else []
    head = ["case", "step", *shown, *[f"vs {peer}" for peer in peers], "goal (to restic)"]
    rows = [head]
    previous = ""
    for figure in figures:
        case = "" if figure.case == previous else figure.case
        previous = figure.case
        if not figure.medians and not figure.failed and figure.row != MEMORY:
            continue
        if figure.row in (MEMORY, CPU):
            rows.append([case, str(figure.row), *[_by_process(figure, tool) for tool in shown]])
            rows[-1] += [""] * len(peers) + [verdict(figure)]
            continue
        ratios = [f"{figure.ratios[peer]:.2f}" if peer in figure.ratios else "" for peer in peers]
        values = [_value(figure, tool) for tool in shown]
        rows.append(
            [case, TOLD.get(figure.row, str(figure.row)), *values, *ratios, verdict(figure)]
        )
    return _aligned(rows)


def _value(figure: Figure, tool: str) -> str:
    if tool in figure.failed:
        return "failed"
    if tool not in figure.medians:
        return "-"
    value = figure.medians[tool]
    if figure.row in TOLD:
        return f"{value:.3f}"
    return f"{value / MIB:.1f} MiB" if figure.row in (STORED, ADDED, READ) else f"{value:.2f} s"


def _by_process(figure: Figure, tool: str) -> str:
    """What a tool's processes had, the agent's before the coordinator's."""
    had = {
        process.removeprefix(tool).strip(): value
        for process, value in figure.medians.items()
        if process == tool or process.startswith(f"{tool} ")
    }
    if not had:
        return "-"
    ordered = [had[process] for process in sorted(had, key=_PROCESSES.index)]
    if figure.row == CPU:
        return "+".join(f"{seconds:.1f}" for seconds in ordered) + " s"
    return "+".join(f"{peak / MIB:.0f}" for peak in ordered) + " MiB"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        # Names to the left, numbers to the right, the goal to the left again.
        cells = [
            cell.ljust(width) if index < 2 or index == len(row) - 1 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def failures(samples: Sequence[Sample]) -> list[str]:
    """What went wrong, one line each."""
    return [
        f"{each.case}, {each.tool}, {each.step}, round {each.round}: {each.error}"
        for each in samples
        if each.error
    ]
