"""Which URLs an agent sends anything to: those below the store endpoints of its own settings. Pure.

The coordinator signs requests and says where they go. An agent that went wherever it is told would
be a way into whatever network its node is in; so the word of its own settings stands above that.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import urlsplit

_PORTS: Final = {"http": 80, "https": 443}
# A path that means another one to whoever decodes or resolves it: dots, slashes and backslashes,
# plain or escaped.
_DEVIOUS: Final = re.compile(
    r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)|\\|%2f|%5c|[\x00-\x20\x7f]", re.IGNORECASE
)


class _Place(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str


def check_endpoint(url: str) -> str:
    """The endpoint; ValueError for what is none."""
    place = _place(url)
    if place is None or urlsplit(url).query:
        raise ValueError("needs the URL of a store, such as https://s3.example.com/bucket/")
    return url


def is_beneath(url: str, endpoints: Iterable[str]) -> bool:
    """Whether a URL has the scheme, host and port of an endpoint, and a path below its path."""
    place = _place(url)
    if place is None:
        return False
    for each in endpoints:
        allowed = _place(each)
        if allowed is None or place[:3] != allowed[:3]:
            continue
        if (place.path + "/").startswith(allowed.path.rstrip("/") + "/"):
            return True
    return False


def _place(url: str) -> _Place | None:
    """Where a URL leads; None if that could be understood in two ways."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname or parts.fragment:
        return None
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        return None
    if not url.isascii() or _DEVIOUS.search(parts.netloc + "/") or _DEVIOUS.search(parts.path):
        return None
    return _Place(parts.scheme, parts.hostname.lower(), port or _PORTS[parts.scheme], parts.path)
