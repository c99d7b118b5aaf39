"""Durations, sizes and ages as people write and read them. Pure."""

import re

from coordinator.cli.failure import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def parse_duration(text: str) -> int:
    """Seconds in `90s`, `15m`, `1h30m`, `2d` or a bare number of seconds."""
    cleaned = text.strip().lower()
    parts = _PART.findall(cleaned)
    if parts and "".join(number + unit for number, unit in parts) == cleaned:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    elif cleaned.isascii() and cleaned.isdigit():
        seconds = float(cleaned)
    else:
        raise UsageError(
            f"{text!r} is not a duration", hint="write a number and a unit, as in 90s, 15m, 1h30m"
        )
    if seconds < 1:
        raise UsageError(f"the duration {text!r} is shorter than a second", hint="write 1s or more")
    return round(seconds)


def format_duration(seconds: float) -> str:
    """The two largest units, as in `1h 5m`; under ten seconds with a decimal."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    left = round(seconds)
    parts: list[str] = []
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, _UNITS[unit])
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0"))


def format_size(size_bytes: float) -> str:
    """Binary units, three digits."""
    unit = 0
    while abs(size_bytes) >= 1024 and unit < len(_SIZES) - 1:
        size_bytes /= 1024
        unit += 1
    if unit == 0:
        return f"{int(size_bytes)} B"
    return f"{size_bytes:.{0 if size_bytes >= 100 else 1}f} {_SIZES[unit]}"
