"""Daemons of versions that do not understand each other, and of one that understands both."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Machine, eventually
from tests.faults.site import Site, running


@pytest.fixture
def site(tree: Path, tmp_path: Path) -> Iterator[Site]:
    with running(Site(tmp_path / "site", tree)) as made:
        yield made


def speaking(directory: Path, oldest: int, newest: int) -> tuple[str, ...]:
    """What to start a daemon through, so that it speaks these versions."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(
        "import proto.versions as versions\n"
        f"versions.PROTOCOL = versions.Versions({oldest}, {newest})\n"
    )
    return ("env", f"PYTHONPATH={directory}")


def test_an_agent_that_is_too_old_says_so_and_works_after_the_other_side_went_back(
    site: Site, machine: Machine, tmp_path: Path
) -> None:
    site.start_coordinator(through=speaking(tmp_path / "newer", 2, 3))
    assert site.serving()
    site.make_token()
    agent = site.start_agent()
    context = site.data / "admin.context"
    command = ("--context", context)

    def state() -> str:
        nodes = machine.run(*command, "node", "list", "-o", "json").ok().document
        return str(nodes[0]["state"]) if nodes else ""

    eventually(lambda: state() == "incompatible", seconds=20)
    shown = machine.run(*command, "node", "show", "node").ok().stdout.decode()
    doctor = machine.run(*command, "doctor", "-o", "json")
    status = machine.run(*command, "status").ok().stdout.decode()
    assert "upgrade the agent on node" in shown
    assert "speaks version 1 of the protocol" in shown
    assert doctor.code == 1
    assert doctor.document["checks"][-2]["hint"].startswith("upgrade the agent on node")
    assert "upgrade the agent on node" in status
    lines = [json.loads(line) for line in agent.log.read_text().splitlines()]
    assert "upgrade the agent on node" in [
        line["hint"].partition(",")[0] for line in lines if line["event"] == "not connected"
    ]

    # It was not ended by that: it asks on.
    assert site.coordinator is not None
    site.coordinator.end()
    site.start_coordinator(through=speaking(tmp_path / "both", 1, 3))
    assert site.serving()
    eventually(lambda: state() == "connected", seconds=60)
    site.backup()
