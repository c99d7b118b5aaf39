"""The shapes of section 14 of the design, from the protocol's messages."""

import base64

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from coordinator.cli.backup import backup_document
from coordinator.cli.documents import document, path_fields, time_text
from coordinator.cli.restore import restore_document
from coordinator.cli.verify import verify_document
from proto.tidemark.v1 import admin_pb2, common_pb2

BACKUP_KEYS = {"job_id", "phase", "snapshots", "store_requests"}
BACKUP_VOLUME_KEYS = {
    *("snapshot_id", "volume", "volume_id", "node", "phase", "change_detection"),
    *("files_new", "files_changed", "files_removed", "files_unmodified"),
    *("total_files_processed", "total_bytes_processed", "bytes_read"),
    *("data_added", "data_added_packed", "fuzzy_files", "warnings", "errors", "errors_total"),
    *("started_at", "finished_at", "duration_seconds", "proof", "audit"),
    "store_requests",
}
SNAPSHOT_KEYS = {
    *("snapshot_id", "volume", "volume_id", "node", "sequence", "committed_at", "phase"),
    *("change_detection", "total_files", "total_bytes", "data_added_packed", "errors_total"),
    *("last_proof_at", "locked_until", "pinned", "repository"),
}
RESTORE_KEYS = {
    *("job_id", "phase", "files_restored", "bytes_restored", "bytes_written", "bytes_fetched"),
    *("warnings", "errors", "errors_total", "duration_seconds"),
    *("files_unchanged", "files_removed", "dry_run", "changes", "changes_total"),
    "store_requests",
}
VERIFY_KEYS = {
    *("job_id", "phase", "snapshots_checked", "packs_checked", "chunks_checked", "bytes_read"),
    *("damaged", "damaged_total", "store_requests"),
}
VOLUME_KEYS = {
    *("volume", "volume_id", "node", "source", "path", "verdict", "reason", "policy"),
    *("last_snapshot_id", "last_completed_at", "age_seconds"),
}


def test_a_backup_that_was_waited_for_has_exactly_the_fields_of_the_contract() -> None:
    job = admin_pb2.Job(job_id="j", phase=common_pb2.PHASE_COMPLETED)
    job.snapshots.add(
        snapshot_id="s",
        phase=common_pb2.PHASE_COMPLETED,
        change_detection=common_pb2.CHANGE_DETECTION_SWEEP,
        bytes_read=2**53 + 1,
    )

    made = backup_document(job)

    assert set(made) == BACKUP_KEYS
    assert set(made["snapshots"][0]) == BACKUP_VOLUME_KEYS
    assert made["phase"] == made["snapshots"][0]["phase"] == "Completed"
    assert made["snapshots"][0]["change_detection"] == "sweep"
    assert made["snapshots"][0]["bytes_read"] == 2**53 + 1
    assert made["snapshots"][0]["errors"] == []


def test_a_failed_volume_has_no_snapshot_and_says_null() -> None:
    job = admin_pb2.Job(job_id="j", phase=common_pb2.PHASE_FAILED)
    failed = job.snapshots.add(phase=common_pb2.PHASE_FAILED, errors_total=1)
    failed.errors.add(path=b"", message="the volume has gone", hint="mount it")

    one = backup_document(job)["snapshots"][0]

    assert one["snapshot_id"] is None
    assert one["finished_at"] is None
    assert one["errors"] == [{"path": "", "message": "the volume has gone", "hint": "mount it"}]


def test_a_restore_and_a_verify_have_exactly_the_fields_of_the_contract() -> None:
    job = admin_pb2.Job(job_id="j", phase=common_pb2.PHASE_PARTIALLY_FAILED)

    assert set(restore_document(job)) == RESTORE_KEYS
    assert set(verify_document(job)) == VERIFY_KEYS
    assert restore_document(job)["phase"] == "PartiallyFailed"


def test_lists_of_snapshots_and_volumes_have_the_fields_of_the_contract() -> None:
    assert set(document(admin_pb2.Snapshot())) == SNAPSHOT_KEYS
    assert set(document(admin_pb2.Volume())) >= VOLUME_KEYS
    assert document(admin_pb2.Volume())["policy"] is None
    assert document(admin_pb2.Volume())["age_seconds"] is None
    assert document(admin_pb2.Snapshot())["last_proof_at"] is None
    assert document(admin_pb2.Snapshot())["locked_until"] is None


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (admin_pb2.CHANGE_KIND_ADDED, "added"),
        (admin_pb2.CHANGE_KIND_REMOVED, "removed"),
        (admin_pb2.CHANGE_KIND_MODIFIED, "modified"),
    ],
)
def test_a_change_is_a_path_and_a_word(number: admin_pb2.ChangeKind.ValueType, word: str) -> None:
    assert document(admin_pb2.Change(path=b"a/b", change=number)) == {"path": "a/b", "change": word}


def test_a_path_that_is_not_utf8_is_shown_and_given_exactly() -> None:
    made = document(common_pb2.PathError(path=b"a\xff/b", message="m"))

    assert made["path"] == "a\\xff/b"
    assert base64.b64decode(made["path_base64"]) == b"a\xff/b"


def test_damaged_paths_that_are_not_utf8_are_given_exactly_beside_the_list() -> None:
    made = document(common_pb2.DamagedPack(pack="p", paths=[b"ok", b"\xff"]))

    assert made["paths"] == ["ok", "\\xff"]
    assert [base64.b64decode(one) for one in made["paths_base64"]] == [b"ok", b"\xff"]


@given(st.binary())
def test_every_path_can_be_got_back_exactly(path: bytes) -> None:
    made = path_fields("path", path)

    exact = made.get("path_base64")
    assert path == (base64.b64decode(exact) if exact is not None else made["path"].encode())


@pytest.mark.parametrize(
    ("seconds", "nanos", "text"),
    [
        (0, 0, "1970-01-01T00:00:00.000000Z"),
        (1_700_000_000, 123_456_000, "2023-11-14T22:13:20.123456Z"),
        (1_700_000_000, 1, "2023-11-14T22:13:20.000000001Z"),
        (2**60, 0, None),
    ],
)
def test_times_are_rfc_3339_in_utc(seconds: int, nanos: int, text: str | None) -> None:
    assert time_text(Timestamp(seconds=seconds, nanos=nanos)) == text


def test_labels_are_an_object_of_their_own() -> None:
    volume = admin_pb2.Volume(labels={"b": "2", "a": "1"}, containers=["web"])

    assert document(volume)["labels"] == {"a": "1", "b": "2"}
    assert document(admin_pb2.Volume())["labels"] == {}
    assert document(volume)["containers"] == ["web"]
