"""A store that may only be read: it reads as the one behind it, and takes nothing."""

import pytest

from repository.errors import UnsupportedFormatError
from repository.store.readonly import ReadOnlyStore
from tests.fakes.store import MemoryStore

pytestmark = pytest.mark.asyncio

REASON = UnsupportedFormatError("a feature is unknown", hint="upgrade Tidemark")


async def test_it_reads_as_the_store_behind_it() -> None:
    inner = MemoryStore()
    await inner.put("packs/a", b"abc")
    store = ReadOnlyStore(inner, REASON)

    assert await store.get("packs/a") == b"abc"
    assert await store.get_range("packs/a", 1, 2) == b"bc"
    assert (await store.head("packs/a")).size == 3
    assert [info.name async for info in store.list_objects("packs/")] == ["packs/a"]


async def test_it_takes_and_removes_nothing_and_says_why_each_time() -> None:
    inner = MemoryStore()
    await inner.put("packs/a", b"abc")
    store = ReadOnlyStore(inner, REASON)

    for _ in range(2):
        with pytest.raises(UnsupportedFormatError, match="a feature is unknown") as caught:
            await store.put("packs/b", b"b")
        assert caught.value.hint == "upgrade Tidemark"
        with pytest.raises(UnsupportedFormatError):
            await store.delete("packs/a")
        with pytest.raises(UnsupportedFormatError):
            async with store.writer("packs/c"):
                pass
    store.remove_leftovers()

    assert inner.objects == {"packs/a": b"abc"}
