"""A repository with a feature that this version does not know: it is read, and left as it is."""

from pathlib import Path

import msgspec

from repository.layout import decode_config, parse_kit
from tests.e2e.harness import Machine, Up


def add_feature(up: Up, kit: str, feature: str) -> None:
    """What a later version writes when it founds a repository; this one has the same keys."""
    path = up.data / "repository/config"
    config = decode_config(path.read_bytes())
    newer = msgspec.structs.replace(config, features=[feature])
    path.chmod(0o600)
    path.write_bytes(newer.encode(parse_kit(kit).secret.signing_key()))


def objects(up: Up) -> dict[str, bytes]:
    top = up.data / "repository"
    return {str(path): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_an_unknown_feature_lets_everything_be_read_and_nothing_be_written_or_removed(
    machine: Machine, tree: Path, tmp_path: Path
) -> None:
    with machine.up(tmp_path / "data", tree) as up:
        made = up.backup()
        kit = up.json("repo", "recovery-kit")["kit"]
    add_feature(up, kit, "erasure-codes")
    (up.data / "repository/.tmp/of-a-newer-version").write_bytes(b"kept")
    before = objects(up)
    (tree / "new").write_bytes(b"never stored")

    with machine.up(tmp_path / "data", tree) as up:
        listed = up.json("snapshot", "list")
        names = up.json("snapshot", "ls", made["snapshot_id"])
        restored = up.restore(made["snapshot_id"], tmp_path / "out")
        verified = up.json("verify", "create", "--all", "--depth", "data", "--wait")
        refused = up.run("backup", "create", "--all", "--wait", "-o", "json")
        shown = up.json("repo", "show")
        doctor = up.run("doctor")

    assert [one["snapshot_id"] for one in listed] == [made["snapshot_id"]]
    assert names
    assert (restored["phase"], restored["errors_total"]) == ("Completed", 0)
    assert (verified["phase"], verified["damaged_total"]) == ("Completed", 0)
    assert (refused.code, refused.document["phase"]) == (1, "Failed")
    (result,) = refused.document["snapshots"]
    (error,) = result["errors"]
    assert result["snapshot_id"] is None
    assert "'erasure-codes'" in error["message"]
    assert error["hint"] == "upgrade Tidemark"
    assert shown["features"] == ["erasure-codes"]
    assert doctor.code != 0
    assert "erasure-codes" in doctor.stdout.decode()
    assert objects(up) == before
