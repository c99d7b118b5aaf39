"""The bucket that `up` was told of."""

from pathlib import Path

import pytest

from coordinator.cli.failure import UsageError
from coordinator.cli.up.bucket import choose_bucket


def test_what_was_said_of_a_bucket_is_remembered_until_it_is_named_again(tmp_path: Path) -> None:
    file = tmp_path / "bucket"
    said = {"repository": "s3://bucket/a", "repository-lock": "30d", "repository-region": None}

    assert choose_bucket(file, {"repository": None}) == {}
    for now in (said, {}, {"repository": None}):
        chosen = choose_bucket(file, now)
        assert chosen == {"repository": "s3://bucket/a", "repository-lock": "30d"}
    assert choose_bucket(file, {"repository": "s3://bucket/a"}) == {"repository": "s3://bucket/a"}


def test_a_lock_without_a_bucket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--repository-lock is of a bucket, and none is named"):
        choose_bucket(tmp_path / "bucket", {"repository-lock": "30d"})
