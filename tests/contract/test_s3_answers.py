"""A bucket whose server answers what no good server does."""

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from repository.errors import (
    DamagedError,
    NoRepositoryError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)
from repository.keys import Secret
from repository.pack import PACK_BYTES_MAX
from repository.store.interface import Checksum
from repository.store.s3.capabilities import Capabilities
from repository.store.s3.check import check
from repository.store.s3.location import Credentials, S3Location, parse_location
from repository.store.s3.opening import open_s3, read_credentials
from repository.store.s3.probe import _compares_sums, probe
from repository.store.s3.store import S3Store
from tests.fakes.answers import NOTHING, Answering, Reply, answering

pytestmark = pytest.mark.asyncio

KEY = Credentials("AKID", Secret(b"secret"), Secret(b"token"))
ALL = Capabilities(conditional_put=True, checksum_sha256=True, versioning=True, object_lock=True)
TAG = {"etag": f'"{hashlib.md5(b"content", usedforsecurity=False).hexdigest()}"'}
OTHER_TAG = {"etag": '"0123"'}
LISTING = "<ListBucketResult><Name>bucket</Name>{}</ListBucketResult>"


def failure(status: int, code: str, more: str = "") -> Reply:
    return Reply(status, f"<Error><Code>{code}</Code>{more}</Error>".encode())


@asynccontextmanager
async def store_on(
    *replies: Reply, capabilities: Capabilities = ALL
) -> AsyncIterator[tuple[S3Store, Answering]]:
    async with answering(*replies) as server:
        location = S3Location("bucket", "p", server.url)
        async with open_s3(
            location, now_ns=time.time_ns, credentials=KEY, capabilities=capabilities
        ) as store:
            yield store, server


async def names(store: S3Store) -> list[str]:
    return [info.name async for info in store.list_objects("")]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"conte", length=7),
        Reply(200, b"", length=7),
        NOTHING,
        failure(500, "InternalError"),
        failure(503, "SlowDown"),
        Reply(503, b"<html>no XML, and from a proxy"),
    ],
)
async def test_an_object_that_comes_in_part_or_not_may_come_later(reply: Reply) -> None:
    async with store_on(reply) as (store, _):
        with pytest.raises(StoreUnavailableError):
            await store.get("packs/a")
        with pytest.raises(StoreUnavailableError):
            await store.get_range("packs/a", 0, 7)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(200, b"0123456789"), StoreUnavailableError),
        (Reply(206, b"2345"), StoreUnavailableError),
        (Reply(206, b"0123", {"content-range": "bytes 0-3/10"}), StoreUnavailableError),
        (Reply(206, b"23", {"content-range": "bytes 2-3/10"}), StoreUnavailableError),
        (Reply(206, b"23", {"content-range": "bytes 2-3/*"}), StoreUnavailableError),
        (Reply(206, b"23", {"content-range": "bytes 2-3/4"}), DamagedError),
        (failure(416, "InvalidRange"), DamagedError),
    ],
)
async def test_a_range_is_the_one_asked_for_or_none(reply: Reply, kind: type[StoreError]) -> None:
    async with store_on(reply) as (store, _):
        with pytest.raises(kind):
            await store.get_range("packs/a", 2, 4)


@pytest.mark.parametrize(
    "reply",
    [
        failure(200, "InternalError"),
        Reply(200, b""),
        Reply(200, b"<html></html>"),
        Reply(200, b"no XML"),
        Reply(200, LISTING.format("").encode()),
        Reply(200, LISTING.format("<IsTruncated>true</IsTruncated>").encode()),
        Reply(200, LISTING.format("<IsTruncated>false</IsTruncated>").encode(), length=5000),
        NOTHING,
    ],
)
async def test_no_odd_answer_reads_as_an_empty_listing(reply: Reply) -> None:
    async with store_on(reply) as (store, _):
        with pytest.raises(StoreUnavailableError):
            await names(store)


async def test_a_write_whose_answer_was_lost_is_done_when_it_is_repeated() -> None:
    taken, there = failure(412, "PreconditionFailed"), Reply(200, b"content", TAG)
    # A connection that ends without an answer has the library try once more by itself.
    async with (
        store_on(NOTHING, NOTHING, taken, there) as (store, server),
        store.writer("packs/a") as writer,
    ):
        await writer.write(b"con", b"tent")
        with pytest.raises(StoreUnavailableError):
            await writer.commit()

        await writer.commit()

    assert server.asked == ["PUT /bucket/p/packs/a"] * 3 + ["HEAD /bucket/p/packs/a"]
    assert store.requests == {"put_object": 2, "head_object": 1}


async def test_where_a_tag_is_no_sum_the_bytes_are_compared() -> None:
    taken = failure(412, "PreconditionFailed")
    async with store_on(taken, Reply(200, b"content", OTHER_TAG)) as (store, server):
        await store.put("packs/a", b"content")
    assert server.asked[1:] == ["HEAD /bucket/p/packs/a", "GET /bucket/p/packs/a"]

    async with store_on(taken, Reply(200, b"another", OTHER_TAG)) as (store, server):
        with pytest.raises(ObjectExistsError):
            await store.put("packs/a", b"content")


@pytest.mark.parametrize("reply", [failure(200, "InternalError"), Reply(200, b"")])
async def test_a_write_that_is_not_confirmed_is_not_done(reply: Reply) -> None:
    async with store_on(reply) as (store, _):
        with pytest.raises(StoreUnavailableError):
            await store.put("packs/a", b"content")


async def test_a_name_that_is_not_there_is_told_from_a_bucket_that_is_not() -> None:
    async with store_on(Reply(404), Reply(200)) as (store, server):
        with pytest.raises(ObjectMissingError):
            await store.head("packs/a")
    assert server.asked == ["HEAD /bucket/p/packs/a", "HEAD /bucket"]

    async with store_on(Reply(404)) as (store, _):
        with pytest.raises(NoRepositoryError):
            await store.head("packs/a")


@pytest.mark.parametrize(
    "reply",
    [
        failure(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
        Reply(
            301,
            b"<Error><Code>PermanentRedirect</Code></Error>",
            {"x-amz-bucket-region": "eu-west-1"},
        ),
    ],
)
async def test_a_bucket_elsewhere_is_told_with_its_region(reply: Reply) -> None:
    async with store_on(reply) as (store, _):
        with pytest.raises(StoreError, match="in another region: eu-west-1"):
            await check(store)


async def test_versions_that_are_not_all_told_are_not_deleted() -> None:
    more = b"<ListVersionsResult><IsTruncated>true</IsTruncated>%s</ListVersionsResult>"
    key = b"<NextKeyMarker>p/packs/a</NextKeyMarker>"
    for body in (b"<Error><Code>InternalError</Code></Error>", more % b"", more % key):
        async with store_on(Reply(200, body)) as (store, server):
            with pytest.raises(StoreUnavailableError):
                await store.delete("packs/a")
        assert all(asked.startswith("GET /bucket") for asked in server.asked)


async def test_an_object_is_not_larger_than_a_pack_may_be() -> None:
    async with store_on(NOTHING) as (store, server), store.writer("packs/a") as writer:
        await writer.write(bytes(PACK_BYTES_MAX))
        with pytest.raises(UsageError, match="larger"):
            await writer.write(b"x")
    assert server.asked == []


async def test_what_is_signed_depends_on_what_the_store_can_do() -> None:
    async with store_on(NOTHING) as (store, server):
        request = await store.signing.sign_put(
            "packs/a", size_bytes=7, checksum=b"s" * 32, seconds=60
        )
    assert store.signing.checksum is Checksum.SHA256
    assert set(request.headers) == {"content-length", "x-amz-checksum-sha256", "if-none-match"}
    signed = "%3B".join(sorted([*request.headers, "host"]))
    assert f"X-Amz-SignedHeaders={signed}&" in request.url
    assert "X-Amz-Security-Token=token" in request.url

    async with store_on(NOTHING, capabilities=Capabilities()) as (store, server):
        request = await store.signing.sign_put(
            "packs/a", size_bytes=7, checksum=b"m" * 16, seconds=60
        )
        for seconds in (0, -1, 8 * 24 * 3600):
            with pytest.raises(UsageError):
                await store.signing.sign_get("packs/a", seconds=seconds)
        with pytest.raises(UsageError):
            await store.signing.sign_get("../a", seconds=60)
    assert store.signing.checksum is Checksum.MD5
    assert set(request.headers) == {"content-length", "content-md5"}
    assert server.asked == []


@pytest.mark.parametrize(
    ("location", "begins"),
    [
        (parse_location("s3://bucket/p", region="eu-west-1"), "https://bucket.s3.eu-west-1."),
        (parse_location("s3://a.bucket/p", region="eu-west-1"), "https://s3.eu-west-1."),
        (parse_location("s3://bucket", endpoint="https://host:9"), "https://host:9/bucket/"),
        (
            parse_location("s3://bucket/p", endpoint="https://host", addressing="virtual"),
            "https://bucket.host/p/",
        ),
    ],
)
async def test_every_signed_url_begins_with_the_endpoint(location: S3Location, begins: str) -> None:
    async with open_s3(location, now_ns=time.time_ns, credentials=KEY) as store:
        reading = await store.signing.sign_get("packs/a", seconds=60)

        assert store.signing.endpoint.startswith(begins)
        assert reading.url.startswith(f"{store.signing.endpoint}packs/a?")


async def test_a_store_without_a_key_does_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))

    with pytest.raises(StoreError, match="no key for s3://bucket") as refused:
        async with open_s3(S3Location("bucket"), now_ns=time.time_ns):
            pass
    assert "a file with the key of the bucket" in refused.value.hint

    monkeypatch.setenv("AWS_PROFILE", "nightly")
    with pytest.raises(StoreError, match="nightly"):
        async with open_s3(S3Location("bucket"), now_ns=time.time_ns):
            pass


async def test_files_that_are_not_there_are_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"credentials file .*/none cannot be read"):
        await read_credentials(tmp_path / "none")

    (tmp_path / "empty").touch()
    for name in ("none", "empty"):
        location = S3Location("bucket", ca_file=tmp_path / name)
        with pytest.raises(UsageError, match=f"{name} holds no certificates"):
            async with open_s3(location, now_ns=time.time_ns, credentials=KEY):
                pass


@pytest.mark.parametrize(
    ("right", "wrong", "compares"),
    [
        (Reply(200, b"", TAG), failure(400, "BadDigest"), True),
        (Reply(200, b"", TAG), failure(400, "XAmzContentChecksumMismatch"), True),
        (Reply(200, b"", TAG), Reply(200, b"", TAG), False),
        (failure(400, "InvalidArgument"), NOTHING, False),
        (failure(501, "NotImplemented"), NOTHING, False),
    ],
)
async def test_a_sum_is_compared_where_a_wrong_one_is_refused(
    right: Reply, wrong: Reply, compares: bool
) -> None:
    async with store_on(right, wrong) as (store, _):
        assert await _compares_sums(store.bucket, "probe/x") == compares


@pytest.mark.parametrize("trouble", [failure(503, "SlowDown"), NOTHING])
async def test_trouble_of_a_store_is_no_answer_to_a_probe(trouble: Reply) -> None:
    async with store_on(Reply(200, b"", TAG), trouble) as (store, _):
        with pytest.raises(StoreUnavailableError):
            await _compares_sums(store.bucket, "probe/x")
        with pytest.raises(StoreUnavailableError):
            await probe(store)
