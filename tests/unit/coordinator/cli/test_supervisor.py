import base64
import json
from pathlib import Path

import pytest

from coordinator.cli.up.directory import Directory
from coordinator.cli.up.protection import Protected
from coordinator.cli.up.supervisor import is_ready, left_behind, why_never
from proto.tidemark.v1.admin_pb2 import GetStatusResponse, Node, Volume

VOLUMES = [Protected("web", b"/srv/www"), Protected("odd", b"/srv/\xff")]


def status(*, state: str = "connected", volumes: list[Volume]) -> GetStatusResponse:
    return GetStatusResponse(nodes=[Node(name="n", state=state)], volumes=volumes)


def announced() -> list[Volume]:
    return [
        Volume(
            volume=one.name,
            path=one.path,
            node="n",
            verdict="protected",
            present=True,
            tracked_by="fanotify",
        )
        for one in VOLUMES
    ]


def test_ready_when_a_connected_node_announced_every_path() -> None:
    assert is_ready(status(volumes=announced()), VOLUMES)
    assert is_ready(status(volumes=[]), [])


def test_not_ready_before_that() -> None:
    elsewhere = [Volume(volume=one.name, path=one.path, node="m") for one in VOLUMES]

    assert not is_ready(GetStatusResponse(), [])
    assert not is_ready(status(state="disconnected", volumes=announced()), VOLUMES)
    assert not is_ready(status(volumes=announced()[:1]), VOLUMES)
    assert not is_ready(status(volumes=elsewhere), VOLUMES)


def test_not_ready_before_every_protected_volume_is_tracked() -> None:
    untracked = announced()
    untracked[1].tracked_by = ""
    found = Volume(volume="found", node="n", verdict="protected", present=True)

    assert not is_ready(status(volumes=untracked), VOLUMES)
    assert not is_ready(status(volumes=[*announced(), found]), VOLUMES)


def test_what_is_not_protected_or_gone_is_not_waited_for() -> None:
    gone = Volume(volume="gone", node="n", verdict="protected")
    excluded = Volume(volume="excluded", node="n", verdict="excluded", present=True)

    assert is_ready(status(volumes=[*announced(), gone, excluded]), VOLUMES)


OWN = b"o" * 16


def joined(path: Path) -> Directory:
    """A directory whose agent has joined."""
    directory = Directory(path)
    directory.identity.mkdir(parents=True)
    identity = {"node_id": base64.b64encode(OWN).decode()}
    (directory.identity / "node.json").write_text(json.dumps(identity))
    return directory


@pytest.mark.parametrize(
    ("state", "message"),
    [("revoked", "the node n of {} is revoked"), ("incompatible", "other versions")],
)
def test_a_node_that_is_shut_out_is_not_waited_for(
    state: str, message: str, tmp_path: Path
) -> None:
    node = Node(name="n", node_id=OWN.hex(), state=state, message="other versions", hint="upgrade")
    reason = why_never(GetStatusResponse(nodes=[node]), joined(tmp_path))

    assert reason is not None
    assert reason.message == message.format(tmp_path)
    assert reason.hint


def test_nodes_that_were_told_a_former_address_are_named(tmp_path: Path) -> None:
    directory = joined(tmp_path)
    own = Node(name="n", node_id=OWN.hex(), state="connected")
    lost = Node(name="lost", node_id="ff", state="disconnected")
    gone = Node(name="gone", node_id="fe", state="revoked")
    alone, fleet = (GetStatusResponse(nodes=nodes) for nodes in ([own, gone], [own, gone, lost]))

    said = left_behind(fleet, directory, "127.0.0.1:7", "127.0.0.1:8")

    assert said is not None
    assert said.startswith("WARNING: the coordinator was at 127.0.0.1:7 and is at 127.0.0.1:8 now")
    assert said.endswith("or `up` its former --listen: lost")
    assert left_behind(fleet, directory, "127.0.0.1:8", "127.0.0.1:8") is None
    assert left_behind(fleet, directory, None, "127.0.0.1:8") is None
    assert left_behind(alone, directory, "127.0.0.1:7", "127.0.0.1:8") is None


def test_a_node_of_another_directory_or_one_that_may_yet_come_is_waited_for(tmp_path: Path) -> None:
    other = Node(name="n", node_id="00" * 16, state="revoked")
    own = Node(name="n", node_id=OWN.hex(), state="disconnected")

    assert why_never(GetStatusResponse(nodes=[other]), Directory(tmp_path)) is None
    assert why_never(GetStatusResponse(nodes=[other, own]), joined(tmp_path)) is None
