"""A bucket that cannot be used: said at the start, at once, with what to do."""

import asyncio
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple

import pytest

from coordinator import stores
from coordinator.config import Config, load
from coordinator.errors import TidemarkError
from coordinator.server import serve
from repository.store.patience import Patience
from repository.store.s3.capabilities import Capabilities
from repository.store.s3.store import S3Store
from tests.fakes.answers import NOTHING, Reply, answering
from tests.fakes.misbehaving import Fault, Plan
from tests.faults.misbehaving import Proxy
from tests.servers.buckets import CAPABILITIES, make_bucket, new_name, opened
from tests.servers.keys import ACCESS_KEY, GUEST, GUEST_ACCESS_KEY, GUEST_SECRET_KEY, SECRET_KEY
from tests.servers.shared import Server, server
from tests.servers.tls import tls_context

pytestmark = pytest.mark.asyncio

# Of a start that fails, with what is asked again for a while.
SECONDS_MAX = 10.0
SKEWED = b"<Error><Code>RequestTimeTooSkewed</Code><Message>Too far off.</Message></Error>"
ELSEWHERE = (
    b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>The region is wrong.</Message>"
    b"<Region>eu-central-1</Region></Error>"
)


class Said(NamedTuple):
    """How a coordinator ended."""

    code: int
    message: str
    hint: str


@pytest.fixture
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return server("radosgw", tmp_path_factory)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start in a hurry, so that what cannot be is told at once."""
    assert stores._AT_START.begin_seconds == 5
    quick = Patience(wait_seconds_first=0.05, total_seconds=0.5, begin_seconds=0.5)
    monkeypatch.setattr(stores, "_AT_START", quick)


@asynccontextmanager
async def a_bucket(gateway: Server) -> AsyncIterator[S3Store]:
    async with opened(gateway, new_name()) as nowhere:
        yield await make_bucket(nowhere)


def configured(
    directory: Path, endpoint: str, bucket: str, key: tuple[str, str], more: Mapping[str, str]
) -> Config:
    """The settings of a coordinator with a new or a former directory."""
    directory.mkdir(exist_ok=True)
    (directory / "coordinator").mkdir(exist_ok=True)
    credentials = directory / "credentials"
    credentials.write_text(
        f"[default]\naws_access_key_id = {key[0]}\naws_secret_access_key = {key[1]}\n"
    )
    flags: Mapping[str, str] = {
        "config": "/dev/null",
        "data": str(directory / "coordinator"),
        "listen": "127.0.0.1:0",
        "http": "127.0.0.1:0",
        "repository": f"s3://{bucket}/some/prefix",
        "repository-endpoint": endpoint,
        "repository-credentials": str(credentials),
        **{flag.replace("_", "-"): value for flag, value in more.items()},
    }
    return load([part for flag, value in flags.items() for part in (f"--{flag}", value)], {}).config


async def started(
    directory: Path,
    endpoint: str,
    bucket: str,
    key: tuple[str, str] = (ACCESS_KEY, SECRET_KEY),
    **more: str,
) -> None:
    """Start a coordinator, and end it as soon as it serves."""
    stop = asyncio.Event()
    stop.set()
    config = configured(directory, endpoint, bucket, key, more)
    await serve(config, stop, clock=time.time_ns, random=secrets.token_bytes)


async def refused(
    directory: Path,
    endpoint: str,
    bucket: str = "backups",
    key: tuple[str, str] = (ACCESS_KEY, SECRET_KEY),
    **more: str,
) -> Said:
    """The same, for one that must not come up."""
    async with asyncio.timeout(SECONDS_MAX):
        with pytest.raises(TidemarkError) as caught:
            await started(directory, endpoint, bucket, key, **more)
    error = caught.value
    assert "\n" not in error.message
    return Said(error.exit_code, error.message, error.hint)


async def test_a_key_that_is_not_the_stores_or_has_another_secret(
    gateway: Server, tmp_path: Path
) -> None:
    async with a_bucket(gateway) as bucket:
        name = bucket.bucket.location.bucket
        unknown = await refused(tmp_path / "a", gateway.url, name, ("AKIDNOBODY", SECRET_KEY))
        wrong = await refused(tmp_path / "b", gateway.url, name, (ACCESS_KEY, "another"))
        asked = dict(bucket.requests)

    assert unknown == Said(
        1,
        f"{gateway.url} does not know this access key",
        "check aws_access_key_id in the credentials, and that it is a key of this store",
    )
    assert (wrong.code, "secret does not belong" in wrong.message) == (1, True)
    assert "copy the secret again" in wrong.hint
    assert asked == {"create_bucket": 1}


async def test_a_bucket_that_is_not_there(gateway: Server, tmp_path: Path) -> None:
    said = await refused(tmp_path / "a", gateway.url, "nobodys-bucket")

    assert said.code == 10
    assert said.message == f"there is no bucket nobodys-bucket at {gateway.url}"
    assert "make the bucket first" in said.hint


async def test_a_bucket_that_holds_something_else(gateway: Server, tmp_path: Path) -> None:
    async with a_bucket(gateway) as bucket:
        name = bucket.bucket.location.bucket
        await bucket.bucket.call(
            "put_object", "a photo", Key="some/prefix/Holiday 1.jpg", Body=b"light"
        )
        said = await refused(tmp_path / "a", gateway.url, name)

    assert said.code == 10
    assert said.message == f"s3://{name}/some/prefix is not empty and holds no repository"
    assert "another prefix" in said.hint


async def test_what_a_probe_could_not_delete_is_in_nobodys_way(
    gateway: Server, tmp_path: Path
) -> None:
    async with a_bucket(gateway) as bucket:
        name = bucket.bucket.location.bucket
        await bucket.bucket.call("put_object", "left", Key="some/prefix/probe/ab", Body=b"left")
        await started(tmp_path / "a", gateway.url, name)


async def test_a_bucket_of_another_coordinator(gateway: Server, tmp_path: Path) -> None:
    async with a_bucket(gateway) as one, a_bucket(gateway) as other:
        mine, theirs = (each.bucket.location.bucket for each in (one, other))
        await started(tmp_path / "a", gateway.url, mine)
        await started(tmp_path / "b", gateway.url, theirs)
        fresh = await refused(tmp_path / "c", gateway.url, mine)
        exchanged = await refused(tmp_path / "a", gateway.url, theirs)
        empty = await refused(tmp_path / "a", gateway.url, theirs, repository=f"s3://{theirs}/new")
        await started(tmp_path / "a", gateway.url, mine)

    assert (fresh.code, exchanged.code, empty.code) == (10, 10, 10)
    assert "none of its keys" in fresh.message
    assert "not this coordinator's" in exchanged.message
    assert "another bucket or prefix" in fresh.hint
    assert fresh.hint == exchanged.hint
    assert (
        empty.message
        == f"there is no repository in s3://{theirs}/new, where this coordinator's was"
    )
    assert "check the bucket, the prefix" in empty.hint


async def test_a_bucket_whose_rules_delete_what_is_old(gateway: Server, tmp_path: Path) -> None:
    rule = {
        "ID": "tidy",
        "Status": "Enabled",
        "Filter": {"Prefix": "some/"},
        "Expiration": {"Days": 30},
    }
    async with a_bucket(gateway) as bucket:
        await bucket.bucket.call(
            "put_bucket_lifecycle_configuration", "rules", LifecycleConfiguration={"Rules": [rule]}
        )
        said = await refused(tmp_path / "a", gateway.url, bucket.bucket.location.bucket)

    assert said.code == 1
    assert "rule tidy deletes objects" in said.message
    assert "remove the rule" in said.hint


async def test_a_key_that_may_only_read(gateway: Server, tmp_path: Path) -> None:
    guest = (GUEST_ACCESS_KEY, GUEST_SECRET_KEY)
    async with a_bucket(gateway) as bucket:
        name = bucket.bucket.location.bucket
        stranger = await refused(tmp_path / "a", gateway.url, name, guest)
        await bucket.bucket.call("put_bucket_policy", "reading", Policy=policy(name, "Get", "List"))
        reader = await refused(tmp_path / "b", gateway.url, name, guest)
        await bucket.bucket.call(
            "put_bucket_policy", "writing", Policy=policy(name, "Get", "List", "Put")
        )
        keeper = await refused(tmp_path / "c", gateway.url, name, guest)

    where = f"s3://{name}/some/prefix"
    lacking = ("list what is in", "write to", "delete from")
    for said, what in zip((stranger, reader, keeper), lacking, strict=True):
        assert (said.code, said.message) == (1, f"the key may not {what} {where}")
        assert "read, write and delete below the prefix" in said.hint


def policy(bucket: str, *verbs: str) -> str:
    """Let the guest do these things in a bucket."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": [f"arn:aws:iam:::user/{GUEST}"]},
        "Action": [f"s3:{verb}*" for verb in verbs],
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def in_seconds(seconds: int) -> dict[str, str]:
    """What a store says whose clock differs so much from ours."""
    return {"date": formatdate(time.time_ns() / 1e9 + seconds, usegmt=True)}


async def test_a_clock_that_is_an_hour_off(tmp_path: Path) -> None:
    async with answering(Reply(403, SKEWED, in_seconds(3600))) as store:
        said = await refused(tmp_path / "a", store.url)

    assert said.code == 1
    assert said.message == "this machine's clock is 60 minutes behind the store's"
    assert "timedatectl set-ntp true" in said.hint


async def test_a_clock_that_is_off_by_less_than_stores_refuse(tmp_path: Path) -> None:
    """Some never refuse it; and it goes on going wrong."""
    listing = b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
    missing = Reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
    async with answering(missing, Reply(200, listing, in_seconds(-600))) as store:
        said = await refused(tmp_path / "a", store.url)

    assert (said.code, said.message) == (
        1,
        "this machine's clock is 10 minutes ahead of the store's",
    )


async def test_a_region_that_is_not_the_buckets(tmp_path: Path) -> None:
    async with answering(Reply(400, ELSEWHERE)) as store:
        said = await refused(tmp_path / "a", store.url, repository_region="eu-west-1")
        asked = list(store.asked)

    assert said == Said(
        1,
        "the bucket backups is in another region: eu-central-1",
        "give its region: --repository-region eu-central-1",
    )
    assert len(asked) == 2


async def test_an_endpoint_where_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        closed = await refused(tmp_path / "a", endpoint)
    nowhere = await refused(tmp_path / "b", "https://store.invalid")

    assert (closed.code, nowhere.code) == (1, 1)
    assert closed.message.startswith(f"{endpoint} does not answer: connection refused (tried ")
    assert nowhere.message.startswith("https://store.invalid does not answer: ")
    assert "check the network and the endpoint" in closed.hint
    assert "check the network and the endpoint" in nowhere.hint


async def test_a_start_asks_again_while_the_store_is_in_trouble(tmp_path: Path) -> None:
    busy = Reply(503, b"<Error><Code>SlowDown</Code></Error>")
    async with answering(busy, NOTHING, Reply(400, ELSEWHERE)) as store:
        said = await refused(tmp_path / "a", store.url)
        asked = list(store.asked)

    assert "another region" in said.message
    assert asked[:3] == ["GET /backups/some/prefix/capabilities"] * 3


async def test_a_repository_is_made_though_requests_fail_now_and_then(
    gateway: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = Patience(wait_seconds_first=0.02, total_seconds=5, begin_seconds=5)
    monkeypatch.setattr(stores, "_AT_START", patience)
    plan = Plan(seed=5, rate=0.2, kinds=frozenset({Fault.SLOW_DOWN, Fault.ERROR, Fault.RESET}))
    async with a_bucket(gateway) as bucket, Proxy(gateway.url, plan).serving() as proxy:
        name = bucket.bucket.location.bucket
        await started(tmp_path / "a", proxy.address, name)
        _, recorded = await bucket.bucket.read("what was found", Key="some/prefix/capabilities")

    assert len(plan.drawn) > 3
    assert Capabilities.decode(recorded) == CAPABILITIES["radosgw"]


async def test_an_endpoint_that_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stores._FIRST_SECONDS <= 15
    monkeypatch.setattr(stores, "_FIRST_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = await refused(tmp_path / "a", f"http://127.0.0.1:{silent.getsockname()[1]}")

    assert said.code == 1
    assert "the store of s3://backups/some/prefix did not answer within" in said.message
    assert said.hint


@pytest.mark.parametrize("reply", [Reply(404, b"<html>Not here</html>"), Reply(200, b"<html/>")])
async def test_an_endpoint_that_is_no_s3(tmp_path: Path, reply: Reply) -> None:
    async with answering(reply) as console:
        said = await refused(tmp_path / "a", console.url)

    assert said.code == 1
    assert "endpoint" in said.hint
    assert "S3" in said.message + said.hint


async def test_http_where_it_should_be_https_and_the_other_way(
    gateway: Server, tmp_path: Path
) -> None:
    plain = await refused(tmp_path / "a", gateway.url.replace("http:", "https:"))
    async with answering(NOTHING, tls=tls_context(tmp_path)) as secure:
        sealed = await refused(tmp_path / "b", secure.url.replace("https:", "http:"))

    assert (plain.code, sealed.code) == (1, 1)
    assert plain.message.endswith(" does not speak TLS")
    assert "http://" in plain.hint
    assert "does not answer" in sealed.message
    assert "https://" in sealed.hint


async def test_an_authority_that_nobody_trusts(tmp_path: Path) -> None:
    async with answering(Reply(400, ELSEWHERE), tls=tls_context(tmp_path)) as secure:
        said = await refused(tmp_path / "a", secure.url)
        trusted = await refused(
            tmp_path / "b", secure.url, repository_ca=str(tmp_path / "certificate.pem")
        )
        gone = await refused(tmp_path / "c", secure.url, repository_ca=str(tmp_path / "no.pem"))

    assert said.code == 1
    assert said.message == (
        f"the certificate of {secure.url} is not trusted: self-signed certificate"
    )
    assert "--repository-ca" in said.hint
    assert "another region" in trusted.message
    assert (gone.code, "no.pem" in gone.message) == (2, True)


async def test_credentials_that_are_not_there(tmp_path: Path) -> None:
    async with answering(NOTHING) as store:
        gone = await refused(
            tmp_path / "a", store.url, repository_credentials=str(tmp_path / "none")
        )
    assert (gone.code, store.asked) == (2, [])
    assert "none cannot be read" in gone.message
