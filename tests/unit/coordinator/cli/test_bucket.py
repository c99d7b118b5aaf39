from pathlib import Path

import pytest

from coordinator.cli.failure import CommandError, UsageError
from coordinator.cli.up.bucket import choose_bucket

NOTHING: dict[str, str | None] = {
    "repository": None,
    "repository-endpoint": None,
    "repository-credentials": None,
}
SAID = NOTHING | {
    "repository": "s3://bucket/prefix",
    "repository-endpoint": "https://s3.example.com",
}


def test_without_a_word_the_repository_is_local(tmp_path: Path) -> None:
    assert choose_bucket(tmp_path / "bucket", NOTHING) == {}


def test_a_bucket_is_remembered_with_all_that_was_said_of_it(tmp_path: Path) -> None:
    file = tmp_path / "bucket"
    chosen = choose_bucket(file, SAID)

    assert chosen == {
        "repository": "s3://bucket/prefix",
        "repository-endpoint": "https://s3.example.com",
    }
    assert choose_bucket(file, NOTHING) == chosen
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_bucket_that_is_named_again_is_said_anew_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "bucket"
    choose_bucket(file, SAID)

    chosen = choose_bucket(file, NOTHING | {"repository": "s3://other"})

    assert chosen == choose_bucket(file, NOTHING) == {"repository": "s3://other"}


def test_files_are_found_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    chosen = choose_bucket(tmp_path / "bucket", SAID | {"repository-credentials": "key"})

    assert chosen["repository-credentials"] == str(tmp_path / "key")


@pytest.mark.parametrize(
    "said", [{"repository": "/srv/backups"}, {"repository-endpoint": "https://h"}]
)
def test_what_is_no_bucket_is_refused(tmp_path: Path, said: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        choose_bucket(tmp_path / "bucket", NOTHING | said)

    assert "s3://BUCKET/PREFIX" in caught.value.hint
    assert not (tmp_path / "bucket").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"colour": "blue"}', '{"repository-ca": "/x"}'])
def test_a_damaged_memory_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "bucket").write_text(content)

    with pytest.raises(CommandError):
        choose_bucket(tmp_path / "bucket", NOTHING)


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
