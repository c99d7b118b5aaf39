"""Random changes of a volume, and what filesystem events tell of each of them, no more."""

import ctypes
import os
import random
import shutil
from pathlib import Path
from typing import Final

from agent.tracking.dirty import Dirty

# Names whose order betrays a walk that compares paths instead of components.
_NAMES: Final = [b"a", b"a-b", b"a b", b"aa", b"A", b"b", b"\x01", b"\xff\xfe"]
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of <linux/fs.h>
_AT_FDCWD: Final = -100
_libc = ctypes.CDLL(None, use_errno=True)


class Toucher:
    """Changes one volume."""

    def __init__(self, volume: Path, outside: Path, chance: random.Random) -> None:
        self._volume = os.fsencode(volume)
        self._outside = os.fsencode(outside)
        self._chance = chance
        self._moved_out = 0
        self.dirty = Dirty()

    def touch(self, times: int) -> None:
        changes = [
            *(self._write, self._make_file, self._make_file, self._make_tree, self._rename),
            *(self._rename, self._exchange, self._remove, self._retype, self._make_link),
            *(self._change_mode, self._link, self._move_in, self._move_out, self._change_outside),
        ]
        for _ in range(times):
            self._chance.choice(changes)()

    def take(self) -> Dirty:
        """What was told since the last time."""
        dirty, self.dirty = self.dirty, Dirty()
        return dirty

    # Where.

    def _path(self, key: bytes) -> bytes:
        return self._volume + b"/" + key.replace(b"\0", b"/") if key else self._volume

    def keys(self, *, directories: bool | None = None) -> list[bytes]:
        """All keys but the root's."""
        found = []
        for directory, below, files in os.walk(self._volume):
            for name in below + files:
                path = os.path.join(directory, name)
                is_directory = os.path.isdir(path) and not os.path.islink(path)
                if directories is None or is_directory == directories:
                    found.append(os.path.relpath(path, self._volume).replace(b"/", b"\0"))
        return sorted(found)

    def _any(self, *, directories: bool | None = None) -> bytes | None:
        keys = self.keys(directories=directories)
        return self._chance.choice(keys) if keys else None

    def _free(self) -> bytes | None:
        """A key at which there is nothing."""
        above = self._chance.choice([b"", *self.keys(directories=True)])
        key = above + b"\0" + self._chance.choice(_NAMES) if above else self._chance.choice(_NAMES)
        return None if os.path.lexists(self._path(key)) or key.count(b"\0") > 5 else key

    def _fill(self, path: bytes) -> None:
        """Make a small tree."""
        os.mkdir(path)
        for name in self._chance.sample(_NAMES, self._chance.randrange(4)):
            below = path + b"/" + name
            if self._chance.random() < 0.3 and path.count(b"/") < 20:
                self._fill(below)
            else:
                Path(os.fsdecode(below)).write_bytes(self._content())

    def _content(self) -> bytes:
        return self._chance.randbytes(self._chance.choice([0, 3, 50]))

    def _tell(self, key: bytes) -> None:
        """A name came: a directory as it is, with whatever is in it."""
        self.dirty.names.add(key)
        if os.path.isdir(self._path(key)) and not os.path.islink(self._path(key)):
            self.dirty.subtrees.add(key)

    # What.

    def _write(self) -> None:
        key = self._any(directories=False)
        if key is None or os.path.islink(self._path(key)) or not os.path.isfile(self._path(key)):
            return
        Path(os.fsdecode(self._path(key))).write_bytes(self._content())
        self.dirty.names.add(key)

    def _make_file(self) -> None:
        if (key := self._free()) is not None:
            Path(os.fsdecode(self._path(key))).write_bytes(self._content())
            self._tell(key)

    def _make_tree(self) -> None:
        if (key := self._free()) is not None:
            self._fill(self._path(key))
            self._tell(key)

    def _make_link(self) -> None:
        if (key := self._free()) is not None:
            os.symlink(self._chance.choice([b"a", b"..", b"nowhere", b"/etc"]), self._path(key))
            self._tell(key)

    def _rename(self) -> None:
        source, target = self._any(), self._free() or self._any()
        if source is None or target is None:
            return
        try:
            os.rename(self._path(source), self._path(target))
        except OSError:  # into itself, or upon what cannot be replaced
            return
        self.dirty.names.add(source)
        self._tell(target)

    def _exchange(self) -> None:
        one, other = self._any(), self._any()
        if one is None or other is None:
            return
        paths = self._path(one), self._path(other)
        if _libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _EXCHANGE) == 0:
            self._tell(one)
            self._tell(other)

    def _remove(self) -> None:
        if (key := self._any()) is not None:
            self._take_away(key)

    def _take_away(self, key: bytes) -> None:
        path = self._path(key)
        beneath = [each for each in self.keys() if each.startswith(key + b"\0")]
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
        self.dirty.names |= {key, *beneath}

    def _retype(self) -> None:
        """A directory where a file was, and the other way round."""
        if (key := self._any()) is None:
            return
        path = self._path(key)
        was_directory = os.path.isdir(path) and not os.path.islink(path)
        self._take_away(key)
        if was_directory:
            Path(os.fsdecode(path)).write_bytes(self._content())
        else:
            self._fill(path)
        self._tell(key)

    def _change_mode(self) -> None:
        key = self._chance.choice([b"", *self.keys()])
        if not os.path.islink(self._path(key)):
            os.chmod(self._path(key), self._chance.choice([0o700, 0o755, 0o711]))
            self.dirty.names.add(key)

    def _link(self) -> None:
        """Besides the new name, its inode is told: the name may be moved away before it is seen."""
        source, target = self._any(directories=False), self._free()
        if source is not None and target is not None:
            os.link(self._path(source), self._path(target), follow_symlinks=False)
            self._tell(target)
            self.dirty.inodes.add(os.lstat(self._path(target)).st_ino)

    def _move_in(self) -> None:
        if (key := self._free()) is not None:
            source = self._outside + b"/comes"
            self._fill(source)
            os.rename(source, self._path(key))
            self._tell(key)

    def _move_out(self) -> None:
        if (key := self._any()) is not None:
            self._moved_out += 1
            os.rename(self._path(key), self._outside + b"/%d" % self._moved_out)
            self.dirty.names.add(key)

    def _change_outside(self) -> None:
        """Of what has a name elsewhere, only its inode is told."""
        for directory, _, files in os.walk(self._outside):
            for name in files:
                path = os.path.join(directory, name)
                if not os.path.islink(path):
                    os.chmod(path, self._chance.choice([0o600, 0o644]))
                    self.dirty.inodes.add(os.stat(path).st_ino)
                    os.unlink(path)
                    return
