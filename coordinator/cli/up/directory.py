"""DIR of `up`: what lies where, and who may use it.

Two locks, both released by the kernel however their holders die. The one on DIR itself says that
an `up` runs here; a second one is told so at once. The one on DIR/.processes is inherited by the
children: after an `up` was killed it is held until the last of them has gone, so that the next
`up` waits for that moment instead of meeting them.
"""

import base64
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from coordinator.cli.failure import BUSY, CommandError, UsageError


@dataclass(frozen=True)
class Directory:
    """The places below DIR."""

    path: Path

    @property
    def context(self) -> Path:
        """The administrator's context file."""
        return self.path / "context"

    @property
    def protect(self) -> Path:
        """The protected set."""
        return self.path / "protect.json"

    @property
    def engine(self) -> Path:
        """The address of the container engine that is protected, if any is."""
        return self.path / "docker"

    @property
    def repository(self) -> Path:
        """What is stored."""
        return self.path / "repository"

    @property
    def bucket(self) -> Path:
        """The bucket that holds it instead, if any does."""
        return self.path / "bucket"

    @property
    def coordinator(self) -> Path:
        """The coordinator's own state."""
        return self.path / "coordinator"

    @property
    def endpoints(self) -> Path:
        """Written by the coordinator when it serves."""
        return self.coordinator / "endpoints.json"

    @property
    def admin_context(self) -> Path:
        """Written by the coordinator when it serves."""
        return self.coordinator / "admin.context"

    @property
    def agent(self) -> Path:
        """The agent's own state."""
        return self.path / "agent"

    @property
    def identity(self) -> Path:
        """There once the agent has joined."""
        return self.agent / "identity"

    @property
    def token(self) -> Path:
        """The token with which the agent joins; removed when it has."""
        return self.path / "token"

    def log(self, name: str) -> Path:
        """What a child writes to stderr."""
        return self.path / "logs" / f"{name}.log"


def open_directory(text: str) -> Directory:
    """Make DIR, readable by its owner only."""
    path = Path(os.path.abspath(text))
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (path / "logs").mkdir(mode=0o700, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"--data {path} is not a directory") from error
    except OSError as error:
        raise CommandError(
            f"cannot use --data {path}: {error.strerror}", hint="choose another directory"
        ) from error
    return Directory(path)


def lock_directory(directory: Directory) -> int:
    """Take DIR for this `up`; the descriptor holds the lock."""
    descriptor = os.open(directory.path, os.O_RDONLY | os.O_DIRECTORY)
    if not _try_lock(descriptor):
        raise CommandError(
            f"another `tidemark up` runs on {directory.path}",
            hint=f"use it: tidemark --context {directory.context} status",
            exit_code=BUSY,
        )
    return descriptor


def own_node(directory: Directory) -> str | None:
    """The id of the node that the agent joined as, in hex; None before it has."""
    try:
        fields = json.loads((directory.identity / "node.json").read_bytes())
        return base64.b64decode(fields["node_id"]).hex()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def open_processes_lock(directory: Directory) -> int:
    """The descriptor that children inherit, not yet locked."""
    return os.open(directory.path / ".processes", os.O_RDWR | os.O_CREAT, 0o600)


def processes_gone(descriptor: int) -> bool:
    """Whether the children of a former `up` have ended; takes the lock if so."""
    return _try_lock(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
