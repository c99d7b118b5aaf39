"""Rates as people write and read them: bytes per second. Pure, and the same on every side."""

import re
from typing import Final

_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)(?:/s|ps)")
# As units are defined: `B` is a byte and `b` or `bit` is a bit, which a slip of the shift key
# confuses by a factor of eight. So `mb` is neither.
_BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_BITS: Final = {
    "bit": 1,
    "kbit": 10**3,
    "Kbit": 10**3,
    "Mbit": 10**6,
    "Gbit": 10**9,
    "kb": 10**3,
    "Kb": 10**3,
    "Mb": 10**6,
    "Gb": 10**9,
}
# Less than a pack of 32 MiB in half an hour: what is meant is surely something else.
RATE_MIN: Final = 16 * 1000
# More than any line there is.
RATE_MAX: Final = 10**15


def parse_rate(text: str) -> int:
    """Bytes per second in `20MB/s`, `20MiB/s`, `160Mbit/s`, `1.5Gbps`; ValueError says why not."""
    match = _RATE.fullmatch(text.strip())
    unit = "" if match is None else match[2]
    if match is None or not (unit in _BYTES or unit in _BITS):
        raise ValueError("needs a number and a unit, such as 20MB/s, 20MiB/s or 160Mbit/s")
    rate = float(match[1]) * (_BYTES[unit] if unit in _BYTES else _BITS[unit] / 8)
    if not RATE_MIN <= rate <= RATE_MAX:
        raise ValueError(f"is not between {format_rate(RATE_MIN)} and {format_rate(RATE_MAX)}")
    return round(rate)


def format_rate(bytes_per_second: float) -> str:
    """With decimal units, as lines are sold: `20 MB/s`; what `parse_rate` reads again."""
    unit = max(
        (u for u in ("B", "kB", "MB", "GB", "TB") if _BYTES[u] <= bytes_per_second),
        key=_BYTES.__getitem__,
        default="B",
    )
    number = f"{bytes_per_second / _BYTES[unit]:.2f}".rstrip("0").rstrip(".")
    return f"{number} {unit}/s"
