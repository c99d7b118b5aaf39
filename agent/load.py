"""Reads how it stands with the node: pressure, and the limits of the agent's control group.

Only of the unified hierarchy (cgroup v2). What is not there, or cannot be read, is not known.
"""

from pathlib import Path
from typing import Final

from agent.pressure import (
    Load,
    Stall,
    parse_bytes,
    parse_cache,
    parse_quota,
    parse_stall,
    resources,
)

_PROC: Final = Path("/proc")
_GROUPS: Final = Path("/sys/fs/cgroup")


def read_load(proc: Path = _PROC, groups: Path = _GROUPS) -> Load:
    """How it stands now. Reads about a dozen small files of the kernel's."""
    mine = _own_group(proc, groups)
    above = [] if mine is None else [mine, *(p for p in mine.parents if p.is_relative_to(groups))]
    quotas = [quota for each in above if (quota := parse_quota(_read(each / "cpu.max")))]
    rooms = [room for each in above if (room := _room(each)) is not None]
    # The root group has no pressure of its own: all of it is the system's.
    own = None if mine is None else _stalls(mine, "{}.pressure")
    return Load(
        system=_stalls(proc / "pressure", "{}"),
        own=own or None,
        room_bytes=min(rooms, default=None),
        processors=min(quotas, default=None),
    )


def _own_group(proc: Path, groups: Path) -> Path | None:
    for line in _read(proc / "self/cgroup").splitlines():
        number, _, path = line.partition("::")
        if number == "0" and path.startswith("/") and ".." not in path:
            return groups / path.strip().lstrip("/")
    return None


def _stalls(directory: Path, name: str) -> dict[str, Stall]:
    found = {each: parse_stall(_read(directory / name.format(each))) for each in resources()}
    return {each: stall for each, stall in found.items() if stall is not None}


def _room(group: Path) -> int | None:
    limit = parse_bytes(_read(group / "memory.max"))
    used = parse_bytes(_read(group / "memory.current"))
    if limit is None or used is None:
        return None
    return max(0, limit - used + parse_cache(_read(group / "memory.stat")))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
