"""What a person says of a bucket."""

import pytest

from repository.errors import UsageError
from repository.store.interface import NAME_LENGTH_MAX
from repository.store.s3.location import (
    PREFIX_LENGTH_MAX,
    S3Location,
    parse_credentials,
    parse_location,
)

CREDENTIALS = """
[default]
aws_access_key_id = AKID1
aws_secret_access_key = 100%/secret+=
[nightly]
aws_access_key_id=AKID2
aws_secret_access_key=other
aws_session_token = token
"""


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("s3://backups", "backups", ""),
        ("s3://backups/", "backups", ""),
        ("s3://my.old-bucket/a/b.c/d", "my.old-bucket", "a/b.c/d"),
        ("s3://Old_Bucket/a/", "Old_Bucket", "a"),
    ],
)
def test_a_location_is_a_bucket_and_a_prefix(text: str, bucket: str, prefix: str) -> None:
    location = parse_location(text)

    assert (location.bucket, location.prefix) == (bucket, prefix)
    assert location.url == text.rstrip("/")
    assert location.key_prefix == (f"{prefix}/" if prefix else "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("backups/prefix", "not the address of a bucket"),
        ("https://backups.s3.amazonaws.com/", "not the address of a bucket"),
        ("s3:backups", "not the address of a bucket"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://host:9000/bucket", "more than a bucket's name"),
        ("s3://key:secret@bucket/prefix", "more than a bucket's name"),
        ("s3://b", "cannot be the name of a bucket"),
        ("s3://-bucket", "cannot be the name of a bucket"),
        ("s3://two words", "cannot be the name of a bucket"),
        ("s3://backups/Web", "cannot be a prefix"),
        ("s3://backups/a//b", "cannot be a prefix"),
        ("s3://backups/../a", "cannot be a prefix"),
        (f"s3://backups/{'x' * (PREFIX_LENGTH_MAX + 1)}", "too long"),
    ],
)
def test_a_location_that_cannot_be_is_refused_with_a_next_step(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        parse_location(text)

    assert refused.value.hint


@pytest.mark.parametrize("endpoint", ["https://host", "http://127.0.0.1:9000", "https://[::1]:9/"])
def test_an_endpoint_is_a_host_and_maybe_a_port(endpoint: str) -> None:
    location = parse_location("s3://backups", endpoint=endpoint)

    assert location.endpoint == endpoint.rstrip("/")


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "host",
        "host:9000",
        "ftp://host",
        "https://",
        "https://host:port",
        "https://host:99999",
        "https://key:secret@host",
        "https://host/bucket",
        "https://host?x=y",
        "https://[::1",
        "https://[::g]",
        "https://exa mple",
        "https://exa_mple",
        "https://-example.com",
        "https://example..com",
        "https://b\u00fccher.example",
        f"https://{'a' * 64}.com",
        f"https://{'a.' * 130}com",
    ],
)
def test_an_endpoint_that_cannot_be_is_refused_with_a_next_step(endpoint: str) -> None:
    with pytest.raises(UsageError, match="endpoint") as refused:
        parse_location("s3://backups", endpoint=endpoint)

    assert refused.value.hint


@pytest.mark.parametrize(
    ("location", "style"),
    [
        (S3Location("backups"), "virtual"),
        (S3Location("my.backups"), "path"),
        (S3Location("Backups"), "path"),
        (S3Location("backups", endpoint="https://host"), "path"),
        (S3Location("backups", endpoint="https://host", addressing="virtual"), "virtual"),
        (S3Location("backups", addressing="path"), "path"),
    ],
)
def test_a_bucket_is_part_of_the_host_only_where_that_works(
    location: S3Location, style: str
) -> None:
    assert location.style == style


def test_the_longest_key_is_within_what_every_store_takes() -> None:
    assert PREFIX_LENGTH_MAX + 1 + NAME_LENGTH_MAX <= 1024


def test_credentials_are_those_of_the_profile_and_do_not_show() -> None:
    default, nightly = (
        parse_credentials(CREDENTIALS.encode()),
        parse_credentials(CREDENTIALS.encode(), "nightly"),
    )

    assert default.access_key == "AKID1"
    assert default.secret_key.reveal() == b"100%/secret+="
    assert default.token is None
    assert nightly.token is not None
    assert nightly.token.reveal() == b"token"
    assert "secret" not in repr(default).replace("secret_key=Secret(hidden)", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"no profile \[default\]"),
        ("[other]\n", r"no profile \[default\]"),
        ("AKID:hunter2\n", "not of the form"),
        ("[default]\nhunter2 is my secret\n", "not of the form"),
        ("[default]\naws_access_key_id = x\n", "has no aws_secret_access_key"),
        ("[default]\naws_secret_access_key = hunter2\n", "has no aws_access_key_id"),
    ],
)
def test_a_credentials_file_that_has_no_key_is_refused_without_quoting_it(
    text: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        parse_credentials(text.encode())

    assert refused.value.hint
    assert "hunter2" not in f"{refused.value.message}{refused.value.hint}"
