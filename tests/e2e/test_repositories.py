"""A second repository, as an operator makes and uses it: in a directory, and in a bucket."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import trees
from tests.e2e.harness import Machine, Up, eventually
from tests.e2e.test_bucket import PREFIX, Bucket, new_bucket
from tests.servers.shared import server


def objects(directory: Path) -> int:
    return sum(1 for path in directory.rglob("*") if path.is_file())


def init(up: Up, url: str, name: str, *options: str) -> dict[str, Any]:
    made = up.json("repo", "init", url, "--name", name, *options)
    assert isinstance(made, dict)
    return made


def assert_restored(up: Up, snapshot: str, expected: dict[bytes, Any], target: Path) -> None:
    up.restore(snapshot, target)
    trees.assert_same(expected, trees.snapshot_of(target))
    shutil.rmtree(target)


def test_a_volume_is_sent_to_a_second_repository_and_both_restore(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    before = trees.snapshot_of(tree)
    with machine.up(tmp_path / "data", f"web={tree}") as up:
        first = up.backup("web")
        made = init(up, f"file://{second}", "second")
        again = init(up, f"file://{second}", "second")
        founded = objects(second)
        [assigned] = up.json("volume", "assign", "web", "--repository", "second")
        moved = up.backup("web")
        unchanged = up.backup("web")
        (tree / "new").write_text("new\n")
        after = trees.snapshot_of(tree)
        changed = up.backup("web")
        up.run("volume", "assign", "--all", "--repository", "default").ok()
        back = up.backup("web")
        listed = up.json("snapshot", "list")
        up.run("verify", "create", "--all", "--depth", "data", "--wait").ok()
        checks = up.run("doctor", "-o", "json").document["checks"]
        refused = up.run("repo", "init", f"file://{tree}/within", "--name", "third")
    with machine.up(tmp_path / "data") as up:
        repositories = up.json("repo", "list")
        for made_by, expected in (
            (first, before),
            (moved, before),
            (unchanged, before),
            (changed, after),
            (back, after),
        ):
            assert_restored(up, made_by["snapshot_id"], expected, tmp_path / "restored")

    assert made["recovery_kit"].count(made["repository_id"]) == 1
    assert (again["repository_id"], "recovery_kit" in again) == (made["repository_id"], False)
    assert founded >= 3
    assert assigned["repository"] == "second"
    # All of it once more, cut by other keys.
    assert moved["bytes_read"] == first["bytes_read"]
    assert moved["data_added"] == pytest.approx(first["data_added"], rel=0.01)
    assert unchanged["data_added"] == 0
    # What the first repository still holds of it is not sent there again.
    assert 0 < back["data_added"] < first["data_added"] / 2
    assert [each["repository"] for each in listed] == [
        *("default", "second", "second", "second", "default")
    ]
    assert {"repository second", "space second"} <= {each["name"] for each in checks if each["ok"]}
    assert refused.error["code"] == 2
    assert "protected volume" in refused.error["message"]
    assert [(each["name"], each["snapshots"], each["opened"]) for each in repositories] == [
        ("default", 2, True),
        ("second", 3, True),
    ]


@pytest.mark.parametrize("hit", [1, 3])
def test_a_coordinator_that_dies_while_it_makes_one_goes_on_with_it(
    hit: int, machine: Machine, tree: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    # Three objects found the first one.
    killed = {"TIDEMARK_FAILPOINTS": f"coordinator.founding.object_written=kill@{3 + hit}"}
    with machine.up(tmp_path / "data", f"web={tree}", environment=killed) as up:
        up.run("repo", "init", f"file://{second}", "--name", "second")
        assert up.process.wait(20) != 0
    with machine.up(tmp_path / "data") as up:
        repositories = up.json("repo", "list")
        up.run("volume", "assign", "web", "--repository", "second").ok()
        made = up.backup("web")
        assert_restored(up, made["snapshot_id"], trees.snapshot_of(tree), tmp_path / "restored")

    assert [each["opened"] for each in repositories] == [True, True]


@pytest.fixture
def gateway(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    return new_bucket(server("radosgw", tmp_path_factory), tmp_path)


def test_a_bucket_is_made_the_second_repository(
    gateway: Bucket, machine: Machine, tree: Path, tmp_path: Path
) -> None:
    url = f"s3://{gateway.name}/{PREFIX}"
    where = ("--endpoint", gateway.server.url)
    key = ("--credentials", str(gateway.credentials))
    empty = tmp_path / "empty"
    empty.write_text("[default]\naws_access_key_id = nobody\naws_secret_access_key = none\n")
    expected = trees.snapshot_of(tree)
    with machine.up(tmp_path / "data", f"web={tree}") as up:
        up.backup("web")
        wrong = up.run("repo", "init", url, "--name", "far", *where, "--credentials", str(empty))
        absent = up.run("repo", "init", "s3://nobodys", "--name", "far", *where, *key)
        assert [each["name"] for each in up.json("repo", "list")] == ["default"]
        made = init(up, url, "far", *where, *key)
        up.run("volume", "assign", "web", "--repository", "far").ok()
        through = up.backup("web")
        kept = gateway.packs()
    gateway.credentials.unlink()
    # It keeps the key by itself, and its agent now knows the endpoint.
    with machine.up(tmp_path / "data") as up:
        (tree / "new").write_text("new\n")
        direct = up.backup("web")
        up.run("verify", "create", "--all", "--depth", "data", "--wait").ok()
        assert_restored(up, through["snapshot_id"], expected, tmp_path / "restored")
        assert_restored(up, direct["snapshot_id"], trees.snapshot_of(tree), tmp_path / "restored")

    for refused, code, words in ((wrong, 1, "key"), (absent, 10, "no bucket")):
        assert refused.code == code, refused.stderr
        assert words in refused.error["message"]
        assert refused.error["hint"]
    assert made["location"] == url
    assert kept
    assert direct["phase"] == "Completed"


def test_a_second_repository_that_is_away_comes_back_by_itself(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    second, away = tmp_path / "second", tmp_path / "away"
    with machine.up(tmp_path / "data", f"web={tree}", f"other={tree}") as up:
        init(up, f"file://{second}", "second")
        up.run("volume", "assign", "web", "--repository", "second").ok()
        up.backup("web")
    second.rename(away)
    with machine.up(tmp_path / "data") as up:
        failed = up.run("backup", "create", "web", "--wait", "-o", "json")
        fine = up.backup("other")
        doctor = up.run("doctor", "-o", "json")
        away.rename(second)
        eventually(lambda: up.json("repo", "show", "second")["opened"], seconds=30)
        made = up.backup("web")
        up.process.send_signal(signal.SIGTERM)

    assert failed.error["code"] == 1
    assert "repository second cannot be opened" in failed.error["message"]
    assert fine["phase"] == made["phase"] == "Completed"
    [check] = [each for each in doctor.document["checks"] if each["name"] == "repository second"]
    assert not check["ok"]
    assert "gone" in check["message"]
