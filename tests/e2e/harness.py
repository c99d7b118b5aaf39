"""Drives the command line as a subprocess, as a user's shell or script does, and nothing else.

A Machine is a home directory without any context and the `tidemark` command; `up` on it is a
context manager that ends whatever it started. TIDEMARK_TEST_COMMAND names another command to test.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Argument = str | os.PathLike[str]

COMMAND = os.environ.get("TIDEMARK_TEST_COMMAND", str(Path(sys.executable).with_name("tidemark")))
# Two cores that run the rest of the suite too.
READY_SECONDS = 60.0
COMMAND_SECONDS = float(os.environ.get("TIDEMARK_TEST_COMMAND_SECONDS", "120"))
STOP_SECONDS = 30.0
_READY = re.compile(r"ready coordinator=(\S+:\d+) context=(\S+) metrics=(http://\S+)\n")


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def document(self) -> Any:
        """Its stdout as JSON."""
        return json.loads(self.stdout)

    @property
    def error(self) -> dict[str, Any]:
        """The last line of its stderr, which a failing command owes to scripts."""
        line = json.loads(self.stderr.splitlines()[-1])
        assert line["message_type"] == "exit_error", self.stderr
        assert set(line) == {"message_type", "code", "message", "hint"}
        assert line["code"] == self.code
        assert isinstance(line, dict)
        return line

    def ok(self) -> "Result":
        """This, if it succeeded."""
        assert self.code == 0, f"exit {self.code}\n{self.stdout.decode()}\n{self.stderr}"
        return self


class Up:
    """A running `tidemark up`."""

    def __init__(self, machine: "Machine", data: Path, process: subprocess.Popen[bytes]) -> None:
        self.machine = machine
        self.data = data
        self.process = process
        self.coordinator = self.metrics = ""
        self.context = data / "context"

    def wait_ready(self) -> "Up":
        """Wait for the line that says so."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], READY_SECONDS)
        line = self.process.stdout.readline().decode() if readable else ""
        match = _READY.fullmatch(line)
        if match is None:
            self.process.kill()
            raise AssertionError(f"not ready: {line!r}\n{self.stderr()}\n{self.logs()}")
        self.coordinator, context, self.metrics = match.groups()
        self.context = Path(context)
        return self

    def run(self, *arguments: Argument, stdin: int = subprocess.DEVNULL) -> Result:
        """Run one command against this coordinator."""
        return self.machine.run("--context", self.context, *arguments, stdin=stdin)

    def json(self, *arguments: Argument) -> Any:
        """The document that a succeeding command prints."""
        return self.run(*arguments, "-o", "json").ok().document

    def backup(self, *volumes: str) -> dict[str, Any]:
        """Back up, wait, succeed; the result of the first volume."""
        made = self.json("backup", "create", *(volumes or ("--all",)), "--wait")
        result = made["snapshots"][0]
        assert isinstance(result, dict)
        return result

    def restore(self, snapshot: str, target: Path, *options: str) -> dict[str, Any]:
        """Restore, wait, succeed."""
        made = self.json(
            "restore", "create", "--from", snapshot, "--to", target, *options, "--wait"
        )
        assert isinstance(made, dict)
        return made

    def packs(self) -> list[Path]:
        """The packs that are stored."""
        return sorted(
            path for path in (self.data / "repository/packs").rglob("*") if path.is_file()
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def child(self, module: str) -> int:
        """The process id of one of its children."""
        listing = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return next(
            int(line.split()[0]) for line in listing.splitlines() if f" -m {module} " in line
        )

    def peak_bytes(self, module: str) -> int:
        """The most memory that one of its children has had."""
        status = Path(f"/proc/{self.child(module)}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def logs(self) -> str:
        """What the children logged, for an assertion's message."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-4000:]}"
            for path in sorted((self.data / "logs").glob("*.log"))
        )

    def stderr(self) -> str:
        """What it said to people, after it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


class Machine:
    """A home without contexts, and the command."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)

    def environment(self, **more: str) -> dict[str, str]:
        """What a command sees."""
        mine = {
            name: value for name, value in os.environ.items() if not name.startswith("TIDEMARK_")
        }
        return mine | {"XDG_CONFIG_HOME": str(self.home), "TZ": "UTC"} | more

    def run(
        self,
        *arguments: Argument,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Result:
        """Run one command to its end."""
        done = subprocess.run(
            [COMMAND, *(os.fspath(one) for one in arguments)],
            stdin=stdin,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            cwd=cwd,
            env=self.environment(**(environment or {})),
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def start(
        self,
        data: Path,
        *options: Argument,
        environment: Mapping[str, str] | None = None,
        through: tuple[str, ...] = (),
    ) -> Up:
        """Start `up` without waiting for it, perhaps through another command."""
        process = subprocess.Popen(
            [*through, COMMAND, "up", "--data", str(data), *(os.fspath(one) for one in options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(**(environment or {})),
        )
        return Up(self, data, process)

    @contextmanager
    def up(
        self,
        data: Path,
        *protect: Argument,
        options: tuple[str, ...] = ("--every", "off"),
        environment: Mapping[str, str] | None = None,
        through: tuple[str, ...] = (),
    ) -> Iterator[Up]:
        """Run `up` with these paths protected, ready, until the block ends."""
        flags = [flag for path in protect for flag in ("--protect", os.fspath(path))]
        running = self.start(data, *flags, *options, environment=environment, through=through)
        try:
            yield running.wait_ready()
        finally:
            if running.process.poll() is None:
                running.stop()
            for stream in (running.process.stdout, running.process.stderr):
                assert stream is not None
                stream.close()


def eventually(what: Any, *, seconds: float = 10.0) -> None:
    """Wait until `what()` holds, and leave what is waited for half of the time."""
    asked = time.monotonic()
    end = asked + seconds
    while not what():
        now = time.monotonic()
        assert now < end, f"not within {seconds} s"
        # A command takes longer to ask than most of what is waited for here.
        select.select([], [], [], max(0.05, now - asked))
        asked = time.monotonic()
