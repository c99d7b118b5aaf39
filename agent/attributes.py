"""Extended attributes of whatever a descriptor holds: POSIX ACLs, capabilities, labels, users' own.

All that the kernel lists is taken, with the security and trusted ones that only root is shown. A
descriptor that opens nothing (O_PATH), as of a symlink, is asked by way of its name in /proc, which
leads to the thing itself and nowhere else.
"""

import errno
import os
from typing import Final

from agent.errors import SourceError
from repository.entries import ATTRIBUTES_BYTES_MAX, Attributes

_UNSUPPORTED: Final = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENOSYS})
_RACES: Final = 4  # tries at a list that grows while it is read


def attributes_of(descriptor: int, *, opened: bool = True) -> Attributes | None:
    """The attributes in order of names; None where there are none, or the filesystem has none.

    `opened`: False for a descriptor of O_PATH. Raises OSError, or SourceError for more than an
    entry may hold.
    """
    what: int | str = descriptor if opened else f"/proc/self/fd/{descriptor}"
    for _ in range(_RACES):
        try:
            names = os.listxattr(what)
            if not names:
                return None
            return _read(what, names)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return None
            if error.errno != errno.ERANGE:
                raise
    raise SourceError("its extended attributes keep changing while they are read")


def _read(what: int | str, names: list[str]) -> Attributes | None:
    found: Attributes = []
    total = 0
    for name in sorted(map(os.fsencode, names)):
        try:
            value = os.getxattr(what, name)
        except OSError as error:
            if error.errno == errno.ENODATA:  # removed since it was listed
                continue
            raise
        total += len(name) + len(value)
        if total > ATTRIBUTES_BYTES_MAX:
            raise SourceError(
                f"its extended attributes are longer than {ATTRIBUTES_BYTES_MAX} bytes",
                hint="remove some, or exclude it",
            )
        found.append((name, value))
    return found or None
