"""The volumes of this node: those named by hand, and those that a container engine told of.

A protect file that has become unreadable or wrong changes nothing: what was protected stays
protected, and the log says so. What an engine told is kept on the disk, so that an engine that is
down when the agent starts takes no volume away. Nothing here reads a volume.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agent.clones import DIRECTORY
from agent.config import Config, Protected, read_protected
from agent.discovery.answer import Answer
from agent.discovery.ledger import ENGINE, Own, ledger
from agent.discovery.places import look_at
from agent.errors import ConfigError, VolumeError
from agent.logs import get_logger
from agent.services import BY_HAND, Verdict, Volume
from repository.ids import NodeId, stated_volume_id, volume_id

_FOUND_FILE: Final = "docker.json"
# Far more than any node has; with those by hand still no more than a coordinator accepts.
_FOUND_MAX: Final = 9_000
_log = get_logger()


class Survey(NamedTuple):
    """What a look at the disk found."""

    volumes: list[Volume]
    real: dict[bytes, bytes]
    """Where each path by hand leads."""


class Volumes:
    """What there is just now, and what becomes of it."""

    def __init__(self, config: Config, node_id: NodeId) -> None:
        """Read the protect file, and what was found last; ConfigError where the first is wrong."""
        self._file = config.protect_file
        self._own = Own(node_id, tuple(real_paths(never_read(config))))
        self._seen = self._signature()
        self._by_hand: list[Volume] = []
        self._real: dict[bytes, bytes] = {}
        self._found_file = config.state / _FOUND_FILE
        self._found = _load(self._found_file) if config.docker is not None else []
        if self._file is not None:
            self._read(self._file)
        self._volumes: dict[bytes, Volume] = {}
        self._join()

    def all(self) -> Sequence[Volume]:
        """Return all volumes, whatever becomes of them."""
        return list(self._volumes.values())

    def protected(self) -> int:
        """Return how many are backed up."""
        return sum(each.verdict is Verdict.PROTECTED for each in self._volumes.values())

    def paths(self) -> Sequence[bytes]:
        """Return where those lie that are backed up."""
        volumes = self._volumes.values()
        return [each.path for each in volumes if each.verdict is Verdict.PROTECTED]

    def get(self, wanted: bytes) -> Volume | None:
        """Return the volume of that id."""
        return self._volumes.get(wanted)

    def refresh(self) -> bool:
        """Read the protect file again if it changed; True if there are other volumes now."""
        signature = self._signature()
        if self._file is None or signature == self._seen:
            return False
        self._seen = signature
        try:
            self._read(self._file)
        except ConfigError as error:
            _log.error("protect file ignored", reason=error.message, hint=error.hint)
            return False
        return self._join()

    def survey(self, answer: Answer) -> Survey:
        """Decide about all that an engine answered; blocks while paths are looked at."""
        real = _real(self._by_hand)
        found = ledger(answer, look_at(answer.paths()), self._own)
        if len(found) > _FOUND_MAX:
            # Those that are backed up come first: what is lost is what nothing happens to.
            found.sort(key=lambda volume: volume.verdict is not Verdict.PROTECTED)
            _log.error("more mounts than can be told", mounts=len(found), told=_FOUND_MAX)
            found = found[:_FOUND_MAX]
        return Survey(found, real)

    def found(self, survey: Survey) -> bool:
        """Take over what a survey found; True if there are other volumes now."""
        # Paths by hand may lead elsewhere than before.
        self._real |= survey.real
        if survey.volumes != self._found:
            self._found = survey.volumes
            try:
                _save(self._found_file, self._found)
            except OSError as error:  # only missed if the engine is down at the next start
                _log.error("volumes found are not kept", reason=str(error))
        return self._join()

    def _read(self, path: Path) -> None:
        self._by_hand = [
            Volume(_local_id(each, self._own.node_id), each.name, each.path)
            for each in read_protected(path)
        ]
        self._real = _real(self._by_hand)

    def _join(self) -> bool:
        joined = join(self._by_hand, self._found, self._real)
        before, self._volumes = self._volumes, {each.volume_id: each for each in joined}
        return self._volumes != before

    def _signature(self) -> tuple[int, int, int] | None:
        """Tell one version of the file from another, through whatever links it is reached."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


def _local_id(protected: Protected, node_id: NodeId) -> bytes:
    if protected.uid:
        return stated_volume_id(protected.uid)
    return volume_id(node_id, BY_HAND, protected.name)


def _real(by_hand: Iterable[Volume]) -> dict[bytes, bytes]:
    return {each.path: os.path.realpath(each.path) for each in by_hand}


def join(
    by_hand: Sequence[Volume], found: Iterable[Volume], real: Mapping[bytes, bytes]
) -> list[Volume]:
    """Return both together, where a directory that was named by hand is one volume. Pure.

    A path by hand stays the volume that it was, and learns which containers use it. `real` tells
    where such paths lead.
    """
    paths = {real.get(each.path, each.path): each for each in by_hand}
    rest = []
    for volume in found:
        named = paths.get(volume.path)
        if named is None:
            rest.append(volume)
            continue
        paths[volume.path] = msgspec.structs.replace(
            named,
            containers=tuple(sorted({*named.containers, *volume.containers})),
            project=named.project or volume.project,
            labels=named.labels or volume.labels,
        )
    known = {volume.volume_id: volume for volume in paths.values()}
    first = [known.get(volume.volume_id, volume) for volume in by_hand]
    taken = {volume.name for volume in first}
    return [
        *first,
        *(
            msgspec.structs.replace(each, name=f"{ENGINE}:{each.name}")
            if each.name in taken
            else each
            for each in rest
        ),
    ]


def _load(file: Path) -> list[Volume]:
    """What was found when the engine last answered; nothing, if that cannot be told."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Volume])
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:  # msgspec's errors among them
        _log.error("volumes found earlier are unknown", file=str(file), reason=str(error))
        return []


def _save(file: Path, volumes: Sequence[Volume]) -> None:
    new = file.with_name(file.name + ".new")
    new.write_bytes(msgspec.json.encode(volumes))
    new.replace(file)


def never_read(config: Config) -> tuple[Path, ...]:
    """Return the directories that are no volume data: the agent's own, and those excluded."""
    clones = (each / DIRECTORY for each in config.clone_dir)
    return (config.state, *config.exclude, *clones)


def real_paths(directories: Iterable[Path]) -> Iterable[bytes]:
    """Return where directories lie, without links."""
    return (os.path.realpath(os.fsencode(each)) for each in directories)


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
    """Raise VolumeError for a volume that is not backed up, or lies where nothing is read."""
    if volume.verdict is not Verdict.PROTECTED:
        raise VolumeError(
            f"{volume.name} is {volume.verdict}: {volume.reason}", hint="see tidemark volume show"
        )
    real = os.path.realpath(volume.path)
    for directory in directories:
        never = os.path.realpath(os.fsencode(directory))
        if real == never or real.startswith(never.rstrip(b"/") + b"/"):
            raise VolumeError(
                f"{os.fsdecode(volume.path)} lies in {directory}, which is never read",
                hint="protect another directory; Tidemark's own data may lie there",
            )
