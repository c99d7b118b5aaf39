"""Whether a page of a listing is what it says. Pure.

A page that fell short and looks whole would read as "these objects are gone", and somebody would
act on it. So anything odd about a page makes the listing fail, and it is asked for again: behind
the last name that it gave. What is out of order fails for good: it may have passed over names
before that one, which nobody would ask for again.
"""

from collections.abc import Mapping
from typing import Any

from repository.errors import StoreError, StoreUnavailableError
from repository.store.interface import ObjectInfo


class Listing:
    """Pages of the keys below a prefix, checked one after the other."""

    def __init__(self, bucket: str, key_prefix: str, own_prefix: str) -> None:
        self._bucket = bucket
        self._key_prefix = key_prefix
        self._own_prefix = own_prefix
        self._last = ""
        self._tokens: set[str] = set()
        # What goes with the request for the next page; None after the last one.
        self.following: str | None = ""

    def page(self, answer: Mapping[str, Any]) -> list[ObjectInfo]:
        """The objects on a page; StoreUnavailableError for one that cannot be right.

        StoreError where it is out of order.
        """
        if "IsTruncated" not in answer or answer.get("Name") != self._bucket:
            # A success whose body is of something else, an error for instance, decodes to nothing.
            raise _odd("it is no listing of the bucket")
        entries = list(answer.get("Contents", []))
        count = answer.get("KeyCount", len(entries))
        if count != len(entries):
            raise _odd(f"{count} keys were announced, and {len(entries)} came")
        found = [self._entry(entry) for entry in entries]
        self._turn(answer)
        # A console's folder is a key that ends with a slash: no object's name does.
        return [info for info in found if info.name and not info.name.endswith("/")]

    def _entry(self, entry: Mapping[str, Any]) -> ObjectInfo:
        key = str(entry.get("Key", ""))
        if not key.startswith(self._key_prefix):
            raise _odd(f"{key!r} is not below {self._key_prefix!r}")
        if key <= self._last:
            raise StoreError(
                f"the store's listing is out of order: {key!r} after {self._last!r}",
                hint="try again; a store that does it again is none for a repository",
            )
        if "Size" not in entry:
            raise _odd(f"{key!r} has no size")
        self._last = key
        return ObjectInfo(key.removeprefix(self._own_prefix), int(entry["Size"]))

    def _turn(self, answer: Mapping[str, Any]) -> None:
        """Remember how it goes on."""
        if not answer["IsTruncated"]:
            self.following = None
            return
        token = answer.get("NextContinuationToken")
        if not token:
            raise _odd("there is more, and no word on how to get it")
        if token in self._tokens:
            raise _odd("it begins anew")
        self._tokens.add(token)
        self.following = str(token)


def _odd(what: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"the store's listing is not whole: {what}",
        hint="it is tried again where it can be; if it lasts, ask who runs the store",
    )
