"""A directory's names in the order of keys, in bounded memory however many there are."""

import heapq
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from operator import attrgetter
from typing import Final

# More names than this are sorted by runs on disk: some 15 MiB of memory for any directory.
_NAMES_IN_MEMORY: Final = 200_000
_ENCODING: Final = sys.getfilesystemencoding()
_ENCODE_ERRORS: Final = sys.getfilesystemencodeerrors()


def sorted_names(descriptor: int, scratch: str | None = None) -> Iterator[bytes]:
    """Read all names of an open directory now, and return them sorted bytewise. Raises OSError.

    `scratch` is a directory for the runs of very large ones.
    """
    names: list[bytes] = []
    runs: list[Iterator[bytes]] = []
    with os.scandir(descriptor) as listing:
        listed = map(attrgetter("name"), listing)
        while part := list(itertools.islice(listed, _NAMES_IN_MEMORY)):
            if names:
                runs.append(_run(names, scratch))
            # All at once: no name holds a zero byte.
            names = "\0".join(part).encode(_ENCODING, _ENCODE_ERRORS).split(b"\0")
    names.sort()
    return heapq.merge(*runs, names) if runs else iter(names)


def _run(names: list[bytes], scratch: str | None) -> Iterator[bytes]:
    """Sort names and put them on disk. No name holds a slash, so it can stand for newline."""
    names.sort()
    file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed by the generator
    file.writelines(name.replace(b"\n", b"/") + b"\n" for name in names)
    file.seek(0)

    def read_back() -> Iterator[bytes]:
        with file:
            for line in file:
                yield line[:-1].replace(b"/", b"\n")

    return read_back()
