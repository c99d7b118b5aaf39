"""The two processes that `up` starts: real ones, as on a fleet, with their logs in DIR/logs."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from coordinator.cli.failure import BUSY, FAILED, USAGE, CommandError

# Kept beside the current one, each at most so long.
_LOG_BYTES_MAX = 16 * 1024 * 1024
_LOGS_KEPT = 3
# A child drains its work in this time, or is killed.
_STOP_SECONDS = 10.0
# What a child may say by its exit code, and `up` with it: no repository, busy, wrong key.
_TELLING_CODES = frozenset({USAGE, 10, BUSY, 12})
_TAIL_BYTES = 16 * 1024
# How both daemons begin what they end with.
_ERROR, _HINT = "error: ", "hint: "
# Nobody has a chance to say anything then.
_KILLED_HINT = "the kernel's log says if memory ran out"


class Child:
    """One running process."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, log: Path, log_begin: int
    ) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._log_begin = log_begin

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.returncode is not None

    async def wait(self) -> int:
        """Its exit code, when it has ended."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End it: asked first, killed if it does not listen."""
        if self.ended:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def death(self) -> CommandError:
        """Why `up` cannot go on without it."""
        code = self._process.returncode
        reason, hint = last_words(self._log_tail())
        how = f"ended ({code})"
        if code is not None and code < 0:
            how = f"was killed by signal {-code}"
            hint = _KILLED_HINT if -code == signal.SIGKILL else hint
        return CommandError(
            f"the {self.name} {how}" + (f": {reason}" if reason else ""),
            hint=(f"{hint}; " if hint else "") + f"its log is {self.log}",
            exit_code=code if code in _TELLING_CODES else FAILED,
        )

    def rotate_log(self) -> None:
        """Copy a long log aside and empty it; its writer appends, so it goes on at the top."""
        if self.log.stat().st_size <= _LOG_BYTES_MAX:
            return
        for number in range(_LOGS_KEPT, 1, -1):
            older = self.log.with_name(f"{self.log.name}.{number - 1}")
            if older.exists():
                older.replace(self.log.with_name(f"{self.log.name}.{number}"))
        shutil.copyfile(self.log, self.log.with_name(f"{self.log.name}.1"))
        os.truncate(self.log, 0)
        self._log_begin = 0

    def _log_tail(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self._log_begin)
            return file.read()[-_TAIL_BYTES:].decode("utf-8", "backslashreplace")


def last_words(log: str) -> tuple[str, str]:
    """Reason and advice of the last error in a log of JSON lines; else its last line.

    A daemon that ends by an error of ours writes it as text, behind all that it logged. A last line
    that is JSON is no reason: what went well is none.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    logged = [number for number, line in enumerate(lines) if _is_event(line)]
    behind = lines[logged[-1] + 1 :] if logged else lines
    for number, line in enumerate(behind):
        if line.startswith(_ERROR):
            return _told(behind[number:])
    for line in reversed(lines):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("level") in ("error", "critical"):
            return str(said.get("event", "")), str(said.get("hint") or "")
    return ("" if not lines or _is_event(lines[-1]) else lines[-1]), ""


def _told(lines: Sequence[str]) -> tuple[str, str]:
    """An error and its hint, as a daemon wrote them last; either may have several lines."""
    text = "\n".join(lines).removeprefix(_ERROR)
    message, _, hint = text.partition(f"\n{_HINT}")
    return message.strip(), hint.strip()


def _is_event(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


async def start_child(name: str, arguments: Sequence[str], *, log: Path, inherited: int) -> Child:
    """Start `python -m name` in this process group; it holds the inherited lock while it lives."""
    with _open_log(log) as stream:
        begin = stream.tell()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Without it a stranger's ./coordinator in the working directory would run.
            "-P",
            "-m",
            name,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd="/",
            pass_fds=[inherited],
        )
    return Child(name, process, log, begin)


def _open_log(log: Path) -> BinaryIO:
    stream = log.open("ab")
    log.chmod(0o600)
    return stream
