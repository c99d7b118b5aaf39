"""A budget of the fleet, measured on the wires between three agents and the coordinator."""

import os
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.agents import Agent, agents, volume
from tests.e2e.harness import Machine, eventually
from tests.e2e.test_bucket import new_bucket
from tests.e2e.wire import Wire, per_second, wires
from tests.servers.shared import server

CAP = 20_000_000
MIB = 1024 * 1024
# What a change takes to be felt everywhere; without a loss that is two round trips.
SETTLING = 0.7
# TLS and HTTP/2 around the packs, the calls beside them, and their answers.
HEADERS = 1.01


def disk_full_of_noise(directory: Path, mib: int) -> Path:
    directory.mkdir(parents=True)
    with (directory / "noise").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    return directory


def pause(seconds: float) -> None:
    """Only look on."""
    threading.Event().wait(seconds)


def nearly_least(seconds: list[int]) -> int:
    """What nine in ten of them have: the rest of the suite may starve the machine for a moment."""
    return sorted(seconds)[len(seconds) // 10]


def nices_of(node: Agent) -> set[int]:
    """How far its threads give way."""
    assert node.process is not None
    threads = Path(f"/proc/{node.process.pid}/task").iterdir()
    return {os.getpriority(os.PRIO_PROCESS, int(thread.name)) for thread in threads}


def is_sending(wire: Wire, since: float) -> bool:
    return sum(size for at, size in wire.up if at >= since) > MIB


def test_three_agents_keep_to_one_cap_and_use_it_and_follow_a_change(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "home")
    with (
        machine.up(tmp_path / "data") as up,
        wires(up.coordinator, 3) as lines,
        agents(up, tmp_path, "one", "two", "three") as nodes,
    ):
        up.run("bandwidth", "set", "--fleet", "20MB/s").ok()
        for node, line in zip(nodes, lines, strict=True):
            node.calls = line.address
            data = disk_full_of_noise(tmp_path / f"{node.name} data", 40)
            node.protect(volume(f"noise-{node.name}", data))
            node.launch()
        eventually(lambda: all(node.state() == "connected" for node in nodes), seconds=30)
        asked = time.monotonic()
        job = up.json("backup", "create", "--all")["job_id"]
        eventually(lambda: all(is_sending(line, asked) for line in lines), seconds=20)
        began = time.monotonic() + SETTLING
        pause(SETTLING + 1.7)
        nices = nices_of(nodes[0])
        shown = up.json("bandwidth", "show")
        changed = time.monotonic()
        up.run("bandwidth", "set", "--fleet", "10MB/s").ok()
        pause(SETTLING + 1.7)
        lifted = time.monotonic()
        up.run("bandwidth", "set", "--fleet", "off").ok()
        eventually(lambda: up.json("job", "show", job)["phase"] == "Completed", seconds=30)
        done = time.monotonic()

    sent = [line.up for line in lines]
    first = per_second(sent, began, changed)
    second = per_second(sent, changed + SETTLING, lifted)
    # Who backs up gives way, and who answers does not.
    assert {0, 10} <= nices
    assert max(first) <= CAP * 1.05 * HEADERS
    assert nearly_least(first) >= CAP * 0.95
    assert max(second) <= CAP / 2 * 1.05 * HEADERS
    assert nearly_least(second) >= CAP / 2 * 0.95
    # Nothing holds it up any more: the rest went in less time than the limit would have taken.
    rest = sum(size for line in lines for at, size in line.up if at >= lifted)
    assert done - lifted < max(3.0, rest / (CAP / 2))
    assert shown["limits"][0]["bytes_per_second"] == CAP
    using = {node["node"]: node["backup_used"] for node in shown["nodes"]}
    assert min(using[name] for name in ("one", "two", "three")) > CAP / 3 * 0.6


def assert_kept_to(cap: float, line: Wire, asked: float) -> None:
    """What came down since then never exceeds a cap, and once it flows uses it."""
    begun = next(at for at, size in line.down if at > asked and size > MIB / 64)
    last = [at for at, size in line.down if size > MIB / 64][-1]
    assert max(per_second([line.down], asked, last)) <= cap * 1.05 * HEADERS
    assert nearly_least(per_second([line.down], begun + SETTLING, last)) >= cap * 0.95


def test_a_restore_keeps_to_a_limit_and_uses_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "home")
    with (
        machine.up(tmp_path / "data") as up,
        wires(up.coordinator, 1) as [line],
        agents(up, tmp_path, "one") as [node],
    ):
        node.calls = line.address
        node.protect(volume("noise", disk_full_of_noise(tmp_path / "noise", 32)))
        node.start()
        snapshot = up.backup("noise")["snapshot_id"]
        up.run("bandwidth", "set", "--node", "one", "10MB/s").ok()
        asked = time.monotonic()
        up.restore(snapshot, tmp_path / "restored", "--node", "one")
        whole = (tmp_path / "restored/noise").read_bytes() == (
            tmp_path / "noise/noise"
        ).read_bytes()

    assert whole
    assert_kept_to(CAP / 2, line, asked)


def test_a_restore_from_a_bucket_keeps_to_a_limit_from_its_first_byte(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    machine = Machine(tmp_path / "home")
    noise = disk_full_of_noise(tmp_path / "noise", 40)
    bucket = new_bucket(server("radosgw", tmp_path_factory), tmp_path)
    with wires(bucket.server.url.removeprefix("http://"), 1) as [line]:
        options = bucket.through(line.address).options
        with machine.up(tmp_path / "data", f"noise={noise}", options=options) as up:
            snapshot = up.backup("noise")["snapshot_id"]
            up.run("bandwidth", "set", "--fleet", "10MB/s").ok()
            pause(SETTLING)
            asked = time.monotonic()
            made = up.restore(snapshot, tmp_path / "restored")
            done = time.monotonic()
        whole = (tmp_path / "restored/noise").read_bytes() == (noise / "noise").read_bytes()

    assert whole
    # A store sends all that it is asked for, whether anybody reads it or not.
    assert_kept_to(CAP / 2, line, asked)
    # Fifty requests a second, and some for metadata.
    assert made["store_requests"]["get"] <= 50 * (done - asked) + 10
