"""Waiting for jobs, interrupting the wait, cancelling, queueing, and the schedule."""

import os
import pty
import signal
import subprocess
from pathlib import Path

from tests.e2e.harness import COMMAND, Machine, Up, eventually


def start(up: Up, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [COMMAND, "--context", str(up.context), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=up.machine.environment(),
        # A shell that runs the suite with `&` lets all below it ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one thread
    )


def test_interrupting_the_wait_leaves_the_job_running(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    with machine.up(tmp_path / "data", f"web={tree}") as up:
        agent = up.child("agent")
        os.kill(agent, signal.SIGSTOP)  # no backup is so quick that it ends before
        waiting = start(up, "backup", "create", "web", "--wait", "-o", "json")
        eventually(lambda: up.json("job", "list"))
        waiting.send_signal(signal.SIGINT)
        _, stderr = waiting.communicate(timeout=30)
        os.kill(agent, signal.SIGCONT)
        [job] = up.json("job", "list")
        watched = up.json("job", "watch", job["job_id"])

    assert waiting.returncode == 130
    last = stderr.decode().splitlines()[-1]
    assert f"job watch {job['job_id']}" in last
    assert f"job cancel {job['job_id']}" in last
    assert watched["phase"] == "Completed"


def test_a_canceled_backup_leaves_no_snapshot(machine: Machine, tree: Path, tmp_path: Path) -> None:
    (tree / "long").write_bytes(os.urandom(400_000_000))
    with machine.up(tmp_path / "data", f"web={tree}") as up:
        job = up.json("backup", "create", "web")["job_id"]
        eventually(lambda: up.json("job", "show", job)["phase"] != "New")
        canceled = up.json("job", "cancel", job)
        watched = up.run("job", "watch", job, "-o", "json")
        snapshots = up.json("snapshot", "list")
        (tree / "long").unlink()
        up.backup()

    assert canceled["phase"] in ("InProgress", "Canceled")
    assert watched.code == 130
    assert watched.document["phase"] == "Canceled"
    assert snapshots == []


def test_backups_of_one_volume_queue_and_none_is_refused(up: Up) -> None:
    several = [start(up, "backup", "create", "web", "--wait", "-o", "json") for _ in range(4)]

    for one in several:
        one.communicate(timeout=60)

    assert [one.returncode for one in several] == [0, 0, 0, 0]
    assert [one["sequence"] for one in up.json("snapshot", "list")] == [1, 2, 3, 4]


def test_the_schedule_backs_up_by_itself(machine: Machine, tree: Path, tmp_path: Path) -> None:
    options = ("--every", "2s")
    with machine.up(tmp_path / "data", f"web={tree}", options=options) as up:
        eventually(lambda: len(up.json("snapshot", "list")) >= 2, seconds=30)
        jobs = up.json("backup", "list")
        [volume] = up.json("volume", "list")

    assert {job["origin"] for job in jobs} == {"schedule"}
    assert volume["last_phase"] == "Completed"


def test_a_terminal_sees_progress_and_a_pipe_sees_no_escape_codes(up: Up, tree: Path) -> None:
    (tree / "long").write_bytes(os.urandom(200_000_000))
    terminal, inside = pty.openpty()
    try:
        process = subprocess.Popen(
            [COMMAND, "--context", str(up.context), "backup", "create", "web", "--wait"],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env=up.machine.environment(TERM="xterm-256color", COLUMNS="120"),
        )
        os.close(inside)
        seen = b""
        try:
            while piece := os.read(terminal, 65536):
                seen += piece
        except OSError:
            pass  # the last one closed the other end
        assert process.wait(30) == 0
    finally:
        os.close(terminal)

    text = seen.decode()
    assert "Completed" in text
    assert "\x1b[" in text
    assert "left" in text
    assert "exit_error" not in text

    piped = up.run("backup", "create", "web", "--wait").ok()
    assert b"\x1b" not in piped.stdout
    assert "\x1b" not in piped.stderr
    assert "Completed" in piped.stdout.decode()
