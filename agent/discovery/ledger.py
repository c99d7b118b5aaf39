"""The coverage ledger of a node: every mount has exactly one verdict, and a reason. Pure.

The default is to protect. What is left out is left out by a rule that stands here, and what cannot
be backed up says why; nothing is passed over. One directory is one volume, however many containers
mount it and under however many paths: a named volume comes before a bind mount of its directory.

A volume is named as people know it: a named volume by its name, a bind mount by its path on the
host, any other mount by `container:destination`. Its identity is node, engine and that name.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from agent.discovery.answer import Answer, Container, Mount, NamedVolume, device
from agent.discovery.places import Kind, Place
from agent.services import Verdict, Volume
from repository.ids import NodeId, volume_id

ENGINE: Final = "docker"
NAMED: Final = "docker-volume"
BIND: Final = "docker-bind"
OTHER: Final = "docker-mount"

LABELS: Final = "backup.tidemark.io/"
EXCLUDE: Final = LABELS + "exclude"
EXCLUDED_MOUNTS: Final = LABELS + "backup-volumes-excludes"
_PROJECTS: Final = ("com.docker.compose.project", "com.docker.stack.namespace")
_YES: Final = frozenset({"", "1", "true", "yes", "on"})
_NO: Final = frozenset({"0", "false", "no", "off"})

# What is beneath these is made by the kernel as it is read.
_KERNEL: Final = (b"/proc", b"/sys", b"/dev")
# Where Docker and containerd keep what is theirs, beside the data root.
_DOCKER: Final = (b"/run/docker", b"/run/containerd", b"/var/lib/containerd")
_NO_DATA: Final = {
    Kind.SOCKET: "a socket holds no data",
    Kind.PIPE: "a pipe holds no data",
    Kind.DEVICE: "a device is no directory or file; back up the filesystem on it where it is used",
}
_PROTECTED: Final = "found through Docker, and no rule excludes it"

# Bounds of what is told of one volume: enough for people, whatever somebody writes into labels.
_CONTAINERS_MAX: Final = 50
_LABELS_MAX: Final = 50
_TEXT_MAX: Final = 250

_Ruling = tuple[Verdict, str]


class Own(msgspec.Struct, frozen=True):
    """What the agent knows beside the engine's answer."""

    node_id: NodeId
    never: tuple[bytes, ...] = ()
    """Real paths of directories that are Tidemark's own."""


class _Used(msgspec.Struct, frozen=True):
    """A container and how it mounts the volume in question."""

    container: Container
    mount: Mount


def ledger(answer: Answer, places: Mapping[str, Place], own: Own) -> list[Volume]:
    """Return every mount and every named volume once, in the order of their names."""
    return sorted(_Ledger(answer, places, own).volumes(), key=lambda volume: volume.name)


class _Ledger:
    """One answer, ordered so that it can be asked about."""

    def __init__(self, answer: Answer, places: Mapping[str, Place], own: Own) -> None:
        self._answer = answer
        self._places = places
        self._own = own
        data_root = self._place(answer.data_root).real if answer.data_root else b""
        self._dockers = (data_root, *_DOCKER) if data_root else _DOCKER
        self._skip = (data_root,) if data_root else ()
        self._named = self._named_volumes()
        # The volume that each directory belongs to, the first by name where there are several.
        self._owner: dict[bytes, str] = {}
        for name in sorted(self._named):
            real = self._place(self._path_of(self._named[name])).real
            if real and _unreadable_driver(self._named[name]) is None:
                self._owner.setdefault(real, name)
        self._users, self._binds, self._others = self._uses()
        self._sources = {
            *(_encode(mount.source) for each in self._binds.values() for _, mount in _pairs(each)),
            *(real for real in self._owner),
        }

    def volumes(self) -> Iterable[Volume]:
        for name, named in self._named.items():
            yield self._of_named(named, self._users.get(name, ()))
        for real, users in self._binds.items():
            yield self._of_bind(real, users)
        for name, used in self._others.items():
            yield self._of_other(name, used)

    # What there is.

    def _named_volumes(self) -> dict[str, NamedVolume]:
        named = {volume.name: volume for volume in self._answer.volumes}
        for container in self._answer.containers:
            for mount in container.mounts or ():
                if mount.type == "volume" and mount.name and mount.name not in named:
                    # Made after the engine had listed its volumes.
                    named[mount.name] = NamedVolume(
                        mount.name, driver=mount.driver or "local", mountpoint=mount.source
                    )
        return named

    def _uses(
        self,
    ) -> tuple[dict[str, list[_Used]], dict[bytes, list[_Used]], dict[str, _Used]]:
        """Who uses named volumes, by name; bind mounts, by real path; and anything else."""
        named: dict[str, list[_Used]] = defaultdict(list)
        binds: dict[bytes, list[_Used]] = defaultdict(list)
        others: dict[str, _Used] = {}
        for container in sorted(self._answer.containers, key=lambda each: each.name):
            for mount in container.mounts or ():
                used = _Used(container, mount)
                real = self._place(mount.source).real if mount.type == "bind" else b""
                if mount.type == "volume" and mount.name:
                    named[mount.name].append(used)
                elif real in self._owner:
                    named[self._owner[real]].append(used)
                elif real:
                    binds[real].append(used)
                else:
                    others[f"{container.name}:{mount.destination}"] = used
        return named, binds, others

    def _place(self, path: str) -> Place:
        return self._places.get(path) or Place(Kind.ABSENT, _encode(path))

    def _path_of(self, volume: NamedVolume) -> str:
        return device(volume) or volume.mountpoint

    # What becomes of it.

    def _of_named(self, volume: NamedVolume, users: Sequence[_Used]) -> Volume:
        place = self._place(self._path_of(volume))
        owner = self._owner.get(place.real, volume.name)
        verdict, reason = (
            _unreadable_driver(volume)
            or _same_as(owner, volume.name)
            or (self._rule_of_path(place) if device(volume) else _rule_of_kind(place))
            or _rule_of_labels(volume.labels or {}, users, volume.name)
            or _rule_of_absence(place)
            or _protected(volume.labels or {})
        )
        return self._volume(
            volume.name,
            NAMED,
            place.real,
            (verdict, reason),
            _labels(volume.labels or {}, users),
            users,
        )

    def _of_bind(self, real: bytes, users: Sequence[_Used]) -> Volume:
        name = min(used.mount.source for used in users)
        place = self._place(name)
        ruling = (
            self._rule_of_path(place)
            or _rule_of_labels({}, users, name)
            or _rule_of_absence(place)
            or self._rule_of_links(_encode(name), real)
            or _protected({})
        )
        return self._volume(name, BIND, real, ruling, _labels({}, users), users)

    def _of_other(self, name: str, used: _Used) -> Volume:
        kind = used.mount.type
        reason = (
            "a tmpfs lies in memory, and is gone when its container stops"
            if kind == "tmpfs"
            else f"mounts of type {kind or 'unknown'} cannot be read"
        )
        ruling = _rule_of_labels({}, [used], name) or (Verdict.UNSUPPORTED, reason)
        return self._volume(name, OTHER, b"", ruling, _labels({}, [used]), [used])

    def _rule_of_path(self, place: Place) -> _Ruling | None:
        """What the path alone decides."""
        real = place.real
        reason = ""
        if real == b"/":
            reason = "it is the whole machine; name what is worth protecting with --protect"
        elif place.kind not in _NO_DATA and (tree := _within(real, _KERNEL)):
            reason = f"what is in {_text(tree)} is made by the kernel, and is no data"
        elif _within(real, self._own.never):
            reason = "it is Tidemark's own"
        elif above := next((each for each in _ancestors(real) if each in self._owner), None):
            reason = f"it is a part of volume {self._owner[above]}, which stands by itself"
        elif _within(real, self._dockers):
            reason = "it is Docker's own data"
        if reason:
            return Verdict.EXCLUDED, reason
        return _rule_of_kind(place)

    def _rule_of_links(self, source: bytes, real: bytes) -> _Ruling | None:
        """Whoever may write into a directory could lead a path through it to anywhere."""
        for ancestor in _ancestors(source):
            if ancestor in self._sources and not _within(real, [self._real_of(ancestor)]):
                reason = (
                    f"its path leads out of {_text(ancestor)} through a link, which containers "
                    "that mount that directory can exchange"
                )
                return Verdict.UNSUPPORTED, reason
        return None

    def _real_of(self, path: bytes) -> bytes:
        place = self._places.get(path.decode("utf-8", "surrogateescape"))
        return path if place is None else place.real

    def _volume(
        self,
        name: str,
        source: str,
        path: bytes,
        ruling: _Ruling,
        labels: Mapping[str, str],
        users: Sequence[_Used],
    ) -> Volume:
        shown = printable(name)
        containers = sorted({printable(used.container.name)[:_TEXT_MAX] for used in users})
        return Volume(
            volume_id=volume_id(self._own.node_id, ENGINE, name),
            name=shown,
            path=path,
            source=source,
            verdict=ruling[0],
            reason=printable(ruling[1]),
            containers=tuple(containers[:_CONTAINERS_MAX]),
            project=_project(labels, users),
            labels=_bounded(labels),
            skip=tuple(each for each in self._skip if path != each and _within(each, [path])),
        )


def _pairs(users: Iterable[_Used]) -> Iterable[tuple[Container, Mount]]:
    return ((used.container, used.mount) for used in users)


def _unreadable_driver(volume: NamedVolume) -> _Ruling | None:
    """Whether the volume is something that no directory of this machine always shows."""
    options = volume.options or {}
    if volume.driver != "local":
        reason = f"the driver {volume.driver} keeps it; only volumes of `local` are read"
    elif device(volume):
        return None
    elif options.get("type") == "tmpfs":
        reason = "a tmpfs lies in memory, and is gone when its containers stop"
    elif options.get("type") or options.get("device"):
        # Its directory is there and empty while nothing is mounted on it: no empty success.
        kind = options.get("type") or "device"
        reason = f"its {kind} is mounted only while a container runs; back it up at its source"
    else:
        return None
    return Verdict.UNSUPPORTED, reason


def _same_as(owner: str, name: str) -> _Ruling | None:
    if owner == name:
        return None
    return Verdict.EXCLUDED, f"it is the same directory as volume {owner}"


def _rule_of_kind(place: Place) -> _Ruling | None:
    reason = _NO_DATA.get(place.kind)
    return None if reason is None else (Verdict.EXCLUDED, reason)


def _rule_of_absence(place: Place) -> _Ruling | None:
    where = _text(place.real) or "its directory"
    if place.kind is Kind.ABSENT:
        return Verdict.UNPROTECTED, f"{where} is not there, as the agent sees this machine"
    if place.kind is Kind.UNREADABLE:
        return Verdict.UNPROTECTED, f"the agent cannot look at {where}"
    return None


def _rule_of_labels(labels: Mapping[str, str], users: Sequence[_Used], name: str) -> _Ruling | None:
    """A volume's own label decides; else all containers that mount it must agree."""
    word = labels.get(EXCLUDE, "-").strip().lower()
    if word in _YES:
        return Verdict.EXCLUDED, f"the volume's label {EXCLUDE} says so"
    if word in _NO or not users:
        return None
    if all(_is_excluded_by(used, name) for used in users):
        named = ", ".join(sorted({used.container.name for used in users})[:3])
        return Verdict.EXCLUDED, f"a label of {named} says so"
    return None


def _is_excluded_by(used: _Used, name: str) -> bool:
    labels = used.container.labels or {}
    listed = {each.strip() for each in labels.get(EXCLUDED_MOUNTS, "").split(",")} - {""}
    if listed & {name, used.mount.source, used.mount.destination}:
        return True
    return labels.get(EXCLUDE, "-").strip().lower() in _YES


def _protected(labels: Mapping[str, str]) -> _Ruling:
    word = labels.get(EXCLUDE, "")
    if word.strip().lower() in _YES | _NO:
        return Verdict.PROTECTED, _PROTECTED
    return Verdict.PROTECTED, f"its label {EXCLUDE}={word[:20]} says neither true nor false"


def _labels(labels: Mapping[str, str], users: Iterable[_Used]) -> dict[str, str]:
    """The volume's own, and what its containers' labels say to Tidemark."""
    found: dict[str, str] = {}
    for used in users:
        theirs = used.container.labels or {}
        found |= {key: value for key, value in theirs.items() if key.startswith(LABELS)}
    return {**found, **labels}


def _bounded(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    # Ours first: they are what policies go by.
    keys = sorted(labels, key=lambda key: (not key.startswith(LABELS), key))[:_LABELS_MAX]
    pairs = ((printable(key), printable(labels[key])) for key in keys)
    return tuple((key[:_TEXT_MAX], value[:_TEXT_MAX]) for key, value in pairs)


def _project(labels: Mapping[str, str], users: Iterable[_Used]) -> str:
    """The compose project (or the stack) that the volume belongs to."""
    places = [labels, *(used.container.labels or {} for used in users)]
    found = (each[key] for each in places for key in _PROJECTS if each.get(key))
    return printable(next(found, ""))[:_TEXT_MAX]


def _within(path: bytes, directories: Iterable[bytes]) -> bytes:
    """Return the one of the directories that is the path or holds it; b"" if there is none."""
    known = set(directories)
    return next((each for each in (path, *_ancestors(path)) if each in known), b"")


def _ancestors(path: bytes) -> list[bytes]:
    """Return the directories above a path, nearest first, but not `/`."""
    parts = path.rstrip(b"/").split(b"/")
    return [b"/".join(parts[:count]) for count in range(len(parts) - 1, 1, -1)]


def _encode(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Return the text with what no terminal should get shown as an escape."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
