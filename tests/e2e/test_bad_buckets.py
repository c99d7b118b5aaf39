"""Buckets that cannot be used, as a person meets them: at `up`, and later by `doctor`."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from repository.store.s3.store import S3Store
from tests.e2e.harness import Machine, Result, Up
from tests.e2e.test_bucket import PREFIX, Bucket, new_bucket
from tests.e2e.wire import wires
from tests.servers.keys import GUEST, GUEST_ACCESS_KEY, GUEST_SECRET_KEY
from tests.servers.shared import server

RULE = {
    "ID": "tidy",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "Expiration": {"Days": 30},
}


@pytest.fixture
def gateway(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    return new_bucket(server("radosgw", tmp_path_factory), tmp_path)


def write_key(file: Path, key: str, secret: str) -> None:
    file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")


def call(bucket: Bucket, operation: str, **parameters: Any) -> None:
    """Have the bucket's owner do something with it."""

    async def called(store: S3Store) -> None:
        await store.bucket.call(operation, operation, **parameters)

    bucket.ask(called)


def let(bucket: Bucket, *verbs: str) -> None:
    """Have its owner let the guest do these things."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": [f"arn:aws:iam:::user/{GUEST}"]},
        "Action": [f"s3:{verb}*" for verb in verbs],
        "Resource": [f"arn:aws:s3:::{bucket.name}", f"arn:aws:s3:::{bucket.name}/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    call(bucket, "put_bucket_policy", Policy=policy)


def remove(bucket: Bucket) -> None:
    """Take it away with all that is in it."""

    async def removed(store: S3Store) -> None:
        answer = await store.bucket.call("list_objects_v2", "all")
        for each in answer["Contents"]:
            await store.bucket.call("delete_object", "one", Key=each["Key"])
        await store.bucket.call("delete_bucket", "the bucket")

    bucket.ask(removed)


def start(machine: Machine, data: Path, bucket: Bucket) -> Result:
    """Run an `up` that must end by itself, and soon."""
    began = time.monotonic()
    done = machine.run("up", "--data", data, *bucket.options)
    assert time.monotonic() - began < 15
    assert "Traceback" not in done.stderr
    assert done.stdout == b""
    return done


def test_up_says_what_is_wrong_with_a_bucket_and_what_to_do(
    gateway: Bucket, machine: Machine, tmp_path: Path
) -> None:
    absent = start(machine, tmp_path / "absent", gateway._replace(name="nobodys-bucket"))
    write_key(gateway.credentials, "AKIDNOBODY", "nothing")
    nobody = start(machine, tmp_path / "nobody", gateway)
    gateway.credentials.unlink()
    keyless = start(machine, tmp_path / "keyless", gateway)

    ended = (absent, nobody, keyless)
    assert [each.code for each in ended] == [10, 1, 2]
    words = ("there is no bucket", "does not know this", "cannot be read")
    steps = ("make the bucket", "aws_access_key_id", "check its path")
    for each, said, step in zip(ended, words, steps, strict=True):
        assert said in each.error["message"]
        assert step in each.error["hint"]
        assert "coordinator.log" in each.error["hint"]


def doctor(up: Up) -> tuple[str, str]:
    """What it says of the repository, soon; empty where it is well."""
    began = time.monotonic()
    done = up.run("doctor", "-o", "json")
    assert time.monotonic() - began < 15
    [check] = [each for each in done.document["checks"] if each["name"] == "repository"]
    assert check["ok"] or "repository" in done.error["message"]
    return ("", "") if check["ok"] else (check["message"], check["hint"])


def test_doctor_finds_what_went_wrong_with_a_bucket_later(
    gateway: Bucket, machine: Machine, tree: Path, tmp_path: Path
) -> None:
    write_key(gateway.credentials, GUEST_ACCESS_KEY, GUEST_SECRET_KEY)
    let(gateway, "Get", "List", "Put", "Delete")
    host = gateway.server.url.removeprefix("http://")
    with wires(host, 1) as (wire,):
        options = gateway.through(wire.address).options
        with machine.up(tmp_path / "data", f"web={tree}", options=options) as up:
            up.backup()
            well = doctor(up)
            rules = {"Rules": [RULE]}
            call(gateway, "put_bucket_lifecycle_configuration", LifecycleConfiguration=rules)
            ruled = doctor(up)
            call(gateway, "delete_bucket_lifecycle")
            call(gateway, "delete_bucket_policy")
            revoked = doctor(up)
            let(gateway, "Get", "List", "Put", "Delete")
            call(gateway, "delete_object", Key=f"{PREFIX}/config")
            emptied = doctor(up)
            remove(gateway)
            gone = doctor(up)
            wire.close()
            silent = doctor(up)

    assert well == ("", "")
    assert "rule tidy deletes objects" in ruled[0]
    assert "may not list what is in" in revoked[0]
    assert "there is no repository in" in emptied[0]
    assert "there is no bucket" in gone[0]
    assert "connection refused" in silent[0]
    assert all(hint for _, hint in (ruled, revoked, emptied, gone, silent))
