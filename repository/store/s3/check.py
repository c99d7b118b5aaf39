"""Whether a bucket can hold a repository, told before one is made in it and whenever asked.

What is wrong with a key, a clock or a rule shows here, and not when a restore needs the bucket.
"""

import hashlib
import secrets
from collections.abc import Awaitable
from typing import Any, Final

from repository.errors import DamagedError, ObjectMissingError, StoreError
from repository.store.s3.capabilities import Capabilities
from repository.store.s3.client import Bucket
from repository.store.s3.errors import (
    Answer,
    answer_of,
    clock_error,
    clock_is_wrong,
    no_s3,
    wrong_region,
)
from repository.store.s3.lifecycle import judge
from repository.store.s3.signing import content
from repository.store.s3.store import S3Store
from repository.store.s3.versions import has_locks, has_versions

# Stores refuse a signature that is 15 minutes off; a clock that is 5 off will be.
CLOCK_SECONDS_MAX: Final = 300
_CONTENT: Final = b"written, read and removed"
_NO_RULES: Final = "NoSuchLifecycleConfiguration"
_NO_LOCKS: Final = "ObjectLockConfigurationNotFoundError"
_AWS: Final = ".amazonaws.com"
# A start that finds no record looks and makes one.
_ANEW: Final = (
    "remove the object called capabilities below the prefix, and start the coordinator anew: it "
    "finds out what the bucket can do"
)


async def check(store: S3Store) -> list[str]:
    """Warnings, in words; raises the first error that there is.

    Missing bucket, key, region, clock, a key that may not write, read and delete below the prefix,
    and rules that delete or archive what lies there.
    """
    bucket = store.bucket
    await check_access(bucket)
    await _check_region(bucket)
    await _check_writing(store)
    return await _check_rules(bucket)


async def check_recorded(store: S3Store) -> list[str]:
    """The same of a bucket with a repository: warnings, too, where it is not as it was recorded."""
    warnings = await check(store)
    bucket, url = store.bucket, store.bucket.location.url
    locks = await _told(has_locks(bucket))
    versions = locks or await _told(has_versions(bucket))
    return [*warnings, *changes(store.capabilities, url, versions=versions, locks=locks)]


def changes(
    recorded: Capabilities, url: str, *, versions: bool | None, locks: bool | None
) -> list[str]:
    """What is to be said where a bucket is another than it was; None for what nobody tells."""
    found = []
    if versions and not recorded.versioning:
        found.append(
            f"{url} keeps versions now, and did not when its repository was made: what is deleted "
            f"stays, and is charged for; suspend versioning, or {_ANEW}"
        )
    elif locks and not recorded.object_lock:
        found.append(
            f"{url} can lock objects now, and could not when its repository was made; to lock what "
            f"backups need, {_ANEW}"
        )
    if locks is False and recorded.object_lock:
        found.append(
            f"{url} can lock objects no more, and could when its repository was made: nothing new "
            "is kept from deletion; see whether it is the same bucket, and have it lock again"
        )
    elif versions is False and recorded.versioning:
        found.append(
            f"{url} keeps no versions, and did when its repository was made: what is deleted by "
            "mistake is gone; see whether it is the same bucket, and have it keep them"
        )
    return found


async def _told(question: Awaitable[bool]) -> bool | None:
    """The answer; None where the store refuses the question."""
    try:
        return await question
    except StoreError as error:
        if error.retryable:
            raise
        answer = answer_of(error)
        return False if answer is not None and answer.code == _NO_LOCKS else None


async def check_access(bucket: Bucket) -> None:
    """Key, bucket and clock: one request."""
    prefix, url = bucket.location.key_prefix, bucket.location.url
    try:
        answer = await bucket.call("list_objects_v2", url, Prefix=prefix, MaxKeys=1)
    except ObjectMissingError as error:
        # No S3 has that to say of a bucket.
        raise no_s3(bucket.location) from error
    except StoreError as error:
        raise _not_allowed(error, "list what is in", url) from error
    ahead = clock_error(_headers(answer), bucket.now_ns())
    if ahead is not None and abs(ahead) > CLOCK_SECONDS_MAX:
        raise clock_is_wrong(ahead)


async def _check_region(bucket: Bucket) -> None:
    """Some regions serve the buckets of others, and refuse what is signed for whoever asks."""
    endpoint, region = bucket.location.endpoint, bucket.location.region
    if endpoint is not None and _AWS not in endpoint:
        return
    answer = await bucket.call("head_bucket", bucket.location.url)
    right = _headers(answer).get("x-amz-bucket-region")
    if right is not None and right != region:
        raise wrong_region(bucket.location, right)


async def _check_writing(store: S3Store) -> None:
    bucket, name = store.bucket, f"probe/{secrets.token_hex(8)}"
    where, key = bucket.location.url, bucket.key(name)
    md5 = hashlib.md5(_CONTENT, usedforsecurity=False).digest()
    sums = content(store.capabilities, md5=md5)
    parameters = {"Key": key, "Body": _CONTENT, "ContentMD5": sums["ContentMD5"]}
    try:
        written = await bucket.call("put_object", name, **parameters)
    except StoreError as error:
        raise _not_allowed(error, "write to", where) from error
    try:
        came = await store.get(name)
    except StoreError as error:
        raise _not_allowed(error, "read from", where) from error
    if came != _CONTENT:
        raise DamagedError(
            f"{where} gives other bytes than it was given", hint="do not use this store"
        )
    version = {"VersionId": written["VersionId"]} if "VersionId" in written else {}
    try:
        await bucket.call("delete_object", name, Key=key, **version)
    except StoreError as error:
        raise _not_allowed(error, "delete from", where) from error


def _not_allowed(error: StoreError, what: str, where: str) -> StoreError:
    """The same error, or a clearer one where it is a right that is missing."""
    answer = answer_of(error)
    if answer is None or not answer.is_forbidding:
        return error
    return StoreError(
        f"the key may not {what} {where}",
        hint="let it read, write and delete below the prefix, and list the bucket",
    )


async def _check_rules(bucket: Bucket) -> list[str]:
    url = bucket.location.url
    try:
        answer = await bucket.call("get_bucket_lifecycle_configuration", url)
    except StoreError as error:
        refused = answer_of(error)
        if error.retryable or refused is None:
            raise
        return [] if refused.code == _NO_RULES else [_not_told(refused, url)]
    if "Rules" not in answer:
        return [_not_told(None, url)]
    verdicts = judge(answer["Rules"], bucket.location.key_prefix)
    if verdicts.harmful:
        raise StoreError(
            f"the lifecycle of {bucket.location.bucket} would destroy a repository in it: "
            f"{', '.join(verdicts.harmful)}",
            hint="remove the rule, or limit it to other prefixes",
        )
    return [f"{each}, which makes reading dearer" for each in verdicts.costly]


def _not_told(refused: Answer | None, url: str) -> str:
    why = f" ({refused.code})" if refused else ""
    return (
        f"the store does not tell the lifecycle rules of {url}{why}: make sure that none deletes "
        "or archives objects"
    )


def _headers(answer: dict[str, Any]) -> dict[str, str]:
    return dict(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}))
