"""Opens the directory that a restore goes to.

A target is named by whoever orders the restore, so it must lie beneath one of the directories that
this agent's own configuration lists, and nothing on the way to it may be a link. A restore in place
goes to the path that the same configuration gives the volume; that may lead through links, as it
may for backups. Neither leads into a directory that is closed: Tidemark's own data may lie there.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.beneath import open_directory
from agent.errors import TargetError, VolumeError
from agent.rehearsing import Rehearsal
from agent.services import RestorePlaces, RestoreTask
from agent.standing import FULL, TargetFullError
from agent.writing import MARKER, Target, Warn

# Nobody else may look at what has not got its owner yet.
_PRIVATE: Final = 0o700
# A name may have 255 bytes, the mark's ending included.
_MARKED_BYTES_MAX: Final = 255 - len(MARKER)


@dataclass(frozen=True)
class Place:
    """A directory to restore to, and what is known of it before it is opened."""

    path: bytes
    roots: Sequence[bytes]
    closed: frozenset[tuple[int, int]]
    marker: bytes = MARKER

    def above(self) -> "tuple[Place, bytes]":
        """Where a volume that is one file goes: into this path's directory, by this path's name.

        The mark stands beside that file then.
        """
        parent, _, name = self.path.rstrip(b"/").rpartition(b"/")
        if not name:
            raise TargetError(
                "the snapshot is a single file, which cannot be /", hint="name a path for the file"
            )
        marker = name[:_MARKED_BYTES_MAX] + MARKER
        return Place(parent or b"/", self.roots, self.closed, marker), name


def place_of(task: RestoreTask, places: RestorePlaces, volume_id: bytes) -> Place:
    """Where a task goes. VolumeError where that is in place, and the volume is not here."""
    if not task.in_place:
        return Place(task.target, places.roots, places.closed)
    path = places.volume_path(volume_id)
    if path is None:
        raise VolumeError(
            "this volume is not one of this node any more, so nothing is in place here",
            hint="restore to a directory with --to DIR",
        )
    return Place(os.path.realpath(path), [b"/"], places.closed)


def open_target(place: Place, warn: Warn) -> Target:
    """Open the directory; make it if need be. Raises TargetError."""
    descriptor, _ = _open(place, make=True)
    return Target(descriptor, place.path, warn, marker=place.marker, closed=place.closed)


def open_rehearsal(place: Place) -> Rehearsal:
    """Open the directory to look at it; where it is missing, it is as if it were empty."""
    descriptor, is_missing = _open(place, make=False)
    return Rehearsal(
        descriptor, place.path, marker=place.marker, closed=place.closed, is_missing=is_missing
    )


def _open(place: Place, *, make: bool) -> tuple[int, bool]:
    """Descend to the directory, or as far as there is one."""
    path = place.path
    parts = [part for part in path.split(b"/") if part]
    if not path.startswith(b"/") or b".." in parts or b"." in parts:
        raise TargetError(
            f"{os.fsdecode(path)} is not a plain absolute path", hint="name the target in full"
        )
    root, below = _root_of(parts, place.roots, path)
    try:
        if make:
            os.makedirs(root, _PRIVATE, exist_ok=True)
        elif not os.path.isdir(root):
            return _open_root(b"/"), True
        descriptor = _open_root(root)
        try:
            for name in below:
                lower = _descend(descriptor, name, make=make)
                if lower is None:
                    return descriptor, True
                os.close(descriptor)
                descriptor = lower
                _check_open(descriptor, place)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise _unusable(path, error) from error
    return descriptor, False


def _root_of(parts: list[bytes], roots: Sequence[bytes], path: bytes) -> tuple[bytes, list[bytes]]:
    for root in roots:
        above = [part for part in root.split(b"/") if part]
        if parts[: len(above)] == above:
            return b"/" + b"/".join(above), parts[len(above) :]
    allowed = ", ".join(os.fsdecode(root) for root in roots)
    raise TargetError(
        f"this node does not restore to {os.fsdecode(path)}",
        hint=f"choose a directory beneath {allowed}, or set restore_root on the agent",
    )


def _open_root(root: bytes) -> int:
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _descend(directory: int, name: bytes, *, make: bool) -> int | None:
    """Open a directory in an open one, making it if need be and allowed."""
    try:
        return open_directory(directory, name)
    except FileNotFoundError:
        if not make:
            return None
        os.mkdir(name, _PRIVATE, dir_fd=directory)
        return open_directory(directory, name)


def _check_open(descriptor: int, place: Place) -> None:
    found = os.fstat(descriptor)
    if (found.st_dev, found.st_ino) in place.closed:
        raise TargetError(
            f"{os.fsdecode(place.path)} lies where Tidemark keeps its own data",
            hint="choose another target",
        )


def _unusable(path: bytes, error: OSError) -> TargetError:
    shown = os.fsdecode(path)
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        real = os.fsdecode(os.path.realpath(path))
        return TargetError(
            f"{shown} leads through a symbolic link, or through what is no directory",
            hint=f"name the directory itself: {real}",
        )
    if error.errno in FULL:
        return TargetFullError(f"no space left for {shown}", hint="choose another disk")
    reason = (error.strerror or str(error)).lower()
    return TargetError(f"cannot use {shown} as a target: {reason}", hint="choose another one")
