"""Where a further repository may lie, and what it may be called. Pure.

Whoever may ask the coordinator for a repository names a directory or a server, and the coordinator
writes there with all the rights it has. So its own settings list the places that are allowed.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from coordinator.errors import ForbiddenError, UsageError
from repository.store.s3.location import S3Location

ANY: Final = "any"
"""Allows every place: for whoever has all rights on the machine anyway."""
FIRST: Final = "default"
"""What the repository of the settings is called."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_FILE: Final = "file://"
_S3: Final = "s3://"
_SCHEMES: Final = frozenset({"file", "s3", "http", "https"})


def parse_places(text: str) -> tuple[str, ...]:
    """Read URLs with spaces between them, or `any`; ValueError."""
    places = tuple(text.split())
    if places == (ANY,):
        return places
    for place in places:
        parts = urlsplit(place)
        if parts.scheme not in _SCHEMES or not (parts.netloc or parts.path.startswith("/")):
            raise ValueError(
                "needs file:///DIR, s3://BUCKET/PREFIX or the endpoint of an S3, or any alone"
            )
    return places


def check_name(name: str) -> None:
    """UsageError for what cannot be the name of a further repository."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} cannot be the name of a repository",
            hint="use lower-case letters, digits, dots, dashes and underscores, 63 at most",
        )
    if name == FIRST:
        raise UsageError(
            f"{FIRST!r} is what the repository of the coordinator's settings is called",
            hint="choose another name",
        )


def directory_of(url: str) -> Path | None:
    """The directory that a URL names; None for a bucket, UsageError for anything else."""
    if url.startswith(_S3):
        return None
    try:
        path = unquote(url.removeprefix(_FILE), errors="strict")
    except UnicodeDecodeError:
        path = ""  # it could be shown to nobody, nor be written down
    if not url.startswith(_FILE) or not path.startswith("/") or "\0" in path:
        raise UsageError(
            f"{url!r} is no place for a repository", hint="give s3://BUCKET/PREFIX or file:///DIR"
        )
    return Path(path)


def check_directory(real: PurePath, places: Iterable[str]) -> None:
    """ForbiddenError unless a directory, all links resolved, lies in one of the places."""
    if not any(
        place == ANY or (place.startswith(_FILE) and real.is_relative_to(_path(place)))
        for place in places
    ):
        raise _forbidden(f"{_FILE}{real}", f"{_FILE}{real}")


def check_bucket(url: str, endpoint: str | None, places: Iterable[str]) -> None:
    """ForbiddenError unless a bucket of an endpoint, None for AWS, lies in one of the places."""
    where = url if endpoint is None else endpoint
    if not any(place == ANY or _is_beneath(where, place) for place in places):
        raise _forbidden(url if endpoint is None else f"{url} at {endpoint}", where)


def check_buckets_apart(asked: S3Location, others: Iterable[tuple[str, S3Location]]) -> None:
    """UsageError where a prefix lies in that of another repository, given with its name."""
    for name, other in others:
        one, two = (_spelled_alike(each) for each in (asked, other))
        if one[:2] != two[:2]:
            continue
        shorter, longer = sorted((one[2], two[2]), key=len)
        if longer == shorter:
            raise UsageError(
                f"repository {name} lies at {other.url} already",
                hint="choose another bucket, or another prefix in it",
            )
        if longer.startswith(shorter):
            raise UsageError(
                f"{asked.url} and {other.url}, where repository {name} lies, lie in one another",
                hint="choose another bucket, or a prefix beside it",
            )


def _spelled_alike(location: S3Location) -> tuple[str, str, str]:
    """The server, the bucket, and what its keys begin with."""
    return (location.endpoint or "").rstrip("/").lower(), location.bucket, location.key_prefix


def plain(url: str) -> str:
    """The same place as it is written down: without slashes at its end; UsageError."""
    directory = directory_of(url)
    if directory is None:
        return f"{_S3}{url.removeprefix(_S3).rstrip('/')}"
    return f"{_FILE}{quote(os.fspath(directory))}"


def check_apart(real: PurePath, others: Iterable[PurePath], volumes: Sequence[PurePath]) -> None:
    """UsageError where a directory lies in another repository, or would be read as volume data."""
    for other in others:
        if real.is_relative_to(other) or other.is_relative_to(real):
            raise UsageError(
                f"{real} and {other}, which the coordinator uses already, lie in one another",
                hint="choose a directory beside it",
            )
    for volume in volumes:
        if real.is_relative_to(volume):
            raise UsageError(
                f"{real} lies in the protected volume {volume}: each backup would store what the "
                "one before it has stored",
                hint="choose a directory outside of all volumes",
            )


def _is_beneath(where: str, place: str) -> bool:
    place = place.rstrip("/")
    return where.rstrip("/") == place or where.startswith(f"{place}/")


def _path(place: str) -> str:
    return unquote(place.removeprefix(_FILE))


def _forbidden(what: str, where: str) -> ForbiddenError:
    return ForbiddenError(
        f"the coordinator's settings do not allow a repository at {what}",
        hint=f"add {where} to repository_places in its settings, and start it again",
    )
