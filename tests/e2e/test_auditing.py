"""`tidemark volume audit`, and what shows how changes are found."""

import json
import os
import urllib.request
from pathlib import Path

from tests.e2e.harness import Machine, Up
from tests.faults.disks import loop_disk


def metrics(up: Up) -> str:
    """What the agent shows."""
    address = json.loads((up.data / "agent/endpoints.json").read_text())["http"]
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        text = answer.read()
        assert isinstance(text, bytes)
        return text.decode()


def test_an_audit_says_that_events_told_of_everything(machine: Machine, tmp_path: Path) -> None:
    with loop_disk("ext4", tmp_path) as disk:
        (volume := disk.path / "volume").mkdir()
        (volume / "file").write_bytes(b"at first")
        with machine.up(tmp_path / "data", f"web={volume}") as up:
            [shown] = up.json("volume", "list")
            first = up.json("volume", "audit", "web", "--wait")
            (volume / os.fsdecode(b"new \xff")).write_bytes(b"new")
            made = up.json("volume", "audit", "web", "--wait")
            snapshot = up.json("snapshot", "show", made["snapshots"][0]["snapshot_id"])
            page = up.run("snapshot", "show", "latest").ok().stdout.decode()
            measured = metrics(up)

    # The ready line came once it was known what tells of changes.
    assert shown["tracked_by"] == "fanotify"
    assert first["audit"] == {"audited": False, "missed": 0, "missed_paths": []}
    assert first["snapshots"][0]["audit"]["reason"] == "it is watched since just now"
    assert made["phase"] == "Completed"
    assert made["audit"] == {"audited": True, "missed": 0, "missed_paths": []}
    assert made["snapshots"][0]["audit"]["candidates"] >= 2
    assert made["snapshots"][0]["audit"]["places_told"] >= 1
    assert made["snapshots"][0]["change_detection"] == "sweep"
    assert "an audit was asked for; events missed 0 of" in snapshot["result"]["proof"]
    assert snapshot["result"]["audit"]["audited"]
    assert "proof             sweep: an audit was asked for; events missed 0 of" in page
    assert 'tidemark_missed_changes_total{volume="web"} 0.0' in measured
    assert 'tidemark_agent_volumes_tracked{source="fanotify"} 1.0' in measured
    assert 'tidemark_agent_sweeps_total{why="audit"} 1.0' in measured
    assert 'tidemark_agent_dirty_places{volume="web"}' in measured
