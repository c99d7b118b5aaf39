import json
import os
from pathlib import Path

import pytest

from agent.config import load
from agent.errors import ConfigError, VolumeError
from agent.services import Volume
from agent.volumes import Volumes, check_readable, excluded, never_read
from repository.ids import NodeId

NODE = NodeId(b"n" * 16)


def write(file: Path, *names: str) -> None:
    volumes = [{"name": name, "path": f"/srv/{name}"} for name in names]
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"volumes": volumes}))
    fresh.rename(file)


def test_a_volume_keeps_its_identity_for_as_long_as_its_name(tmp_path: Path) -> None:
    file = tmp_path / "protect.json"
    write(file, "web")
    first = Volumes(file, NODE).all()

    assert Volumes(file, NODE).all() == first
    assert Volumes(file, NodeId(b"m" * 16)).all() != first
    assert Volumes(None, NODE).all() == []


def test_a_changed_file_is_read_anew_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "protect.json"
    write(file, "web")
    volumes = Volumes(file, NODE)
    assert not volumes.refresh()

    write(file, "web", "db")

    assert volumes.refresh()
    assert [volume.name for volume in volumes.all()] == ["web", "db"]
    assert volumes.get(volumes.all()[1].volume_id) == volumes.all()[1]


@pytest.mark.parametrize("break_it", [Path.unlink, lambda file: file.write_text("{")])
def test_a_file_that_became_wrong_changes_nothing(tmp_path: Path, break_it: object) -> None:
    file = tmp_path / "protect.json"
    write(file, "web")
    volumes = Volumes(file, NODE)

    assert callable(break_it)
    break_it(file)

    assert not volumes.refresh()
    assert [volume.name for volume in volumes.all()] == ["web"]


def test_a_file_that_is_wrong_from_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Volumes(tmp_path / "absent", NODE)


def test_the_agents_own_state_is_never_volume_data(tmp_path: Path) -> None:
    state = tmp_path / "data" / "state"
    state.mkdir(parents=True)
    places = ["--state", str(state), "--exclude", str(tmp_path / "absent")]
    config = load(["--config", "/dev/null", "--coordinator", "h:1", *places], {}).config

    found = excluded(never_read(config))

    assert found == {(os.stat(state).st_dev, os.stat(state).st_ino)}


def test_a_volume_inside_what_is_never_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to("data/inside")
    (tmp_path / "database").mkdir()

    for name in ("data", "data/inside", "link"):
        with pytest.raises(VolumeError, match="never read"):
            check_readable(volume(tmp_path / name), [tmp_path / "data"])
    check_readable(volume(tmp_path / "database"), [tmp_path / "data"])


def volume(path: Path) -> Volume:
    return Volume(b"v" * 16, "v", os.fsencode(path))
