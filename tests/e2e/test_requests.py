"""What jobs ask of a bucket, which somebody pays for: as few requests as there can be."""

import asyncio
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.harness import Machine, Up
from tests.servers.buckets import make_bucket, new_name, opened
from tests.servers.keys import ACCESS_KEY, SECRET_KEY
from tests.servers.shared import Server, server

MIB = 1024 * 1024
# Of the whole coordinator, or of the agent.
METRIC = "tidemark_store_requests_total"


class Bucket(NamedTuple):
    """A bucket of one's own."""

    server: Server
    name: str

    def packs(self) -> set[str]:
        """Keys of the packs in it."""

        async def listed() -> set[str]:
            async with opened(self.server, self.name) as store:
                answer = await store.bucket.call("list_objects_v2", "all", Prefix="p/packs/")
                return {each["Key"] for each in answer.get("Contents", [])}

        return asyncio.run(listed())


@pytest.fixture
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    running = server("radosgw", tmp_path_factory)

    async def made() -> str:
        async with opened(running, new_name()) as nowhere:
            return (await make_bucket(nowhere)).bucket.location.bucket

    return Bucket(running, asyncio.run(made()))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Of three packs, and small files besides."""
    root = tmp_path / "large"
    root.mkdir()
    for number in range(5):
        (root / f"{number}").write_bytes(os.urandom(16 * MIB))
    for number in range(100):
        (root / f"small-{number}").write_bytes(os.urandom(1000))
    return root


@pytest.fixture
def up(bucket: Bucket, large: Path, machine: Machine, tmp_path: Path) -> Iterator[Up]:
    key = tmp_path / "credentials"
    key.write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    options = (
        *("--every", "off", "--repository", f"s3://{bucket.name}/p"),
        *("--repository-endpoint", bucket.server.url, "--repository-credentials", str(key)),
    )
    with machine.up(tmp_path / "data", f"large={large}", options=options) as running:
        yield running


def counted(url: str, metric: str) -> dict[str, int]:
    """A metric by its operation."""
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - of a process that we started
        lines = answer.read().decode().splitlines()
    wanted = re.compile(metric + r'{operation="(\w+)"[^}]*} (\S+)')
    found = [match for line in lines if (match := wanted.fullmatch(line))]
    return {match[1]: int(float(match[2])) for match in found}


def agent_metrics(up: Up) -> str:
    return f"http://{(up.data / 'agent/endpoints.json').read_text().split(chr(34))[3]}/metrics"


def test_each_request_of_a_job_is_counted_and_there_are_few(
    bucket: Bucket, up: Up, tmp_path: Path
) -> None:
    at_first = counted(up.metrics, METRIC)
    backup = up.json("backup", "create", "large", "--wait")
    packs = bucket.packs()
    unchanged = up.json("backup", "create", "large", "--wait")
    snapshot = backup["snapshots"][0]["snapshot_id"]
    paths = ("--path", "small-1", "--path", "small-2", "--path", "3")
    few = up.restore(snapshot, tmp_path / "few", *paths)
    proof = up.json("verify", "create", "--all", "--wait")
    in_the_end = counted(up.metrics, METRIC)
    by_agent = counted(agent_metrics(up), "tidemark_agent_store_requests_total")

    first: dict[str, Any] = backup["store_requests"]
    # A pack is put once, by the agent; then refs and root. Its end is read, with which the store
    # tells the rest, and one frame of the first, or of the three that are sent at once.
    assert len(packs) >= 4
    assert (first["put"], first["list"], first["delete"]) == (len(packs) + 2, 0, 0)
    assert first["head"] == 0
    assert len(packs) + 1 <= first["get"] <= len(packs) + 3
    assert first["bytes_in"] >= 5 * 16 * MIB
    assert unchanged["store_requests"]["put"] <= 2
    assert {unchanged["store_requests"][each] for each in ("get", "head", "list")} == {0}
    # Root, directory and three files of one tree and few packs; nothing through the coordinator.
    assert 0 < few["store_requests"]["get"] <= 8
    assert few["store_requests"]["bytes_out"] >= 16 * MIB
    assert (few["store_requests"]["put"], few["store_requests"]["list"]) == (0, 0)
    assert by_agent["put"] == len(packs)
    assert by_agent["get"] == few["store_requests"]["get"]
    assert proof["store_requests"]["head"] == len(packs)
    # Nobody else has asked for anything.
    jobs = [backup["store_requests"], unchanged["store_requests"], proof["store_requests"]]
    for each in ("put", "get", "head", "list", "delete"):
        here = sum(job[each] for job in jobs) - (by_agent["put"] if each == "put" else 0)
        assert in_the_end[each] - at_first[each] == here


def test_what_a_job_has_asked_is_shown_and_outlives_a_restart(up: Up, machine: Machine) -> None:
    made = up.json("backup", "create", "large", "--wait")
    up.stop()
    with machine.up(up.data) as again:
        shown = again.json("job", "show", made["job_id"])
        table = again.run("job", "show", made["job_id"]).ok().stdout.decode()

    asked = made["store_requests"]
    assert shown["store_requests"] == shown["snapshots"][0]["store_requests"] == asked
    words = f"{asked['put']} PUT, {asked['get']} GET, {asked['head']} HEAD, 0 LIST"
    assert any(line.split() == ["requests", *words.split()] for line in table.splitlines())
