"""What buckets do beyond what every store promises, on real servers."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import botocore.auth
import botocore.compat
import pytest
import pytest_asyncio
import yarl

from repository.errors import (
    DamagedError,
    NoRepositoryError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    UsageError,
)
from repository.keys import Secret
from repository.store.interface import Checksum, SignedRequest
from repository.store.s3.capabilities import NONE_KNOWN, Capabilities
from repository.store.s3.check import check, check_recorded
from repository.store.s3.location import Credentials, parse_location
from repository.store.s3.opening import open_s3, read_credentials
from repository.store.s3.probe import probe
from repository.store.s3.store import S3Store
from repository.store.s3.versions import versions_of
from tests.servers import rclone
from tests.servers.buckets import (
    CAPABILITIES,
    CREDENTIALS,
    LOCKING,
    beside,
    make_bucket,
    new_name,
    opened,
)
from tests.servers.keys import ACCESS_KEY, SECRET_KEY
from tests.servers.shared import Server, server

pytestmark = pytest.mark.asyncio(loop_scope="module")

# moto looks at no signature, and rclone knows neither versions nor rules nor policies.
CHECKING = ("radosgw", "rclone")
KEEPING = ("radosgw", "moto")
CONTENT = b"the bytes that were signed"
TOMORROW = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Server:
    return server(request.param, tmp_path_factory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bucket(running: Server) -> AsyncIterator[S3Store]:
    async with opened(running, new_name(), capabilities=CAPABILITIES[running.kind]) as nowhere:
        yield await make_bucket(nowhere)


@pytest_asyncio.fixture(loop_scope="module")
async def keeping(running: Server, bucket: S3Store) -> S3Store:
    """A store in a new bucket with versions and object lock."""
    made = await make_bucket(bucket, locks=True)
    return beside(made, capabilities=LOCKING[running.kind])


@pytest.fixture
def store(bucket: S3Store) -> S3Store:
    return beside(bucket)


every = pytest.mark.parametrize("running", ["radosgw", "rclone", "moto"], indirect=True)
checking = pytest.mark.parametrize("running", CHECKING, indirect=True)
keeps = pytest.mark.parametrize("running", KEEPING, indirect=True)
gateway = pytest.mark.parametrize("running", ["radosgw"], indirect=True)


async def names(store: S3Store) -> list[str]:
    return [info.name async for info in store.list_objects("")]


async def send(request: SignedRequest, body: bytes | None = None) -> tuple[int, bytes]:
    """As somebody without a key sends it."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
        session.request(
            request.method,
            yarl.URL(request.url, encoded=True),
            data=body,
            headers=request.headers,
        ) as answer,
    ):
        return answer.status, await answer.read()


async def sign(
    store: S3Store, name: str, content: bytes = CONTENT, **more: datetime | int
) -> SignedRequest:
    until = more.get("retain_until")
    return await store.signing.sign_put(
        name,
        size_bytes=len(content),
        checksum=hashlib.md5(content, usedforsecurity=False).digest(),
        seconds=int(str(more.get("seconds", 60))),
        retain_until=until if isinstance(until, datetime) else None,
    )


@every
async def test_a_probe_finds_what_a_server_can_do_and_leaves_nothing(
    running: Server, store: S3Store
) -> None:
    unknown = beside(store, capabilities=NONE_KNOWN)

    found = await probe(unknown)

    assert found == CAPABILITIES[running.kind]
    assert await names(unknown) == []
    assert unknown.able(found).capabilities == found


@keeps
async def test_a_probe_of_a_bucket_that_locks_leaves_no_version(
    running: Server, keeping: S3Store
) -> None:
    found = await probe(beside(keeping, capabilities=NONE_KNOWN))

    assert found == LOCKING[running.kind]
    left = await keeping.bucket.call("list_object_versions", "all versions")
    assert "Versions" not in left
    assert "DeleteMarkers" not in left


@every
async def test_a_signed_request_writes_and_reads_one_object_without_a_key(store: S3Store) -> None:
    request = await sign(store, "packs/ab/one")

    assert request.url.startswith(store.signing.endpoint + "packs/ab/one?")
    assert (await send(request, CONTENT))[0] == 200
    assert await store.get("packs/ab/one") == CONTENT
    reading = await store.signing.sign_get("packs/ab/one", seconds=60)
    assert await send(reading) == (200, CONTENT)
    part = reading._replace(headers={"range": "bytes=4-8"})
    # rclone sends the part and calls it the whole.
    assert await send(part) in {(206, CONTENT[4:9]), (200, CONTENT[4:9])}


@checking
async def test_a_signed_request_is_good_for_nothing_else(store: S3Store) -> None:
    request = await sign(store, "packs/ab/one")
    wrong = "AAAAAAAAAAAAAAAAAAAAAA=="
    elsewhere = request._replace(url=request.url.replace("ab/one", "ab/two", 1))
    bare = request._replace(headers={})
    attempts = {
        "other bytes": (request, CONTENT[::-1]),
        "fewer bytes": (request._replace(headers=_length(request, 3)), CONTENT[:3]),
        "more bytes": (request._replace(headers=_length(request, 27)), CONTENT + b"x"),
        "another name": (elsewhere, CONTENT),
        "no headers": (bare, CONTENT),
        "another sum": (
            request._replace(headers=request.headers | {"content-md5": wrong}),
            CONTENT,
        ),
        "a reading one": (
            (await store.signing.sign_get("a", seconds=60))._replace(method="PUT"),
            b"",
        ),
        "a longer life": (
            request._replace(url=request.url.replace("Expires=60", "Expires=90")),
            CONTENT,
        ),
        "another method": (request._replace(method="DELETE"), CONTENT),
    }

    answers = {what: (await send(*attempt))[0] for what, attempt in attempts.items()}

    assert {what: status for what, status in answers.items() if not 400 <= status < 500} == {}
    assert await names(store) == []


def _length(request: SignedRequest, length: int) -> dict[str, str]:
    return request.headers | {"content-length": str(length)}


@checking
async def test_a_signed_request_is_good_until_it_expires(store: S3Store) -> None:
    request = await sign(store, "late", seconds=1)

    await asyncio.sleep(2.1)  # times of signatures are in whole seconds

    assert 400 <= (await send(request, CONTENT))[0] < 500
    assert await names(store) == []


@gateway
async def test_a_signed_request_replaces_nothing(store: S3Store) -> None:
    request = await sign(store, "packs/ab/one")

    assert (await send(request, CONTENT))[0] == 200
    assert (await send(request, CONTENT))[0] == 412
    assert (await send(await sign(store, "packs/ab/one", b"other"), b"other"))[0] == 412
    assert await store.get("packs/ab/one") == CONTENT


@every
async def test_what_others_have_sent_is_told_together_with_some_of_it(store: S3Store) -> None:
    await store.put("packs/a", CONTENT)
    await store.put("packs/longer", CONTENT + b"!")
    before = store.requests.copy()

    kind = store.signing.checksum
    found = await store.signing.stored("packs/a", 4, 5)
    longer = await store.signing.stored("packs/longer", 4, 5)

    asked = store.requests - before
    assert (found.size, found.part) == (len(CONTENT), CONTENT[4:9])
    assert found.checksum in {None, hashlib.new(kind.value, CONTENT).digest()}
    assert (longer.size, longer.part) == (len(CONTENT) + 1, CONTENT[4:9])
    assert asked == Counter(get_object=2, head_object=2 * (kind is Checksum.SHA256))
    with pytest.raises(DamagedError, match="shorter"):
        await store.signing.stored("packs/a", len(CONTENT) - 2, 3)
    with pytest.raises(ObjectMissingError):
        await store.signing.stored("packs/b", 0, 1)


@every
async def test_who_writes_the_same_bytes_again_is_told_that_they_are_there(store: S3Store) -> None:
    await store.put("packs/a", CONTENT)

    await store.put("packs/a", CONTENT)
    for other in (CONTENT[:-1], CONTENT[::-1], b""):
        with pytest.raises(ObjectExistsError):
            await store.put("packs/a", other)

    assert await store.get("packs/a") == CONTENT


@every
async def test_everything_works_without_any_capability(store: S3Store) -> None:
    poor = beside(store, capabilities=NONE_KNOWN)

    await poor.put("packs/a", CONTENT)
    with pytest.raises(ObjectExistsError):
        await poor.put("packs/a", b"other")
    assert await poor.get_range("packs/a", 4, 5) == CONTENT[4:9]
    await poor.delete("packs/a")

    assert await names(poor) == []


@every
async def test_a_bucket_that_is_not_there_is_no_repository(store: S3Store) -> None:
    nowhere = beside(store, new_name())

    for call in (check(nowhere), probe(nowhere), nowhere.put("a", b""), nowhere.head("a")):
        with pytest.raises(NoRepositoryError, match="there is no bucket tests-"):
            await call


@checking
async def test_an_unknown_key_is_told_from_a_wrong_secret(running: Server, store: S3Store) -> None:
    name = store.bucket.location.bucket
    unknown = Credentials("AKIDNOBODY", Secret(SECRET_KEY.encode()), None)
    wrong = Credentials(ACCESS_KEY, Secret(b"not it"), None)

    async with opened(running, name, credentials=unknown) as other:
        with pytest.raises(StoreError, match="does not know this access key") as refused:
            await check(other)
        assert not refused.value.retryable
    async with opened(running, name, credentials=wrong) as other:
        with pytest.raises(StoreError, match="secret does not belong") as refused:
            await check(other)
        assert not refused.value.retryable


@every
async def test_a_check_finds_a_good_bucket_good(running: Server, store: S3Store) -> None:
    warnings = await check(store)

    assert len(warnings) == (running.kind == "rclone")
    assert all("does not tell the lifecycle rules" in warning for warning in warnings)
    assert await names(store) == []


@every
async def test_a_bucket_that_is_as_it_was_recorded_is_not_warned_of(
    running: Server, store: S3Store
) -> None:
    recorded = beside(store, capabilities=CAPABILITIES[running.kind])

    assert await check_recorded(recorded) == await check(recorded)


@keeps
async def test_a_bucket_that_is_not_as_it_was_recorded_is_warned_of(
    running: Server, store: S3Store, keeping: S3Store
) -> None:
    plain = await make_bucket(store)
    url = plain.bucket.location.url
    assert await check_recorded(keeping) == []

    (lost,) = await check_recorded(beside(plain, capabilities=LOCKING[running.kind]))
    await plain.bucket.call(
        "put_bucket_versioning", url, VersioningConfiguration={"Status": "Enabled"}
    )
    (versions,) = await check_recorded(beside(plain, capabilities=CAPABILITIES[running.kind]))
    able = Capabilities(versioning=True)
    (locks,) = await check_recorded(beside(keeping, capabilities=able))

    assert "can lock objects no more, and could when its repository was made" in lost
    assert "keeps versions now, and did not when its repository was made" in versions
    assert "suspend versioning, or remove the object called capabilities" in versions
    assert "can lock objects now, and could not when its repository was made" in locks


@every
async def test_a_check_finds_a_clock_that_will_be_refused(running: Server, store: S3Store) -> None:
    async with opened(running, store.bucket.location.bucket, ahead_seconds=-600) as late:
        with pytest.raises(StoreError, match="clock is 10 minutes behind the store's"):
            await check(late)


@gateway
async def test_a_clock_that_is_an_hour_off_is_what_the_error_says(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_an_hour(*, remove_tzinfo: bool = True) -> datetime:
        then = datetime.now(UTC) + timedelta(hours=1)  # noqa: TID251 - what it stands in for
        return then.replace(tzinfo=None) if remove_tzinfo else then

    monkeypatch.setattr(botocore.auth, "get_current_datetime", in_an_hour)

    with pytest.raises(StoreError, match="this machine's clock"):
        await store.get("packs/a")


@gateway
async def test_a_check_finds_a_key_that_may_not_write(store: S3Store) -> None:
    made = await make_bucket(store)
    name = made.bucket.location.bucket
    policy = (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*",'
        f'"Action":["s3:PutObject"],"Resource":"arn:aws:s3:::{name}/*"}}]}}'
    )
    await made.bucket.call("put_bucket_policy", name, Policy=policy)

    with pytest.raises(StoreError, match=f"the key may not write to s3://{name}/"):
        await check(made)
    with pytest.raises(StoreError, match="the key may not do this with packs/a"):
        await made.put("packs/a", b"")


@keeps
async def test_a_check_finds_rules_that_would_destroy_a_repository(store: S3Store) -> None:
    made = await make_bucket(store)
    bucket = made.bucket
    old = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 30}}
    elsewhere = old | {"Filter": {"Prefix": "logs/"}}

    rules = {"Rules": [elsewhere]}
    await bucket.call("put_bucket_lifecycle_configuration", "", LifecycleConfiguration=rules)
    assert await check(made) == []

    rules = {"Rules": [old]}
    await bucket.call("put_bucket_lifecycle_configuration", "", LifecycleConfiguration=rules)
    with pytest.raises(StoreError, match="rule old deletes objects"):
        await check(made)


@keeps
async def test_deleting_removes_every_version_of_a_name_and_no_other(keeping: S3Store) -> None:
    key = keeping.bucket.key("packs/a")
    for content in (b"1", b"2"):
        await keeping.bucket.call("put_object", "packs/a", Key=key, Body=content)
    await keeping.bucket.call("delete_object", "packs/a", Key=key)
    await keeping.bucket.call("put_object", "packs/a", Key=key, Body=b"3")
    await keeping.put("packs/ab", b"other")

    with_small_pages = S3Store(
        keeping.bucket, keeping.signing.endpoint, keeping.capabilities, page_keys=1
    )
    await with_small_pages.delete("packs/a")

    assert await versions_of(keeping.bucket, "packs/a") == []
    assert await names(keeping) == ["packs/ab"]


@keeps
async def test_what_only_a_marker_hides_is_missing_and_is_removed(keeping: S3Store) -> None:
    await keeping.put("packs/a", b"a")
    await keeping.bucket.call("delete_object", "packs/a", Key=keeping.bucket.key("packs/a"))

    with pytest.raises(ObjectMissingError):
        await keeping.delete("packs/a")

    assert await versions_of(keeping.bucket, "packs/a") == []


@keeps
async def test_a_locked_object_cannot_be_deleted(keeping: S3Store) -> None:
    async with keeping.writer("packs/a", retain_until=TOMORROW) as writer:
        await writer.write(CONTENT)
        await writer.commit()

    with pytest.raises(StoreError, match="packs/a is locked until 2100-01-01"):
        await keeping.delete("packs/a")

    assert await keeping.get("packs/a") == CONTENT
    assert await keeping.locked_until("packs/a") == TOMORROW


@keeps
async def test_a_lock_is_set_later_and_extended_and_never_shortened(
    running: Server, keeping: S3Store
) -> None:
    await keeping.put("packs/a", CONTENT)
    assert await keeping.locked_until("packs/a") is None

    for until in (TOMORROW, TOMORROW + timedelta(days=1)):
        await keeping.retain_until("packs/a", until)
    if running.kind != "moto":  # which shortens any lock, and knows no lock of nothing
        await keeping.retain_until("packs/a", TOMORROW)
        with pytest.raises(ObjectMissingError):
            await keeping.retain_until("packs/b", TOMORROW)

    assert await keeping.locked_until("packs/a") == TOMORROW + timedelta(days=1)


@keeps
async def test_a_signed_request_may_have_to_lock_what_it_writes(
    running: Server, keeping: S3Store
) -> None:
    request = await sign(keeping, "packs/a", retain_until=TOMORROW)
    unlocked = {name: value for name, value in request.headers.items() if "object-lock" not in name}

    if running.kind in CHECKING:
        assert (await send(request._replace(headers=unlocked), CONTENT))[0] == 403
    assert (await send(request, CONTENT))[0] == 200

    assert await keeping.locked_until("packs/a") == TOMORROW
    assert (await keeping.signing.stored("packs/a", 0, 1)).locked_until == TOMORROW


@keeps
async def test_a_lock_that_somebody_may_take_away_is_none(keeping: S3Store) -> None:
    await keeping.put("packs/a", CONTENT)
    retention = {"Mode": "GOVERNANCE", "RetainUntilDate": TOMORROW}
    key = keeping.bucket.key("packs/a")
    await keeping.bucket.call("put_object_retention", "packs/a", Key=key, Retention=retention)

    assert await keeping.locked_until("packs/a") is None
    assert (await keeping.signing.stored("packs/a", 0, 1)).locked_until is None


@gateway
async def test_a_key_that_may_not_lock_is_what_the_error_says(keeping: S3Store) -> None:
    await keeping.put("packs/a", CONTENT)
    name = keeping.bucket.location.bucket
    policy = (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*",'
        f'"Action":["s3:PutObjectRetention"],"Resource":"arn:aws:s3:::{name}/*"}}]}}'
    )
    await keeping.bucket.call("put_bucket_policy", name, Policy=policy)

    with pytest.raises(StoreError, match="the key may not lock packs/a") as refused:
        await keeping.retain_until("packs/a", TOMORROW)
    assert not refused.value.retryable


@keeps
async def test_a_bucket_without_locks_locks_nothing(store: S3Store) -> None:
    with pytest.raises(UsageError, match="cannot lock"):
        store.writer("packs/a", retain_until=TOMORROW)
    with pytest.raises(UsageError, match="cannot lock"):
        await sign(store, "packs/a", retain_until=TOMORROW)
    with pytest.raises(UsageError, match="cannot lock"):
        await store.retain_until("packs/a", TOMORROW)


@checking
async def test_a_key_may_come_from_a_file(running: Server, store: S3Store, tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text(
        f"[store]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )

    assert (await read_credentials(path, "store")).access_key == CREDENTIALS.access_key
    name = store.bucket.location.bucket
    async with opened(running, name, credentials=await read_credentials(path, "store")) as other:
        await check(other)


@pytest.fixture
def over_tls(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    url, authority, process = rclone.serve_tls(tmp_path)
    yield url, authority
    process.kill()
    process.wait()


async def test_a_store_with_an_authority_of_its_own_is_trusted_by_its_file(
    over_tls: tuple[str, Path],
) -> None:
    url, authority = over_tls
    location = parse_location("s3://backups/web", endpoint=url, ca_file=authority)

    async with open_s3(location, now_ns=time.time_ns, credentials=CREDENTIALS) as store:
        await store.bucket.call("create_bucket", "a bucket")
        assert await probe(store) == CAPABILITIES["rclone"]

    stranger = location._replace(ca_file=None)
    async with open_s3(stranger, now_ns=time.time_ns, credentials=CREDENTIALS) as store:
        with pytest.raises(StoreError, match="is not trusted") as refused:
            await store.get("packs/a")
        assert not refused.value.retryable
