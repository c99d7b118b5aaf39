"""One coordinator and one agent as real processes, each started, killed and started again alone.

A Site is a directory with everything both of them keep; it can be copied while nothing runs in it.
The administrator's calls go over gRPC: a command line for each would cost more than what it asks.
"""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from proto.tidemark.v1 import admin_pb2, admin_pb2_grpc, common_pb2
from repository.failpoints import VARIABLE

VOLUME = "tree"
MARKER = ".tidemark-incomplete"
# Two cores that may run several sites at once.
READY_SECONDS = 60.0
JOB_SECONDS = 120.0
_CALL_SECONDS = 20.0
_POLL_SECONDS = 0.03
ENDED = frozenset(
    {
        common_pb2.PHASE_COMPLETED,
        common_pb2.PHASE_PARTIALLY_FAILED,
        common_pb2.PHASE_FAILED,
        common_pb2.PHASE_CANCELED,
    }
)


class DiedError(Exception):
    """A daemon ended, or was made to wait, while something was wanted of it."""


class Daemon:
    """One process and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def died(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> int:
        """Ask it to end; its exit code."""
        if not self.died:
            self.process.terminate()
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Site:
    """A directory, and the daemons that run in it."""

    def __init__(self, directory: Path, tree: Path, **places: Path) -> None:
        """`places`: other directories for data, repository or state, as on disks of their own."""
        self.directory = directory
        self.tree = tree
        self.data = places.get("data", directory / "data")
        self.repository = places.get("repository", directory / "repository")
        self.state = places.get("state", directory / "state")
        self.coordinator: Daemon | None = None
        self.agent: Daemon | None = None
        # What the coordinator is told of its repository, and the agent beside what all are.
        self.where: tuple[str, ...] = ("--repository", str(self.repository))
        self.agent_options: tuple[str, ...] = ()
        # Where the coordinator listens, and where the agent and the administrator call it.
        self.listens = self.agent_calls = self.admin_calls = "127.0.0.1"
        # What a daemon is started as, where it is not itself.
        self.modules: dict[str, str] = {}
        # While this file exists, nothing is waited for any more: a daemon stands at a failpoint.
        self.halt: Path | None = None
        self._channel: grpc.Channel | None = None
        self._port = free_port()
        self._starts = 0
        directory.mkdir(parents=True, exist_ok=True)
        protect = {"volumes": [{"name": VOLUME, "path": str(tree)}]}
        (directory / "protect.json").write_text(json.dumps(protect))

    def copy(self, directory: Path) -> "Site":
        """The same in another place, the tree too. Nothing may run in this one."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", self.directory, directory], check=True)
        tree = directory / "volume"
        if not tree.exists():
            subprocess.run(["cp", "-a", self.tree, tree], check=True)
        for log in directory.glob("*.log"):
            log.unlink()
        return Site(directory, tree)

    # ---- failpoints -----------------------------------------------------------------------------

    def script(self, module: str) -> str:
        """What a daemon is started with so that `arm` reaches it: the value of the variable."""
        return f"@{self.directory / module}.failpoints"

    def arm(self, module: str, text: str) -> None:
        """Tell a daemon, running or yet to be started with its script, where to fail."""
        path = Path(self.script(module)[1:])
        Path(f"{path}.acted").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        if text:
            new = path.with_name("new.failpoints")
            new.write_text(text)
            new.rename(path)

    def acted(self, module: str) -> list[str]:
        """At which places it did so, in their order."""
        with suppress(FileNotFoundError):
            return Path(f"{self.script(module)[1:]}.acted").read_text().split()
        return []

    # ---- daemons --------------------------------------------------------------------------------

    def start_coordinator(
        self,
        failpoints: str = "",
        through: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
    ) -> Daemon:
        """Start it without waiting for it. `through`: a command that runs it."""
        arguments = [
            *options,
            *("--data", str(self.data), *self.where),
            *("--listen", f"{self.listens}:{self._port}"),
            *("--http", "127.0.0.1:0", "--every", "off"),
        ]
        self._close_channel()
        self.coordinator = self._start("coordinator", arguments, failpoints, through)
        return self.coordinator

    def start_agent(self, failpoints: str = "", through: tuple[str, ...] = ()) -> Daemon:
        """Start it without waiting for it."""
        arguments = [
            *("--state", str(self.state), "--coordinator", f"{self.agent_calls}:{self._port}"),
            *("--token-file", str(self.directory / "token"), "--http", "127.0.0.1:0"),
            *("--protect-file", str(self.directory / "protect.json"), "--restore-root", "/"),
            *("--node-name", "node"),
            *self.agent_options,
        ]
        self.agent = self._start("agent", arguments, failpoints, through)
        return self.agent

    def _start(
        self, module: str, arguments: list[str], failpoints: str, through: tuple[str, ...]
    ) -> Daemon:
        self._starts += 1
        log = self.directory / f"{self._starts}-{module}.log"
        mine = {name: value for name, value in os.environ.items() if not name.startswith("TIDEM")}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [
                    *through,
                    sys.executable,
                    "-m",
                    self.modules.get(module, module),
                    "--config",
                    "/dev/null",
                    *arguments,
                    "--exit-with-parent",
                ],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=mine | {VARIABLE: failpoints} if failpoints else mine,
            )
        return Daemon(process, log)

    def serving(self) -> bool:
        """Wait until the coordinator serves; False if it died, or stands still, instead."""
        assert self.coordinator is not None
        daemon = self.coordinator

        def is_serving() -> bool:
            with suppress(OSError, ValueError):
                where = json.loads((self.data / "endpoints.json").read_text())
                return int(where["pid"]) == daemon.pid and self._answers()
            return False

        def is_over() -> bool:
            return daemon.died or self._is_halted()

        wait_until(lambda: is_serving() or is_over(), READY_SECONDS, self.logs)
        return not is_over()

    def _answers(self) -> bool:
        try:
            self.ask("GetStatus", admin_pb2.GetStatusRequest())
        except DiedError:
            return False
        return True

    def connected(self) -> bool:
        """Wait until the agent is connected and has named its volume; False if a daemon died."""

        def is_connected() -> bool:
            with suppress(DiedError):
                status = self.ask("GetStatus", admin_pb2.GetStatusRequest())
                return any(node.state == "connected" for node in status.nodes) and any(
                    volume.volume == VOLUME for volume in status.volumes
                )
            return False

        wait_until(lambda: is_connected() or self.is_disturbed(), READY_SECONDS, self.logs)
        return not self.is_disturbed()

    def is_disturbed(self) -> bool:
        """Whether a daemon has died, or stands still."""
        return self._is_halted() or any(
            each is not None and each.died for each in (self.coordinator, self.agent)
        )

    def _is_halted(self) -> bool:
        return self.halt is not None and self.halt.exists()

    def make_token(self) -> None:
        """Let the agent join."""
        token = self.ask("CreateNodeToken", admin_pb2.CreateNodeTokenRequest()).token
        (self.directory / "token").write_text(token)

    def bring_up(self, coordinator: str = "", agent: str = "") -> None:
        """Start, as an operator does, what does not run; wait until both work together.

        With failpoints, for what is started.
        """
        if self.coordinator is None or self.coordinator.died:
            self.start_coordinator(coordinator)
        assert self.serving(), self.logs()
        if self.agent is None or self.agent.died:
            if not (self.state / "identity").exists() and not (self.directory / "token").exists():
                self.make_token()
            self.start_agent(agent)
        assert self.connected(), self.logs()

    def end(self) -> None:
        """End both."""
        self._close_channel()
        for each in (self.agent, self.coordinator):
            if each is not None:
                each.end()
        self.agent = self.coordinator = None

    def kill(self) -> None:
        """End both at once, without a word."""
        self._close_channel()
        for each in (self.agent, self.coordinator):
            if each is not None:
                each.kill()
        self.agent = self.coordinator = None

    # ---- what an administrator does -------------------------------------------------------------

    def ask(self, method: str, request: Any) -> Any:
        """One call; DiedError where nobody answers it, or it is refused."""
        channel = self._channel or self._open_channel()
        call = getattr(admin_pb2_grpc.AdminServiceStub(channel), method).future(
            request, timeout=_CALL_SECONDS
        )
        try:
            while self.halt is not None and not call.done():
                if self.halt.exists():
                    call.cancel()
                    raise DiedError
                pause(_POLL_SECONDS / 3)
            answer = call.result()
        except grpc.RpcError as error:
            # A channel whose coordinator has died waits before it looks for the next one.
            self._channel = None
            channel.close()
            raise DiedError(str(error)) from error
        self._channel = channel
        return answer

    def _open_channel(self) -> grpc.Channel:
        try:
            context = json.loads((self.data / "admin.context").read_text())
        except (OSError, ValueError) as error:
            raise DiedError from error
        ca, certificate, key = (context[name].encode() for name in ("ca", "certificate", "key"))
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        # Its certificate has this name wherever it is called.
        name = [("grpc.ssl_target_name_override", "tidemark-coordinator")]
        return grpc.secure_channel(f"{self.admin_calls}:{self._port}", credentials, options=name)

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def order_backup(self, *volumes: str) -> str:
        """Ask for a backup; the job's id."""
        request = admin_pb2.CreateBackupRequest(volumes=volumes or [VOLUME])
        return str(self.ask("CreateBackup", request).job.job_id)

    def order_restore(
        self, snapshot_id: str, target: Path | None, *, overwrite: bool = False
    ) -> str:
        """Ask for a restore, in place where there is no target; the job's id."""
        request = admin_pb2.CreateRestoreRequest(
            snapshot=snapshot_id,
            target=b"" if target is None else os.fsencode(target),
            in_place=target is None,
            overwrite=overwrite,
            delete_extra=target is None,
        )
        return str(self.ask("CreateRestore", request).job.job_id)

    def order_verify(self, *snapshots: str) -> str:
        """Ask for a proof of these snapshots, or of everything; the job's id."""
        depth = admin_pb2.VERIFY_DEPTH_DATA
        request = admin_pb2.CreateVerifyRequest(depth=depth, all=not snapshots, snapshots=snapshots)
        return str(self.ask("CreateVerify", request).job.job_id)

    def job(self, job_id: str) -> Any:
        """The job as it is now."""
        return self.ask("GetJob", admin_pb2.GetJobRequest(job_id=job_id)).job

    def ended(self, job_id: str, *, seconds: float = JOB_SECONDS) -> Any:
        """The job, when it has ended; DiedError if a daemon died before."""

        def has_ended() -> bool:
            if self.is_disturbed():
                raise DiedError
            return self.job(job_id).phase in ENDED

        wait_until(has_ended, seconds, self.logs)
        return self.job(job_id)

    def unfinished_jobs(self) -> list[str]:
        """Jobs that have not ended."""
        jobs = self.ask("ListJobs", admin_pb2.ListJobsRequest()).jobs
        return [job.job_id for job in jobs if job.phase not in ENDED]

    def volumes(self) -> set[str]:
        """The names of what is protected."""
        status = self.ask("GetStatus", admin_pb2.GetStatusRequest())
        return {volume.volume for volume in status.volumes}

    def snapshots(self) -> list[Any]:
        """What is listed, the oldest first."""
        listed = self.ask("ListSnapshots", admin_pb2.ListSnapshotsRequest()).snapshots
        return sorted(listed, key=lambda each: each.sequence)

    def backup(self) -> Any:
        """Back up, and succeed; the result."""
        job = self.ended(self.order_backup())
        assert job.phase == common_pb2.PHASE_COMPLETED, f"{job}\n{self.logs()}"
        return job.snapshots[0]

    def restore(self, snapshot_id: str, target: Path | None, *, overwrite: bool = False) -> None:
        """Restore, and succeed."""
        job = self.ended(self.order_restore(snapshot_id, target, overwrite=overwrite))
        assert job.phase == common_pb2.PHASE_COMPLETED, f"{job}\n{self.logs()}"

    def verify(self) -> None:
        """Prove everything, and find nothing wrong."""
        job = self.ended(self.order_verify())
        assert job.phase == common_pb2.PHASE_COMPLETED, f"{job}\n{self.logs()}"
        assert job.verify.damaged_total == 0, job

    # ---- what lies on the disk ------------------------------------------------------------------

    def known_chunks(self) -> dict[bytes, tuple[Any, ...]]:
        """Where the agent knows chunks to lie."""
        if not (self.state / "state.db").exists():
            return {}
        with closing(sqlite3.connect(self.state / "state.db")) as database:
            query = "SELECT chunk_id, nonce, frame, number FROM chunks JOIN packs USING (pack)"
            with suppress(sqlite3.OperationalError):  # killed before there was a table
                return {row[0]: row[1:] for row in database.execute(query)}
        return {}

    def logs(self) -> str:
        """The ends of all logs, for an assertion's message."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-3000:]}"
            for path in sorted(self.directory.glob("*.log"))
        )


@contextmanager
def running(site: Site) -> Iterator[Site]:
    """Whatever runs in it ends with the block."""
    try:
        yield site
    finally:
        for each in (site.agent, site.coordinator):
            if each is not None and not each.died:
                each.kill()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(
    holds: Callable[[], bool], seconds: float, what: Callable[[], str] | None = None
) -> None:
    """Wait for it, but not longer than that."""
    end = time.monotonic() + seconds
    while not holds():
        said = what() if what is not None and time.monotonic() >= end else ""
        assert time.monotonic() < end, f"not within {seconds} s\n{said}"
        pause(_POLL_SECONDS)


def pause(seconds: float) -> None:
    """Real processes take real time."""
    time.sleep(seconds)  # noqa: TID251
