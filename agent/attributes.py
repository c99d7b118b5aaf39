"""Extended attributes of whatever a descriptor holds: POSIX ACLs, capabilities, labels, users' own.

All that the kernel lists is taken, with the security and trusted ones that only root is shown. A
descriptor that opens nothing (O_PATH), as of a symlink, is asked by way of its name in /proc, which
leads to the thing itself and nowhere else. What may be listed and not read costs itself alone.
"""

import errno
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from agent.errors import SourceError
from repository.entries import ATTRIBUTES_BYTES_MAX, Attributes

_UNSUPPORTED: Final = frozenset({errno.ENOTSUP, errno.ENOSYS})
_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP})
_NAMED_MAX: Final = 5  # of many, in a message
_RACES: Final = 4  # tries at a list that grows while it is read


class Had(NamedTuple):
    """The extended attributes of something, as far as they can be read."""

    attributes: Attributes | None
    """In order of names; None where there are none, or the filesystem has none."""
    refused: Sequence[bytes] = ()
    """Names of those that may not be read."""


NO_ATTRIBUTES: Final = Had(None)


def attributes_of(descriptor: int, *, opened: bool = True) -> Had:
    """What it has. `opened`: False for a descriptor of O_PATH.

    Raises OSError, or SourceError for more than an entry may hold.
    """
    what: int | str = descriptor if opened else f"/proc/self/fd/{descriptor}"
    for _ in range(_RACES):
        try:
            names = os.listxattr(what)
            return _read(what, names) if names else NO_ATTRIBUTES
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return NO_ATTRIBUTES
            if error.errno != errno.ERANGE:
                raise
    raise SourceError("its extended attributes keep changing while they are read")


def lacking(refused: Sequence[bytes]) -> SourceError | None:
    """What it means for a path that these attributes of it may not be read."""
    if not refused:
        return None
    named = ", ".join(map(os.fsdecode, refused[:_NAMED_MAX]))
    more = ", ..." if len(refused) > _NAMED_MAX else ""
    return SourceError(
        f"extended attributes of it cannot be read, and are not saved: {named}{more}",
        hint="let the agent's user read them, or remove them",
    )


def _read(what: int | str, names: list[str]) -> Had:
    found: Attributes = []
    refused: list[bytes] = []
    total = 0
    for name in sorted(map(os.fsencode, names)):
        try:
            value = os.getxattr(what, name)
        except OSError as error:
            if error.errno == errno.ENODATA:  # removed since it was listed
                continue
            if error.errno in _REFUSED:
                refused.append(name)
                continue
            raise
        total += len(name) + len(value)
        if total > ATTRIBUTES_BYTES_MAX:
            raise SourceError(
                f"its extended attributes are longer than {ATTRIBUTES_BYTES_MAX} bytes",
                hint="remove some, or exclude it",
            )
        found.append((name, value))
    return Had(found or None, refused)
