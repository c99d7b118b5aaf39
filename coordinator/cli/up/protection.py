"""The protected set of `up`: which paths, under which names. Kept in DIR/protect.json.

The agent reads the file; only `up` writes it, and only adds. Mostly pure: files are looked at in
`check_new` and touched in `load` and `save`.
"""

import base64
import json
import os
import re
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.cli.documents import path_fields, path_text
from coordinator.cli.failure import CommandError, UsageError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
# Names stand in tables, metrics and paths.
_NAME_LENGTH_MAX = 100


@dataclass(frozen=True)
class Protected:
    """One volume given by hand: its path is absolute."""

    name: str
    path: bytes


@dataclass(frozen=True)
class Wish:
    """One `--protect`: the name is None where it was left to `up`."""

    name: str | None
    path: bytes


def parse_wish(text: str) -> Wish:
    """Split at the first `=`, only where the left side can be a name."""
    left, equals, right = text.partition("=")
    name, path = (left, right) if equals and NAME.fullmatch(left) else (None, text)
    if not path:
        raise UsageError(f"--protect {text!r} names no path", hint="--protect [NAME=]PATH")
    if name is not None and len(name) > _NAME_LENGTH_MAX:
        raise UsageError(f"the volume name {name!r} is longer than {_NAME_LENGTH_MAX} letters")
    return Wish(name, os.path.abspath(os.fsencode(path)))


def default_name(path: bytes) -> str:
    """The path's base name, made to fit."""
    base = path_text(os.path.basename(path)).lower()
    fitting = re.sub(r"[^a-z0-9._-]+", "-", base).strip("-._")
    return fitting[:_NAME_LENGTH_MAX] or ("root" if path == b"/" else "volume")


def unique_name(name: str, taken: Collection[str]) -> str:
    """The name, with the first number behind it that makes it unique."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name[: _NAME_LENGTH_MAX - 8]}-{number}"
    return candidate


def additions(current: Sequence[Protected], wishes: Sequence[Wish]) -> list[Protected]:
    """What the wishes add. A path that is there already, under this or any name, adds nothing."""
    made: list[Protected] = []
    # Names that were asked for go first, so that made-up ones give way to them.
    for wish in sorted(wishes, key=lambda wish: wish.name is None):
        known = [*current, *made]
        if wish.name is None:
            if all(one.path != wish.path for one in known):
                taken = {one.name for one in known}
                made.append(Protected(unique_name(default_name(wish.path), taken), wish.path))
            continue
        namesake = next((one for one in known if one.name == wish.name), None)
        if namesake is None:
            made.append(Protected(wish.name, wish.path))
        elif namesake.path != wish.path:
            raise UsageError(
                f"the name {wish.name!r} is taken by {path_text(namesake.path)}",
                hint="choose another name, or leave it out",
            )
    return made


def check_new(volume: Protected, data: Path) -> None:
    """A path that is named for the first time must be there, and be worth protecting."""
    text = path_text(volume.path)
    try:
        mode = os.stat(volume.path).st_mode
    except OSError as error:
        raise UsageError(
            f"cannot protect {text}: {error.strerror}", hint="check --protect"
        ) from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UsageError(f"cannot protect {text}: it is neither a directory nor a file")
    inside = os.fsencode(data.resolve())
    real = os.path.realpath(volume.path)
    if real == inside or real.startswith(inside + b"/"):
        raise UsageError(
            f"cannot protect {text}: it lies in {data}, where the backups themselves are",
            hint="protect a path outside of --data",
        )


def load(file: Path) -> list[Protected]:
    """The set as it was saved; none if it never was."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    try:
        return [_protected(one) for one in json.loads(content)["volumes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"{file} is damaged: {error}",
            hint="repair it, or remove it and name every path with --protect again",
        ) from error


def save(file: Path, volumes: Sequence[Protected]) -> None:
    """Replace the saved set, whole or not at all."""
    document = {"volumes": [{"name": one.name, **path_fields("path", one.path)} for one in volumes]}
    write_private(file, json.dumps(document, indent=2).encode() + b"\n")


def write_private(file: Path, content: bytes) -> None:
    """Replace a file by one that only its owner may read, whole or not at all."""
    new = file.with_name(f".{file.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(descriptor, 0o600)
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)
    new.replace(file)


def _protected(one: dict[str, Any]) -> Protected:
    exact = one.get("path_base64")
    path = base64.b64decode(exact) if exact is not None else one["path"].encode()
    if not isinstance(one["name"], str) or not path.startswith(b"/"):
        raise ValueError(f"not a volume: {one}")
    return Protected(one["name"], path)
