"""What `tidemark repo show` says."""

import pytest

from coordinator.cli.documents import document
from coordinator.cli.repo import _table
from proto.tidemark.v1 import admin_pb2


@pytest.mark.parametrize(
    ("lock_seconds", "signs", "lock", "way"),
    [
        (30 * 86400, True, "30d from each commit on", "to the store"),
        (0, False, "none", "through the coordinator"),
    ],
)
def test_it_tells_the_lock_in_force_and_the_way_of_packs(
    lock_seconds: int, signs: bool, lock: str, way: str
) -> None:
    made = document(
        admin_pb2.GetRepositoryResponse(lock_seconds=lock_seconds, signs_requests=signs)
    )

    table = str(_table(made))

    assert (made["lock_seconds"], made["signs_requests"]) == (lock_seconds, signs)
    assert lock in table
    assert way in table
