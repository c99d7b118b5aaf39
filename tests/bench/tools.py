"""The tools, each driven by its own command line, as its users do."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

import psutil
from typing_extensions import override

from tests.bench.results import OURS, RESTIC, STEPS, ZSTD, Step

PASSWORD: Final = "a password for the bench"  # noqa: S105 - protects nothing
INSTALL_HINT: Final = "apt-get install restic borgbackup zstd"
# No command of a bench takes longer, whatever the machine.
_COMMAND_SECONDS_MAX: Final = 3600
TIDEMARK: Final = str(Path(sys.executable).parent / "tidemark")
MEASURED: Final = Path(__file__).with_name("measured.py")


class BenchError(Exception):
    """A command failed; the message says which, and how."""


class Done(NamedTuple):
    """A command that ended well."""

    seconds: float
    cpu_seconds: float
    output: str
    memory_bytes: int
    bytes_read: int


class Outcome(NamedTuple):
    """What one step took."""

    seconds: float
    memory_bytes: dict[str, int]
    details: dict[str, object]
    cpu_seconds: Mapping[str, float] = MappingProxyType({})
    """By process, as its memory is."""


class Tool(Protocol):
    """A backup tool with an empty repository of its own below a directory; a context manager."""

    steps: frozenset[Step]
    """What it can do."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    @property
    def repository(self) -> Path:
        """Where stored bytes are counted."""
        ...

    def back_up(self) -> Outcome:
        """Back the source up, as the latest snapshot."""
        ...

    def restore(self, target: Path, path: str = "") -> Outcome:
        """Restore the latest snapshot, or one path of it, over what the directory holds."""
        ...


def run(command: Sequence[str], environment: Mapping[str, str], directory: Path) -> Done:
    """Time a command from start to end; BenchError unless it succeeds."""
    with tempfile.NamedTemporaryFile() as report:
        launcher = [sys.executable, "-I", "-S", str(MEASURED), report.name, *command]
        try:
            done = subprocess.run(
                launcher,
                cwd=directory,
                env={**os.environ, **environment},
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS_MAX,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{command[0]} takes more than {_COMMAND_SECONDS_MAX} s") from error
        if done.returncode:
            said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
            raise BenchError(f"{Path(command[0]).name} exited {done.returncode}: {said}")
        measured = json.loads(report.read())
    return Done(
        measured["seconds"],
        measured["cpu_seconds"],
        done.stdout,
        measured["memory_bytes"],
        measured["bytes_read"],
    )


class _Peer(Tool):
    """A tool without a daemon."""

    name: str
    steps = frozenset(STEPS)

    def __init__(self, directory: Path, source: Path) -> None:
        self._directory = directory
        self._source = source
        directory.mkdir()

    @override
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    @property
    @override
    def repository(self) -> Path:
        return self._directory / "repository"

    def _measured(
        self, command: list[str], environment: dict[str, str], directory: Path
    ) -> Outcome:
        done = run(command, environment, directory)
        details: dict[str, object] = {"bytes_read": done.bytes_read}
        return Outcome(done.seconds, {"": done.memory_bytes}, details, {"": done.cpu_seconds})


class Restic(_Peer):
    """Repository version 2, `--compression auto`; cache and repository fresh and its own."""

    name = RESTIC

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_CACHE_DIR": str(self._directory / "cache"),
        }

    @override
    def __enter__(self) -> Self:
        run(["restic", "init", "--repository-version", "2"], self._environment, self._source)
        return self

    @override
    def back_up(self) -> Outcome:
        command = ["restic", "backup", "--quiet", "--compression", "auto", "."]
        return self._measured(command, self._environment, self._source)

    @override
    def restore(self, target: Path, path: str = "") -> Outcome:
        command = ["restic", "restore", "latest", "--quiet", "--target", str(target)]
        command += ["--include", f"/{path}"] if path else []
        return self._measured(command, self._environment, self._source)


class Borg(_Peer):
    """`repokey-blake2`, zstd level 3 as the other two; its home directory fresh and its own."""

    name = "borg"

    def __init__(self, directory: Path, source: Path) -> None:
        super().__init__(directory, source)
        self._archives = 0

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_REPO": str(self.repository),
            "BORG_BASE_DIR": str(self._directory / "home"),
        }

    @override
    def __enter__(self) -> Self:
        run(["borg", "init", "--encryption", "repokey-blake2"], self._environment, self._source)
        return self

    @override
    def back_up(self) -> Outcome:
        self._archives += 1
        command = ["borg", "create", "--compression", "zstd,3", f"::{self._archives}", "."]
        return self._measured(command, self._environment, self._source)

    @override
    def restore(self, target: Path, path: str = "") -> Outcome:
        command = ["borg", "extract", f"::{self._archives}", *([path] if path else [])]
        return self._measured(command, self._environment, target)


class Zstd(_Peer):
    """No backup tool, but the limit: it compresses a large file and does nothing else."""

    name = ZSTD
    steps = frozenset({Step.FULL})

    @override
    def __enter__(self) -> Self:
        self.repository.mkdir()
        return self

    @override
    def back_up(self) -> Outcome:
        [file] = self._source.iterdir()
        packed = self.repository / f"{file.name}.zst"
        command = ["zstd", "-3", "-T2", "--quiet", "--force", str(file), "-o", str(packed)]
        return self._measured(command, {}, self._source)

    @override
    def restore(self, target: Path, path: str = "") -> Outcome:
        raise BenchError("zstd restores nothing here")


class Tidemark(Tool):
    """`tidemark up` with its two daemons, and the commands of its users."""

    name = OURS
    steps = frozenset(STEPS)

    options: tuple[str, ...] = ()
    """Of `up`, beside those that it always has here."""

    def __init__(self, directory: Path, source: Path) -> None:
        self._directory = directory
        self._source = source
        self._up: subprocess.Popen[str] | None = None
        directory.mkdir()

    @override
    def __enter__(self) -> Self:
        protect = f"bench={self._source}"
        errors = (self._directory / "up.err").open("w")
        with errors:
            self._up = subprocess.Popen(
                [
                    *(TIDEMARK, "up", "--data", str(self._data), "--protect", protect),
                    *("--every", "off", *self.options),
                ],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # A group to be killed as a whole, but not a session: the kernel shares cores out by
                # session, and a peer would have one for itself.
                process_group=0,
            )
        assert self._up.stdout is not None
        line = self._up.stdout.readline()
        if not line.startswith("ready "):
            self._stop()
            said = (self._directory / "up.err").read_text().strip().splitlines()[-3:]
            raise BenchError(f"tidemark up did not get ready: {' / '.join(said)}")
        return self

    @override
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._up is None:
            return
        with suppress(ProcessLookupError):
            self._up.send_signal(signal.SIGTERM)
        try:
            self._up.wait(timeout=30)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._up.pid, signal.SIGKILL)
            self._up.wait(timeout=30)
        if self._up.stdout is not None:
            self._up.stdout.close()

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    @property
    def _environment(self) -> dict[str, str]:
        # Its own home, so that no context of the machine's user is written or read.
        return {**os.environ, "XDG_CONFIG_HOME": str(self._directory / "config")}

    @property
    @override
    def repository(self) -> Path:
        return self._data / "repository"

    @override
    def back_up(self) -> Outcome:
        return self._command("backup", "create", "bench", "--wait")

    @override
    def restore(self, target: Path, path: str = "") -> Outcome:
        words = ["--from", "latest", "--volume", "bench", "--to", str(target)]
        words += ["--path", path] if path else []
        words += ["--overwrite"] if any(target.iterdir()) else []
        return self._command("restore", "create", *words, "--wait")

    def _command(self, *words: str) -> Outcome:
        daemons = self.daemons()
        for process in daemons.values():
            Path(f"/proc/{process}/clear_refs").write_text("5")  # forget the highest until now
        context = str(self._data / "context")
        command = [TIDEMARK, "--context", context, *words, "-o", "json"]
        before = cpu_seconds(daemons)
        done = run(command, self._environment, self._directory)
        used = {name: after - before[name] for name, after in cpu_seconds(daemons).items()}
        peaks = {name: _peak_bytes(process) for name, process in daemons.items()}
        peaks["command"] = done.memory_bytes
        used["command"] = done.cpu_seconds
        return Outcome(done.seconds, peaks, _details(json.loads(done.output)), used)

    def daemons(self) -> dict[str, int]:
        """Process ids of agent and coordinator."""
        assert self._up is not None
        found: dict[str, int] = {}
        for process in psutil.Process(self._up.pid).children(recursive=True):
            words = process.cmdline()
            for name in ("agent", "coordinator"):
                if "-m" in words and words[words.index("-m") + 1] == name:
                    found[name] = process.pid
        if len(found) != 2:
            raise BenchError("agent and coordinator do not both run")
        return found


def cpu_seconds(processes: Mapping[str, int]) -> dict[str, float]:
    """What each of some processes has used of the processors since it began."""
    used = {name: psutil.Process(process).cpu_times() for name, process in processes.items()}
    return {name: times.user + times.system for name, times in used.items()}


def _peak_bytes(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"/proc/{process}/status has no VmHWM")


def _details(document: dict[str, Any]) -> dict[str, object]:
    """The job's own figures."""
    snapshots = document.pop("snapshots", None)
    return {**document, **snapshots[0]} if snapshots else document


TOOLS: Final[dict[str, type[Tidemark | Restic | Borg | Zstd]]] = {
    tool.name: tool for tool in (Tidemark, Restic, Borg, Zstd)
}
