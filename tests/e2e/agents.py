"""Agents of a fleet: real processes that join the coordinator of `up` with tokens of their own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.harness import STOP_SECONDS, Up, eventually


class Agent:
    """One node: its state, what it protects, and its process while it runs."""

    def __init__(self, up: Up, name: str, directory: Path) -> None:
        self.up = up
        self.name = name
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        # Where it calls: by default the coordinator itself.
        self.calls = up.coordinator
        # Beside those that every agent here has.
        self.flags: list[str] = []
        directory.mkdir(parents=True, exist_ok=True)
        self._token = directory / "token"
        if not (directory / "state/identity").exists():
            self._token.write_text(up.json("node", "token")["token"])
        self._protect = directory / "protect.json"
        if not self._protect.exists():
            self.protect()

    def protect(self, *volumes: dict[str, str]) -> None:
        """Have these protected, whole or not at all; a running agent reads it by itself."""
        new = self.directory / "protect.new"
        new.write_text(json.dumps({"volumes": volumes}))
        new.replace(self._protect)

    def start(self, failpoints: str = "") -> None:
        """Start it, and wait until the coordinator knows it and its volumes."""
        said = len(self.log())
        self.launch(failpoints)
        # To ask the coordinator takes a command each time, while both start.
        eventually(lambda: '"event": "connected"' in self.log()[said:], seconds=30)
        eventually(lambda: self.state() == "connected", seconds=30)

    def launch(self, failpoints: str = "") -> None:
        """Start it."""
        flags = [
            *("--config", "/dev/null", "--coordinator", self.calls),
            *("--state", str(self.directory / "state"), "--token-file", str(self._token)),
            *("--protect-file", str(self._protect), "--node-name", self.name),
            *("--restore-root", "/", "--http", "127.0.0.1:0"),
            *self.flags,
        ]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agent", *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.up.machine.environment(TIDEMARK_FAILPOINTS=failpoints),
            )

    def state(self) -> str:
        """What `node list` says of it; empty while nothing."""
        nodes = {node["name"]: node["state"] for node in self.up.json("node", "list")}
        return str(nodes.get(self.name, ""))

    def stop(self) -> None:
        """End it, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """Let it die without a word."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        """Everything it said."""
        log = self.directory / "log"
        return log.read_text() if log.exists() else ""


@contextmanager
def agents(up: Up, directory: Path, *names: str) -> Iterator[list[Agent]]:
    """Nodes of these names, not started; ended when the block is left."""
    made = [Agent(up, name, directory / name) for name in names]
    try:
        yield made
    finally:
        for agent in made:
            agent.stop()


def volume(name: str, path: Path, **more: str) -> dict[str, str]:
    """A volume as a protect file names it."""
    return {"name": name, "path": os.fspath(path), **more}
