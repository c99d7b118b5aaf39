import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.config import Config, load
from agent.discovery.answer import Answer, NamedVolume
from agent.errors import ConfigError, VolumeError
from agent.services import Verdict, Volume
from agent.volumes import Volumes, check_readable, excluded, join, never_read
from repository.ids import NodeId

NODE = NodeId(b"n" * 16)


def write(file: Path, *names: str) -> None:
    volumes = [{"name": name, "path": f"/srv/{name}"} for name in names]
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"volumes": volumes}))
    fresh.rename(file)


def config(state: Path, file: Path | None, *flags: str) -> Config:
    protect = [] if file is None else ["--protect-file", str(file)]
    common = ["--config", "/dev/null", "--coordinator", "h:1", "--state", str(state)]
    return load([*common, *protect, *flags], {}).config


def made(file: Path | None, node: NodeId = NODE) -> Volumes:
    return Volumes(config(Path("/nowhere"), file), node)


def test_a_volume_keeps_its_identity_for_as_long_as_its_name(tmp_path: Path) -> None:
    file = tmp_path / "protect.json"
    write(file, "web")
    first = made(file).all()

    assert made(file).all() == first
    assert made(file, NodeId(b"m" * 16)).all() != first
    assert made(None).all() == []


def test_a_volume_with_a_uid_is_the_same_on_every_node(tmp_path: Path) -> None:
    file = tmp_path / "protect.json"
    found: list[Volume] = []
    for node, name in ((NODE, "web"), (NodeId(b"m" * 16), "www")):
        volumes = [{"name": name, "path": "/srv", "uid": "one"}]
        file.write_text(json.dumps({"volumes": volumes}))
        found += made(file, node).all()

    assert found[0].volume_id == found[1].volume_id


def test_a_changed_file_is_read_anew_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "protect.json"
    write(file, "web")
    volumes = made(file)
    assert not volumes.refresh()

    write(file, "web", "db")

    assert volumes.refresh()
    assert [volume.name for volume in volumes.all()] == ["web", "db"]
    assert volumes.get(volumes.all()[1].volume_id) == volumes.all()[1]


@pytest.mark.parametrize("break_it", [Path.unlink, lambda file: file.write_text("{")])
def test_a_file_that_became_wrong_changes_nothing(tmp_path: Path, break_it: object) -> None:
    file = tmp_path / "protect.json"
    write(file, "web")
    volumes = made(file)

    assert callable(break_it)
    break_it(file)

    assert not volumes.refresh()
    assert [volume.name for volume in volumes.all()] == ["web"]


def test_a_file_that_is_wrong_from_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        made(tmp_path / "absent")


def answer(*names: str) -> Answer:
    return Answer("1", "/d", (), tuple(NamedVolume(name, mountpoint="/") for name in names))


def discovering(state: Path, file: Path | None = None) -> Volumes:
    return Volumes(config(state, file, "--docker"), NODE)


def test_volumes_of_an_engine_appear_and_vanish(tmp_path: Path) -> None:
    volumes = discovering(tmp_path)

    assert volumes.found(volumes.survey(answer("data")))
    assert not volumes.found(volumes.survey(answer("data")))
    assert [volume.name for volume in volumes.all()] == ["data"]
    assert volumes.found(volumes.survey(answer()))
    assert volumes.all() == []


def test_what_an_engine_told_is_still_true_after_a_restart_without_it(tmp_path: Path) -> None:
    before = discovering(tmp_path)
    before.found(before.survey(answer("data", "more")))

    assert discovering(tmp_path).all() == before.all()
    assert Volumes(config(tmp_path, None), NODE).all() == []


def test_what_was_kept_and_is_damaged_is_forgotten(tmp_path: Path) -> None:
    before = discovering(tmp_path)
    before.found(before.survey(answer("data")))
    [kept] = tmp_path.glob("docker.json")
    kept.write_bytes(kept.read_bytes()[:-1])

    assert discovering(tmp_path).all() == []


def test_a_state_directory_that_cannot_be_written_takes_no_volume_away(tmp_path: Path) -> None:
    volumes = discovering(tmp_path / "absent")

    assert volumes.found(volumes.survey(answer("data")))


def found(name: str, path: bytes, **more: Any) -> Volume:
    return Volume(name.encode().ljust(16), name, path, "docker-volume", **more)


def test_a_directory_that_is_also_named_by_hand_is_the_volume_that_was_named() -> None:
    hand = Volume(b"h" * 16, "web", b"/link")
    users: dict[str, Any] = {"containers": ("nginx",), "project": "shop", "labels": (("a", "b"),)}
    excluded_ = found("data", b"/real", verdict=Verdict.EXCLUDED, **users)

    [joined] = join([hand], [excluded_], {b"/link": b"/real"})

    assert joined == msgspec.structs.replace(hand, **users)
    assert joined.verdict is Verdict.PROTECTED


def test_what_was_found_gives_way_to_a_name_that_was_given() -> None:
    hand = Volume(b"h" * 16, "web", b"/srv")
    other = found("web", b"/other")

    assert [each.name for each in join([hand], [other], {})] == ["web", "docker:web"]
    assert join([hand], [other], {})[1].volume_id == other.volume_id


def test_a_volume_that_is_not_protected_is_not_read() -> None:
    mount = found("c:/tmp", b"", verdict=Verdict.UNSUPPORTED, reason="a tmpfs lies in memory")

    with pytest.raises(VolumeError, match="unsupported: a tmpfs"):
        check_readable(mount, [])


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
