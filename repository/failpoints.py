"""Named places at which a process can be made to die, to fail or to wait, so that tests can.

Nothing happens at any of them unless TIDEMARK_FAILPOINTS is set when a daemon starts:

    TIDEMARK_FAILPOINTS='agent.pack.uploaded=kill@3;store.linked=error'

    kill          SIGKILL to this very process: nothing is flushed, told or tidied
    error         the error of that place's kind: EIO, or what the call there would raise
    pause:PATH    make PATH.reached, and wait until PATH exists

Each acts once: at the n-th time that the place is passed, the first if there is no `@n`. A name
that is not listed here is refused at start: a misspelt one would prove nothing. The list stands in
the order in which a backup and a restore pass the places; tests hold it against the source.

With `TIDEMARK_FAILPOINTS=@FILE` a file says the same, at any time: it is looked at whenever a place
is passed, and passes are counted from its last change. Where an action is taken, FILE.acted first
gets a line with the place's name. One more action is of use there:

    note          nothing but that line, every time

The one module of this package that touches the process it runs in.
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from repository.errors import UsageError

VARIABLE: Final = "TIDEMARK_FAILPOINTS"

AGENT: Final = (
    # Joining and connecting.
    "agent.join.keys_made",
    "agent.join.answered",
    "agent.join.written",
    "agent.join.joined",
    "agent.renewal.answered",
    "agent.renewal.written",
    "agent.renewal.kept",
    "agent.connect.hello",
    "agent.connect.welcomed",
    "agent.connect.received",
    "agent.task.accepted",
    # A backup.
    "agent.backup.begun",
    "agent.session.asked",
    "agent.session.opened",
    "agent.base.told",
    "agent.base.kept",
    "agent.changes.taken",
    "agent.batch.read",
    "agent.batch.stored",
    "agent.large.read",
    "agent.frame.sealed",
    "agent.pack.finished",
    "agent.pack.sending",
    "agent.pack.half_sent",
    "agent.pack.uploaded",
    "agent.chunks.written",
    "agent.pack.settled",
    "agent.nodes.written",
    "agent.manifest.made",
    "agent.root.signed",
    "agent.commit.asked",
    "agent.commit.half_sent",
    "agent.commit.answered",
    "agent.head.written",
    "agent.head.committed",
    "agent.task.ended",
    "agent.end.sending",
    "agent.end.sent",
    # A restore.
    "agent.restore.begun",
    "agent.restore.granted",
    "agent.target.opened",
    "agent.target.marked",
    "agent.directory.made",
    "agent.restore.fetched",
    "agent.file.created",
    "agent.file.written",
    "agent.file.finished",
    "agent.links.making",
    "agent.target.unmarking",
    "agent.target.unmarked",
    "agent.restore.finished",
)
COORDINATOR: Final = (
    # Founding and starting.
    "coordinator.secret.written",
    "coordinator.secret.synced",
    "coordinator.secret.replaced",
    "coordinator.founding.begun",
    "coordinator.founding.object_written",
    "coordinator.founding.done",
    "coordinator.upgrade.copied",
    "coordinator.upgrade.written",
    "coordinator.upgrade.done",
    "coordinator.catalog.opened",
    "coordinator.start.composed",
    "coordinator.start.commits_settled",
    "coordinator.start.sessions_fenced",
    "coordinator.start.job_ended",
    "coordinator.start.announced",
    # Nodes.
    "coordinator.node.enrolling",
    "coordinator.node.enrolled",
    "coordinator.node.certified",
    "coordinator.renewal.challenged",
    "coordinator.renewal.signed",
    "coordinator.renewal.recorded",
    "coordinator.node.hello",
    "coordinator.node.welcomed",
    # Jobs.
    "coordinator.job.asked",
    "coordinator.job.created",
    "coordinator.job.saved",
    "coordinator.task.sent",
    "coordinator.task.concluding",
    "coordinator.task.fenced",
    "coordinator.job.closed",
    # A session and its packs.
    "coordinator.session.asked",
    "coordinator.session.written",
    "coordinator.session.opened",
    "coordinator.base.begun",
    "coordinator.base.read",
    "coordinator.pack.begun",
    "coordinator.pack.batch_written",
    "coordinator.pack.checked",
    "coordinator.pack.stored",
    "coordinator.pack.indexed",
    "coordinator.pack.proven",
    "coordinator.pack.written",
    "coordinator.pack.recorded",
    # A commit.
    "coordinator.commit.asked",
    "coordinator.commit.planned",
    "coordinator.commit.begin_written",
    "coordinator.commit.begun",
    "coordinator.commit.refs_sealed",
    "coordinator.commit.refs_stored",
    "coordinator.commit.root_signed",
    "coordinator.commit.root_stored",
    "coordinator.commit.finish_written",
    "coordinator.commit.finished",
    "coordinator.commit.answering",
    # A restore and a verification.
    "coordinator.grant.begun",
    "coordinator.grant.given",
    "coordinator.restore.read",
    "coordinator.verify.pack_checked",
    "coordinator.verify.proving",
)
STORE: Final = (
    "store.opened",
    "store.written",
    "store.syncing",
    "store.synced",
    "store.linked",
    "store.committed",
    "store.closed",
    "store.read",
)
NAMES: Final = frozenset(AGENT + COORDINATOR + STORE)

_ACTIONS: Final = frozenset({"kill", "error", "pause", "note"})
_POLL_SECONDS: Final = 0.05


class Action(NamedTuple):
    """What a place is to do, and when."""

    kind: str
    at: int
    """The how many-th time it is passed."""
    path: str
    """What a pause waits for; empty for the other kinds."""


class _Script:
    """A file that says what to do, if there is one, and what it said last."""

    def __init__(self) -> None:
        self.path = ""
        self.seen: tuple[int, int] | None = None


_armed: dict[str, Action] = {}
_passed: dict[str, int] = {}
_script = _Script()
_lock = threading.Lock()


def failpoint(name: str, error: type[Exception] | None = None) -> None:
    """Pass a place. `error`: what it fails with where that is asked for; else OSError, EIO."""
    if _script.path:
        with _lock:
            _look()
    if name in _armed:
        _act(name, error)


def arm(environment: Mapping[str, str]) -> dict[str, Action]:
    """Make the places do what the environment asks for; what that is. UsageError if it is wrong.

    Call it once, when a daemon starts, and log what it returns: such a daemon is no sound one.
    """
    text = environment.get(VARIABLE, "")
    with _lock:
        _script.path, _script.seen = text[1:] if text.startswith("@") else "", None
        _take({} if _script.path else parse(text))
        if _script.path:
            _look()
            return {text: Action("note", 1, "")}
        return dict(_armed)


def _take(wanted: Mapping[str, Action]) -> None:
    _armed.clear()
    _passed.clear()
    _armed.update(wanted)


def _look() -> None:
    """Take what the file says, if it is another one than before; it is replaced, not rewritten."""
    try:
        found = os.stat(_script.path)
    except FileNotFoundError:
        seen, text = None, ""
    else:
        seen = (found.st_ino, found.st_mtime_ns)
        text = Path(_script.path).read_text() if seen != _script.seen else ""
    if seen != _script.seen:
        _script.seen = seen
        _take(parse(text))


def parse(text: str) -> dict[str, Action]:
    """What a value of the variable asks for."""
    found: dict[str, Action] = {}
    for part in filter(None, (each.strip() for each in text.split(";"))):
        name, _, what = part.partition("=")
        what, _, at = what.partition("@")
        kind, _, path = what.partition(":")
        if name not in NAMES:
            raise UsageError(f"{VARIABLE} names {name!r}, which is no failpoint", hint=_HINT)
        if kind not in _ACTIONS or (kind == "pause") != bool(path):
            raise UsageError(
                f"{VARIABLE}: {part!r} is not NAME=kill|error|note|pause:PATH", hint=_HINT
            )
        if at and not (at.isascii() and at.isdigit() and int(at) > 0):
            raise UsageError(f"{VARIABLE}: {at!r} in {part!r} is not a number", hint=_HINT)
        found[name] = Action(kind, int(at or 1), path)
    return found


def _act(name: str, error: type[Exception] | None) -> None:
    with _lock:
        action = _armed.get(name)
        _passed[name] = passed = _passed.get(name, 0) + 1
        if action is None or (passed != action.at and action.kind != "note"):
            return
        if _script.path:
            with open(_script.path + ".acted", "a", encoding="ascii") as acted:
                acted.write(f"{name}\n")
    if action.kind == "note":
        return
    if action.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action.kind == "pause":
        Path(action.path + ".reached").touch()
        while not Path(action.path).exists():
            time.sleep(_POLL_SECONDS)  # noqa: TID251 - whoever waits here is meant to hang
        return
    if error is None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    raise error(f"failpoint {name}")


_HINT: Final = "it is for tests alone; unset it"
