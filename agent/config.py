"""Settings of the agent: flags over environment over file, checked once, then frozen.

The only module here that reads the environment. An unknown key is an error, and all problems are
reported at once. What is protected stands in a file of its own, which is read anew when it changes:
volumes come and go, settings do not.
"""

import argparse
import base64
import binascii
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import yaml
from typing_extensions import override

from agent.endpoints import check_endpoint
from agent.errors import ConfigError
from proto.rates import format_rate, parse_rate

ENVIRONMENT_PREFIX: Final = "TIDEMARK_AGENT_"
DEFAULT_FILE: Final = Path("/etc/tidemark/agent.yaml")
_UNIX: Final = "unix://"
# Where Docker listens unless told otherwise.
DOCKER: Final = _UNIX + "/var/run/docker.sock"
_HINT: Final = "see tidemark-agent --help"
_PORT_MAX: Final = 65535
# What may stand before `=` on a command line, in a log line and in a metric's label.
_UID_MAX: Final = 253
# Slower, one piece of a large file would take more than a few seconds.
_DISK_RATE_MIN: Final = 1_000_000
_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Address(msgspec.Struct, frozen=True):
    """Where to listen or to call. Listening on port 0 takes a free one."""

    host: str
    port: int

    @override
    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set."""

    # Where the coordinator listens for gRPC.
    coordinator: Address
    # Identity, database and endpoints of this agent; never shared by two.
    state: Path = Path("/var/lib/tidemark-agent")
    # The one-time token to join with; needed only until the node has an identity.
    token_file: Path | None = None
    # What the node is called; by default as its host is.
    node_name: str
    http: Address = Address("0.0.0.0", 9442)  # noqa: S104 - Prometheus comes from elsewhere
    # JSON with the volumes to protect.
    protect_file: Path | None = None
    # Address of the Docker engine whose volumes are protected; none: no volume is discovered.
    docker: str | None = None
    # Directories that are never read as volume data, beside the state directory.
    exclude: tuple[Path, ...] = ()
    # Directories beneath which restores may write; by default <state>/restores.
    restore_root: tuple[Path, ...] = ()
    # Directories, one of a filesystem, where clones of large files are kept beside <state>.
    clone_dir: tuple[Path, ...] = ()
    # URLs of the stores that packs are sent to directly, and read from, by signed requests.
    store_endpoint: tuple[str, ...] = ()
    # PEM certificates that vouch for these stores, beside those that the system trusts.
    store_ca: Path | None = None
    # Whether backups give way to whatever else the node does, on its processors and disks.
    polite: bool = True
    # How fast volumes are read, in bytes per second; None: as fast as they can be.
    disk_rate: int | None = None
    # End when the process that started this one is gone (`tidemark up` sets it for its children).
    exit_with_parent: bool = False

    @property
    def restore_roots(self) -> tuple[Path, ...]:
        """Where restores may write."""
        return self.restore_root or (self.state / "restores",)

    @property
    def clone_dirs(self) -> tuple[Path, ...]:
        """Where clones of large files may be kept, the state directory first."""
        return (self.state, *self.clone_dir)


class Invocation(msgspec.Struct, frozen=True):
    """What the command line asks for."""

    config: Config
    check_only: bool


class Protected(msgspec.Struct, frozen=True):
    """A volume as the protect file names it."""

    name: str
    path: bytes
    # What makes it the same volume on whatever node; without one it is that of this node.
    uid: str = ""


class _Volume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    path: str = ""
    path_base64: str = ""
    uid: str | None = None


class _ProtectFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    volumes: list[_Volume]


def read_protected(path: Path) -> tuple[Protected, ...]:
    """Return the volumes of a protect file; ConfigError if anything about it is wrong."""
    try:
        volumes = msgspec.json.decode(path.read_bytes(), type=_ProtectFile).volumes
        protected = tuple(_protected(volume) for volume in volumes)
    except OSError as error:
        raise ConfigError(
            f"the protect file {path} cannot be read: {error.strerror}",
            hint="check --protect-file",
        ) from error
    except ValueError as error:  # msgspec's errors among them
        raise ConfigError(f"the protect file {path}: {error}", hint="correct the file") from error
    _refuse_twice(path, "names", [volume.name for volume in protected])
    _refuse_twice(path, "states uid", [volume.uid for volume in protected if volume.uid])
    return protected


def _refuse_twice(path: Path, what: str, told: Sequence[str]) -> None:
    twice = sorted({each for each in told if told.count(each) > 1})
    if twice:
        raise ConfigError(
            f"the protect file {path} {what} {', '.join(twice)} more than once",
            hint="a volume's name and uid stand for one path",
        )


def _protected(volume: _Volume) -> Protected:
    if not _VOLUME_NAME.fullmatch(volume.name):
        raise ValueError(f"{volume.name!r} cannot be the name of a volume")
    try:
        exact = base64.b64decode(volume.path_base64, validate=True)
    except binascii.Error as error:
        raise ValueError(f"path_base64 of {volume.name} is not base64") from error
    path = exact or os.fsencode(volume.path)
    if not path.startswith(b"/") or b"\0" in path:
        raise ValueError(f"the path of {volume.name} is not absolute")
    uid = volume.uid
    if uid is not None and not (0 < len(uid) <= _UID_MAX and uid.isprintable()):
        raise ValueError(f"the uid of {volume.name} needs 1 to {_UID_MAX} printable characters")
    return Protected(volume.name, path, uid or "")


def parse_address(text: str) -> Address:
    """HOST:PORT, with an IPv6 host in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > _PORT_MAX:
        raise ValueError("needs HOST:PORT, such as 127.0.0.1:9440")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def _parse_absolute(text: str) -> Path:
    if not text.startswith("/"):
        raise ValueError("needs an absolute path")
    return Path(text)


def _parse_engine(text: str) -> str:
    if not text.startswith(_UNIX + "/"):
        # Volumes are read where they lie, so the engine can only be on this machine.
        raise ValueError(f"needs the socket of an engine on this machine, such as {DOCKER}")
    return text


def _parse_switch(text: str) -> bool:
    # YAML's own words for it among them, which arrive here as Python's.
    words = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    if text.lower() not in words:
        raise ValueError("needs on or off")
    return words[text.lower()]


def _parse_disk_rate(text: str) -> int | None:
    if text.lower() in {"off", "false"}:
        return None
    rate = parse_rate(text)
    if rate < _DISK_RATE_MIN:
        raise ValueError(f"is less than {format_rate(_DISK_RATE_MIN)}")
    return rate


def _parse_name(text: str) -> str:
    if not text.strip() or len(text) > 253:  # the longest host name there is
        raise ValueError("needs a name of 1 to 253 characters")
    return text.strip()


# How the text of each key is read, and whether it may be given more than once.
_ONE: Final[dict[str, Callable[[str], Any]]] = {
    "coordinator": parse_address,
    "state": Path,
    "token_file": Path,
    "node_name": _parse_name,
    "http": parse_address,
    "protect_file": Path,
    "docker": _parse_engine,
    "store_ca": _parse_absolute,
    "polite": _parse_switch,
    "disk_rate": _parse_disk_rate,
}
_MANY: Final[dict[str, Callable[[str], Any]]] = {
    "exclude": _parse_absolute,
    "restore_root": _parse_absolute,
    "clone_dir": _parse_absolute,
    "store_endpoint": check_endpoint,
}
# In a variable these stand with spaces between them, since they have colons of their own.
_SPACED: Final = frozenset({"store_endpoint"})
_KEYS: Final = (*_ONE, *_MANY)


class _Given(msgspec.Struct, frozen=True):
    """What one place says of one key, and how an error names that place."""

    where: str
    texts: list[str]


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Invocation:
    """Return the settings from all three places; ConfigError with every problem found."""
    flags = _parser().parse_args(arguments)
    problems: list[str] = []
    given: dict[str, _Given] = {}
    file = flags.config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    if file is not None:
        given |= _from_file(Path(file), problems)
    given |= _from_environment(environment, problems)
    given |= _from_flags(flags)
    fields = _read(given, problems)
    if "coordinator" not in given:
        problems.append("coordinator is not set: give --coordinator HOST:PORT")
    if problems:
        raise ConfigError("; ".join(problems), hint=_HINT)
    fields.setdefault("node_name", socket.gethostname())
    config = Config(**fields, exit_with_parent=flags.exit_with_parent)
    if config.protect_file is not None and flags.check_config:
        read_protected(config.protect_file)
    return Invocation(config, flags.check_config)


def _read(given: Mapping[str, _Given], problems: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, (where, texts) in ((key, (each.where, each.texts)) for key, each in given.items()):
        values = []
        for text in texts:
            try:
                values.append((_ONE.get(key) or _MANY[key])(text))
            except ValueError as error:
                problems.append(f"{where}: {text!r} {error}")
        if key in _MANY:
            fields[key] = tuple(values)
        elif values:
            fields[key] = values[-1]
    return fields


def _from_flags(flags: argparse.Namespace) -> dict[str, _Given]:
    found = {}
    for key in _KEYS:
        value = getattr(flags, key)
        if value is not None:
            texts = value if isinstance(value, list) else [value]
            found[key] = _Given(f"--{key.replace('_', '-')}", texts)
    return found


def _from_environment(environment: Mapping[str, str], problems: list[str]) -> dict[str, _Given]:
    found = {}
    for name, value in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key not in _KEYS:
            problems.append(f"unknown variable {name}")
            continue
        separator = None if key in _SPACED else os.pathsep
        texts = value.split(separator) if key in _MANY else [value]
        found[key] = _Given(name, [text for text in texts if text])
    return found


def _from_file(path: Path, problems: list[str]) -> dict[str, _Given]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"{path} cannot be read: {error}")
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path} must hold keys and values")
        return {}
    found = {}
    for key, value in content.items():
        if key not in _KEYS:
            problems.append(f"{path}: unknown key {key!r} (known: {', '.join(_KEYS)})")
        elif isinstance(value, list) and key not in _MANY:
            problems.append(f"{path}: {key} takes one value")
        else:
            texts = value if isinstance(value, list) else [value]
            found[key] = _Given(f"{path}: {key}", [str(text) for text in texts])
    return found


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tidemark-agent",
        description="The Tidemark agent: reads this node's volumes and backs them up.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help=f"settings (default {DEFAULT_FILE})")
    parser.add_argument("--check-config", action="store_true", help="check the settings and exit")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where the coordinator listens")
    parser.add_argument("--state", metavar="DIR", help="this agent's own state")
    parser.add_argument("--token-file", metavar="FILE", help="one-time token to join with")
    parser.add_argument("--node-name", metavar="NAME", help="default: the host's name")
    parser.add_argument("--http", metavar="HOST:PORT", help="/metrics (default 0.0.0.0:9442)")
    parser.add_argument(
        "--protect-file", metavar="FILE", help='JSON: {"volumes": [{"name", "path"[, "uid"]}]}'
    )
    parser.add_argument(
        "--docker",
        metavar="ADDRESS",
        nargs="?",
        const=DOCKER,
        help=f"protect the volumes of the Docker engine there (default {DOCKER})",
    )
    parser.add_argument(
        "--exclude", metavar="DIR", action="append", help="never read as volume data; repeatable"
    )
    parser.add_argument(
        "--restore-root",
        metavar="DIR",
        action="append",
        help="restores may write beneath it; repeatable (default <state>/restores)",
    )
    parser.add_argument(
        "--clone-dir",
        metavar="DIR",
        action="append",
        help="clones of large files are kept in it, on their filesystem; repeatable",
    )
    parser.add_argument(
        "--store-endpoint",
        metavar="URL",
        action="append",
        help="a store that packs may be sent to directly; repeatable (default: through the "
        "coordinator)",
    )
    parser.add_argument(
        "--store-ca", metavar="FILE", help="PEM certificates that vouch for such a store"
    )
    parser.add_argument(
        "--polite", metavar="on|off", help="backups give way to what else the node does (on)"
    )
    parser.add_argument(
        "--disk-rate", metavar="RATE|off", help="read volumes no faster, such as 100MB/s (off)"
    )
    parser.add_argument("--exit-with-parent", action="store_true", help=argparse.SUPPRESS)
    return parser


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing, so that every problem leaves by one door."""

    @override
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint=_HINT)
