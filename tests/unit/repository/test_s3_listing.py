"""Pages of a listing that cannot be right."""

from typing import Any

import pytest

from repository.errors import StoreError, StoreUnavailableError
from repository.store.s3.listing import Listing


def page(*keys: str, **more: Any) -> dict[str, Any]:
    contents = [{"Key": key, "Size": len(key)} for key in keys]
    return {
        "Name": "bucket",
        "IsTruncated": False,
        "KeyCount": len(keys),
        "Contents": contents,
        **more,
    }


def listing() -> Listing:
    return Listing("bucket", "p/packs/", "p/")


def test_pages_are_joined_by_their_tokens_until_the_last_one() -> None:
    pages = listing()

    first = pages.page(page("p/packs/a", IsTruncated=True, NextContinuationToken="1"))
    assert pages.following == "1"
    second = pages.page(page("p/packs/b"))

    assert [*first, *second] == [("packs/a", 9), ("packs/b", 9)]
    assert pages.following is None


def test_a_folder_of_a_console_is_no_object() -> None:
    found = listing().page(page("p/packs/", "p/packs/a", "p/packs/b/"))

    assert found == [("packs/a", 9)]


def test_a_store_need_not_count_and_may_send_few() -> None:
    pages = listing()
    short = page("p/packs/a", IsTruncated=True, NextContinuationToken="1")
    del short["KeyCount"]

    assert pages.page(short) == [("packs/a", 9)]
    assert pages.page(page(IsTruncated=True, NextContinuationToken="2")) == []
    assert pages.following == "2"


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"Contents": []},
        {"Name": "bucket", "Contents": []},
        page("p/packs/b") | {"Name": "other"},
        page("p/packs/b", KeyCount=2),
        page("p/packs/b", KeyCount=0),
        page(KeyCount=5),
        page("p/packs/b", IsTruncated=True),
        page("p/packs/b", IsTruncated=True, NextContinuationToken=""),
        page("p/packs/b", IsTruncated=True, NextContinuationToken="first"),
        page("p/roots/b"),
        page("q/packs/b"),
        page("p/packs/b") | {"Contents": [{"Key": "p/packs/b"}]},
        page("p/packs/b") | {"Contents": [{"Size": 1}]},
    ],
)
def test_a_page_that_cannot_be_right_fails_the_listing(odd: dict[str, Any]) -> None:
    pages = listing()
    pages.page(page("p/packs/a", IsTruncated=True, NextContinuationToken="first"))

    with pytest.raises(StoreUnavailableError, match="not whole"):
        pages.page(odd)


@pytest.mark.parametrize("keys", ["a", "0", "cb", "bb"])
def test_what_is_out_of_order_fails_the_listing_for_good(keys: str) -> None:
    """Asked for again behind the last name, it would lack what it has passed over."""
    pages = listing()
    pages.page(page("p/packs/a", IsTruncated=True, NextContinuationToken="first"))

    with pytest.raises(StoreError, match="out of order") as caught:
        pages.page(page(*(f"p/packs/{key}" for key in keys)))

    assert not caught.value.retryable
