"""The volumes of this node: those named by hand in the protect file, read anew when it changes.

A file that has become unreadable or wrong changes nothing: what was protected stays protected, and
the log says so. Nothing here reads a volume.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from agent.config import Config, read_protected
from agent.errors import ConfigError, VolumeError
from agent.logs import get_logger
from agent.services import Volume
from repository.ids import NodeId, volume_id

# What provides a volume that was named by hand.
_ENGINE: Final = "path"
_log = get_logger()


class Volumes:
    """What is protected just now."""

    def __init__(self, protect_file: Path | None, node_id: NodeId) -> None:
        """Read the protect file; ConfigError where it is wrong."""
        self._file = protect_file
        self._node_id = node_id
        self._seen = self._signature()
        self._volumes: dict[bytes, Volume] = {}
        if protect_file is not None:
            self._read(protect_file)

    def all(self) -> Sequence[Volume]:
        """Return all volumes."""
        return list(self._volumes.values())

    def get(self, wanted: bytes) -> Volume | None:
        """Return the volume of that id."""
        return self._volumes.get(wanted)

    def refresh(self) -> bool:
        """Read the file again if it changed; True if there are other volumes now."""
        signature = self._signature()
        if self._file is None or signature == self._seen:
            return False
        self._seen = signature
        before = self._volumes
        try:
            self._read(self._file)
        except ConfigError as error:
            _log.error("protect file ignored", reason=error.message, hint=error.hint)
            return False
        return self._volumes != before

    def _read(self, path: Path) -> None:
        volumes = (
            Volume(volume_id(self._node_id, _ENGINE, each.name), each.name, each.path, _ENGINE)
            for each in read_protected(path)
        )
        self._volumes = {volume.volume_id: volume for volume in volumes}

    def _signature(self) -> tuple[int, int, int] | None:
        """Tell one version of the file from another, through whatever links it is reached."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


def never_read(config: Config) -> tuple[Path, ...]:
    """Return the directories that are no volume data: the agent's own, and those excluded."""
    return (config.state, *config.exclude)


def excluded(directories: Iterable[Path]) -> frozenset[tuple[int, int]]:
    """Return device and inode of those that are there."""
    found = set()
    for directory in directories:
        try:
            at = directory.stat()
        except OSError:
            continue
        found.add((at.st_dev, at.st_ino))
    return frozenset(found)


def check_readable(volume: Volume, directories: Iterable[Path]) -> None:
    """Raise VolumeError for a volume that lies in a directory that is never read."""
    real = os.path.realpath(volume.path)
    for directory in directories:
        never = os.path.realpath(os.fsencode(directory))
        if real == never or real.startswith(never.rstrip(b"/") + b"/"):
            raise VolumeError(
                f"{os.fsdecode(volume.path)} lies in {directory}, which is never read",
                hint="protect another directory; Tidemark's own data may lie there",
            )
