"""What a job's table says of what it asked of its store."""

from coordinator.cli.job import job_table, requests_words
from proto.tidemark.v1 import admin_pb2, common_pb2
from proto.tidemark.v1.common_pb2 import StoreRequests

ASKED = StoreRequests(put=12, get=3, head=1008)


def test_requests_are_told_in_a_line() -> None:
    assert requests_words(ASKED) == "12 PUT, 3 GET, 1,008 HEAD, 0 LIST"
    assert requests_words(StoreRequests(delete=1)) == "0 PUT, 0 GET, 0 HEAD, 0 LIST, 1 DELETE"


def test_a_job_of_each_kind_has_the_line_where_it_is_known() -> None:
    backup = common_pb2.BackupResult(volume="v", store_requests=ASKED)
    jobs = [
        admin_pb2.Job(snapshots=[backup]),
        admin_pb2.Job(restore=common_pb2.RestoreResult(store_requests=ASKED)),
        admin_pb2.Job(verify=common_pb2.VerifyResult(store_requests=ASKED)),
    ]
    unknown = admin_pb2.Job(restore=common_pb2.RestoreResult())

    for job in jobs:
        assert ("requests", requests_words(ASKED)) in job_table(job).rows
    assert "requests" not in [title for title, _ in job_table(unknown).rows]
