"""Settings of the coordinator: flags over environment over file, checked once, then frozen.

The only module here that reads the environment. An unknown key is an error, and all problems are
reported at once.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, cast, get_args
from urllib.parse import unquote

import msgspec
import yaml
from typing_extensions import override

from coordinator.errors import ConfigError, UsageError
from coordinator.siting import parse_places
from proto.rates import parse_rate
from repository.store.s3.location import Addressing, S3Location, parse_location

ENVIRONMENT_PREFIX: Final = "TIDEMARK_COORDINATOR_"
# The one name that other tools of the family know without the prefix.
_PASSPHRASE_ENVIRONMENT: Final = "TIDEMARK_PASSPHRASE_FILE"  # noqa: S105 - a name
DEFAULT_FILE: Final = Path("/etc/tidemark/coordinator.yaml")

_S3: Final = "s3://"
_FILE: Final = "file://"
_OF_BUCKETS: Final = ("endpoint", "region", "addressing", "ca", "credentials", "lock_seconds")
_DURATION = re.compile(r"(\d+)\s*(s|m|h|d)?")
_CERTIFICATE_SECONDS_MAX: Final = 7 * 86400
# Shorter ones would be renewed every few hours; stores take whole days elsewhere, too.
_LOCK_SECONDS_MIN: Final = 86400
# Nobody can take a lock away: a slip of the finger should not be there for a century.
_LOCK_SECONDS_MAX: Final = 3650 * 86400
_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Address(msgspec.Struct, frozen=True):
    """Where to listen. Port 0 takes a free one."""

    host: str
    port: int

    @override
    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Bucket(msgspec.Struct, frozen=True):
    """A bucket that holds the repository, and whose key opens it."""

    location: S3Location
    # A file of the form that AWS tools use; None looks where they do.
    credentials_file: Path | None = None
    # How long nobody can delete what a snapshot needs, from its commit on; None locks nothing.
    lock_seconds: int | None = None


Where = Path | Bucket
"""Where a repository lies: a directory, or a bucket."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set."""

    # State of the coordinator itself: catalog, certificate authority, custody, keys.
    data: Path
    # Packs, roots and keys; must not lie on a path that is protected.
    repository: Path = Path()
    # Where they lie in a bucket, and in no directory.
    bucket: Bucket | None = None
    listen: Address = Address("0.0.0.0", 9440)  # noqa: S104 - agents come from other machines
    http: Address = Address("0.0.0.0", 9441)  # noqa: S104 - Prometheus does too
    # Seconds between scheduled backups of each volume; None never schedules.
    every_seconds: int | None = 3600
    passphrase_file: Path | None = None
    # How long a node's certificate is good; agents renew it after two thirds of that.
    certificate_seconds: int = 86400
    # Bytes per second that a node under a limit of the network falls to when it hears no more.
    floor_bytes: int = 1024 * 1024
    # Where further repositories may be made by whoever may ask for one; see siting.py.
    repository_places: tuple[str, ...] = ()
    # End when the process that started this one is gone (`tidemark up` sets it for its children).
    exit_with_parent: bool = False

    @property
    def where(self) -> Where:
        """Where the first repository lies."""
        return self.repository if self.bucket is None else self.bucket


class Invocation(msgspec.Struct, frozen=True):
    """What the command line asks for."""

    config: Config
    check_only: bool


def parse_address(text: str) -> Address:
    """HOST:PORT, with an IPv6 host in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("needs HOST:PORT, such as 127.0.0.1:9440")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def parse_every(text: str) -> int | None:
    """A duration such as 90s, 15m, 1h or 2d, or `off`."""
    if text.strip().lower() == "off":
        return None
    seconds = _seconds(text)
    if not seconds:
        raise ValueError("needs a duration such as 90s, 15m, 1h or 2d, or off")
    return seconds


def parse_certificate_life(text: str) -> int:
    """A duration, of a week at most."""
    seconds = _seconds(text)
    if not 0 < seconds <= _CERTIFICATE_SECONDS_MAX:
        raise ValueError("needs a duration such as 90s, 15m or 24h, of 7d at most")
    return seconds


def parse_lock(text: str) -> int | None:
    """A duration from a day to ten years, or `off`."""
    if text.strip().lower() == "off":
        return None
    seconds = _seconds(text)
    if not _LOCK_SECONDS_MIN <= seconds <= _LOCK_SECONDS_MAX:
        raise ValueError("needs a duration such as 30d, from 1d to 3650d, or off")
    return seconds


def _seconds(text: str) -> int:
    """Zero for what is no duration."""
    match = _DURATION.fullmatch(text.strip().lower())
    return 0 if match is None else int(match[1]) * _SECONDS[match[2]]


def _absolute(text: str) -> Path:
    if not text:
        raise ValueError("is empty")
    return Path(text).absolute()


def _repository(text: str) -> Path | str:
    """A directory, or the URL of a bucket."""
    if text.startswith(_S3):
        return text
    if text.startswith(_FILE):
        text = unquote(text.removeprefix(_FILE))
    elif "://" in text:
        raise ValueError("is neither a directory nor s3://bucket/prefix")
    return _absolute(text)


def parse_addressing(text: str) -> Addressing:
    """How a bucket is named in a URL."""
    for known in get_args(Addressing):
        if text == known:
            return cast("Addressing", known)
    raise ValueError("needs auto, path or virtual")


# Each key: the field it sets, and how its text is read.
_KEYS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "data": ("data", _absolute),
    "repository": ("repository", _repository),
    "repository_endpoint": ("repository_endpoint", str),
    "repository_region": ("repository_region", str),
    "repository_addressing": ("repository_addressing", parse_addressing),
    "repository_ca": ("repository_ca", _absolute),
    "repository_credentials": ("repository_credentials", _absolute),
    "repository_lock": ("repository_lock_seconds", parse_lock),
    "repository_places": ("repository_places", parse_places),
    "listen": ("listen", parse_address),
    "http": ("http", parse_address),
    "every": ("every_seconds", parse_every),
    "passphrase_file": ("passphrase_file", _absolute),
    "bandwidth_floor": ("floor_bytes", parse_rate),
    "certificate_life": ("certificate_seconds", parse_certificate_life),
}


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Invocation:
    """The settings from all three places; ConfigError with every problem found."""
    flags = _parser().parse_args(arguments)
    texts: dict[str, tuple[str, str]] = {}
    problems: list[str] = []
    file = flags.config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    if file is not None:
        texts.update(_from_file(Path(file), problems))
    texts.update(_from_environment(environment, problems))
    texts.update(
        (key, (f"--{key.replace('_', '-')}", value))
        for key in _KEYS
        if (value := getattr(flags, key)) is not None
    )
    fields = _read(texts, problems)
    problems += [
        f"{name} is not set: give --{name} DIR"
        for name in ("data", "repository")
        if name not in fields and name not in texts
    ]
    _place(fields, problems)
    if problems:
        raise ConfigError("; ".join(problems), hint="see tidemark-coordinator --help")
    config = Config(**fields, exit_with_parent=flags.exit_with_parent)
    return Invocation(config, flags.check_config)


def _place(fields: dict[str, Any], problems: list[str]) -> None:
    """Make a bucket of what was said of one."""
    said = {key: fields.pop(f"repository_{key}", None) for key in _OF_BUCKETS}
    where = fields.get("repository")
    if not isinstance(where, str):
        problems += [
            f"repository_{key.removesuffix('_seconds')} is of a bucket, and the repository is none"
            for key, value in said.items()
            if value is not None
        ]
        return
    del fields["repository"]
    credentials = said["credentials"]
    try:
        location = parse_location(
            where,
            endpoint=said["endpoint"],
            region=said["region"],
            addressing=said["addressing"] or "auto",
            ca_file=said["ca"],
        )
    except UsageError as error:
        problems.append(f"{error.message} ({error.hint})")
    else:
        fields["bucket"] = Bucket(location, credentials, said["lock_seconds"])


def _read(texts: Mapping[str, tuple[str, str]], problems: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, (where, text) in texts.items():
        field, read = _KEYS[key]
        try:
            fields[field] = read(text)
        except ValueError as error:
            problems.append(f"{where}: {text!r} {error}")
    return fields


def _from_file(path: Path, problems: list[str]) -> dict[str, tuple[str, str]]:
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
        elif value is False:  # YAML 1.1 reads a bare `off` so
            found[key] = (f"{path}: {key}", "off")
        elif isinstance(value, list):
            found[key] = (f"{path}: {key}", " ".join(map(str, value)))
        else:
            found[key] = (f"{path}: {key}", str(value))
    return found


def _from_environment(
    environment: Mapping[str, str], problems: list[str]
) -> dict[str, tuple[str, str]]:
    found = {}
    if passphrase := environment.get(_PASSPHRASE_ENVIRONMENT):
        found["passphrase_file"] = (_PASSPHRASE_ENVIRONMENT, passphrase)
    for name, value in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key in _KEYS:
            found[key] = (name, value)
        else:
            problems.append(f"unknown variable {name}")
    return found


def read_passphrase(path: Path) -> bytes:
    """The passphrase in a file, without the newline that editors add."""
    try:
        passphrase = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(
            f"the passphrase file {path} cannot be read: {error.strerror}",
            hint="check --passphrase-file",
        ) from error
    if not passphrase:
        raise ConfigError(f"the passphrase file {path} is empty", hint="check --passphrase-file")
    return passphrase


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tidemark-coordinator",
        description="The Tidemark coordinator: schedules, catalogs and proves backups.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help=f"settings (default {DEFAULT_FILE})")
    parser.add_argument("--check-config", action="store_true", help="check the settings and exit")
    parser.add_argument("--data", metavar="DIR", help="where the coordinator keeps its own state")
    parser.add_argument(
        "--repository", metavar="DIR|s3://BUCKET/PREFIX", help="where snapshots are stored"
    )
    parser.add_argument("--repository-endpoint", metavar="URL", help="of an S3 that is not AWS")
    parser.add_argument("--repository-region", metavar="NAME", help="of the bucket")
    parser.add_argument(
        "--repository-addressing",
        metavar="auto|path|virtual",
        help="whether the bucket stands in the path or in the host of a URL (default auto)",
    )
    parser.add_argument(
        "--repository-ca", metavar="FILE", help="PEM certificates that vouch for the endpoint"
    )
    parser.add_argument(
        "--repository-credentials",
        metavar="FILE",
        help="key of the bucket, as AWS tools keep it (default: where they look)",
    )
    parser.add_argument(
        "--repository-lock",
        metavar="DURATION|off",
        help="how long nobody can delete what a snapshot needs (default off)",
    )
    parser.add_argument(
        "--repository-places",
        metavar="URLS",
        help="where `tidemark repo init` may make more of them, with spaces between; or any",
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="gRPC (default 0.0.0.0:9440)")
    parser.add_argument("--http", metavar="HOST:PORT", help="/metrics (default 0.0.0.0:9441)")
    parser.add_argument("--every", metavar="DURATION|off", help="schedule (default 1h)")
    parser.add_argument(
        "--passphrase-file", metavar="FILE", help="opens custody of the recovery secret"
    )
    parser.add_argument(
        "--certificate-life", metavar="DURATION", help="of nodes' certificates (default 24h)"
    )
    parser.add_argument(
        "--bandwidth-floor", metavar="RATE", help="of lost nodes under a limit (default 1MiB/s)"
    )
    parser.add_argument("--exit-with-parent", action="store_true", help=argparse.SUPPRESS)
    return parser


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing, so that every problem leaves by one door."""

    @override
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint="see tidemark-coordinator --help")
