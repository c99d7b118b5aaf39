"""Which coordinator a command speaks to, and with which certificate.

A context is a JSON file with an address, the CA, and a certificate with its key. Whoever reads it
is the administrator, hence mode 0600. The first context found is the one meant: if its coordinator
is down, the next file is not tried, for a command must never reach a cluster it was not meant for.
"""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from coordinator.cli.failure import CommandError

ENVIRONMENT = "TIDEMARK_CONTEXT"
SYSTEM_CONTEXT = Path("/etc/tidemark/context")
_FIELDS = ("address", "ca", "certificate", "key")


@dataclass(frozen=True)
class Context:
    """Where a coordinator is, and who may ask it; PEM texts."""

    address: str
    ca: str
    certificate: str
    key: str
    path: Path

    @override
    def __repr__(self) -> str:
        """Without the key."""
        return f"Context(address={self.address!r}, path={str(self.path)!r})"


def home_context(environment: Mapping[str, str] = os.environ) -> Path:
    """The user's own context file, there or not."""
    configured = environment.get("XDG_CONFIG_HOME", "")
    # The specification says to ignore a relative one.
    base = Path(configured) if configured.startswith("/") else Path("~/.config").expanduser()
    return base / "tidemark" / "context"


def find_context(chosen: str | None, environment: Mapping[str, str] = os.environ) -> Context:
    """The context that `--context`, the environment or the usual places name, in this order."""
    if chosen:
        return read_context(Path(chosen), named_by="--context")
    if from_environment := environment.get(ENVIRONMENT):
        return read_context(Path(from_environment), named_by=ENVIRONMENT)
    usual = (home_context(environment), SYSTEM_CONTEXT)
    for path in usual:
        if path.exists():
            return read_context(path, named_by="the usual place")
    tried = f"--context (not given), {ENVIRONMENT} (not set), " + ", ".join(
        f"{path} (no such file)" for path in usual
    )
    raise CommandError(
        f"no coordinator is known; tried {tried}",
        hint="start one with `tidemark up --data DIR`, or name its context file with --context",
    )


def read_context(path: Path, *, named_by: str) -> Context:
    """The context in `path`, if only its owner may read it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read()
    except OSError as error:
        raise CommandError(
            f"cannot read the context file {path} (named by {named_by}): {error.strerror}",
            hint="`tidemark up` writes one to DIR/context; is it running, and is this its DIR?",
        ) from error
    if mode & 0o077:
        raise CommandError(
            f"the context file {path} holds a private key, and others may read it "
            f"(mode {mode:04o})",
            hint=f"chmod 600 {path}",
        )
    return parse_context(content, path)


def parse_context(content: bytes, path: Path) -> Context:
    """The context that the JSON text states."""
    try:
        fields: Any = json.loads(content)
    except ValueError as error:
        raise _broken(path, str(error)) from error
    if not isinstance(fields, dict):
        raise _broken(path, "not a JSON object")
    if wrong := [name for name in _FIELDS if not isinstance(fields.get(name), str)]:
        raise _broken(path, f"missing or not text: {', '.join(wrong)}")
    return Context(**{name: fields[name] for name in _FIELDS}, path=path)


def _broken(path: Path, reason: str) -> CommandError:
    return CommandError(
        f"the context file {path} is damaged: {reason}",
        hint="copy it anew from where `tidemark up` or the coordinator wrote it",
    )
