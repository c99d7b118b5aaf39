"""Whether anybody has as much as opened something: inotify's word for it."""

import ctypes
import os
import struct
from pathlib import Path
from typing import Self

# From <linux/inotify.h>: everything, and of the answers the one that says that some were lost.
_ALL = 0xFFF
_OVERFLOW = 0x4000
_HEAD = struct.Struct("=iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Watches a tree, which must not change, from its making on."""

    def __init__(self, top: Path) -> None:
        self._descriptor: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._descriptor >= 0
        self._paths: dict[int, str] = {}
        for path in [top, *top.rglob("*")]:
            number = _libc.inotify_add_watch(self._descriptor, os.fsencode(path), _ALL)
            assert number >= 0, os.strerror(ctypes.get_errno())
            self._paths[number] = str(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def seen(self) -> list[str]:
        """What was opened, read, changed or removed since it was asked last."""
        found: list[str] = []
        while True:
            try:
                events = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return found
            position = 0
            while position < len(events):
                number, mask, _, length = _HEAD.unpack_from(events, position)
                position += _HEAD.size + length
                assert not mask & _OVERFLOW
                found.append(f"{self._paths.get(number)}: {mask:#x}")
