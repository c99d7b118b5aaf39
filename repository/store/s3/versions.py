"""All that a bucket keeps of one name: what is there, what was, and what says that it is gone."""

from typing import Any, Final, NamedTuple

from repository.errors import StoreUnavailableError
from repository.store.s3.client import Bucket

# The most that any store gives at once.
PAGE_KEYS: Final = 1000


class Version(NamedTuple):
    """One of them; a marker has no content and hides what came before it."""

    id: str
    is_marker: bool
    is_latest: bool


async def has_locks(bucket: Bucket) -> bool:
    """Whether versions can be locked."""
    answer = await bucket.call("get_object_lock_configuration", bucket.location.url)
    return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")


async def has_versions(bucket: Bucket) -> bool:
    """Whether there are versions, or were: those stay when new ones are no longer made."""
    answer = await bucket.call("get_bucket_versioning", bucket.location.url)
    return answer.get("Status") in {"Enabled", "Suspended"}


async def versions_of(bucket: Bucket, name: str, page_keys: int = PAGE_KEYS) -> list[Version]:
    """Every version of a name, the latest one last: so removing them shows no older one."""
    key = bucket.key(name)
    found: list[Version] = []
    start: dict[str, str] = {}
    while True:
        page = await bucket.call(
            "list_object_versions", name, Prefix=key, MaxKeys=page_keys, **start
        )
        found += _of_key(page, key)
        following = _following(page, name)
        # Sorted by key: names that only begin alike come later.
        if following is None or following["KeyMarker"] > key:
            return sorted(found, key=lambda version: version.is_latest)
        if following == start:
            raise _endless(name)
        start = following


def _of_key(page: dict[str, Any], key: str) -> list[Version]:
    kinds = (("Versions", False), ("DeleteMarkers", True))
    return [
        Version(str(entry["VersionId"]), is_marker, bool(entry.get("IsLatest")))
        for field, is_marker in kinds
        for entry in page.get(field, [])
        if entry["Key"] == key
    ]


def _following(page: dict[str, Any], name: str) -> dict[str, str] | None:
    """Where the next page begins; None after the last one."""
    if "IsTruncated" not in page:
        raise _endless(name)
    if not page["IsTruncated"]:
        return None
    if not page.get("NextKeyMarker"):
        raise _endless(name)
    start = {"KeyMarker": str(page["NextKeyMarker"])}
    if page.get("NextVersionIdMarker"):
        start["VersionIdMarker"] = str(page["NextVersionIdMarker"])
    return start


def _endless(name: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"the store's list of versions of {name} is not whole",
        hint="it is tried again where it can be; if it lasts, ask who runs the store",
    )
