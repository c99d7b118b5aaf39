"""Object lock in a bucket that has it: what a snapshot needs, nobody deletes before its time."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import msgspec
import pytest
import pytest_asyncio
from typing_extensions import override

from coordinator.config import Bucket, Config, Where
from coordinator.stores import Clock, Place, open_place
from proto.tidemark.v1 import admin_pb2, common_pb2
from repository.errors import StoreError, StoreUnavailableError, TidemarkError
from repository.refs import Refs
from repository.store.interface import Locking, Store
from repository.store.s3.capabilities import NONE_KNOWN, Capabilities
from repository.store.s3.location import parse_location
from repository.store.s3.store import S3Store
from tests.fakes.agent import FakeAgent, MadeSnapshot
from tests.integration.coordinator.serving import Coordinator, config_in, serving
from tests.integration.coordinator.test_backup import detail
from tests.integration.coordinator.test_base import backed_up
from tests.servers.buckets import LOCKING, make_bucket, new_name, opened
from tests.servers.keys import ACCESS_KEY, SECRET_KEY
from tests.servers.shared import Server, server

pytestmark = pytest.mark.asyncio

FILES = {"a": b"alpha" * 100, "b": b"beta" * 1000}
DAY = 86400
HOUR = 3600
NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Site:
    """A bucket with object lock, a coordinator's settings, and a clock that can be set forward."""

    running: Server
    bucket: str
    config: Config
    ahead_seconds: int = 0

    def now(self) -> int:
        return time.time_ns() + self.ahead_seconds * 10**9

    def with_lock(self, seconds: int | None) -> Config:
        assert self.config.bucket is not None
        bucket = msgspec.structs.replace(self.config.bucket, lock_seconds=seconds)
        return msgspec.structs.replace(self.config, bucket=bucket)

    @asynccontextmanager
    async def store(self, capabilities: Capabilities = LOCKING["moto"]) -> AsyncIterator[S3Store]:
        """The repository, by way of the store alone."""
        assert self.config.bucket is not None
        async with opened(self.running, self.bucket, capabilities=capabilities) as store:
            store.bucket.location = self.config.bucket.location
            yield store

    async def locks(self) -> dict[str, datetime]:
        """Until when each object is locked, as the store says; NEVER where it is not."""
        async with self.store() as store:
            names = [info.name async for info in store.list_objects("")]
            ends = {name: await store.locked_until(name) for name in names}
            return {name: end or NEVER for name, end in ends.items()}


async def make_site(running: Server, directory: Path, *, locks: bool) -> Site:
    async with opened(running, new_name()) as nowhere:
        bucket = (await make_bucket(nowhere, locks=locks)).bucket.location.bucket
    credentials = directory / "credentials"
    credentials.write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    location = parse_location(f"s3://{bucket}/tidemark", endpoint=running.url)
    config = msgspec.structs.replace(
        config_in(directory), repository=Path(), bucket=Bucket(location, credentials, DAY)
    )
    return Site(running, bucket, config)


@pytest_asyncio.fixture
async def site(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return await make_site(server("moto", tmp_path_factory), tmp_path, locks=True)


async def listed(coordinator: Coordinator) -> list[admin_pb2.Snapshot]:
    answer = await coordinator.admin.ListSnapshots(admin_pb2.ListSnapshotsRequest())
    return list(answer.snapshots)


def end_of(snapshot: admin_pb2.Snapshot) -> datetime:
    assert snapshot.HasField("locked_until")
    return snapshot.locked_until.ToDatetime(UTC)


async def agent_of(coordinator: Coordinator) -> FakeAgent:
    agent = await coordinator.agent()
    agent.volume("data")
    return agent


async def first_backup(coordinator: Coordinator, agent: FakeAgent) -> MadeSnapshot:
    async with agent.connected() as connection:
        return await backed_up(coordinator, connection, FILES)


async def unchanged_backup(coordinator: Coordinator, agent: FakeAgent, made: MadeSnapshot) -> None:
    """Nothing is new: the snapshot needs what the one before needed, and stores no pack."""
    same = replace(made, packs=[], refs=Refs.of({}, base=False).encode())
    async with agent.connected() as connection:
        job = await coordinator.order_backup("data")
        task = (await connection.next_message()).run_backup
        writing = await connection.open_session(task)
        signed = agent.sign(writing, task.volume_id, same)
        try:
            await connection.commit(writing, signed, same.refs)
        finally:
            await connection.finish_backup(task.task_id)
            await coordinator.ended(job.job_id)


async def test_a_bucket_that_was_given_versions_later_is_told_of_by_doctor(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    site = await make_site(server("moto", tmp_path_factory), tmp_path, locks=False)
    async with serving(site.with_lock(None)) as coordinator:
        before = await coordinator.admin.RunDoctor(admin_pb2.RunDoctorRequest())
        async with site.store() as store:
            await store.bucket.call(
                "put_bucket_versioning", "", VersioningConfiguration={"Status": "Enabled"}
            )
            after = await coordinator.admin.RunDoctor(admin_pb2.RunDoctorRequest())
            await store.bucket.call("delete_object", "", Key=store.bucket.key("capabilities"))
    async with serving(site.with_lock(None)) as coordinator:
        anew = await coordinator.admin.RunDoctor(admin_pb2.RunDoctorRequest())

    was, now, then = (
        next(check for check in each.checks if check.name == "repository")
        for each in (before, after, anew)
    )
    assert (was.ok, now.ok, then.ok) == (True, False, True)
    assert "keeps versions now, and did not when its repository was made" in now.message


async def test_the_lock_that_is_in_force_is_told(site: Site) -> None:
    asked = admin_pb2.GetRepositoryRequest()
    async with serving(site.config) as coordinator:
        locked = await coordinator.admin.GetRepository(asked)
    async with serving(site.with_lock(None)) as coordinator:
        unlocked = await coordinator.admin.GetRepository(asked)

    assert (locked.lock_seconds, unlocked.lock_seconds) == (DAY, 0)
    # As this server looks at no signature.
    assert not locked.signs_requests


async def test_nothing_that_a_snapshot_needs_can_be_deleted(site: Site) -> None:
    async with serving(site.config) as coordinator:
        await first_backup(coordinator, await agent_of(coordinator))
        [snapshot] = await listed(coordinator)
        async with site.store() as store:
            names = [info.name async for info in store.list_objects("")]
            for name in names:
                with pytest.raises(StoreError, match=f"{name} is locked until"):
                    await store.delete(name)
        proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
        doctor = await coordinator.admin.RunDoctor(admin_pb2.RunDoctorRequest())
    locks = await site.locks()

    kinds = {name.partition("/")[0] for name in names}
    assert kinds == {"capabilities", "certificates", "config", "keys", "packs", "refs", "roots"}
    committed = snapshot.committed_at.ToDatetime(UTC)
    assert timedelta(days=1) <= end_of(snapshot) - committed < timedelta(days=1, seconds=1)
    # The least of all: its own root and refs.
    assert min(locks.values()) == end_of(snapshot)
    least = {name.partition("/")[0] for name, end in locks.items() if end == end_of(snapshot)}
    assert least == {"refs", "roots"}
    assert proof.phase == common_pb2.PHASE_COMPLETED
    checks = {check.name: (check.ok, check.message) for check in doctor.checks}
    assert checks["object lock"] == (True, "1 days from each commit on")


async def test_unchanged_backups_extend_what_they_need_once_in_a_slack(site: Site) -> None:
    ends = []
    async with serving(site.config, clock=site.now) as coordinator:
        agent = await agent_of(coordinator)
        made = await first_backup(coordinator, agent)
        ends.append(await site.locks())
        # A quarter of a day is the slack.
        for hours in (5, 7, 12, 14):
            site.ahead_seconds = hours * HOUR
            await unchanged_backup(coordinator, agent, made)
            ends.append(await site.locks())
        snapshots = await listed(coordinator)

    for name in [*(pack.name for pack in made.packs), "config", "keys/0001", "capabilities"]:
        times = [each[name] for each in ends]
        assert times[0] == times[1] < times[2] == times[3] < times[4], name
    for snapshot, locks in zip(snapshots, ends, strict=True):
        own = f"{snapshot.volume_id}/{snapshot.sequence:020}"
        needed = {
            name: end
            for name, end in locks.items()
            if own in name or not name.startswith(("roots/", "refs/"))
        }
        assert min(needed.values()) == end_of(snapshot)


async def test_a_lock_that_is_asked_for_later_holds_what_older_sessions_stored(site: Site) -> None:
    async with serving(site.with_lock(None)) as coordinator:
        agent = await agent_of(coordinator)
        made = await first_backup(coordinator, agent)
        [before] = await listed(coordinator)
    assert set((await site.locks()).values()) == {NEVER}
    async with serving(site.config) as coordinator:
        agent.address = coordinator.grpc
        await unchanged_backup(coordinator, agent, made)
        [still, snapshot] = await listed(coordinator)
    locks = await site.locks()

    assert not before.HasField("locked_until")
    assert not still.HasField("locked_until")
    unlocked = [name for name, end in locks.items() if end == NEVER]
    assert len(unlocked) == 2
    assert all(name.endswith(f"{1:020}") for name in unlocked)
    assert min(end for end in locks.values() if end != NEVER) == end_of(snapshot)


class Refusing(Locking):
    """Locks that fail for packs as long as there is an error to fail with."""

    def __init__(self, inner: Locking) -> None:
        self.inner = inner
        self.error: StoreError | None = None

    @override
    def writing_until(self, when: datetime) -> Store:
        return self.inner.writing_until(when)

    @override
    async def retain_until(self, name: str, when: datetime) -> None:
        if self.error is not None and name.startswith("packs/"):
            raise type(self.error)(self.error.message)
        await self.inner.retain_until(name, when)

    @override
    async def locked_until(self, name: str) -> datetime | None:
        return await self.inner.locked_until(name)


async def test_a_snapshot_whose_packs_cannot_be_locked_is_none(site: Site) -> None:
    refusing: list[Refusing] = []
    errors = {
        StoreUnavailableError("the store is away"): grpc.StatusCode.UNAVAILABLE,
        StoreError("the key may not do this"): grpc.StatusCode.UNKNOWN,
    }

    @asynccontextmanager
    async def open_at(where: Where, clock: Clock) -> AsyncIterator[Place]:
        async with open_place(where, clock) as place:
            assert place.locking is not None
            refusing.append(Refusing(place.locking))
            yield replace(place, locking=refusing[0])

    async with serving(site.config, open_at=open_at, clock=site.now) as coordinator:
        agent = await agent_of(coordinator)
        made = await first_backup(coordinator, agent)
        site.ahead_seconds = 7 * HOUR
        for error, code in errors.items():
            refusing[0].error = error
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await unchanged_backup(coordinator, agent, made)
            assert caught.value.code() is code
            assert error.message in detail(caught.value).message
        between = await listed(coordinator)
        refusing[0].error = None
        await unchanged_backup(coordinator, agent, made)
        after = await listed(coordinator)

    assert [each.sequence for each in between] == [1]
    # The commits had not begun: not even sequences were given out.
    assert [each.sequence for each in after] == [1, 2]


async def test_a_pack_that_somebody_deleted_is_missed_when_it_should_be_locked(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # moto fails where there is nothing to lock.
    site = await make_site(server("radosgw", tmp_path_factory), tmp_path, locks=True)
    async with serving(site.config, clock=site.now) as coordinator:
        agent = await agent_of(coordinator)
        made = await first_backup(coordinator, agent)
        gone = made.packs[0].name
        async with site.store() as store:
            # What anybody may: the versions stay, and are hidden.
            await store.bucket.call("delete_object", gone, Key=store.bucket.key(gone))
        site.ahead_seconds = 7 * HOUR
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unchanged_backup(coordinator, agent, made)
        certificate = f"certificates/{agent.node_id.hex()}"
        async with site.store() as store:
            key = store.bucket.key(certificate)
            await store.bucket.call("delete_object", certificate, Key=key)
    # Whoever hides things in the bucket does not keep anybody from restoring what is left.
    async with serving(site.with_lock(2 * DAY)) as coordinator:
        snapshots = await listed(coordinator)

    assert f"{gone} is needed by the snapshot, and is gone" in detail(caught.value).message
    assert len(snapshots) == 1


async def refused(config: Config, clock: Clock = time.time_ns) -> TidemarkError:
    with pytest.RaisesGroup(TidemarkError) as caught:
        async with serving(config, clock=clock):
            pytest.fail("it serves")
    found = caught.value.exceptions[0]
    assert isinstance(found, TidemarkError)
    return found


async def test_a_clock_that_is_wrong_locks_nothing(site: Site) -> None:
    async with serving(site.with_lock(None)):
        pass
    site.ahead_seconds = HOUR

    wrong = await refused(site.config, site.now)

    assert "clock is 60 minutes ahead of the store's" in wrong.message
    assert set((await site.locks()).values()) == {NEVER}


async def test_a_bucket_that_cannot_lock_is_refused_at_the_start(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    site = await make_site(server("moto", tmp_path_factory), tmp_path, locks=False)

    first = await refused(site.config)
    async with site.store(NONE_KNOWN) as store:
        left = [info.name async for info in store.list_objects("")]
    async with serving(site.with_lock(None)) as coordinator:
        await first_backup(coordinator, await agent_of(coordinator))
        [snapshot] = await listed(coordinator)
    second = await refused(site.config)

    assert "cannot lock objects" in first.message
    assert "make a bucket with object lock" in first.hint
    # It may still be given object lock: nothing is recorded of it.
    assert left == []
    assert not snapshot.HasField("locked_until")
    assert "could not lock objects when its repository was made" in second.message


async def test_a_lock_counts_from_a_commit_that_a_clock_set_back_would_be_before(
    site: Site, tmp_path: Path
) -> None:
    """A commit is never before the volume's last one, wherever that lies."""
    allowed = msgspec.structs.replace(site.config, repository_places=("any",))
    async with serving(allowed, clock=site.now) as coordinator:
        agent = await agent_of(coordinator)
        await first_backup(coordinator, agent)
        await coordinator.admin.InitRepository(
            admin_pb2.InitRepositoryRequest(name="second", url=f"file://{tmp_path}/second")
        )
        for repository, ahead_seconds in (("second", HOUR), ("default", 0)):
            site.ahead_seconds = ahead_seconds
            await coordinator.admin.AssignVolumes(
                admin_pb2.AssignVolumesRequest(all=True, repository=repository)
            )
            await first_backup(coordinator, agent)
        first, elsewhere, last = await listed(coordinator)

    assert first.committed_at.seconds + HOUR <= elsewhere.committed_at.seconds
    assert last.committed_at.ToNanoseconds() == elsewhere.committed_at.ToNanoseconds() + 1
    assert not elsewhere.HasField("locked_until")
    assert last.locked_until.seconds >= last.committed_at.seconds + DAY
