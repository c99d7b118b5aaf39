"""Times for people, in their own time zone."""

from datetime import datetime


def local_time(text: str | None, *, none: str = "never") -> str:
    """`2026-03-01 14:05:09` in the local zone, or what says that there is none."""
    if text is None:
        return none
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"
