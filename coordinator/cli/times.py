"""Times for people, in their own time zone."""

from datetime import datetime


def local_time(text: str | None) -> str:
    """`2026-03-01 14:05:09` in the local zone; `never` for none."""
    if text is None:
        return "never"
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"
