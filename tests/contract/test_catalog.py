"""What every catalog promises. Each test gets an empty one; another engine joins `catalogs`."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator.catalog import Catalog, CommitPlan, TokenRecord, open_catalog
from coordinator.errors import CatalogError, FencedError, RejectedError, UsageError
from coordinator.limits import Limit, Rule, Scope, Window
from coordinator.locking import Held
from coordinator.model import (
    BackupOrder,
    BackupStatistics,
    ChangeDetection,
    Failure,
    FrameReference,
    Job,
    JobId,
    JobKind,
    LogLine,
    Node,
    Origin,
    Pack,
    PackOrigin,
    PathError,
    Phase,
    RestoreOrder,
    RestoreResult,
    Session,
    SessionState,
    Snapshot,
    SnapshotHex,
    Task,
    TaskId,
    VerifyDepth,
    VerifyOrder,
    VerifyResult,
    VolumeReport,
    Workload,
)
from repository.ids import NodeId, PackNonce, RepositoryId, SessionId, VolumeId
from repository.pack import FrameTable
from tests.fakes.catalogs import to_first_revision

pytestmark = pytest.mark.asyncio

NOW = 1_790_000_000 * 10**9
NODE = NodeId(b"\x01" * 16)
OTHER_NODE = NodeId(b"\x02" * 16)
VOLUME = VolumeId(b"\x03" * 16)
OTHER_VOLUME = VolumeId(b"\x04" * 16)
NONCE = PackNonce(b"\x05" * 16)
OTHER_NONCE = PackNonce(b"\x06" * 16)
REPOSITORY = RepositoryId(b"\x07" * 16)
OTHER_REPOSITORY = RepositoryId(b"\x08" * 16)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty catalog to copy: migrating a new one for each test would be most of its time."""
    path = tmp_path_factory.mktemp("template") / "catalog.db"

    async def make() -> None:
        await (await open_catalog(path, NOW)).close()

    asyncio.run(make())
    return path


@pytest_asyncio.fixture
async def catalog(template: Path, tmp_path: Path) -> AsyncIterator[Catalog]:
    shutil.copy(template, tmp_path / "catalog.db")
    opened = await open_catalog(tmp_path / "catalog.db", NOW)
    yield opened
    await opened.close()


def node(node_id: NodeId = NODE, name: str = "n") -> Node:
    return Node(node_id, name, 10, 20, b"k" * 32, b"certificate")


def report(volume_id: VolumeId = VOLUME, name: str = "v") -> VolumeReport:
    return VolumeReport(volume_id, name, "path", b"/srv", "protected", "by hand")


def backup_job(number: int, volume_id: VolumeId = VOLUME) -> Job:
    job_id = JobId(f"job{number}")
    task = Task(TaskId(f"task{number}"), job_id, BackupOrder(volume_id), NODE)
    return Job(job_id, JobKind.BACKUP, Origin.MANUAL, number, ("v",), (task,))


async def join(catalog: Catalog, joining: Node) -> None:
    secret = joining.node_id
    await catalog.fleet.add_token(TokenRecord(joining.node_id, secret, 0, 100))
    assert await catalog.fleet.enrol(joining, secret, 1)


async def open_session(
    catalog: Catalog,
    number: int,
    *,
    volume_id: VolumeId = VOLUME,
    node_id: NodeId = NODE,
    repository_id: RepositoryId = REPOSITORY,
) -> Session:
    """A session of a job of its own, on a node and volume that are made as needed."""
    if await catalog.fleet.node(node_id) is None:
        await join(catalog, node(node_id, node_id.hex()))
        await catalog.fleet.report_volumes(node_id, [report(volume_id)], 5)
    job = backup_job(number, volume_id)
    await catalog.jobs.add_job(job)
    session = Session(
        session_id=SessionId(bytes([number]) * 16),
        task_id=job.tasks[0].task_id,
        volume_id=volume_id,
        node_id=node_id,
        repository_id=repository_id,
        fencing_token=0,
        sealed_data_key=b"sealed",
        opened_at=number,
    )
    return await catalog.ledger.open_session(session)


def pack(session: Session, name: str = "packs/a", nonce: PackNonce = NONCE) -> Pack:
    origin = PackOrigin(
        nonce, session.session_id, session.node_id, session.volume_id, session.sealed_data_key
    )
    return Pack(
        name=name,
        kind="data",
        size_bytes=100,
        blake3=b"h" * 32,
        session_id=session.session_id,
        node_id=session.node_id,
        volume_id=session.volume_id,
        repository_id=session.repository_id,
        stored_at=1,
        frame_table=FrameTable({nonce: {0: (32, 10), 1: (42, 10)}}).encode(),
        origins=(origin,),
    )


def plan(session: Session, *references: FrameReference, head: int = 0, now: int = 50) -> CommitPlan:
    return CommitPlan(
        session_id=session.session_id,
        fencing_token=session.fencing_token,
        snapshot_id=SnapshotHex(session.session_id.hex()),
        head_sequence=head,
        phase=Phase.COMPLETED,
        signed_root=b"signed",
        refs_object=b"refs",
        references=references,
        statistics=BackupStatistics(errors=(PathError(b"\xff", "no"),), files_new=3),
        total_files=3,
        total_bytes=30,
        now=now,
    )


def frame(number: int, live_bytes: int = 7, nonce: PackNonce = NONCE) -> FrameReference:
    return FrameReference(nonce, number, live_bytes)


async def commit(
    catalog: Catalog, session: Session, *references: FrameReference, head: int, base: bool = False
) -> Snapshot:
    begun = await catalog.ledger.begin_commit(
        replace(plan(session, *references, head=head), base=base)
    )
    await catalog.ledger.finish_commit(begun.snapshot_id, b"root", references, base=base)
    finished = await catalog.ledger.snapshot(begun.snapshot_id)
    assert finished is not None
    return finished


# ---- nodes and volumes --------------------------------------------------------------------------


async def test_a_token_makes_one_node_and_no_second(catalog: Catalog) -> None:
    await catalog.fleet.add_token(TokenRecord(bytes(16), b"hash", 0, 100))
    assert await catalog.fleet.enrol(node(), b"hash", 50)
    assert not await catalog.fleet.enrol(node(OTHER_NODE), b"hash", 60)
    assert await catalog.fleet.nodes() == [node()]


async def test_a_node_whose_answer_got_lost_is_found_by_token_and_key(catalog: Catalog) -> None:
    await catalog.fleet.add_token(TokenRecord(bytes(16), b"hash", 0, 100))
    key = node().signing_public_key
    before = await catalog.fleet.enrolled_before(key, b"hash", 5)
    assert await catalog.fleet.enrol(node(), b"hash", node().enrolled_at)

    found = await catalog.fleet.enrolled_before(key, b"hash", 99)

    assert (before, found) == (None, node())
    assert await catalog.fleet.enrolled_before(b"x" * 32, b"hash", 99) is None
    assert await catalog.fleet.enrolled_before(key, b"other", 99) is None
    assert await catalog.fleet.enrolled_before(key, b"hash", 100) is None
    await catalog.fleet.node_seen(NODE, "1", 60)
    assert await catalog.fleet.enrolled_before(key, b"hash", 99) is None


async def test_a_token_that_has_expired_or_never_was_makes_none(catalog: Catalog) -> None:
    await catalog.fleet.add_token(TokenRecord(bytes(16), b"hash", 0, 100))
    assert not await catalog.fleet.enrol(node(), b"hash", 100)
    assert not await catalog.fleet.enrol(node(), b"other", 1)
    assert await catalog.fleet.node(NODE) is None


async def test_a_node_is_remembered_as_seen_and_as_revoked(catalog: Catalog) -> None:
    await join(catalog, node())
    await catalog.fleet.node_seen(NODE, "1.2", 70)
    await catalog.fleet.revoke_node(NODE)
    expected = replace(node(), agent_version="1.2", last_seen_at=70, revoked=True)
    assert await catalog.fleet.node(NODE) == expected


async def test_a_node_is_remembered_with_its_newest_certificate(catalog: Catalog) -> None:
    await join(catalog, node())
    await join(catalog, node(OTHER_NODE, "m"))
    await catalog.fleet.certificate_renewed(NODE, 12345)
    assert await catalog.fleet.node(NODE) == replace(node(), certificate_expires_at=12345)
    assert await catalog.fleet.node(OTHER_NODE) == node(OTHER_NODE, "m")


async def test_a_report_is_the_whole_truth_about_a_nodes_volumes(catalog: Catalog) -> None:
    await join(catalog, node())
    await catalog.fleet.report_volumes(NODE, [report(), report(OTHER_VOLUME, "w")], 5)
    await catalog.jobs.add_job(backup_job(1, OTHER_VOLUME))
    used = Workload(("db", "web"), "shop", {"tier": "gold"})
    await catalog.fleet.report_volumes(NODE, [replace(report(), path=b"/new", workload=used)], 9)
    volume, gone = await catalog.fleet.volumes()
    assert (volume.path, volume.present, volume.first_seen_at) == (b"/new", True, 5)
    assert volume.workload == used
    assert (gone.name, gone.present) == ("w", False)


async def test_a_volume_that_went_and_never_was_read_leaves_nothing(catalog: Catalog) -> None:
    await join(catalog, node())
    await join(catalog, node(OTHER_NODE, "m"))
    await catalog.fleet.report_volumes(OTHER_NODE, [report(OTHER_VOLUME, "w")], 5)
    await catalog.fleet.report_volumes(NODE, [report()], 5)
    await catalog.fleet.report_volumes(NODE, [], 9)
    assert [volume.name for volume in await catalog.fleet.volumes()] == ["w"]


async def test_the_volumes_of_a_revoked_node_are_gone_whatever_it_goes_on_to_say(
    catalog: Catalog,
) -> None:
    await join(catalog, node())
    await catalog.fleet.report_volumes(NODE, [report(), report(OTHER_VOLUME, "w")], 5)
    await catalog.jobs.add_job(backup_job(1, OTHER_VOLUME))

    await catalog.fleet.revoke_node(NODE)
    await catalog.fleet.report_volumes(NODE, [report(), report(OTHER_VOLUME, "w")], 9)

    volumes = await catalog.fleet.volumes()
    assert [(volume.name, volume.present) for volume in volumes] == [("w", False)]


async def test_a_node_cannot_take_a_volume_of_another(catalog: Catalog) -> None:
    await join(catalog, node())
    await join(catalog, node(OTHER_NODE, "m"))
    await catalog.fleet.report_volumes(NODE, [report()], 5)
    claims = await catalog.fleet.report_volumes(
        OTHER_NODE, [replace(report(), path=b"/etc"), report(OTHER_VOLUME, "w")], 6
    )
    volume, others = await catalog.fleet.volumes()
    assert claims == {VOLUME}
    assert (volume.node_id, volume.path) == (NODE, b"/srv")
    assert others.node_id == OTHER_NODE


async def test_a_moved_volume_waits_until_its_new_node_names_it(catalog: Catalog) -> None:
    await join(catalog, node())
    await join(catalog, node(OTHER_NODE, "m"))
    await catalog.fleet.report_volumes(NODE, [report()], 5)
    assert await catalog.fleet.move_volume(VOLUME, OTHER_NODE, "w", replacing=False) == [VOLUME]
    await catalog.fleet.report_volumes(OTHER_NODE, [], 6)
    (waiting,) = await catalog.fleet.volumes()
    await catalog.fleet.report_volumes(OTHER_NODE, [report(OTHER_VOLUME, "w")], 7)
    (there,) = await catalog.fleet.volumes()
    assert (waiting.node_id, waiting.present, waiting.awaits) == (OTHER_NODE, False, "w")
    assert (there.volume_id, there.node_id, there.name) == (VOLUME, OTHER_NODE, "w")
    assert (there.local_id, there.awaits, there.present) == (OTHER_VOLUME, None, True)
    assert await catalog.fleet.report_volumes(NODE, [report()], 8) == {VOLUME}


async def test_a_move_that_would_end_another_history_changes_nothing(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    theirs = await open_session(catalog, 2, volume_id=OTHER_VOLUME, node_id=OTHER_NODE)
    await commit(catalog, theirs, head=0)
    before = await catalog.fleet.volumes()
    with pytest.raises(UsageError):
        await catalog.fleet.move_volume(VOLUME, OTHER_NODE, "v", replacing=False)
    assert await catalog.fleet.volumes() == before
    kept = await catalog.ledger.session(session.session_id)
    assert kept is not None
    assert kept.state is SessionState.OPEN


async def test_a_move_fences_what_moves_and_what_it_replaces(catalog: Catalog) -> None:
    theirs = await open_session(catalog, 1, volume_id=OTHER_VOLUME, node_id=OTHER_NODE)
    await commit(catalog, theirs, head=0)
    sessions = [
        await open_session(catalog, 2),
        await open_session(catalog, 3, volume_id=OTHER_VOLUME, node_id=OTHER_NODE),
    ]
    changed = await catalog.fleet.move_volume(VOLUME, OTHER_NODE, "v", replacing=True)
    assert changed == [VOLUME, OTHER_VOLUME]
    for session in sessions:
        kept = await catalog.ledger.session(session.session_id)
        assert kept is not None
        assert kept.state is SessionState.FENCED


async def test_only_the_holder_opens_a_session(catalog: Catalog) -> None:
    await commit(catalog, await open_session(catalog, 1), head=0)
    await join(catalog, node(OTHER_NODE, "m"))
    await catalog.fleet.move_volume(VOLUME, OTHER_NODE, "v", replacing=False)
    with pytest.raises(FencedError):
        await open_session(catalog, 2)
    assert (await open_session(catalog, 3, node_id=OTHER_NODE)).node_id == OTHER_NODE


async def test_the_schedule_remembers_what_it_asked_for(catalog: Catalog) -> None:
    await join(catalog, node())
    await catalog.fleet.report_volumes(NODE, [report()], 5)
    await catalog.fleet.mark_scheduled([VOLUME], 77)
    assert (await catalog.fleet.volumes())[0].scheduled_at == 77


async def test_facts_are_kept_and_replaced(catalog: Catalog) -> None:
    assert await catalog.fleet.get_meta("key") is None
    for value in (b"1", b"2"):
        await catalog.fleet.set_meta("key", value)
    assert await catalog.fleet.get_meta("key") == b"2"


# ---- jobs ---------------------------------------------------------------------------------------


async def test_a_job_reads_back_with_everything_about_its_tasks(catalog: Catalog) -> None:
    statistics = BackupStatistics(
        change_detection=ChangeDetection.EVENTS, errors=(PathError(b"\xff", "m", "h"),)
    )
    job = backup_job(1)
    await catalog.jobs.add_job(job)
    ended = replace(
        job.tasks[0],
        phase=Phase.FAILED,
        started_at=2,
        finished_at=3,
        failure=Failure("m", "h", 12),
        snapshot_id=SnapshotHex("s"),
        result=statistics,
    )
    after = replace(job, phase=Phase.FAILED, started_at=2, finished_at=3, tasks=(ended,))
    await catalog.jobs.save_job(after, [ended])
    assert await catalog.jobs.job(job.job_id) == after


async def test_orders_and_results_of_each_kind_read_back(catalog: Catalog) -> None:
    restore = RestoreOrder(SnapshotHex("s"), b"/t\xff", (b"a",), overwrite=True)
    verify = VerifyOrder(VerifyDepth.DATA, (SnapshotHex("s"),))
    tasks = (
        Task(TaskId("r"), JobId("j"), restore, NODE, result=RestoreResult(files_restored=1)),
        Task(TaskId("v"), JobId("j"), verify, None, result=VerifyResult(packs_checked=2)),
    )
    job = Job(JobId("j"), JobKind.RESTORE, Origin.MANUAL, 1, ("s",), tasks)
    await catalog.jobs.add_job(job)
    assert await catalog.jobs.job(JobId("j")) == job


async def test_jobs_are_listed_newest_first_by_kind_and_up_to_a_limit(catalog: Catalog) -> None:
    for number in (1, 2, 3):
        await catalog.jobs.add_job(backup_job(number))
    found = await catalog.jobs.jobs(kind=JobKind.BACKUP, limit=2)
    assert [job.job_id for job in found] == ["job3", "job2"]
    assert await catalog.jobs.jobs(kind=JobKind.VERIFY, limit=2) == []


async def test_unfinished_jobs_are_those_that_have_not_ended(catalog: Catalog) -> None:
    first, second = backup_job(1), backup_job(2)
    await catalog.jobs.add_job(first)
    await catalog.jobs.add_job(second)
    await catalog.jobs.save_job(replace(first, phase=Phase.CANCELED), [])
    assert [job.job_id for job in await catalog.jobs.unfinished_jobs()] == ["job2"]


async def test_the_newest_ended_backup_of_a_volume_is_known(catalog: Catalog) -> None:
    for number, phase in ((1, Phase.FAILED), (2, Phase.COMPLETED), (3, Phase.IN_PROGRESS)):
        job = backup_job(number)
        await catalog.jobs.add_job(job)
        await catalog.jobs.save_job(job, [replace(job.tasks[0], phase=phase)])
    last = await catalog.jobs.last_backup_tasks()
    assert {volume: task.task_id for volume, task in last.items()} == {VOLUME: "task2"}


async def test_only_the_last_thousand_lines_of_a_log_are_kept(catalog: Catalog) -> None:
    await catalog.jobs.add_job(backup_job(1))
    for start in (0, 600):
        lines = [LogLine(number, "info", "m") for number in range(start, start + 600)]
        await catalog.jobs.append_log(JobId("job1"), lines)
    await catalog.jobs.append_log(JobId("job1"), [])
    kept = await catalog.jobs.log(JobId("job1"))
    assert [line.at for line in kept] == list(range(200, 1200))


# ---- sessions and packs -------------------------------------------------------------------------


async def test_a_new_session_fences_the_older_one_of_its_volume(catalog: Catalog) -> None:
    older = await open_session(catalog, 1)
    newer = await open_session(catalog, 2)
    assert newer.fencing_token > older.fencing_token
    found = await catalog.ledger.session(older.session_id)
    assert found is not None
    assert found.state is SessionState.FENCED


async def test_a_fenced_session_records_no_pack(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.fence_task(session.task_id)
    with pytest.raises(FencedError):
        await catalog.ledger.record_pack(pack(session), session.fencing_token)
    assert await catalog.ledger.pack("packs/a") is None


async def test_a_wrong_fencing_token_records_no_pack(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    with pytest.raises(FencedError):
        await catalog.ledger.record_pack(pack(session), session.fencing_token + 1)


async def test_a_pack_recorded_twice_is_recorded_once(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    for _ in range(2):
        await catalog.ledger.record_pack(pack(session), session.fencing_token)
    assert await catalog.ledger.pack("packs/a") == pack(session)
    assert (await catalog.ledger.totals()).packs == 1


async def test_fencing_all_ends_every_open_session(catalog: Catalog) -> None:
    await open_session(catalog, 1)
    await catalog.ledger.fence_all()
    assert (await catalog.ledger.totals()).sessions_open == 0


# ---- commits ------------------------------------------------------------------------------------


async def test_a_commit_is_no_snapshot_before_its_second_step(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    begun = await catalog.ledger.begin_commit(plan(session, frame(0)))
    assert not begun.settled
    assert await catalog.ledger.snapshots() == []
    assert await catalog.ledger.snapshot(begun.snapshot_id) is None
    assert [(each.snapshot_id, refs) for each, refs in await catalog.ledger.unsettled()] == [
        (begun.snapshot_id, b"refs")
    ]


async def test_the_second_step_makes_the_snapshot_and_twice_is_once(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    done = await commit(catalog, session, frame(0), head=0)
    await catalog.ledger.finish_commit(done.snapshot_id, b"another", [], base=True)
    assert await catalog.ledger.snapshots(volume_id=VOLUME) == [done]
    assert (done.sequence, done.root_object, done.statistics.files_new) == (1, b"root", 3)
    assert await catalog.ledger.snapshot_of_task(session.task_id) == done
    assert await catalog.ledger.unsettled() == []


async def test_a_committed_session_writes_nothing_more(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await commit(catalog, session, head=0)
    with pytest.raises(FencedError):
        await catalog.ledger.begin_commit(plan(session, head=1))
    with pytest.raises(FencedError):
        await catalog.ledger.record_pack(pack(session), session.fencing_token)


async def test_an_abandoned_commit_leaves_nothing_but_its_sequence_used(catalog: Catalog) -> None:
    begun = await catalog.ledger.begin_commit(plan(await open_session(catalog, 1)))
    await catalog.ledger.abandon_commit(begun.snapshot_id)
    assert await catalog.ledger.unsettled() == []
    assert (await commit(catalog, await open_session(catalog, 2), head=0)).sequence == 2


async def test_a_commit_on_an_older_head_is_fenced(catalog: Catalog) -> None:
    await commit(catalog, await open_session(catalog, 1), head=0)
    with pytest.raises(FencedError):
        await catalog.ledger.begin_commit(plan(await open_session(catalog, 2), head=0))


async def test_nothing_commits_while_an_earlier_commit_is_not_settled(catalog: Catalog) -> None:
    await catalog.ledger.begin_commit(plan(await open_session(catalog, 1)))
    with pytest.raises(FencedError):
        await catalog.ledger.begin_commit(plan(await open_session(catalog, 2)))


async def test_a_reference_to_a_pack_that_is_not_stored_is_refused(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    with pytest.raises(RejectedError):
        await catalog.ledger.begin_commit(plan(session, frame(0)))


async def test_a_reference_to_a_frame_that_the_pack_does_not_hold_is_refused(
    catalog: Catalog,
) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    with pytest.raises(RejectedError):
        await catalog.ledger.begin_commit(plan(session, frame(2)))


async def test_a_dropped_frame_need_not_be_stored_any_more(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    begun = await catalog.ledger.begin_commit(plan(session, frame(9, live_bytes=0)))
    assert begun.sequence == 1


async def test_a_node_cannot_name_the_frames_of_another(catalog: Catalog) -> None:
    theirs = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(theirs), theirs.fencing_token)
    mine = await open_session(catalog, 2, volume_id=OTHER_VOLUME, node_id=OTHER_NODE)
    with pytest.raises(RejectedError):
        await catalog.ledger.begin_commit(plan(mine, frame(0)))


async def test_a_moved_volume_goes_on_with_the_frames_that_it_held_and_no_others(
    catalog: Catalog,
) -> None:
    first = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(first), first.fencing_token)
    await commit(catalog, first, frame(0), head=0)
    theirs = await open_session(catalog, 2, volume_id=OTHER_VOLUME, node_id=OTHER_NODE)
    with pytest.raises(RejectedError):
        await catalog.ledger.begin_commit(plan(theirs, frame(0)))
    await catalog.fleet.move_volume(VOLUME, OTHER_NODE, "w", replacing=False)
    session = await open_session(catalog, 3, node_id=OTHER_NODE)
    with pytest.raises(RejectedError):
        await catalog.ledger.begin_commit(plan(session, frame(1), head=1))
    second = await commit(catalog, session, frame(0), head=1, base=True)
    again = await open_session(catalog, 4, volume_id=OTHER_VOLUME, node_id=OTHER_NODE)
    with pytest.raises(RejectedError):
        await catalog.ledger.begin_commit(plan(again, frame(0)))
    assert (second.sequence, second.node_id) == (2, OTHER_NODE)


async def test_a_node_may_name_its_own_frames_in_another_volume(catalog: Catalog) -> None:
    first = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(first), first.fencing_token)
    await catalog.fleet.report_volumes(NODE, [report(), report(OTHER_VOLUME, "w")], 6)
    second = await open_session(catalog, 2, volume_id=OTHER_VOLUME)
    assert (await commit(catalog, second, frame(0), head=0)).volume_id == OTHER_VOLUME


async def test_a_clock_that_was_set_back_does_not_reorder_history(catalog: Catalog) -> None:
    first = await commit(catalog, await open_session(catalog, 1), head=0)
    session = await open_session(catalog, 2)
    second = await catalog.ledger.begin_commit(plan(session, head=1, now=1))
    assert second.committed_at > first.committed_at


# ---- references ---------------------------------------------------------------------------------


async def test_each_snapshot_keeps_the_frames_of_its_own_time(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    first = await commit(catalog, session, frame(0), frame(1), head=0)
    second = await commit(catalog, await open_session(catalog, 2), frame(0, live_bytes=0), head=1)
    third = await commit(catalog, await open_session(catalog, 3), frame(0), head=2)
    assert await catalog.ledger.references(first) == {NONCE: [0, 1]}
    assert await catalog.ledger.references(second) == {NONCE: [1]}
    assert await catalog.ledger.references(third) == {NONCE: [0, 1]}


async def test_a_base_replaces_whatever_was_needed_before(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    first = await commit(catalog, session, frame(0), head=0)
    second = await commit(catalog, await open_session(catalog, 2), frame(1), head=1, base=True)
    assert await catalog.ledger.references(first) == {NONCE: [0]}
    assert await catalog.ledger.references(second) == {NONCE: [1]}


async def test_who_needs_a_pack_is_found_with_where_it_lies(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    first = await commit(catalog, session, frame(0), head=0)
    await commit(catalog, await open_session(catalog, 2), frame(0, live_bytes=0), head=1)
    assert await catalog.ledger.snapshots_needing([NONCE]) == [first]
    places = await catalog.ledger.places([NONCE, PackNonce(bytes(16))])
    assert {nonce: place.name for nonce, place in places.items()} == {NONCE: "packs/a"}


async def test_packs_since_the_head_are_those_of_attempts_that_came_to_nothing(
    catalog: Catalog,
) -> None:
    nonces = [PackNonce(bytes([number]) * 16) for number in range(6)]

    async def record(session: Session, number: int) -> None:
        made = replace(pack(session, f"packs/{number}", nonces[number]), stored_at=number)
        await catalog.ledger.record_pack(made, session.fencing_token)

    async def told(session: Session, limit: int = 10) -> list[int]:
        found = await catalog.ledger.packs_since_head(session, limit)
        return [nonces.index(nonce) for nonce in found]

    before = await open_session(catalog, 1)
    await record(before, 0)
    committed = await open_session(catalog, 2)
    await record(committed, 1)
    await commit(catalog, committed, frame(0, nonce=nonces[1]), head=0)
    for number in (3, 4):
        await record(await open_session(catalog, number), number)
    others = await open_session(catalog, 5, volume_id=OTHER_VOLUME, node_id=OTHER_NODE)
    await record(others, 5)
    own = await open_session(catalog, 6)
    await record(own, 2)

    assert (await told(before), await told(committed)) == ([], [])
    assert (await told(others), await told(own), await told(own, 1)) == ([], [4, 3], [4])
    await commit(catalog, own, frame(0, nonce=nonces[3]), head=1)
    assert await told(await open_session(catalog, 7)) == []


async def test_packs_that_another_node_has_stored_are_not_told_to_the_next_holder(
    catalog: Catalog,
) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    await join(catalog, node(OTHER_NODE, "m"))
    await catalog.fleet.move_volume(VOLUME, OTHER_NODE, "v", replacing=False)

    assert (
        await catalog.ledger.packs_since_head(
            await open_session(catalog, 2, node_id=OTHER_NODE), 10
        )
        == []
    )


async def test_packs_in_another_repository_are_not_told(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    there = await open_session(catalog, 2, repository_id=OTHER_REPOSITORY)
    back = await open_session(catalog, 3)

    assert await catalog.ledger.packs_since_head(there, 10) == []
    assert await catalog.ledger.packs_since_head(back, 10) == [NONCE]


async def test_heads_tell_the_newest_the_last_whole_and_the_last_proof(catalog: Catalog) -> None:
    first = await commit(catalog, await open_session(catalog, 1), head=0)
    session = await open_session(catalog, 2)
    partly = replace(plan(session, head=1), phase=Phase.PARTIALLY_FAILED)
    second = await catalog.ledger.begin_commit(partly)
    await catalog.ledger.finish_commit(second.snapshot_id, b"root", [], base=False)
    await catalog.ledger.mark_proof([first.snapshot_id], 99)
    head, completed_at, proof_at = (await catalog.ledger.heads())[VOLUME]
    assert (head.sequence, completed_at, proof_at) == (2, first.committed_at, 99)
    assert await catalog.ledger.head(VOLUME) == head


async def test_a_snapshot_is_found_by_the_beginning_of_its_id(catalog: Catalog) -> None:
    first = await commit(catalog, await open_session(catalog, 1), head=0)
    assert await catalog.ledger.find_snapshots(first.snapshot_id[:4]) == [first.snapshot_id]
    assert await catalog.ledger.find_snapshots("%") == []


# ---- the file -----------------------------------------------------------------------------------


async def test_what_was_written_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    first = await open_catalog(tmp_path / "c.db", NOW)
    await join(first, node())
    await first.close()
    second = await open_catalog(tmp_path / "c.db", NOW)
    assert await second.fleet.nodes() == [node()]
    await second.close()


async def test_a_file_that_is_no_database_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "c.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(CatalogError, match=r"c\.db"):
        await open_catalog(tmp_path / "c.db", NOW)


async def test_a_catalog_of_the_first_version_is_upgraded_with_all_that_is_in_it(
    catalog: Catalog, tmp_path: Path
) -> None:
    await join(catalog, node())
    await catalog.fleet.report_volumes(NODE, [report()], 5)
    await catalog.close()
    to_first_revision(tmp_path / "catalog.db")

    upgraded = await open_catalog(tmp_path / "catalog.db", NOW)
    (volume,) = await upgraded.fleet.volumes()
    await upgraded.close()

    assert (volume.name, volume.workload) == ("v", Workload())
    assert (volume.local_id, volume.awaits) == (VOLUME, None)


async def test_limits_of_the_network_are_kept_rule_by_rule(catalog: Catalog) -> None:
    base = Rule(20_000_000)
    night = Rule(None, Window(22 * 60, 6 * 60, "Europe/Berlin", frozenset({0, 4})))

    assert await catalog.bandwidth.limits() == []
    await catalog.bandwidth.add_rule(Scope.FLEET, b"", base)
    both = await catalog.bandwidth.add_rule(Scope.FLEET, b"", night)
    await catalog.bandwidth.add_rule(Scope.NODE, NODE, Rule(1_000_000))

    assert both == Limit(Scope.FLEET, b"", (base, night))
    assert await catalog.bandwidth.limits() == [
        both,
        Limit(Scope.NODE, NODE, (Rule(1_000_000),)),
    ]


async def test_a_limit_without_rules_is_none(catalog: Catalog) -> None:
    await catalog.bandwidth.add_rule(Scope.FLEET, b"", Rule(1_000_000))

    cleared = await catalog.bandwidth.add_rule(Scope.FLEET, b"", Rule(None))

    assert cleared.rules == ()
    assert await catalog.bandwidth.limits() == []


# ---- locks --------------------------------------------------------------------------------------


async def lapsing(
    catalog: Catalog, *references: FrameReference, before: int, base: bool = False
) -> list[Held]:
    return await catalog.locks.lapsing_packs(VOLUME, references, base=base, before=before)


async def test_packs_lapse_that_the_volume_needs_or_that_are_added(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    await commit(catalog, session, frame(0), frame(1), head=0)
    again = await open_session(catalog, 2)
    new = replace(pack(again, "packs/b", OTHER_NONCE), locked_until=70)
    await catalog.ledger.record_pack(new, again.fencing_token)
    added = FrameReference(OTHER_NONCE, 0, 10)
    old, both = [Held("packs/a", 0)], [Held("packs/a", 0), Held("packs/b", 70)]

    assert await lapsing(catalog, before=100) == old
    assert await lapsing(catalog, added, before=100) == both
    assert await lapsing(catalog, added, before=70) == old
    assert await lapsing(catalog, added, before=0) == []
    assert await lapsing(catalog, added, base=True, before=100) == both[1:]
    # As long as one frame of it is needed.
    dropped = [frame(0, live_bytes=0), frame(1, live_bytes=0)]
    assert await lapsing(catalog, dropped[0], before=100) == old
    assert await lapsing(catalog, *dropped, before=100) == []
    assert await lapsing(catalog, *dropped, added, before=100) == both[1:]
    # Used by another number of bytes than before is used.
    assert await lapsing(catalog, dropped[0], frame(1, live_bytes=3), before=100) == old


async def test_packs_of_other_volumes_and_former_frames_do_not_lapse(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    await commit(catalog, session, frame(0), head=0)
    await commit(catalog, await open_session(catalog, 2), frame(0, live_bytes=0), head=1)

    assert await lapsing(catalog, before=100) == []
    assert await catalog.locks.lapsing_packs(OTHER_VOLUME, [], base=False, before=100) == []


async def test_a_volume_has_a_head_in_each_repository(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    first = await commit(catalog, session, frame(0), head=0)
    there = await open_session(catalog, 2, repository_id=OTHER_REPOSITORY)
    await catalog.ledger.record_pack(pack(there, "packs/b", OTHER_NONCE), there.fencing_token)
    second = await commit(catalog, there, frame(0, nonce=OTHER_NONCE), head=0, base=True)

    heads = [
        await catalog.ledger.head(VOLUME, repository_id=each)
        for each in (REPOSITORY, OTHER_REPOSITORY, RepositoryId(bytes(16)))
    ]
    assert heads == [first, second, None]
    assert await catalog.ledger.head(VOLUME) == second
    assert (first.sequence, second.sequence) == (1, 2)
    lying = [each.repository_id for each in await catalog.ledger.snapshots()]
    assert lying == [REPOSITORY, OTHER_REPOSITORY]
    # What the first one needs is told as before, and nothing of the second.
    assert await catalog.ledger.references(first) == {NONCE: [0]}
    assert await catalog.ledger.references(second) == {OTHER_NONCE: [0]}
    totals = [await catalog.ledger.totals(each) for each in (REPOSITORY, OTHER_REPOSITORY, None)]
    assert [(each.packs, each.snapshots) for each in totals] == [(1, 1), (1, 1), (2, 2)]
    assert await catalog.ledger.writers(OTHER_REPOSITORY) == [NODE]
    assert await catalog.ledger.writers(RepositoryId(bytes(16))) == []


async def test_a_commit_names_packs_of_its_own_repository_alone(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    await commit(catalog, session, frame(0), head=0)
    there = await open_session(catalog, 2, repository_id=OTHER_REPOSITORY)

    with pytest.raises(RejectedError, match="another repository"):
        await commit(catalog, there, frame(0), head=0, base=True)


async def test_a_commit_beside_newer_ones_elsewhere_must_be_a_base(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)
    await commit(catalog, session, frame(0), head=0)
    there = await open_session(catalog, 2, repository_id=OTHER_REPOSITORY)
    await commit(catalog, there, head=0, base=True)
    back = await open_session(catalog, 3)

    with pytest.raises(RejectedError, match="name all that it needs"):
        await commit(catalog, back, frame(1), head=1)
    with pytest.raises(FencedError, match="newer snapshot"):
        await commit(catalog, back, frame(1), head=0, base=True)
    third = await commit(catalog, back, frame(1), head=1, base=True)
    assert await catalog.ledger.references(third) == {NONCE: [1]}


async def test_a_commit_waits_for_one_that_is_not_settled_elsewhere(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.begin_commit(plan(session))
    there = await open_session(catalog, 2, repository_id=OTHER_REPOSITORY)

    with pytest.raises(FencedError, match="not settled yet"):
        await commit(catalog, there, head=0, base=True)


async def test_a_volume_is_assigned_to_a_repository(catalog: Catalog) -> None:
    await open_session(catalog, 1)
    [before] = await catalog.fleet.volumes()
    await catalog.fleet.assign_volumes([VOLUME, OTHER_VOLUME], OTHER_REPOSITORY)
    # What its agent tells changes nothing of that.
    await catalog.fleet.report_volumes(NODE, [report()], 6)
    [after] = await catalog.fleet.volumes()

    assert before.repository_id is None
    assert after == replace(before, repository_id=OTHER_REPOSITORY)


async def test_what_was_kept_before_there_were_several_lies_in_the_first(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    made = await open_catalog(path, NOW)
    session = await open_session(made, 1)
    await made.ledger.record_pack(pack(session), session.fencing_token)
    await commit(made, session, frame(0), head=0)
    await made.close()
    to_first_revision(path)

    upgraded = await open_catalog(path, NOW)
    await upgraded.ledger.attribute(OTHER_REPOSITORY)
    await upgraded.ledger.attribute(REPOSITORY)
    stored = await upgraded.ledger.pack("packs/a")
    [snapshot] = await upgraded.ledger.snapshots()
    writers = await upgraded.ledger.writers(OTHER_REPOSITORY)
    await upgraded.close()

    assert stored is not None
    assert stored.repository_id == snapshot.repository_id == OTHER_REPOSITORY
    assert writers == [NODE]


async def test_what_is_known_of_a_lock_never_becomes_less(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    await catalog.ledger.record_pack(pack(session), session.fencing_token)

    for until in (50, 80, 60):
        await catalog.locks.packs_locked(["packs/a", "packs/unknown"], until)
        await catalog.locks.objects_locked(REPOSITORY, ["config", f"keys/{until}"], until)
    await catalog.locks.objects_locked(REPOSITORY, [], 1)

    stored = await catalog.ledger.pack("packs/a")
    assert stored is not None
    assert stored.locked_until == 80
    assert await catalog.locks.objects(REPOSITORY, ["keys/60", "none", "config"]) == [
        Held("keys/60", 60),
        Held("none"),
        Held("config", 80),
    ]
    assert await catalog.locks.objects(OTHER_REPOSITORY, ["config"]) == [Held("config")]


async def test_a_snapshot_keeps_until_when_it_is_locked(catalog: Catalog) -> None:
    session = await open_session(catalog, 1)
    locked = replace(plan(session), locked_until=90)
    begun = await catalog.ledger.begin_commit(locked)
    await catalog.ledger.finish_commit(begun.snapshot_id, b"root", [], base=False)
    await commit(catalog, await open_session(catalog, 2), head=1)

    assert begun.locked_until == 90
    assert [each.locked_until for each in await catalog.ledger.snapshots()] == [90, None]
