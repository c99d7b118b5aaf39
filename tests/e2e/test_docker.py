"""`up --docker` with a real engine and real containers."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engine import Engine
from tests.e2e.harness import Machine, Up, eventually

# The agent hears of a change at once; this is for a busy machine.
SOON = 20.0


@pytest.fixture(scope="module")
def docker(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`up --docker` for the tests that do not end it."""
    place = tmp_path_factory.mktemp("docker")
    with up_on(engine, Machine(place / "home"), place / "data") as running:
        yield running


def up_on(engine: Engine, machine: Machine, data: Path, *protect: str | Path) -> Any:
    return machine.up(
        data,
        *protect,
        options=("--docker", "--every", "off"),
        environment={"DOCKER_HOST": engine.address},
    )


def ledger(up: Up) -> dict[str, dict[str, Any]]:
    return {one["volume"]: one for one in up.json("volume", "list")}


def verdict(up: Up, volume: str) -> str | None:
    found = ledger(up).get(volume)
    return None if found is None else found["verdict"]


def check(up: Up, name: str) -> dict[str, Any]:
    checks = {one["name"]: one for one in up.run("doctor", "-o", "json").document["checks"]}
    return dict(checks[name])


def test_a_volume_that_was_removed_comes_back_in_a_new_one(engine: Engine, docker: Up) -> None:
    engine.make_volume("shop-data")
    engine.shell(
        "shop-data:/data",
        "mkdir -p /data/a/b && echo kept > /data/a/b/orders && chown 1000:1000 /data/a",
    )
    eventually(lambda: verdict(docker, "shop-data") == "protected", seconds=SOON)
    snapshot = docker.backup("shop-data")["snapshot_id"]

    engine.run("volume", "rm", "shop-data")
    mountpoint = engine.make_volume("shop-data-2")
    docker.restore(snapshot, mountpoint)

    read = engine.shell("shop-data-2:/data", "cat /data/a/b/orders; stat -c %u:%g /data/a")
    assert read.split() == ["kept", "1000:1000"]


def test_every_mount_has_a_verdict_a_reason_and_its_users(
    engine: Engine, docker: Up, tmp_path: Path
) -> None:
    site, conf, listening = tmp_path / "site", tmp_path / "conf", tmp_path / "sock"
    site.mkdir()
    conf.write_text("key = value\n")
    engine.make_volume("cache", "--label", "backup.tidemark.io/exclude=true")
    engine.make_volume("mail", "--label", "tier=gold")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listening))
        engine.run(
            *("run", "--detach", "--rm", "--name", "shop-web-1", "--network", "none"),
            *("--label", "com.docker.compose.project=shop", "--tmpfs", "/scratch"),
            *("-v", f"{site}:/site", "-v", f"{conf}:/conf:ro", "-v", f"{listening}:/sock"),
            *("-v", "/proc:/host/proc", "-v", "/:/host/root", "-v", "mail:/mail"),
            *("-v", "cache:/cache", "-v", f"{engine.root}/data/containers:/logs:ro"),
            *("tidemark-test", "sleep", "300"),
        )
        eventually(lambda: "shop-web-1:/scratch" in ledger(docker), seconds=SOON)
        found = ledger(docker)
        engine.run("kill", "shop-web-1")

    verdicts = {
        str(site): "protected",
        str(conf): "protected",
        "mail": "protected",
        "cache": "excluded",
        str(listening): "excluded",
        "/proc": "excluded",
        "/": "excluded",
        f"{engine.root}/data/containers": "excluded",
        "shop-web-1:/scratch": "unsupported",
    }
    assert {name: found[name]["verdict"] for name in verdicts} == verdicts
    assert all(found[name]["reason"] for name in verdicts)
    assert found["mail"]["labels"] == {"tier": "gold"}
    for name in verdicts:
        assert (found[name]["containers"], found[name]["project"]) == (["shop-web-1"], "shop")


def test_a_single_file_that_is_mounted_is_a_volume(
    engine: Engine, docker: Up, tmp_path: Path
) -> None:
    conf = tmp_path / "app.conf"
    conf.write_text("key = value\n")
    engine.run("create", "--name", "reader", "-v", f"{conf}:/conf:ro", "tidemark-test", "sh")
    eventually(lambda: verdict(docker, str(conf)) == "protected", seconds=SOON)

    snapshot = docker.backup(str(conf))["snapshot_id"]
    docker.restore(snapshot, tmp_path / "restored.conf")

    assert (tmp_path / "restored.conf").read_text() == "key = value\n"


def test_volumes_appear_and_vanish_while_the_agent_runs(
    engine: Engine, docker: Up, tmp_path: Path
) -> None:
    engine.make_volume("brief")
    engine.shell("brief:/data", "echo here > /data/file")
    eventually(lambda: verdict(docker, "brief") == "protected", seconds=SOON)
    snapshot = docker.backup("brief")["snapshot_id"]

    engine.run("volume", "rm", "brief")
    eventually(lambda: not ledger(docker)["brief"]["present"], seconds=SOON)

    gone = ledger(docker)["brief"]
    assert gone["verdict"] == "unprotected"
    assert "snapshots still restore" in gone["reason"]
    failed = docker.run("backup", "create", "brief", "--wait", "-o", "json")
    assert failed.code == 1
    assert failed.document["phase"] == "Failed"
    assert "not one of this node any more" in failed.error["message"]
    docker.restore(snapshot, tmp_path / "restored")
    assert (tmp_path / "restored/file").read_text() == "here\n"


def test_volumes_outlast_their_engine_and_a_restart_without_it(
    engine: Engine, machine: Machine, tmp_path: Path
) -> None:
    mountpoint = engine.make_volume("lasting")
    (mountpoint / "file").write_text("content")
    both = engine.make_volume("both")
    engine.run("create", "--name", "both-user", "-v", "both:/data", "tidemark-test", "sh")
    data = tmp_path / "data"
    try:
        with up_on(engine, machine, data, f"by-hand={both}") as up:
            assert check(up, "docker")["ok"]
            engine.stop()
            eventually(lambda: not check(up, "docker")["ok"], seconds=SOON)
            before = ledger(up)
        # Neither --docker nor DOCKER_HOST: both are remembered.
        with machine.up(data) as up:
            assert str(engine.socket) in check(up, "docker")["message"]
            assert ledger(up) == before
            assert up.backup("lasting")["files_new"] == 1
            engine.start()
            engine.make_volume("after")
            eventually(lambda: verdict(up, "after") == "protected", seconds=2 * SOON)
            assert check(up, "docker")["ok"]
            up.stop()
            assert "WARNING: Docker at" in up.stderr()
    finally:
        engine.start()

    # A directory that is also protected by hand is one volume, the one that was named so.
    assert [name for name, one in before.items() if one["path"] == str(both)] == ["by-hand"]
    assert (before["by-hand"]["source"], before["by-hand"]["containers"]) == ("path", ["both-user"])


def test_an_engine_on_another_machine_is_refused(machine: Machine, tmp_path: Path) -> None:
    done = machine.run(
        *("up", "--data", tmp_path / "data", "--docker", "-o", "json"),
        environment={"DOCKER_HOST": "tcp://10.0.0.1:2375"},
    )

    assert done.code == 2
    assert "tcp://10.0.0.1:2375" in done.error["message"]
