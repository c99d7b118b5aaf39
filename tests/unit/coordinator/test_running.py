import pytest

from coordinator.life import Effect, Event, State
from coordinator.model import (
    BackupOrder,
    BackupStatistics,
    Failure,
    Job,
    JobId,
    JobKind,
    Order,
    Origin,
    Phase,
    RestoreOrder,
    RestoreResult,
    Result,
    SnapshotHex,
    Task,
    TaskId,
    VerifyDepth,
    VerifyOrder,
    VerifyResult,
)
from coordinator.running import Limits, LiveJob, LiveTask, interrupted, may_start
from repository.ids import NodeId, VolumeId
from repository.store.counting import Requests
from repository.store.interface import Operation

BACKUP = BackupOrder(VolumeId(b"v" * 16))
OTHER_BACKUP = BackupOrder(VolumeId(b"w" * 16))
RESTORE = RestoreOrder(SnapshotHex("5" * 32))
IN_PLACE = RestoreOrder(SnapshotHex("5" * 32), in_place=True, volume_id=BACKUP.volume_id)
VERIFY = VerifyOrder(VerifyDepth.DATA, ())
LOST = Failure("lost")


def task(order: Order = BACKUP, task_id: str = "t") -> Task:
    return Task(TaskId(task_id), JobId("j"), order, NodeId(b"n" * 16))


def stepped(live: LiveTask, event: Event, now: int, failure: Failure | None = None) -> object:
    return live.step(event, now, failure=failure, result=None, snapshot=None)


@pytest.mark.parametrize(
    ("order", "at_work", "backups", "allowed"),
    [
        (BACKUP, [], 1, True),
        (BACKUP, [RESTORE, RESTORE], 1, True),
        (BACKUP, [OTHER_BACKUP], 1, False),
        (BACKUP, [OTHER_BACKUP], 2, True),
        (BACKUP, [BACKUP], 2, False),
        (RESTORE, [BACKUP, RESTORE], 1, True),
        (RESTORE, [RESTORE, RESTORE], 1, False),
        (RESTORE, [IN_PLACE], 1, True),
        (IN_PLACE, [OTHER_BACKUP, RESTORE], 1, True),
        (IN_PLACE, [BACKUP], 1, False),
        (IN_PLACE, [IN_PLACE], 1, False),
        (IN_PLACE, [RESTORE, RESTORE], 1, False),
        (BACKUP, [IN_PLACE], 1, False),
        (OTHER_BACKUP, [IN_PLACE], 1, True),
        (VERIFY, [], 1, True),
        (VERIFY, [VERIFY], 1, False),
    ],
)
def test_what_may_begin_beside_what(
    order: Order, at_work: list[Order], backups: int, allowed: bool
) -> None:
    assert may_start(order, at_work, Limits(backups_per_node=backups)) is allowed


def test_a_step_changes_the_task_and_names_what_follows() -> None:
    live = LiveTask(task())

    begun = stepped(live, Event.HANDED_OVER, 5)
    middle = live.task
    ended = stepped(live, Event.WENT_WRONG, 9, LOST)

    assert (begun, ended) == ((Effect.SEND_TASK,), (Effect.CONCLUDE,))
    assert (middle.phase, middle.started_at, middle.failure) == (Phase.IN_PROGRESS, 5, None)
    assert (live.state, live.task.phase) == (State.FAILED, Phase.FAILED)
    assert (live.task.started_at, live.task.finished_at, live.task.failure) == (5, 9, LOST)


def test_a_job_runs_from_its_first_task_to_its_last() -> None:
    first, second = LiveTask(task()), LiveTask(task(OTHER_BACKUP, "u"))
    job = Job(JobId("j"), JobKind.BACKUP, Origin.MANUAL, 1, (), (first.task, second.task))
    live = LiveJob(job, {each.task.task_id: each for each in (first, second)})
    seen = []

    for number, (each, event) in enumerate(
        [
            (first, Event.HANDED_OVER),
            (first, Event.DONE),
            (second, Event.HANDED_OVER),
            (second, Event.DONE_PARTLY),
        ],
        start=1,
    ):
        stepped(each, event, number)
        live.update(number)
        seen.append((live.job.phase, live.job.started_at, live.job.finished_at))

    running = (Phase.IN_PROGRESS, 1, None)
    assert seen == [running, running, running, (Phase.PARTIALLY_FAILED, 1, 4)]
    assert live.current().tasks == (first.task, second.task)


def test_an_interrupted_task_that_had_committed_nothing_is_lost() -> None:
    was = task()

    ended = interrupted(was, None, LOST, 7)

    assert (ended.phase, ended.finished_at, ended.failure) == (Phase.FAILED, 7, LOST)
    assert ended.result is None


TOLD = Requests(put=5, bytes_in=50)


@pytest.mark.parametrize(
    ("order", "result", "expected"),
    [
        (BACKUP, BackupStatistics(files_new=1, store_requests=TOLD), Requests(5, 2, bytes_in=50)),
        (BACKUP, BackupStatistics(files_new=1), Requests(get=2)),
        (BACKUP, None, Requests(get=2)),
        (RESTORE, RestoreResult(store_requests=TOLD), Requests(5, 2, bytes_in=50)),
        (RESTORE, None, Requests(get=2)),
        (VERIFY, VerifyResult(packs_checked=1), Requests(get=2)),
        (VERIFY, None, Requests(get=2)),
    ],
)
def test_a_task_that_ends_is_charged_with_what_was_asked_for_it_here_and_there(
    order: Order, result: Result | None, expected: Requests
) -> None:
    live = LiveTask(task(order))
    stepped(live, Event.HANDED_OVER, 5)
    live.tally.add(Operation.GET, 2)

    live.step(Event.WENT_WRONG, 9, failure=LOST, result=result, snapshot=None)

    assert live.task.result is not None
    assert live.task.result.store_requests == expected
    assert type(live.task.result) is type(result) or result is None


def test_a_task_that_never_began_has_no_result() -> None:
    live = LiveTask(task())

    stepped(live, Event.NOBODY_CAME, 9, LOST)

    assert live.task.phase is Phase.FAILED
    assert live.task.result is None
