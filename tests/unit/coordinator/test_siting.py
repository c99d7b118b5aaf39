"""Where a further repository may lie."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import ForbiddenError, UsageError
from coordinator.siting import (
    check_apart,
    check_bucket,
    check_buckets_apart,
    check_directory,
    check_name,
    directory_of,
    parse_places,
    plain,
)
from repository.store.s3.location import parse_location

PARTS = st.lists(st.sampled_from(["a", "b", "ab", "c d"]), min_size=1, max_size=4)


@pytest.mark.parametrize(
    "text",
    [
        "any",
        "file:///srv",
        "s3://bucket",
        "https://store:9000 file:///a%20b s3://bucket/prefix",
        "",
    ],
)
def test_places_are_urls_or_any(text: str) -> None:
    assert parse_places(text) == tuple(text.split())


@pytest.mark.parametrize("text", ["/srv", "srv", "any file:///srv", "file://", "ftp://host", "s3:"])
def test_anything_else_is_no_place(text: str) -> None:
    with pytest.raises(ValueError, match="file:///DIR"):
        parse_places(text)


@pytest.mark.parametrize("name", ["a", "off-site.2", "0", "a" * 63])
def test_a_name_is_short_and_plain(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "A", ".hidden", "a/b", "..", "a" * 64, "default", "a\n"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


def test_a_url_is_a_directory_or_a_bucket() -> None:
    assert directory_of("file:///srv/a%20b") == Path("/srv/a b")
    assert directory_of("s3://bucket/prefix") is None


@pytest.mark.parametrize(
    "url", ["/srv", "file://host/srv", "https://host/", "file:///a%00b", "file:///a%ff", ""]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no place"):
        directory_of(url)


@given(PARTS, PARTS)
def test_a_directory_is_allowed_only_within_a_place(place: list[str], within: list[str]) -> None:
    allowed, asked = PurePosixPath("/", *place), PurePosixPath("/", *within)
    url = "file://" + str(allowed).replace(" ", "%20")
    if within[: len(place)] == place:
        check_directory(asked, [url])
        check_directory(asked, ["s3://bucket", url])
    else:
        with pytest.raises(ForbiddenError, match="do not allow"):
            check_directory(asked, [url, "s3://bucket", "https://store"])
    check_directory(asked, ["any"])


@pytest.mark.parametrize(
    ("url", "endpoint", "place", "allowed"),
    [
        ("s3://bucket/a", None, "s3://bucket", True),
        ("s3://bucket/a", None, "s3://bucket/a", True),
        ("s3://bucket/ab", None, "s3://bucket/a", False),
        ("s3://buckets", None, "s3://bucket", False),
        ("s3://bucket", "https://store:9000", "https://store:9000/", True),
        ("s3://bucket", "https://store:9000", "https://store:900", False),
        ("s3://bucket", "https://store.evil", "https://store", False),
        # Of another server a bucket of that name is another one.
        ("s3://bucket", "https://store", "s3://bucket", False),
        ("s3://bucket", None, "file:///srv", False),
        ("s3://bucket", "https://store", "any", True),
    ],
)
def test_a_bucket_is_allowed_by_its_name_at_aws_and_by_its_server_elsewhere(
    url: str, endpoint: str | None, place: str, allowed: bool
) -> None:
    if allowed:
        check_bucket(url, endpoint, [place])
        return
    with pytest.raises(ForbiddenError, match="repository at s3://") as refused:
        check_bucket(url, endpoint, [place])
    assert "repository_places" in refused.value.hint


def test_repositories_lie_beside_each_other_and_outside_of_volumes() -> None:
    mine = PurePosixPath("/srv/mine")
    check_apart(mine, [PurePosixPath("/srv/other")], [PurePosixPath("/srv/minerals")])
    for other in ("/srv", "/srv/mine", "/srv/mine/within"):
        with pytest.raises(UsageError, match="in one another"):
            check_apart(mine, [PurePosixPath(other)], [])
    for volume in ("/", "/srv", "/srv/mine"):
        with pytest.raises(UsageError, match="protected volume"):
            check_apart(mine, [], [PurePosixPath(volume)])
    # A volume within a repository's directory is somebody else's mistake.
    check_apart(mine, [], [PurePosixPath("/srv/mine/volume")])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///srv/a/", "file:///srv/a"),
        ("file:///srv//a%20b", "file:///srv/a%20b"),
        ("file:///srv/%C3%A4", "file:///srv/%C3%A4"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/prefix/", "s3://bucket/prefix"),
    ],
)
def test_a_place_is_written_down_in_one_way(url: str, said: str) -> None:
    assert plain(url) == said
    assert plain(said) == said
    assert directory_of(said) == directory_of(url)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("s3://bucket/a", "https://s3.example.com"), "far lies at s3://bucket/a already"),
        (("s3://bucket/a/", "https://S3.example.com/"), "far lies at s3://bucket/a already"),
        (("s3://bucket/a/b", "https://s3.example.com"), "lie in one another"),
        (("s3://bucket", "https://s3.example.com"), "lie in one another"),
    ],
)
def test_prefixes_that_lie_in_one_another_are_refused(asked: tuple[str, str], words: str) -> None:
    other = parse_location("s3://bucket/a", endpoint="https://s3.example.com")
    with pytest.raises(UsageError, match=words):
        check_buckets_apart(parse_location(asked[0], endpoint=asked[1]), [("far", other)])


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("s3://bucket/ab", "https://s3.example.com"),
        ("s3://other/a", "https://s3.example.com"),
        ("s3://bucket/a", "https://s3.elsewhere.com"),
        ("s3://bucket/a", None),
    ],
)
def test_prefixes_beside_one_another_are_not(url: str, endpoint: str | None) -> None:
    other = parse_location("s3://bucket/a", endpoint="https://s3.example.com")
    check_buckets_apart(parse_location(url, endpoint=endpoint), [("far", other)])
