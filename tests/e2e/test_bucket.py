"""A repository in a bucket: a real gateway, a poor S3, and one that checks no signature."""

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from repository.store.s3.store import S3Store
from tests.e2e import trees
from tests.e2e.agents import agents, volume
from tests.e2e.harness import Machine, eventually
from tests.servers.buckets import make_bucket, new_name, opened
from tests.servers.keys import ACCESS_KEY, SECRET_KEY
from tests.servers.shared import Server, server

MIB = 1024 * 1024
PREFIX = "some/prefix"
T = TypeVar("T")


class Bucket(NamedTuple):
    """A bucket of one's own, and the file with its key."""

    server: Server
    name: str
    credentials: Path

    @property
    def options(self) -> tuple[str, ...]:
        """What `up` is told of it."""
        return (
            *("--every", "off"),
            *("--repository", f"s3://{self.name}/{PREFIX}"),
            *("--repository-endpoint", self.server.url),
            *("--repository-credentials", str(self.credentials)),
        )

    def through(self, address: str) -> "Bucket":
        """The same, reached by way of another address: a wire to its server."""
        return self._replace(server=self.server._replace(url=f"http://{address}"))

    @property
    def endpoint(self) -> str:
        """Where agents may send packs."""
        return f"{self.server.url}/{self.name}/{PREFIX}/"

    def ask(self, question: Callable[[S3Store], Awaitable[T]]) -> T:
        """Ask the store itself."""

        async def asked() -> T:
            async with opened(self.server, self.name) as store:
                return await question(store)

        return asyncio.run(asked())

    def packs(self) -> dict[str, int]:
        """Keys of packs, and when each was written."""

        async def listed(store: S3Store) -> dict[str, int]:
            answer = await store.bucket.call("list_objects_v2", "all", Prefix=f"{PREFIX}/packs/")
            return {
                each["Key"]: int(each["LastModified"].timestamp())
                for each in answer.get("Contents", [])
            }

        return self.ask(listed)


def new_bucket(running: Server, directory: Path, *, locks: bool = False) -> Bucket:
    async def made() -> str:
        async with opened(running, new_name()) as nowhere:
            return (await make_bucket(nowhere, locks=locks)).bucket.location.bucket

    credentials = directory / "credentials"
    credentials.write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    return Bucket(running, asyncio.run(made()), credentials)


@pytest.fixture
def gateway(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    return new_bucket(server("radosgw", tmp_path_factory), tmp_path)


@pytest.mark.parametrize("kind", ["radosgw", "rclone", "moto"])
def test_a_volume_goes_to_a_bucket_and_comes_back(
    kind: str,
    machine: Machine,
    tree: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    bucket = new_bucket(server(kind, tmp_path_factory), tmp_path)
    expected = trees.snapshot_of(tree)
    with machine.up(tmp_path / "data", f"web={tree}", options=bucket.options) as up:
        first = up.backup("web")
        unchanged = up.backup("web")
        restored = up.restore(first["snapshot_id"], tmp_path / "restored")
        up.run("verify", "create", "--all", "--depth", "data", "--wait").ok()
        shown = up.json("repo", "show")
    # Again, and nothing has to be said anew.
    with machine.up(tmp_path / "data", options=("--every", "off")) as up:
        later = up.backup("web")

    trees.assert_same(expected, trees.snapshot_of(tmp_path / "restored"))
    assert [each["phase"] for each in (first, unchanged, later)] == ["Completed"] * 3
    assert unchanged["data_added_packed"] == later["data_added_packed"] == 0
    assert shown["location"] == f"s3://{bucket.name}/{PREFIX}"
    assert not (tmp_path / "data/repository").exists()
    assert bucket.packs()
    assert restored["bytes_fetched"] > 0


def test_an_agent_without_the_endpoint_sends_through_the_coordinator(
    gateway: Bucket, machine: Machine, tree: Path, tmp_path: Path
) -> None:
    with (
        machine.up(tmp_path / "data", options=gateway.options) as up,
        agents(up, tmp_path / "nodes", "plain", "direct") as (plain, direct),
    ):
        direct.flags = ["--store-endpoint", gateway.endpoint]
        for agent in (plain, direct):
            agent.protect(volume(agent.name, tree))
            agent.start()
            made = up.backup(agent.name)
            up.restore(made["snapshot_id"], tmp_path / "restored" / agent.name)

            assert made["phase"] == "Completed"
            expected, found = tree, tmp_path / "restored" / agent.name
            trees.assert_same(trees.snapshot_of(expected), trees.snapshot_of(found))


@pytest.mark.parametrize("dies", ["agent", "coordinator"])
def test_what_was_sent_before_a_death_is_not_sent_again(
    gateway: Bucket, machine: Machine, tmp_path: Path, dies: str
) -> None:
    tree = tmp_path / "large"
    tree.mkdir()
    # Six packs, of which four have to be there, and some of these in the catalog.
    for number in range(12):
        (tree / f"{number:02}").write_bytes(os.urandom(16 * MIB))
    with (
        machine.up(tmp_path / "data", options=gateway.options) as up,
        agents(up, tmp_path / "nodes", "node") as (agent,),
    ):
        agent.flags = ["--store-endpoint", gateway.endpoint]
        agent.protect(volume("large", tree))
        agent.start()
        up.run("backup", "create", "large").ok()
        eventually(lambda: len(gateway.packs()) >= 4, seconds=60)
        if dies == "agent":
            agent.kill()
        else:
            os.kill(up.child("coordinator"), signal.SIGKILL)
    sent = gateway.packs()
    with (
        machine.up(tmp_path / "data", options=("--every", "off")) as up,
        agents(up, tmp_path / "nodes", "node") as (agent,),
    ):
        agent.flags = ["--store-endpoint", gateway.endpoint]
        kept = up.json("repo", "show")
        agent.start()
        made = up.backup("large")
        up.restore(made["snapshot_id"], tmp_path / "restored")

    assert made["phase"] == "Completed"
    # Three are in flight at most: in the store alone, or in the catalog and not answered yet.
    assert 1 <= len(sent) - 3 <= kept["packs"] <= len(sent)
    # The agent asks for those, so that of what is in the catalog nothing is sent again.
    whole = 12 * 16 * MIB * 1.01
    assert made["data_added_packed"] <= whole - 0.99 * kept["stored_bytes"]
    trees.assert_same(trees.snapshot_of(tree), trees.snapshot_of(tmp_path / "restored"))


def test_a_bucket_that_locks_keeps_what_snapshots_need(
    machine: Machine, tree: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bucket = new_bucket(server("radosgw", tmp_path_factory), tmp_path, locks=True)
    options = (*bucket.options, "--repository-lock", "1d")
    with machine.up(tmp_path / "data", f"web={tree}", options=options) as up:
        first = up.backup("web")
        up.backup("web")
        up.restore(first["snapshot_id"], tmp_path / "restored")
        snapshots = up.json("snapshot", "list")
        shown = up.run("snapshot", "show", snapshots[1]["snapshot_id"]).ok().stdout.decode()
    ends, sizes = bucket.ask(locks_of), bucket.ask(versions_of_all)

    trees.assert_same(trees.snapshot_of(tree), trees.snapshot_of(tmp_path / "restored"))
    for snapshot in snapshots:
        committed, until = time_of(snapshot, "committed_at"), time_of(snapshot, "locked_until")
        assert timedelta(days=1) <= until - committed < timedelta(days=1, seconds=1)
        assert min(end for name, end in ends.items() if is_needed(name, snapshot)) == until
    last = time_of(snapshots[1], "locked_until")
    assert re.search(f"^locked until +{last:%Y-%m-%d %H:%M:%S}$", shown, re.MULTILINE)
    # Nothing was written twice, though this gateway heeds no condition where it keeps versions.
    assert set(sizes.values()) == {1}


def time_of(snapshot: dict[str, Any], field: str) -> datetime:
    return datetime.fromisoformat(snapshot[field])


def is_needed(name: str, snapshot: dict[str, Any]) -> bool:
    """By this snapshot: all but what is another one's own."""
    own = f"{snapshot['volume_id']}/{snapshot['sequence']:020}"
    return not name.startswith(("roots/", "refs/")) or own in name


async def locks_of(store: S3Store) -> dict[str, datetime]:
    """Until when each object is locked, each of them being so."""
    answer = await store.bucket.call("list_objects_v2", "all", Prefix=f"{PREFIX}/")
    ends = {}
    for each in answer["Contents"]:
        head = await store.bucket.call("head_object", each["Key"], Key=each["Key"])
        assert head["ObjectLockMode"] == "COMPLIANCE"
        ends[each["Key"].removeprefix(f"{PREFIX}/")] = head["ObjectLockRetainUntilDate"]
    return ends


async def versions_of_all(store: S3Store) -> Counter[str]:
    """How many versions there are of each object."""
    answer = await store.bucket.call("list_object_versions", "all", Prefix=f"{PREFIX}/")
    return Counter(each["Key"] for each in answer["Versions"])


def test_a_bucket_that_cannot_lock_is_said_to_be_none(
    gateway: Bucket, machine: Machine, tree: Path, tmp_path: Path
) -> None:
    options = (*gateway.options, "--repository-lock", "1d")
    refused = machine.run("up", "--data", tmp_path / "data", "--protect", f"web={tree}", *options)

    assert refused.code == 2
    assert "cannot lock objects, and a lock is asked for" in refused.error["message"]
    assert "make a bucket with object lock" in refused.error["hint"]
