"""A budget of the fleet, as it is measured on the wires between three agents and the coordinator."""

import os
import time
from pathlib import Path

import pytest

from tests.e2e.agents import Agent, agents, volume
from tests.e2e.harness import Machine, eventually
from tests.e2e.wire import Wire, per_second, wires

CAP = 20_000_000
MIB = 1024 * 1024
# A lease, and one renewal: what a change takes at most to be felt everywhere.
SETTLING = 2.0
# TLS and HTTP/2 around the packs, the calls beside them, and their answers.
HEADERS = 1.01


def disk_full_of_noise(directory: Path, mib: int) -> Path:
    directory.mkdir(parents=True)
    with (directory / "noise").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    return directory


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
            data = disk_full_of_noise(tmp_path / f"{node.name} data", 60)
            node.protect(volume(f"noise-{node.name}", data))
            node.start()
        asked = time.monotonic()
        job = up.json("backup", "create", "--all")["job_id"]
        eventually(lambda: all(is_sending(line, asked) for line in lines), seconds=20)
        began = time.monotonic() + SETTLING
        time.sleep(SETTLING + 3)
        shown = up.json("bandwidth", "show")
        changed = time.monotonic()
        up.run("bandwidth", "set", "--fleet", "10MB/s").ok()
        time.sleep(SETTLING + 2)
        lifted = time.monotonic()
        up.run("bandwidth", "set", "--fleet", "off").ok()
        eventually(lambda: up.json("job", "show", job)["phase"] == "Completed", seconds=30)
        done = time.monotonic()

    sent = [line.up for line in lines]
    first = per_second(sent, began, changed)
    second = per_second(sent, changed + SETTLING, lifted)
    print(f"MB in a second: {first}, then {second}")
    assert max(first) <= CAP * 1.05 * HEADERS
    assert min(first) >= CAP * 0.95
    assert max(second) <= CAP / 2 * 1.05 * HEADERS
    assert min(second) >= CAP / 2 * 0.95
    assert done - lifted < 20
    assert shown["limits"][0]["bytes_per_second"] == CAP
    using = [node["backup_used"] for node in shown["nodes"] if node["node"] != up_node(shown)]
    assert len(using) == 3
    assert min(using) > CAP / 3 * 0.6


def up_node(shown: dict[str, list[dict[str, str]]]) -> str:
    """The node of `up` itself, which protects nothing."""
    names = {node["node"] for node in shown["nodes"]} - {"one", "two", "three"}
    return names.pop()


def test_a_killed_coordinator_leaves_an_agent_a_floor(tmp_path: Path) -> None:
    pytest.importorskip("tests.e2e.wire")
    assert Agent
