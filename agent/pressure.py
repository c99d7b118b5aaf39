"""How much a backup may have in hand at once, by how hard its node has it. Pure.

For processors and disks the kernel sees to it that a backup is last in line (polite.py). What it
cannot do is to take memory back, and what stands in line still lengthens it for others. So there is
less in flight while memory is short, or while others wait much longer than we do by ourselves.
Figures are those of the kernel's pressure stall information: of the last ten seconds, how many
percent somebody waited (`some`), or everybody at once (`full`).
"""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

# Somebody waits for memory a tenth of the time: the next thing would be that it runs out.
_MEMORY_SHORT: Final = 10.0
# Others wait so much beside us that it is not only us whom they wait for.
_OTHERS_WAIT: Final = 40.0
# Two packs being filled, and what becomes of them: with less room, one thing at a time.
_ROOM_BYTES: Final = 128 * 1024 * 1024
_RESOURCES: Final = ("cpu", "io", "memory")


class Stall(NamedTuple):
    """Pressure of one resource, in percent of the last ten seconds."""

    some: float
    full: float


_NONE: Final = Stall(0.0, 0.0)


class Load(NamedTuple):
    """How it stands with a node. What a kernel does not tell is left out, or None."""

    system: Mapping[str, Stall]
    """Of cpu, io and memory."""
    own: Mapping[str, Stall] | None
    """Of the agent's own control group."""
    room_bytes: int | None
    """What the control group's memory limit leaves, file cache not counted."""
    processors: float | None
    """How many of them the control group may use."""


def parse_stall(text: str) -> Stall | None:
    """What a file of pressure says; None for what is none."""
    averages = {}
    for line in text.splitlines():
        kind, _, figures = line.partition(" ")
        for figure in figures.split():
            name, _, value = figure.partition("=")
            if name == "avg10":
                averages[kind] = _number(value)
    some = averages.get("some")
    return None if some is None else Stall(some, averages.get("full") or 0.0)


def parse_quota(text: str) -> float | None:
    """How many processors `cpu.max` allows; None if as many as there are."""
    quota, _, period = text.strip().partition(" ")
    allowed, per = _number(quota), _number(period)
    return allowed / per if allowed and per else None


def parse_bytes(text: str) -> int | None:
    """The number in `memory.max` and the like; None if there is no limit."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None


def parse_cache(text: str) -> int:
    """How much of a group's memory is file cache, by its `memory.stat`."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "file":
            return parse_bytes(value) or 0
    return 0


def allowed(load: Load, most: int) -> int:
    """How many of at most so many things may be in hand at once."""
    memory = load.system.get("memory", _NONE), (load.own or {}).get("memory", _NONE)
    is_short = any(stall.some >= _MEMORY_SHORT for stall in memory)
    if is_short or (load.room_bytes is not None and load.room_bytes < _ROOM_BYTES):
        return 1
    if load.own is not None:
        # What we wait for ourselves is in the system's figures, too.
        for resource in ("cpu", "io"):
            own = load.own.get(resource, _NONE).some
            if load.system.get(resource, _NONE).some - own >= _OTHERS_WAIT:
                return max(1, most // 2)
    return most


def workers(load: Load, processors: int) -> int:
    """How many threads do the work of batches, on so many processors."""
    usable = processors if load.processors is None else min(processors, math.ceil(load.processors))
    return max(2, min(8, usable))


def resources() -> tuple[str, ...]:
    """Of what the kernel tells pressure."""
    return _RESOURCES


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
