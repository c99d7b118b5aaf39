"""Certificates that live for seconds: renewed under work, and after a long time switched off."""

import base64
import json
import os
import time
from pathlib import Path

from agent.daemon import SystemClock
from agent.validity import read_validity
from tests.e2e.harness import Machine, Up, eventually

# A renewal that comes after two thirds of it has the rest, on a machine that does much else.
LIFE_SECONDS = 5
SHORT = {"TIDEMARK_COORDINATOR_CERTIFICATE_LIFE": f"{LIFE_SECONDS}s"}


def certificate(data: Path) -> bytes:
    """The one that the agent keeps, in PEM."""
    (path,) = data.rglob("identity/node.json")
    return base64.b64decode(json.loads(path.read_bytes())["certificate"])


def log(up: Up) -> list[str]:
    """What the agent logged, by event."""
    lines = (up.data / "logs/agent.log").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


def test_backups_go_on_while_certificates_come_and_go(machine: Machine, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    seen: set[bytes] = set()
    backups: list[str] = []
    with machine.up(tmp_path / "data", volume, environment=SHORT) as up:
        # At this rate each backup is long enough for renewals to fall into some of them.
        up.run("bandwidth", "set", "--fleet", "20MB/s").ok()
        end = time.monotonic() + 4 * LIFE_SECONDS
        while len(seen) < 4 and time.monotonic() < end:
            (volume / f"{len(backups)}.bin").write_bytes(os.urandom(16 * 1024 * 1024))
            made = up.backup()
            assert made["phase"] == "Completed"
            backups.append(made["snapshot_id"])
            seen.add(certificate(up.data))
        restored = up.restore(backups[-1], tmp_path / "out")
        events = log(up)

    assert len(seen) >= 4
    assert restored["phase"] == "Completed"
    assert "not connected" not in events
    assert "certificate not renewed" not in events


def test_a_node_that_was_off_for_longer_than_its_certificate_lives_comes_back(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    with machine.up(tmp_path / "data", tree, environment=SHORT) as up:
        up.backup()
    before = certificate(tmp_path / "data")
    validity, clock = read_validity(before), SystemClock()
    eventually(lambda: validity.expired(clock.now_ns()), seconds=LIFE_SECONDS + 5)

    with machine.up(tmp_path / "data", tree, environment=SHORT) as up:
        assert up.backup()["phase"] == "Completed"

    assert certificate(tmp_path / "data") != before
