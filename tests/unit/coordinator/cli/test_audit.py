"""What `tidemark volume audit` says, and how it exits."""

import pytest

from coordinator.cli.failure import CommandError
from coordinator.cli.volume import audit_document, audit_table, raise_for_audit
from proto.tidemark.v1 import admin_pb2, common_pb2
from proto.tidemark.v1.common_pb2 import AuditResult, BackupResult

COMPLETED, PARTLY = common_pb2.PHASE_COMPLETED, common_pb2.PHASE_PARTIALLY_FAILED
CLEAN = AuditResult(audited=True, candidates=9, places_told=12)
MISSED = AuditResult(audited=True, candidates=9, missed=3, missed_paths=[b"a/b", b"\xff"])
NONE = AuditResult(reason="it is watched since just now")


def job(*audits: AuditResult, phase: "common_pb2.Phase.ValueType" = COMPLETED) -> admin_pb2.Job:
    results = [
        BackupResult(volume=f"v{number}", node="n", phase=phase, audit=audit)
        for number, audit in enumerate(audits)
    ]
    return admin_pb2.Job(job_id="j", phase=phase, snapshots=results)


def test_the_document_is_that_of_the_backup_and_sums_up_the_audits() -> None:
    made = audit_document(job(CLEAN, MISSED))

    assert set(made) == {"job_id", "phase", "snapshots", "store_requests", "audit"}
    assert made["audit"] == {
        "audited": True,
        "missed": 3,
        "missed_paths": ["a/b", "\\xff"],
        "missed_paths_base64": ["YS9i", "/w=="],
    }
    assert made["snapshots"][0]["audit"] == {
        "audited": True,
        "reason": "",
        "places_told": 12,
        "candidates": 9,
        "missed": 0,
        "missed_paths": [],
    }


def test_one_volume_that_was_not_audited_is_enough_for_the_sum_to_say_so() -> None:
    assert not audit_document(job(CLEAN, NONE))["audit"]["audited"]
    assert not audit_document(admin_pb2.Job())["audit"]["audited"]


def test_a_miss_goes_before_whatever_else_went_wrong() -> None:
    for phase in (COMPLETED, PARTLY):
        with pytest.raises(CommandError, match="events missed 3 changes") as error:
            raise_for_audit(job(CLEAN, MISSED, phase=phase))
        assert error.value.exit_code == 1


def test_without_a_miss_an_audit_exits_as_its_backup() -> None:
    raise_for_audit(job(CLEAN, NONE))
    with pytest.raises(CommandError) as error:
        raise_for_audit(job(CLEAN, phase=PARTLY))
    assert error.value.exit_code == 3


def test_the_table_names_what_was_missed_or_why_nothing_is_said() -> None:
    wanted = {("audited", "yes"), ("changes found", "9"), ("missed", "3")}
    assert wanted <= {(name, value) for name, value in audit_table(job(MISSED)).rows}
    assert [row[1] for row in audit_table(job(MISSED)).rows][-3:] == [
        "a/b",
        "\\xff",
        "… and 1 more",
    ]
    assert audit_table(job(NONE)).rows[-1] == ("audited", "no: it is watched since just now")


def test_an_audit_whose_backup_failed_says_why_that_did() -> None:
    made = job(AuditResult(), phase=common_pb2.PHASE_FAILED)
    assert ("audited", "no: no answer") in audit_table(made).rows

    made.snapshots[0].errors.add(message="/srv/app is not there")

    assert ("audited", "no: /srv/app is not there") in audit_table(made).rows
