"""What a store's refusals mean."""

import asyncio
import ssl

import aiohttp
import pytest
from botocore import exceptions

from repository.errors import (
    DamagedError,
    FormatError,
    NoRepositoryError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreForbiddenError,
    StoreFullError,
    StoreUnavailableError,
    TidemarkError,
)
from repository.store.s3.capabilities import NONE_KNOWN, Capabilities
from repository.store.s3.errors import Answer, failures, refusal, translate
from repository.store.s3.location import S3Location

WHERE = S3Location("backups", "web", "https://store.test", "us-east-1")
DATE = "Sat, 28 Nov 2026 18:00:00 GMT"
THEN_NS = 1_795_888_800 * 1_000_000_000


def answer(status: int, code: str, message: str = "", **fields: str) -> Answer:
    return Answer(status, code, message, fields, {"date": DATE})


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", ObjectMissingError),
        (404, "404", ObjectMissingError),
        (404, "NoSuchVersion", ObjectMissingError),
        (404, "NoSuchBucket", NoRepositoryError),
        (412, "PreconditionFailed", ObjectExistsError),
        (412, "412", ObjectExistsError),
        (416, "InvalidRange", DamagedError),
        (409, "ConditionalRequestConflict", StoreUnavailableError),
        (409, "OperationAborted", StoreUnavailableError),
        (400, "RequestTimeout", StoreUnavailableError),
        (400, "BadDigest", StoreUnavailableError),
        (408, "", StoreUnavailableError),
        (429, "TooManyRequests", StoreUnavailableError),
        (500, "InternalError", StoreUnavailableError),
        (502, "502", StoreUnavailableError),
        (503, "SlowDown", StoreUnavailableError),
        (503, "503", StoreUnavailableError),
        (507, "InsufficientStorage", StoreFullError),
        (403, "QuotaExceeded", StoreFullError),
        (400, "InvalidArgument", StoreError),
        (501, "NotImplemented", StoreError),
        (403, "AccessDenied", StoreForbiddenError),
        (403, "403", StoreForbiddenError),
        (403, "InvalidObjectState", StoreError),
    ],
)
def test_a_refusal_is_what_the_caller_may_do_next(
    status: int, code: str, kind: type[TidemarkError]
) -> None:
    error = refusal(answer(status, code), "packs/a", WHERE, THEN_NS)

    assert type(error) is kind
    assert error.retryable == (kind is StoreUnavailableError)
    assert error.hint or kind in {ObjectMissingError, ObjectExistsError}


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (answer(404, "NoSuchBucket"), "there is no bucket backups at https://store.test"),
        (
            answer(301, "PermanentRedirect"),
            "the bucket backups is in another region than us-east-1",
        ),
        (
            answer(400, "AuthorizationHeaderMalformed", Region="eu-west-1"),
            "the bucket backups is in another region: eu-west-1",
        ),
        (answer(400, "ExpiredToken"), "the store's session token has expired"),
        (answer(403, "InvalidAccessKeyId"), "https://store.test does not know this access key"),
        (
            answer(403, "SignatureDoesNotMatch"),
            "https://store.test refuses the key: the secret does not belong to the access key",
        ),
        (
            answer(403, "AccessDenied", "No."),
            "the key may not do this with packs/a: AccessDenied, No.",
        ),
        (
            answer(403, "AccessDenied", "Cannot upload files, storage cap exceeded."),
            "the store is full: cannot write packs/a",
        ),
        (answer(400, "Strange", "What?"), "the store refused packs/a: Strange, What?"),
    ],
)
def test_a_refusal_says_what_is_wrong(refused: Answer, message: str) -> None:
    assert refusal(refused, "packs/a", WHERE, THEN_NS).message == message


@pytest.mark.parametrize(
    ("seconds", "words"), [(3600, "60 minutes ahead of"), (-7200, "120 minutes behind")]
)
def test_a_clock_that_is_off_is_told_by_how_much(seconds: int, words: str) -> None:
    skewed = answer(403, "RequestTimeTooSkewed")

    error = refusal(skewed, "packs/a", WHERE, THEN_NS + seconds * 1_000_000_000)

    assert error.message == f"this machine's clock is {words} the store's"
    assert "clock" in refusal(skewed._replace(headers={}), "a", WHERE, 0).message


@pytest.mark.parametrize(
    "error",
    [
        exceptions.EndpointConnectionError(endpoint_url="x", error="y"),
        exceptions.ConnectTimeoutError(endpoint_url="x"),
        exceptions.ReadTimeoutError(endpoint_url="x"),
        exceptions.ConnectionClosedError(endpoint_url="x"),
        exceptions.HTTPClientError(error="x"),
        exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        exceptions.ResponseStreamingError(error="x"),
        aiohttp.ClientPayloadError(),
        aiohttp.ServerDisconnectedError(),
        ConnectionResetError(),
        TimeoutError(),
        asyncio.IncompleteReadError(b"", 5),
    ],
)
def test_a_store_that_cannot_be_reached_may_be_later(error: Exception) -> None:
    assert isinstance(error, failures())

    assert type(translate(error, "packs/a", WHERE, 0)) is StoreUnavailableError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (exceptions.NoCredentialsError(), "no key for s3://backups/web"),
        (exceptions.PartialCredentialsError(provider="x", cred_var="y"), "no key for"),
        (exceptions.ProfileNotFound(profile="x"), "no key for"),
        (exceptions.SSLError(endpoint_url="x", error=ssl.SSLError()), "is not trusted"),
        (exceptions.ParamValidationError(report="x"), "cannot be asked for packs/a"),
        (exceptions.InvalidRegionError(region_name="x"), "cannot be asked for packs/a"),
    ],
)
def test_what_waiting_does_not_mend_is_no_trouble_of_the_store(
    error: Exception, words: str
) -> None:
    assert isinstance(error, failures())

    told = translate(error, "packs/a", WHERE, 0)

    assert words in told.message
    assert told.hint
    assert not told.retryable


def test_capabilities_are_kept_and_what_later_versions_add_is_passed_over() -> None:
    able = Capabilities(presign=True, versioning=True)

    assert Capabilities.decode(able.encode()) == able
    assert Capabilities.decode(b'{"presign":true,"flight":true}') == Capabilities(presign=True)
    assert Capabilities.decode(b"{}") == NONE_KNOWN
    for broken in (b"", b"[]", b'{"presign":"maybe"}', b"\xff"):
        with pytest.raises(FormatError):
            Capabilities.decode(broken)
