import pytest

from coordinator.cli.failure import CommandError
from coordinator.cli.waiting import exit_code, raise_for
from proto.tidemark.v1 import admin_pb2, common_pb2

COMPLETED = common_pb2.PHASE_COMPLETED
PARTLY = common_pb2.PHASE_PARTIALLY_FAILED
FAILED = common_pb2.PHASE_FAILED
CANCELED = common_pb2.PHASE_CANCELED


def backup(
    phase: "common_pb2.Phase.ValueType", volumes: list["common_pb2.Phase.ValueType"]
) -> admin_pb2.Job:
    results = [common_pb2.BackupResult(phase=volume) for volume in volumes]
    return admin_pb2.Job(job_id="j", phase=phase, snapshots=results)


@pytest.mark.parametrize(
    ("phase", "volumes", "code"),
    [
        (COMPLETED, [COMPLETED, COMPLETED], 0),
        (PARTLY, [COMPLETED, PARTLY], 3),
        (PARTLY, [COMPLETED, FAILED], 1),
        (PARTLY, [PARTLY, FAILED], 1),
        (FAILED, [FAILED], 1),
        (CANCELED, [], 130),
    ],
)
def test_over_several_volumes_the_worst_decides(
    phase: "common_pb2.Phase.ValueType", volumes: list["common_pb2.Phase.ValueType"], code: int
) -> None:
    assert exit_code(backup(phase, volumes)) == code


def test_a_code_of_the_coordinator_goes_first() -> None:
    locked = admin_pb2.Job(phase=FAILED, exit_code=12)

    assert exit_code(locked) == 12


def test_completed_with_damage_is_not_done() -> None:
    job = admin_pb2.Job(job_id="j", phase=COMPLETED)
    job.verify.damaged_total = 1
    job.verify.damaged.add(pack="aa11", paths=[b"x"])

    with pytest.raises(CommandError, match="aa11") as caught:
        raise_for(job)

    assert caught.value.exit_code == 1


def test_completed_raises_nothing() -> None:
    raise_for(backup(COMPLETED, [COMPLETED]))


def test_the_reason_is_that_of_the_coordinator() -> None:
    job = admin_pb2.Job(phase=FAILED, message="the volume has gone", hint="mount it")

    with pytest.raises(CommandError) as caught:
        raise_for(job)

    assert (caught.value.message, caught.value.hint) == ("the volume has gone", "mount it")
