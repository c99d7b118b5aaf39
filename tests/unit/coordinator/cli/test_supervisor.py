from coordinator.cli.up.protection import Protected
from coordinator.cli.up.supervisor import is_ready
from proto.tidemark.v1.admin_pb2 import GetStatusResponse, Node, Volume

VOLUMES = [Protected("web", b"/srv/www"), Protected("odd", b"/srv/\xff")]


def status(*, state: str = "connected", volumes: list[Volume]) -> GetStatusResponse:
    return GetStatusResponse(nodes=[Node(name="n", state=state)], volumes=volumes)


def announced() -> list[Volume]:
    return [Volume(volume=one.name, path=one.path, node="n") for one in VOLUMES]


def test_ready_when_a_connected_node_announced_every_path() -> None:
    assert is_ready(status(volumes=announced()), VOLUMES)
    assert is_ready(status(volumes=[]), [])


def test_not_ready_before_that() -> None:
    elsewhere = [Volume(volume=one.name, path=one.path, node="m") for one in VOLUMES]

    assert not is_ready(GetStatusResponse(), [])
    assert not is_ready(status(state="disconnected", volumes=announced()), VOLUMES)
    assert not is_ready(status(volumes=announced()[:1]), VOLUMES)
    assert not is_ready(status(volumes=elsewhere), VOLUMES)
