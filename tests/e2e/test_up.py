"""`tidemark up`: its start, its end, and what it refuses."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.e2e import trees
from tests.e2e.harness import Machine, Up, eventually


def alive(pid: int, directory: Path) -> bool:
    """Whether that is still one of ours: numbers are given away again."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z" and str(directory) in command


def test_ready_says_where_everything_is(machine: Machine, tree: Path, tmp_path: Path) -> None:
    with machine.up(tmp_path / "data", tree) as up:
        context = json.loads(up.context.read_bytes())
        metrics = urllib.request.urlopen(up.metrics, timeout=10).read()  # noqa: S310

        assert up.context == tmp_path / "data/context"
        assert context["address"] == up.coordinator
        assert up.context.stat().st_mode & 0o777 == 0o600
        assert b"# HELP" in metrics
        assert [one["volume"] for one in up.json("volume", "list")] == ["volume"]
        # The home context was written, since there was none.
        machine.run("status").ok()


def test_a_home_context_of_another_coordinator_is_left_alone(
    machine: Machine, tmp_path: Path
) -> None:
    other = machine.home / "tidemark/context"
    other.parent.mkdir(parents=True)
    other.write_text('{"address": "x:1", "ca": "", "certificate": "", "key": ""}')
    other.chmod(0o600)

    with machine.up(tmp_path / "data") as up:
        up.run("status").ok()

    assert "x:1" in other.read_text()


def test_a_port_that_is_taken_while_it_starts_is_given_up_for_another(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    with machine.up(tmp_path / "data", tree) as up:
        former = up.coordinator
    endpoints = tmp_path / "data/coordinator/endpoints.json"
    assert endpoints.exists()

    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Free for others until it listens, which it does once it was found so.
        other.bind(("127.0.0.1", int(former.rpartition(":")[2])))
        up = machine.start(tmp_path / "data", "--every", "off")
        try:
            eventually(lambda: not endpoints.exists())
            other.listen()
            up.wait_ready()
            context = json.loads(up.context.read_bytes())
            backup = up.backup()
        finally:
            up.stop()
            _, said = up.process.communicate()

    assert context["address"] == up.coordinator != former
    assert backup["phase"] == "Completed"
    assert f"another program has taken {former}" in said.decode()


def test_a_port_that_was_asked_for_and_is_taken_ends_the_start(
    machine: Machine, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        refused = machine.run("up", "--data", tmp_path / "data", "--listen", address)

    assert refused.code == 1
    assert f"cannot listen on {address}" in refused.error["message"]


def test_a_revoked_node_stops_the_start_at_once_and_can_join_anew(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    with machine.up(tmp_path / "data", f"web={tree}") as up:
        before = up.backup()["snapshot_id"]
        (node,) = up.json("node", "list")
        up.run("node", "revoke", node["name"]).ok()

    refused = machine.run("up", "--data", tmp_path / "data", "--every", "off")
    assert refused.code == 1
    assert refused.error["message"].endswith("is revoked")
    identity = tmp_path / "data/agent/identity"
    assert f"remove {identity} and start again" in refused.error["hint"]

    shutil.rmtree(identity)
    with machine.up(tmp_path / "data") as up:
        assert up.backup()["phase"] == "Completed"
        up.restore(before, tmp_path / "out", "--node", node["name"])
    trees.assert_same(trees.snapshot_of(tree), trees.snapshot_of(tmp_path / "out"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_exits_0(
    machine: Machine, tmp_path: Path, number: signal.Signals
) -> None:
    with machine.up(tmp_path / "data") as up:
        children = [up.child("coordinator"), up.child("agent")]

        assert up.stop(number) == 0

        assert not any(alive(pid, tmp_path) for pid in children)


def test_a_second_up_on_the_same_directory_exits_11_at_once(up: Up) -> None:
    second = up.machine.run("up", "--data", up.data, "-o", "json")

    assert second.code == 11
    assert str(up.data) in second.error["message"]
    up.run("status").ok()


def test_a_start_after_sigkill_needs_no_cleaning(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    with machine.up(tmp_path / "data", f"web={tree}") as up:
        first = up.backup()
        children = [up.child("coordinator"), up.child("agent")]
        up.process.kill()
        up.process.wait()

        with machine.up(tmp_path / "data") as again:
            eventually(lambda: not any(alive(pid, tmp_path) for pid in children), seconds=5)
            assert again.backup()["files_new"] == 0
            again.restore(first["snapshot_id"], tmp_path / "restored")

    trees.assert_same(trees.snapshot_of(tree), trees.snapshot_of(tmp_path / "restored"))


@pytest.mark.parametrize("module", ["coordinator", "agent"])
def test_a_child_that_dies_ends_the_other_and_names_the_log(
    machine: Machine, tmp_path: Path, module: str
) -> None:
    with machine.up(tmp_path / "data") as up:
        children = {name: up.child(name) for name in ("coordinator", "agent")}
        os.kill(children[module], signal.SIGKILL)

        assert up.process.wait(30) == 1

        assert not any(alive(pid, tmp_path) for pid in children.values())
        line = json.loads(up.stderr().splitlines()[-1])
        assert line["code"] == 1
        assert str(tmp_path / f"data/logs/{module}.log") in line["hint"]


def test_protected_paths_are_remembered_and_added_to(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    with machine.up(tmp_path / "data", f"web={tree}") as up:
        identity = up.json("volume", "show", "web")["volume_id"]
    with machine.up(tmp_path / "data", tmp_path / "more") as up:
        volumes = {one["volume"]: one for one in up.json("volume", "list")}

    assert set(volumes) == {"web", "more"}
    assert volumes["web"]["volume_id"] == identity
    assert volumes["web"]["path"] == str(tree)


@pytest.mark.parametrize("path", ["nowhere", "data", "data/repository", "fifo"])
def test_a_path_that_cannot_be_protected_exits_2(
    machine: Machine, tmp_path: Path, path: str
) -> None:
    (tmp_path / "data/repository").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo")

    done = machine.run(
        "up", "--data", tmp_path / "data", "--protect", tmp_path / path, "-o", "json"
    )

    assert done.code == 2
    assert path in done.error["message"]
    assert done.stdout == b""
    assert not (tmp_path / "data/protect.json").exists()


def test_the_data_directory_is_never_read_as_volume_data(machine: Machine, tree: Path) -> None:
    data = tree / "data"
    with machine.up(data, f"web={tree}") as up:
        snapshot = up.backup()["snapshot_id"]
        listed = up.json("snapshot", "ls", snapshot, "--recursive")

    paths = {one["path"] for one in listed}
    assert "large" in paths
    assert not any(path.startswith("data/") for path in paths)


def test_foreign_certificates_and_garbage_are_turned_away(
    machine: Machine, up: Up, tmp_path: Path
) -> None:
    host, _, port = up.coordinator.rpartition(":")
    with socket.create_connection((host, int(port))) as garbage:
        garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(100_000))

    with machine.up(tmp_path / "other") as other:
        theirs = json.loads(other.context.read_bytes())
    mixed = tmp_path / "mixed"
    for name, ca in (("their certificate", up.context), ("their authority", other.context)):
        fields = theirs | {"address": up.coordinator, "ca": json.loads(ca.read_bytes())["ca"]}
        mixed.write_text(json.dumps(fields))
        mixed.chmod(0o600)
        done = machine.run("--context", mixed, "status", "-o", "json")

        assert done.code == 1, name
        assert up.coordinator in done.error["message"]
        assert done.error["hint"]
    up.run("status").ok()


def test_plain_connections_get_nothing(up: Up) -> None:
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "5", f"http://{up.coordinator}/"],
        capture_output=True,
        check=False,
    )

    assert done.returncode != 0
    up.run("status").ok()


def test_a_context_that_others_can_read_is_refused(up: Up) -> None:
    up.context.chmod(0o644)

    done = up.run("status", "-o", "json")

    assert done.code == 1
    assert "chmod 600" in done.error["hint"]
