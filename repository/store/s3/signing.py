"""Requests signed for somebody else: one object, one content, for some minutes.

Everything that must not differ is a header, and every header is part of the signature: whoever
sends other bytes, another length or another name is refused by the store.
"""

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from typing_extensions import override

from repository.errors import UsageError
from repository.store.interface import Checksum, SignedRequest, Signing, StoredObject
from repository.store.s3.capabilities import Capabilities
from repository.store.s3.client import Bucket

_MD5: Final = re.compile(r"[0-9a-f]{32}")
# What every service takes at most.
SECONDS_MAX: Final = 7 * 24 * 3600
# The one that nobody can take away again, whatever rights he has.
LOCK_MODE: Final = "COMPLIANCE"
# Stands for any object where only what comes before its name is of interest.
_ANY_NAME: Final = "x"


class S3Signing(Signing):
    """Signs with the store's own key."""

    def __init__(self, bucket: Bucket, capabilities: Capabilities, endpoint: str) -> None:
        self._bucket = bucket
        self._capabilities = capabilities
        self._endpoint = endpoint

    @property
    @override
    def endpoint(self) -> str:
        return self._endpoint

    @property
    @override
    def checksum(self) -> Checksum:
        return Checksum.SHA256 if self._capabilities.checksum_sha256 else Checksum.MD5

    @override
    async def sign_put(
        self,
        name: str,
        *,
        size_bytes: int,
        checksum: bytes,
        seconds: int,
        retain_until: datetime | None = None,
    ) -> SignedRequest:
        parameters = {
            "Key": self._bucket.key(name),
            "ContentLength": size_bytes,
            **self._content(checksum),
            **locked(retain_until, self._capabilities),
        }
        url = await self._bucket.sign("put_object", name, _checked(seconds), **parameters)
        return SignedRequest("PUT", url, _headers(parameters))

    @override
    async def sign_get(self, name: str, *, seconds: int) -> SignedRequest:
        key = self._bucket.key(name)
        url = await self._bucket.sign("get_object", name, _checked(seconds), Key=key)
        return SignedRequest("GET", url, {})

    @override
    async def stored(self, name: str, offset: int, length: int) -> StoredObject:
        """What there is; its tag is taken for its MD5 where it looks like one."""
        answer, part = await self._bucket.read_range(name, offset, length)
        size = _whole_size(answer)
        if size is None or self.checksum is Checksum.SHA256:
            # Beside a part of it no store tells the checksum of the whole.
            asked = {"ChecksumMode": "ENABLED"} if self.checksum is Checksum.SHA256 else {}
            key = self._bucket.key(name)
            answer = await self._bucket.call("head_object", name, Key=key, **asked)
            size = int(answer["ContentLength"])
        return StoredObject(size, self._told(answer), lock_of(answer), part)

    def _told(self, answer: Mapping[str, Any]) -> bytes | None:
        if self.checksum is Checksum.SHA256:
            told = answer.get("ChecksumSHA256", "")
            return base64.b64decode(told) if told else None
        tag = answer.get("ETag", "").strip('"')
        # Encrypted by a key of its own, or sent in parts, an object has a tag of another kind.
        foreign = answer.get("ServerSideEncryption", "AES256") != "AES256"
        return bytes.fromhex(tag) if _MD5.fullmatch(tag) and not foreign else None

    def _content(self, checksum: bytes) -> dict[str, Any]:
        sums = {"sha256": checksum} if self.checksum is Checksum.SHA256 else {"md5": checksum}
        return content(self._capabilities, **sums)


async def endpoint_of(bucket: Bucket) -> str:
    """What every signed URL of a bucket begins with, the prefix in it included."""
    key = bucket.key(_ANY_NAME)
    url = await bucket.sign("get_object", bucket.location.url, 1, Key=key)
    return url.partition("?")[0].removesuffix(quote(key)) + quote(bucket.location.key_prefix)


def content(capabilities: Capabilities, *, md5: bytes = b"", sha256: bytes = b"") -> dict[str, Any]:
    """Parameters that hold a write to these very bytes, and to a name that is free."""
    parameters: dict[str, Any] = {}
    if md5:
        parameters["ContentMD5"] = base64.b64encode(md5).decode()
    if sha256 and capabilities.checksum_sha256:
        parameters["ChecksumSHA256"] = base64.b64encode(sha256).decode()
    if capabilities.conditional_put:
        parameters["IfNoneMatch"] = "*"
    return parameters


def locked(until: datetime | None, capabilities: Capabilities) -> dict[str, Any]:
    """Parameters that lock an object as it is written; UsageError where the store cannot."""
    if until is None:
        return {}
    check_lock(until, capabilities)
    return {"ObjectLockMode": LOCK_MODE, "ObjectLockRetainUntilDate": until}


def lock_of(answer: Mapping[str, Any]) -> datetime | None:
    """Until when nobody can delete an object, by what the store says of it.

    A lock in governance mode is none: who has the right may take it away.
    """
    until: datetime | None = answer.get("ObjectLockRetainUntilDate")
    if until is None or answer.get("ObjectLockMode") != LOCK_MODE:
        return None
    return until.astimezone(UTC)


def check_lock(until: datetime, capabilities: Capabilities) -> None:
    """UsageError for a lock that cannot be."""
    if until.tzinfo is None:
        raise UsageError(f"a lock ends at a time with a zone, and {until} has none")
    if not capabilities.object_lock:
        raise UsageError(
            "this bucket cannot lock objects",
            hint="make a bucket with object lock, which most stores allow for new ones only",
        )


def _whole_size(answer: Mapping[str, Any]) -> int | None:
    """The size of an object of which a part was read; None where that is not told."""
    told = str(answer.get("ContentRange", ""))
    if not told:
        return int(answer["ContentLength"])
    total = told.rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def _headers(parameters: dict[str, Any]) -> dict[str, str]:
    """The same parameters as a sender has to write them."""
    written = {
        "ContentLength": "content-length",
        "ContentMD5": "content-md5",
        "ChecksumSHA256": "x-amz-checksum-sha256",
        "IfNoneMatch": "if-none-match",
        "ObjectLockMode": "x-amz-object-lock-mode",
        "ObjectLockRetainUntilDate": "x-amz-object-lock-retain-until-date",
    }
    return {
        header: _text(parameters[field]) for field, header in written.items() if field in parameters
    }


def _text(value: str | int | datetime) -> str:
    """As it is signed: times in whole seconds of UTC."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return str(value)


def _checked(seconds: int) -> int:
    if not 0 < seconds <= SECONDS_MAX:
        raise UsageError(f"a request is signed for up to {SECONDS_MAX} seconds, not {seconds}")
    return seconds
