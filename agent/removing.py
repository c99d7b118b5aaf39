"""Removes what a restore was asked to remove: names that the snapshot does not have.

Only a directory that was listed can show an extra name, and only one that the snapshot has and was
read completely. Nothing is followed, no filesystem but the target's own is entered, and neither is
a directory that is closed: Tidemark's own data may lie there. Both stay, with all that leads there.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import Final, Self

from agent.errors import TargetError
from agent.listing import sorted_names
from agent.standing import Ground, is_beside

# Extra names are kept here until everything is restored; more of them go to disk.
_SPOOL_BYTES: Final = 1024 * 1024

OnProblem = Callable[[bytes, TargetError], None]
OnRemoved = Callable[[bytes, bool], None]


class _Level:
    """A directory on the way down."""

    __slots__ = ("is_kept", "key", "names")

    def __init__(self, key: bytes, names: Iterator[bytes]) -> None:
        self.key = key
        self.names = names
        self.is_kept = False
        """Whether something in it stays, and so it does."""


class _Removal:
    """One name and what is beneath it: what is in a directory goes before the directory."""

    def __init__(
        self, ground: Ground, on_problem: OnProblem, on_removed: OnRemoved, *, rehearse: bool
    ) -> None:
        self._ground = ground
        self._on_problem = on_problem
        self._on_removed = on_removed
        self._rehearse = rehearse
        self._may_open_up = not rehearse and os.geteuid() != 0
        self._levels: list[_Level] = []

    def run(self, key: bytes) -> None:
        self._visit(key)
        while self._levels:
            level = self._levels[-1]
            name = next(level.names, None)
            if name is not None:
                self._visit(level.key + b"\0" + name)
                continue
            self._levels.pop()
            if level.is_kept:
                self._keep_above()
            else:
                self._leave(level.key)

    def _visit(self, key: bytes) -> None:
        try:
            with self._ground.tree.parent(key) as (directory, name):
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    if not self._rehearse:
                        os.unlink(name, dir_fd=directory)
                    self._on_removed(key, False)  # noqa: FBT003 - see remove
                    return
            self._enter(key, found)
        except FileNotFoundError:
            return
        except TargetError as error:
            self._fail(key, error)
        except OSError as error:
            self._fail(key, _meaning(error))

    def _enter(self, key: bytes, found: os.stat_result) -> None:
        if (found.st_dev, found.st_ino) in self._ground.closed:
            raise TargetError("not removed: Tidemark's own data lies there")
        with self._ground.tree.directory(key) as directory:
            if self._may_open_up and found.st_mode & 0o700 != 0o700:
                os.fchmod(directory, stat.S_IMODE(found.st_mode) | 0o700)
            self._levels.append(_Level(key, sorted_names(directory)))

    def _leave(self, key: bytes) -> None:
        if self._rehearse:
            self._on_removed(key, True)  # noqa: FBT003 - see remove
            return
        self._ground.tree.forget(key)
        try:
            with self._ground.tree.parent(key) as (directory, name):
                os.rmdir(name, dir_fd=directory)
            self._on_removed(key, True)  # noqa: FBT003 - see remove
        except FileNotFoundError:
            return
        except OSError as error:
            self._fail(key, _meaning(error))

    def _fail(self, key: bytes, error: TargetError) -> None:
        self._keep_above()
        self._on_problem(key, error)

    def _keep_above(self) -> None:
        if self._levels:
            self._levels[-1].is_kept = True


def remove(
    ground: Ground,
    key: bytes,
    on_problem: OnProblem,
    on_removed: OnRemoved = lambda _key, _is_directory: None,
    *,
    rehearse: bool = False,
) -> None:
    """Remove a name and all beneath it, or with `rehearse` only say what would be removed.

    `on_removed` is told every name, and whether it is a directory's; `on_problem` what stays, and
    why. It may raise to end it.
    """
    _Removal(ground, on_problem, on_removed, rehearse=rehearse).run(key)


def _meaning(error: OSError) -> TargetError:
    if error.errno in {errno.EXDEV, errno.EBUSY}:
        return TargetError("not removed: another filesystem is mounted there")
    return TargetError(f"cannot be removed: {(error.strerror or str(error)).lower()}")


class Extras:
    """The names of the target that the snapshot lacks, found while its keys go by in order.

    A directory that stands and is wanted is entered with its names as they are then; what is made
    in it later is not among them.
    """

    def __init__(self, ground: Ground, *spared: bytes, leftovers_only: bool = False) -> None:
        """`spared` are keys that are never extra.

        `leftovers_only`: nothing is, but what a restore that was killed had made beside names.
        """
        self._ground = ground
        self._spared = frozenset(spared)
        self.leftovers_only = leftovers_only
        self._levels: list[tuple[bytes, Iterator[bytes]]] = []
        self._next: list[bytes | None] = []
        self._found = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 - closed

    def __enter__(self) -> Self:
        """Return itself; leaving closes."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget them."""
        self._found.close()

    def enter(self, key: bytes) -> None:
        """Look at the names of a directory whose key was just seen. Raises TargetError."""
        with self._ground.translated(), self._ground.tree.directory(key) as directory:
            names = sorted_names(directory)
        self._levels.append((key + b"\0" if key else b"", names))
        self._next.append(next(names, None))

    def see(self, key: bytes) -> None:
        """Take note of the next key of the snapshot."""
        while self._levels and not key.startswith(self._levels[-1][0]):
            self._leave()
        if not self._levels:
            return
        prefix, names = self._levels[-1]
        name = key[len(prefix) :]
        if not name or b"\0" in name:
            return  # it lies deeper, in a directory that did not stand there
        following = self._next[-1]
        while following is not None and following <= name:
            if following != name:
                self._add(prefix + following)
            following = next(names, None)
        self._next[-1] = following

    def all(self) -> Iterator[bytes]:
        """All extra names, once every key was seen; nothing for what is beneath one of them."""
        while self._levels:
            self._leave()
        self._found.seek(0)
        while head := self._found.read(4):
            yield self._found.read(int.from_bytes(head, "big"))

    def _leave(self) -> None:
        prefix, names = self._levels.pop()
        following = self._next.pop()
        while following is not None:
            self._add(prefix + following)
            following = next(names, None)

    def _add(self, key: bytes) -> None:
        if self.leftovers_only and not is_beside(key.rpartition(b"\0")[2]):
            return
        if key not in self._spared:
            self._found.write(len(key).to_bytes(4, "big") + key)
