"""What goes wrong with an S3 store, in our words: what it is, and what to do next.

Libraries that speak S3 are only looked at here once one of them has failed, so that this loads
without them.
"""

import asyncio
import importlib
import os
import re
import socket
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Final, NamedTuple, Self

from repository.errors import (
    DamagedError,
    NoRepositoryError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreForbiddenError,
    StoreFullError,
    StoreUnavailableError,
    TidemarkError,
)
from repository.store.s3.location import S3Location

_NS: Final = 1_000_000_000

# Said of a key or a bucket. A HEAD has no body to name a code in, so its status is the code.
_MISSING: Final = frozenset({"NoSuchKey", "NoSuchVersion", "NotFound", "404"})
# These pass: the store is busy, or broken for now, or what was sent arrived otherwise.
_PASSING: Final = frozenset(
    {
        "ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown",
        "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded",
        "ServiceUnavailable", "InternalError", "BadDigest", "IncompleteBody",
        "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
    }
)  # fmt: skip
_FULL: Final = frozenset(
    {"QuotaExceeded", "InsufficientStorage", "StorageCapExceeded", "XMinioStorageFull"}
)
# Backblaze has no code of its own for an account that is at its limit.
_FULL_WORDS: Final = ("storage cap exceeded", "quota exceeded")
_ELSEWHERE: Final = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_REDIRECTIONS: Final = frozenset({301, 302, 307, 308})
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_SKEWED: Final = "RequestTimeTooSkewed"
# The answer to whoever is not who they say, or not when: no question of rights.
_NOBODY: Final = _EXPIRED | {"InvalidAccessKeyId", "SignatureDoesNotMatch", _SKEWED}
_UNKNOWN: Final = frozenset({"NotImplemented", "MethodNotAllowed"})
_WAY_HINT: Final = "check the network and the endpoint; it is tried again where it can be"
_PLAIN_HINT: Final = (
    "check the network and the endpoint, and whether that should begin with https://; it is tried "
    "again where it can be"
)
# OpenSSL's words, of what answers a greeting with something else, and of a certificate.
_NO_TLS: Final = "WRONG_VERSION_NUMBER"
_REFUSED_CERTIFICATE: Final = re.compile(r"certificate verify failed: ([^(\]]*[^(\] ])")
_CLOCK_HINT: Final = "set this machine's clock, and let it be kept: timedatectl set-ntp true"
_CREDENTIALS_HINT: Final = (
    "give a file with the key of the bucket, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)


class Answer(NamedTuple):
    """A refusal as the store sent it; headers' names are in small letters."""

    status: int
    code: str
    message: str
    fields: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def is_forbidding(self) -> bool:
        """Whether it is a right that is missing."""
        return self.status in {401, 403} and self.code not in _NOBODY

    @classmethod
    def of(cls, response: Mapping[str, Any]) -> Self:
        """From what botocore keeps of it."""
        told, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
        return cls(
            status=int(meta.get("HTTPStatusCode", 0)),
            code=str(told.get("Code") or ""),
            message=str(told.get("Message") or ""),
            fields=told,
            headers=meta.get("HTTPHeaders", {}),
        )


@cache
def failures() -> tuple[type[Exception], ...]:
    """Every kind of failure that the libraries let out; for an `except`, when one came."""
    client = importlib.import_module("aiohttp").ClientError
    exceptions = importlib.import_module("botocore.exceptions")
    parsers = importlib.import_module("botocore.parsers")
    return (
        exceptions.BotoCoreError,
        exceptions.ClientError,
        parsers.ResponseParserError,
        client,
        OSError,
        asyncio.IncompleteReadError,
    )


def translate(error: Exception, about: str, location: S3Location, now_ns: int) -> TidemarkError:
    """Any of `failures()` as ours. `about` is an object's name or what else was asked for."""
    exceptions = importlib.import_module("botocore.exceptions")
    if isinstance(error, exceptions.ClientError):
        return refusal(Answer.of(error.response), about, location, now_ns)
    if isinstance(
        error,
        exceptions.NoCredentialsError
        | exceptions.PartialCredentialsError
        | exceptions.ProfileNotFound
        | exceptions.ConfigParseError
        | exceptions.ConfigNotFound,
    ):
        return StoreError(f"no key for {location.url}: {_words(error)}", hint=_CREDENTIALS_HINT)
    if isinstance(error, exceptions.SSLError):
        return _of_tls(error, location)
    if isinstance(error, exceptions.BotoCoreError) and not isinstance(
        error,
        exceptions.HTTPClientError
        | exceptions.IncompleteReadError
        | exceptions.ConnectionError
        | exceptions.CredentialRetrievalError
        | exceptions.MetadataRetrievalError,
    ):
        # It was never sent, and would not be the next time.
        return StoreError(
            f"{_where(location)} cannot be asked for {about}: {_words(error)}",
            hint="check the bucket's name, the endpoint and the region",
        )
    return StoreUnavailableError(
        f"{_where(location)} does not answer: {_cause(error)}",
        hint=_PLAIN_HINT if _where(location).startswith("http:") else _WAY_HINT,
    )


def _of_tls(error: Exception, location: S3Location) -> StoreError:
    """What an attempt to speak TLS came to."""
    if _NO_TLS in str(error):
        return StoreError(
            f"{_where(location)} does not speak TLS",
            hint="check the port, and whether the endpoint should begin with http://",
        )
    found = _REFUSED_CERTIFICATE.search(str(error))
    why = found[1] if found else _words(error)
    return StoreError(
        f"the certificate of {_where(location)} is not trusted: {why}",
        hint="check the endpoint; if the store has an authority of its own, name the file with its "
        "certificate: --repository-ca FILE",
    )


def _cause(error: Exception) -> str:
    """Why a connection failed, as short as it can be told."""
    inner = getattr(error, "kwargs", {}).get("error")
    if not isinstance(inner, Exception):
        return _words(error)
    failed = getattr(inner, "os_error", None)
    if not isinstance(failed, OSError) or failed.errno is None:
        return _words(inner)
    # The event loop's words are an address; those of a name that is not found are its own.
    is_number = failed.errno > 0 and not isinstance(failed, socket.gaierror)
    return (os.strerror(failed.errno) if is_number else str(failed.strerror)).lower()


def refusal(answer: Answer, about: str, location: S3Location, now_ns: int) -> TidemarkError:
    """What the store's own answer means."""
    return (
        _of_object(answer, about, location)
        or _of_state(answer, about)
        or _of_place(answer, location, now_ns)
        or _of_identity(answer, about, location)
        or StoreError(
            f"the store refused {about}: {_said(answer)}",
            hint="look the code up in the documentation of the store",
        )
    )


def answer_of(error: TidemarkError) -> Answer | None:
    """The refusal behind an error made here; None where nobody answered."""
    response = getattr(error.__cause__, "response", None)
    return Answer.of(response) if isinstance(response, dict) else None


def clock_error(headers: Mapping[str, str], now_ns: int) -> int | None:
    """Seconds that this machine is ahead of the store; None where its answer has no date."""
    try:
        theirs = parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return None
    return round(now_ns / _NS - theirs)


def clock_is_wrong(ahead_seconds: int | None) -> StoreError:
    """The error for a clock that signs with a wrong time."""
    if ahead_seconds is None:
        return StoreError("this machine's clock and the store's differ too much", hint=_CLOCK_HINT)
    minutes, way = abs(ahead_seconds) / 60, "ahead of" if ahead_seconds > 0 else "behind"
    return StoreError(
        f"this machine's clock is {minutes:.0f} minutes {way} the store's", hint=_CLOCK_HINT
    )


def wrong_region(location: S3Location, right: str) -> StoreError:
    """The error for a bucket that lies elsewhere; `right` is empty where nobody says where."""
    if not right:
        return StoreError(
            f"the bucket {location.bucket} is in another region than {location.region}",
            hint="look its region up where it was made, and give it: --repository-region NAME",
        )
    return StoreError(
        f"the bucket {location.bucket} is in another region: {right}",
        hint=f"give its region: --repository-region {right}",
    )


def no_s3(location: S3Location) -> StoreError:
    """The error for what answers, but not as an S3 does."""
    return StoreError(
        f"{_where(location)} does not answer as an S3 does",
        hint="check the endpoint's host and port, and http or https: a store's console is none",
    )


def no_bucket(location: S3Location) -> NoRepositoryError:
    """The error for a bucket that is not there."""
    return NoRepositoryError(
        f"there is no bucket {location.bucket} at {_where(location)}",
        hint="make the bucket first, or check its name, the endpoint and whose key it is",
    )


def shorter(name: str) -> DamagedError:
    """The error for an object that ends before what is known to be in it."""
    return DamagedError(
        f"{name} is shorter than it should be",
        hint="run tidemark verify to see what it affects",
    )


def _of_object(answer: Answer, about: str, location: S3Location) -> TidemarkError | None:
    """What has to do with what the store holds."""
    code, status = answer.code, answer.status
    if code == "NoSuchBucket":
        return no_bucket(location)
    if code in _MISSING:
        return ObjectMissingError(f"the repository has no object {about}")
    if code == "InvalidRange" or status == 416:
        return shorter(about)
    if code == "PreconditionFailed" or status == 412:
        return ObjectExistsError(f"the repository has an object {about} already")
    if code == "InvalidObjectState":
        return StoreError(
            f"{about} was moved to an archive and cannot be read",
            hint="restore it from the archive, and take the lifecycle rule away that moved it",
        )
    return None


def _of_state(answer: Answer, about: str) -> TidemarkError | None:
    """What has to do with how the store is."""
    code, status = answer.code, answer.status
    if _is_full(answer):
        return StoreFullError(
            f"the store is full: cannot write {about}",
            hint="raise the quota of the bucket or the account, or remove what is not needed",
        )
    if code in _PASSING or status in {408, 429} or (status >= 500 and code not in _UNKNOWN):
        return StoreUnavailableError(
            f"the store is in trouble at {about}: {_said(answer)}",
            hint="it is tried again where it can be; if it lasts, ask who runs the store",
        )
    return None


def _is_full(answer: Answer) -> bool:
    words = answer.message.lower()
    return (
        answer.code in _FULL or answer.status == 507 or any(each in words for each in _FULL_WORDS)
    )


def _of_place(answer: Answer, location: S3Location, now_ns: int) -> TidemarkError | None:
    """What has to do with where and when it was signed."""
    right = answer.fields.get("Region") or answer.headers.get("x-amz-bucket-region", "")
    # The answer to a HEAD names no code.
    is_elsewhere = answer.status == 400 and right not in {"", location.region}
    if answer.code in _ELSEWHERE or answer.status in _REDIRECTIONS or is_elsewhere:
        return wrong_region(location, right)
    if answer.code == _SKEWED:
        return clock_is_wrong(clock_error(answer.headers, now_ns))
    # Every S3 names a code, and the library the status where there is no body.
    return None if answer.code else no_s3(location)


def _of_identity(answer: Answer, about: str, location: S3Location) -> TidemarkError | None:
    """What has to do with who asks."""
    if answer.code in _EXPIRED:
        return StoreError(
            "the store's session token has expired", hint="get a new one, or use a key that lasts"
        )
    if answer.code == "InvalidAccessKeyId":
        return StoreError(
            f"{_where(location)} does not know this access key",
            hint="check aws_access_key_id in the credentials, and that it is a key of this store",
        )
    if answer.code == "SignatureDoesNotMatch":
        return StoreError(
            f"{_where(location)} refuses the key: the secret does not belong to the access key",
            hint="copy the secret again; if it is right, check the region and the endpoint",
        )
    if answer.status in {401, 403}:
        return StoreForbiddenError(
            f"the key may not do this with {about}: {_said(answer)}",
            hint="let it list the bucket, and read, write and delete below the prefix",
        )
    return None


def _said(answer: Answer) -> str:
    """Code and message, or as much as there is."""
    code = answer.code or str(answer.status)
    return f"{code}, {answer.message}" if answer.message else code


def _where(location: S3Location) -> str:
    return location.endpoint or "AWS"


def _words(error: Exception) -> str:
    """What a library says, on one line; what it is where it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
