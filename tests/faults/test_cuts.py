"""Cables between agent, coordinator and store that are pulled amid a backup, and put back or not.

The coordinator gives an agent seconds instead of a minute; otherwise all is as it is.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proto.tidemark.v1 import admin_pb2, common_pb2
from tests.e2e import trees
from tests.e2e.test_bucket import PREFIX, new_bucket
from tests.e2e.wire import Wire
from tests.faults.networks import Cable, Networks, networks, within
from tests.faults.quick_coordinator import LEASE_SECONDS, SILENCE_SECONDS
from tests.faults.site import Site, pause, running, wait_until
from tests.servers.shared import server

MIB = 1024 * 1024
# A pack takes a second.
BYTES_PER_SECOND = 32 * MIB
CUT_SECONDS = 2.0


@pytest.fixture
def net() -> Iterator[Networks]:
    with networks() as made:
        yield made


@pytest.fixture
def site(net: Networks, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both daemons, each in its network, and a volume of several packs."""
    gateway = server("radosgw", tmp_path_factory)
    bucket = new_bucket(gateway, tmp_path)
    wire = Wire(gateway.url.removeprefix("http://"), net.store_address)
    wire.open()
    endpoint = f"http://{wire.address}"
    tree = tmp_path / "volume"
    tree.mkdir()
    for number in range(4):
        (tree / str(number)).write_bytes(os.urandom(32 * MIB))
    site = Site(tmp_path / "site", tree)
    site.where = (
        *("--repository", f"s3://{bucket.name}/{PREFIX}", "--repository-endpoint", endpoint),
        *("--repository-credentials", str(bucket.credentials)),
    )
    site.agent_options = ("--store-endpoint", f"{endpoint}/{bucket.name}/")
    site.modules = {
        "coordinator": "tests.faults.quick_coordinator",
        "agent": "tests.faults.quick_agent",
    }
    site.listens = "0.0.0.0"  # noqa: S104 - of a network with two cables
    site.agent_calls = net.agent_coordinator.addresses[1]
    site.admin_calls = net.administrator.addresses[0]
    try:
        with running(site):
            site.start_coordinator(through=within(net.coordinator))
            assert site.serving(), site.logs()
            site.make_token()
            site.start_agent(through=within(net.agent))
            assert site.connected(), site.logs()
            yield site
            site.end()
    finally:
        wire.close()


@contextmanager
def pulled(cable: Cable) -> Iterator[None]:
    cable.pull()
    try:
        yield
    finally:
        cable.plug_in_again()


def limit(site: Site, rate: int | None) -> None:
    site.ask("SetBandwidth", admin_pb2.SetBandwidthRequest(fleet=True, bytes_per_second=rate))


def packs(site: Site) -> int:
    """Those in the catalog."""
    return int(site.ask("GetRepository", admin_pb2.GetRepositoryRequest()).packs)


def is_running(site: Site, job_id: str) -> bool:
    return bool(site.job(job_id).phase == common_pb2.PHASE_IN_PROGRESS)


def test_a_backup_goes_on_after_each_cable_was_pulled(
    site: Site, net: Networks, tmp_path: Path
) -> None:
    limit(site, BYTES_PER_SECOND)
    job_id = site.order_backup()
    wait_until(lambda: packs(site) > 0, 60, site.logs)
    for cable in (net.agent_store, net.coordinator_store, net.agent_coordinator):
        with pulled(cable):
            pause(SILENCE_SECONDS + 1 if cable is net.agent_coordinator else CUT_SECONDS)
            assert is_running(site, job_id), site.job(job_id)
            assert site.snapshots() == []
    limit(site, None)

    job = site.ended(job_id)

    assert job.phase == common_pb2.PHASE_COMPLETED, f"{job}\n{site.logs()}"
    site.restore(job.snapshots[0].snapshot_id, tmp_path / "restored")
    trees.assert_same(trees.snapshot_of(site.tree), trees.snapshot_of(tmp_path / "restored"))


def test_a_backup_that_is_cut_off_for_longer_than_its_lease_leaves_its_packs_to_the_next(
    site: Site, net: Networks, tmp_path: Path
) -> None:
    limit(site, BYTES_PER_SECOND)
    job_id = site.order_backup()
    wait_until(lambda: packs(site) > 2, 60, site.logs)
    with pulled(net.agent_coordinator):
        failed = site.ended(job_id, seconds=SILENCE_SECONDS + LEASE_SECONDS + 30)
        kept = site.ask("GetRepository", admin_pb2.GetRepositoryRequest())
        assert site.snapshots() == []
    limit(site, None)

    made = site.backup()

    assert failed.phase == common_pb2.PHASE_FAILED
    assert "did not come back" in failed.message
    # The agent need not have heard of the last one that is in the catalog: it asks.
    assert made.data_added_packed <= 4 * 32 * MIB * 1.01 - 0.99 * kept.stored_bytes
    site.restore(made.snapshot_id, tmp_path / "restored")
    trees.assert_same(trees.snapshot_of(site.tree), trees.snapshot_of(tmp_path / "restored"))
