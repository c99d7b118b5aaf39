import os
import socket
from pathlib import Path

import pytest

from agent.discovery.places import Kind, look_at


def test_every_kind_of_place_is_told_without_being_opened(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        paths = {kind: str(tmp_path / kind) for kind in ("directory", "file", "pipe", "socket")}
        seen = look_at([*paths.values(), "/dev/null", str(tmp_path / "absent")])

    assert {kind: seen[path].kind.value for kind, path in paths.items()} == {
        kind: kind for kind in paths
    }
    assert seen["/dev/null"].kind is Kind.DEVICE
    assert seen[str(tmp_path / "absent")].kind is Kind.ABSENT


def test_a_place_is_where_a_path_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    names = ("link", "dangling", "loop")
    seen = look_at(str(tmp_path / name) for name in names)

    places = [seen[str(tmp_path / name)] for name in names]
    assert [place.kind for place in places] == [Kind.DIRECTORY, Kind.ABSENT, Kind.UNREADABLE]
    assert places[0].real == os.fsencode(tmp_path / "real")
    assert places[1].real == os.fsencode(tmp_path / "nowhere")


@pytest.mark.parametrize("path", ["/srv/\0", "/srv/\udfff\ud800"])
def test_a_path_that_none_can_be_is_unreadable(path: str) -> None:
    assert look_at([path])[path].kind in {Kind.UNREADABLE, Kind.ABSENT}
