"""A repository in a bucket: a real gateway, a poor S3, and one that checks no signature."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from repository.store.s3.store import S3Store
from tests.e2e import trees
from tests.e2e.harness import Machine, Up, eventually
from tests.servers.buckets import make_bucket, new_name, opened, remove_bucket
from tests.servers.keys import ACCESS_KEY, SECRET_KEY
from tests.servers.shared import Server, server

MIB = 1024 * 1024
DIRECT = {"radosgw": True, "rclone": True, "moto": False}


class Bucket(NamedTuple):
    """An empty bucket, and the file with its key."""

    server: Server
    name: str
    credentials: Path

    @property
    def options(self) -> list[str]:
        """What `up` is told of it."""
        return [
            *("--repository", f"s3://{self.name}/some/prefix"),
            *("--repository-endpoint", self.server.url),
            *("--repository-credentials", str(self.credentials)),
        ]

    def names(self) -> list[str]:
        """Keys of everything in it."""

        async def listed() -> list[str]:
            async with opened(self.server, self.name) as store:
                answer = await store.bucket.call("list_objects_v2", self.name)
                return [each["Key"] for each in answer.get("Contents", [])]

        return asyncio.run(listed())

    def packs(self) -> list[str]:
        """Those of packs."""
        return [name for name in self.names() if "/packs/" in name]


@pytest.fixture(params=["radosgw", "rclone", "moto"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bucket(kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    return new_bucket(server(kind, tmp_path_factory), tmp_path)


def new_bucket(running: Server, directory: Path) -> Bucket:
    async def made() -> str:
        async with opened(running, new_name()) as nowhere:
            return (await make_bucket(nowhere)).bucket.location.bucket

    credentials = directory / "credentials"
    credentials.write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    return Bucket(running, asyncio.run(made()), credentials)


def test_a_volume_goes_to_a_bucket_and_comes_back(
    kind: str, bucket: Bucket, machine: Machine, tree: Path, tmp_path: Path
) -> None:
    with machine.up(tmp_path / "data", f"web={tree}", *bucket.options) as up:
        first = up.backup("web")
        unchanged = up.backup("web")
        up.restore(first["snapshot_id"], tmp_path / "restored")
        up.run("verify", "create", "--all", "--depth", "data", "--wait").ok()
        checks = {each["name"]: each for each in up.json("doctor-less")} if False else {}
        shown = up.json("repo", "show")
        uploads = (up.data / "logs/agent.log").read_text()
    assert first["phase"] == unchanged["phase"] == "Completed"
    assert unchanged["data_added"] == 0
    assert trees.same(tree, tmp_path / "restored")
    assert bucket.packs()
    assert not checks
    assert shown["location"] == f"s3://{bucket.name}/some/prefix"
    assert not (tmp_path / "data/repository").exists()
    assert uploads
    del kind
