"""What every store promises, run for each of them."""

import asyncio
import os
import resource
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from repository.errors import (
    DamagedError,
    NoRepositoryError,
    ObjectExistsError,
    ObjectMissingError,
    StoreFullError,
    StoreUnavailableError,
    TidemarkError,
    UsageError,
)
from repository.failpoints import VARIABLE, arm
from repository.store.breaking import Breaker, BreakingStore
from repository.store.circuit import Limits
from repository.store.counting import CountingStore
from repository.store.interface import NAME_LENGTH_MAX, Store
from repository.store.local import LocalStore, _LocalWriter
from repository.store.retrying import RetryingStore
from repository.store.s3.store import S3Store
from tests.fakes.clock import WaitedClock
from tests.fakes.misbehaving import MisbehavingStore, Plan
from tests.fakes.store import MemoryStore
from tests.servers.buckets import (
    CAPABILITIES,
    beside,
    make_bucket,
    new_name,
    opened,
    remove_bucket,
)
from tests.servers.shared import server

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL_BYTES = 1024 * 1024


def retrying(store: Store) -> Store:
    """It waits as long as ever, in no time."""
    clock = WaitedClock()
    return RetryingStore(store, clock=clock, sleep=clock.sleep)


AROUND: dict[str, Callable[[Store], Store]] = {
    "itself": lambda store: store,
    "retrying": retrying,
    "breaking": lambda store: BreakingStore(store, Breaker(Limits(failures_max=1000))),
    "counting": CountingStore,
    "misbehaving": lambda store: MisbehavingStore(
        store, Plan(seed=1, rate=0.0), latency_seconds=0.0
    ),
    "all": lambda store: BreakingStore(
        retrying(CountingStore(store)), Breaker(Limits(failures_max=1000))
    ),
}
KINDS = ["local", *(f"memory, {name}" for name in AROUND)]


class Place(NamedTuple):
    """A store, how to take away what it stands on, and what it says then."""

    store: Store
    vanish: Callable[[], Awaitable[None]]
    gone: type[TidemarkError]


class Passing(NamedTuple):
    """A store that may be away for a while."""

    store: Store
    vanish: Callable[[], object]
    come_back: Callable[[], object]


@pytest.fixture(params=KINDS)
def passing(request: pytest.FixtureRequest, tmp_path: Path) -> Passing:
    kind, _, around = request.param.partition(", ")
    if kind == "local":
        directory, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
        directory.mkdir()
        return Passing(
            LocalStore(directory),
            lambda: directory.rename(elsewhere),
            lambda: elsewhere.rename(directory),
        )
    memory = MemoryStore()
    return Passing(
        AROUND[around](memory),
        lambda: setattr(memory, "is_gone", True),
        lambda: setattr(memory, "is_gone", False),
    )


@pytest.fixture(scope="module", params=[*KINDS, "radosgw", "rclone", "moto"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bucket(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[S3Store | None]:
    """A bucket for all tests of this kind of store, if it is one."""
    if kind in KINDS:
        yield None
        return
    running = server(kind, tmp_path_factory)
    async with opened(running, new_name(), capabilities=CAPABILITIES[kind]) as nowhere:
        yield await make_bucket(nowhere)


@pytest.fixture
def store(kind: str, bucket: S3Store | None, tmp_path: Path) -> Store:
    if bucket is not None:
        # Pages so small that most listings have several.
        return beside(bucket, page_keys=3)
    name, _, around = kind.partition(", ")
    if name == "memory":
        return AROUND[around](MemoryStore())
    directory = tmp_path / "repository"
    directory.mkdir()
    return LocalStore(directory)


@pytest_asyncio.fixture(loop_scope="module")
async def place(kind: str, bucket: S3Store | None, tmp_path: Path) -> Place:
    if bucket is not None:
        made = await make_bucket(bucket)
        return Place(made, lambda: remove_bucket(made), NoRepositoryError)
    name, _, around = kind.partition(", ")
    if name == "memory":
        memory = MemoryStore()
        return Place(AROUND[around](memory), memory.vanish, StoreUnavailableError)
    directory = tmp_path / "repository"
    directory.mkdir()
    remove = partial(asyncio.to_thread, shutil.rmtree, directory)
    return Place(LocalStore(directory), remove, StoreUnavailableError)


@pytest.fixture
def tiny_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory with room for less than SMALL_BYTES.

    Where nothing may be mounted, a limit on the size of files stands in for a full disk.
    """
    directory = tmp_path / "tiny"
    directory.mkdir()
    options = f"size={SMALL_BYTES // 2}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tidemark-test", str(directory)]
    mounted = shutil.which("mount") and subprocess.call(mount, stderr=subprocess.DEVNULL) == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_BYTES // 2, limits[1]))
    yield directory
    if mounted:
        subprocess.run(["umount", str(directory)], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(params=KINDS)
def tiny_store(request: pytest.FixtureRequest, tiny_directory: Path) -> Store:
    kind, _, around = request.param.partition(", ")
    if kind == "local":
        return LocalStore(tiny_directory)
    return AROUND[around](MemoryStore(capacity=SMALL_BYTES // 2))


async def names(store: Store, prefix: str = "") -> list[str]:
    return [info.name async for info in store.list_objects(prefix)]


async def test_an_object_comes_back_as_it_was_put(store: Store) -> None:
    await store.put("packs/ab/one", b"content")

    assert await store.get("packs/ab/one") == b"content"
    assert await store.head("packs/ab/one") == ("packs/ab/one", 7)


async def test_an_object_may_be_empty(store: Store) -> None:
    await store.put("empty", b"")

    assert await store.get("empty") == b""
    assert await store.get_range("empty", 0, 0) == b""


async def test_an_object_is_written_in_pieces_of_any_kind(store: Store) -> None:
    async with store.writer("pieces") as writer:
        for piece in (b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3], b""):
            await writer.write(piece)
        await writer.write(b"gh", bytearray(), memoryview(b"ij"), bytearray(b"k"))
        await writer.commit()

    assert await store.get("pieces") == b"abcdefghijk"


async def test_a_large_object_comes_back_whole(store: Store) -> None:
    content = bytes(range(256)) * 40_000

    await store.put("large", content)

    assert await store.get("large") == content


async def test_a_range_is_exactly_what_was_asked_for(store: Store) -> None:
    await store.put("object", b"0123456789")

    assert await store.get_range("object", 0, 10) == b"0123456789"
    assert await store.get_range("object", 3, 4) == b"3456"
    assert await store.get_range("object", 9, 1) == b"9"


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (8, 3), (10, 1), (100, 1)])
async def test_a_range_beyond_the_end_is_damage(store: Store, offset: int, length: int) -> None:
    await store.put("object", b"0123456789")

    with pytest.raises(DamagedError):
        await store.get_range("object", offset, length)


async def test_an_object_that_is_not_there_is_missing(store: Store) -> None:
    await store.put("packs/ab/one", b"content")

    for name in ("packs/ab/two", "roots/one", "packs/ab", "packs"):
        with pytest.raises(ObjectMissingError):
            await store.get(name)
        with pytest.raises(ObjectMissingError):
            await store.get_range(name, 0, 1)
        with pytest.raises(ObjectMissingError):
            await store.head(name)
        with pytest.raises(ObjectMissingError):
            await store.delete(name)


async def test_an_object_is_never_replaced(store: Store) -> None:
    await store.put("object", b"first")

    with pytest.raises(ObjectExistsError):
        await store.put("object", b"second")

    assert await store.get("object") == b"first"
    assert await names(store) == ["object"]


async def test_an_object_that_was_deleted_is_gone(store: Store) -> None:
    await store.put("packs/a", b"a")
    await store.put("packs/b", b"b")

    await store.delete("packs/a")

    assert await names(store) == ["packs/b"]
    with pytest.raises(ObjectMissingError):
        await store.get("packs/a")


async def test_a_listing_is_sorted_and_shows_sizes(store: Store) -> None:
    for name in ("roots/b/2", "roots/b/1", "roots/a-/1", "roots/a/1", "packs/x", "config"):
        await store.put(name, name.encode())

    assert await names(store) == sorted(
        ["roots/b/2", "roots/b/1", "roots/a-/1", "roots/a/1", "packs/x", "config"]
    )
    assert [info async for info in store.list_objects("packs/")] == [("packs/x", 7)]


async def test_a_listing_holds_what_lies_below_its_prefix_only(store: Store) -> None:
    for name in ("roots/a/1", "roots/ab/1", "roots2/a/1"):
        await store.put(name, b"")

    assert await names(store, "roots/") == ["roots/a/1", "roots/ab/1"]
    assert await names(store, "roots/a/") == ["roots/a/1"]
    assert await names(store, "nothing/") == []
    assert await names(store, "roots/a/1/") == []


async def test_an_empty_store_lists_nothing(store: Store) -> None:
    assert await names(store) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../outside",
        "packs/../../outside",
        "packs/.",
        "packs/.hidden",
        ".tmp/object",
        "packs//double",
        "packs/",
        "Packs",
        "with space",
        "zero\x00byte",
        "new\nline",
        "line-end\n",
        "ünicode",
        "x" * (NAME_LENGTH_MAX + 1),
    ],
)
async def test_a_name_that_no_object_has_is_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError):
        await store.put(name, b"")
    for call in (store.get, store.head, store.delete):
        with pytest.raises(UsageError):
            await call(name)
    with pytest.raises(UsageError):
        await store.get_range(name, 0, 1)


@pytest.mark.parametrize("prefix", ["/", "packs", "../", "packs/../../", "packs//", ".tmp/"])
async def test_a_prefix_that_no_listing_has_is_refused(store: Store, prefix: str) -> None:
    with pytest.raises(UsageError):
        await names(store, prefix)


async def test_an_object_is_not_there_before_it_is_committed(store: Store) -> None:
    async with store.writer("packs/a") as writer:
        await writer.write(b"half")
        assert await names(store) == []
        with pytest.raises(ObjectMissingError):
            await store.get("packs/a")
        await writer.commit()
        assert await store.get("packs/a") == b"half"


async def test_a_writer_left_without_commit_leaves_nothing(store: Store) -> None:
    async with store.writer("packs/a") as writer:
        await writer.write(b"half")

    assert await names(store) == []
    await store.put("packs/a", b"whole")
    assert await store.get("packs/a") == b"whole"


async def test_a_writer_left_by_an_error_leaves_nothing(store: Store) -> None:
    async def fail() -> None:
        async with store.writer("packs/a") as writer:
            await writer.write(b"half")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await fail()

    assert await names(store) == []


async def test_of_two_writers_of_one_name_exactly_one_wins(store: Store) -> None:
    async def write(content: bytes) -> bool:
        try:
            async with store.writer("roots/v/1") as writer:
                await writer.write(content)
                await writer.commit()
        except ObjectExistsError:
            return False
        return True

    contents = [bytes([number]) * 5000 for number in range(12)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(write(content)) for content in contents]

    winners = [content for content, task in zip(contents, tasks, strict=True) if task.result()]
    assert winners == [await store.get("roots/v/1")]
    assert await names(store) == ["roots/v/1"]


async def test_a_full_store_says_so_and_keeps_nothing_of_the_object(tiny_store: Store) -> None:
    await tiny_store.put("before", b"b")

    with pytest.raises(StoreFullError):
        await tiny_store.put("large", bytes(SMALL_BYTES))

    assert await names(tiny_store) == ["before"]
    await tiny_store.put("after", b"a")
    assert await tiny_store.get("after") == b"a"


async def test_a_store_that_disappeared_says_so_and_is_not_empty(place: Place) -> None:
    store = place.store
    await store.put("packs/a", b"a")
    await place.vanish()

    with pytest.raises(place.gone):
        await store.put("packs/b", b"b")
    for call in (store.get, store.head, store.delete):
        with pytest.raises(place.gone):
            await call("packs/a")
    with pytest.raises(place.gone):
        await names(store)
    with pytest.raises(place.gone):
        await names(store, "packs/")


async def test_a_store_that_disappears_under_a_writer_fails_it(tmp_path: Path) -> None:
    directory = tmp_path / "repository"
    directory.mkdir()
    store = LocalStore(directory)

    async def write() -> None:
        async with store.writer("packs/a") as writer:
            await writer.write(b"half")
            shutil.rmtree(directory)
            await writer.commit()

    with pytest.raises(StoreUnavailableError):
        await write()


async def test_a_commit_that_found_the_store_away_may_be_repeated(passing: Passing) -> None:
    async with passing.store.writer("packs/a") as writer:
        await writer.write(b"con", b"tent")
        passing.vanish()
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                await writer.commit()
        passing.come_back()
        await writer.commit()

    assert await passing.store.get("packs/a") == b"content"


async def test_a_writer_that_is_left_after_a_failed_commit_leaves_nothing(passing: Passing) -> None:
    async with passing.store.writer("packs/a") as writer:
        await writer.write(b"content")
        passing.vanish()
        with pytest.raises(StoreUnavailableError):
            await writer.commit()
        passing.come_back()

    assert await names(passing.store) == []


async def test_what_a_disk_could_not_flush_is_never_committed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    arm({VARIABLE: "store.syncing=error"})
    try:
        async with store.writer("packs/a") as writer:
            await writer.write(b"content")
            for _ in range(3):
                with pytest.raises(StoreUnavailableError):
                    await writer.commit()
    finally:
        arm({})

    assert await names(store) == []
    await store.put("packs/a", b"content")


async def test_leftovers_of_a_crash_are_no_objects_and_are_removed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    await store.put("packs/a", b"a")
    (tmp_path / ".tmp" / "0123").write_bytes(b"half")

    assert await names(store) == ["packs/a"]
    store.remove_leftovers()

    assert os.listdir(tmp_path / ".tmp") == []
    assert await names(store) == ["packs/a"]


async def test_a_new_directory_has_no_leftovers(tmp_path: Path) -> None:
    LocalStore(tmp_path).remove_leftovers()

    assert os.listdir(tmp_path) == []


async def test_a_writer_cleans_up_after_itself(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    await store.put("packs/a", b"a")
    with pytest.raises(ObjectExistsError):
        await store.put("packs/a", b"a")
    async with store.writer("packs/b") as writer:
        await writer.write(b"half")

    assert os.listdir(tmp_path / ".tmp") == []


async def test_a_listing_survives_an_object_that_is_deleted_meanwhile(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for number in range(200):
        await store.put(f"packs/p{number:03d}", b"x")

    async def delete_some() -> None:
        for number in range(0, 200, 4):
            await store.delete(f"packs/p{number:03d}")

    async with asyncio.TaskGroup() as group:
        deleting = group.create_task(delete_some())
        while not deleting.done():
            kept = {name for name in await names(store) if int(name[-3:]) % 4}
            assert len(kept) == 150


async def test_what_is_no_file_is_no_object(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "link").symlink_to("/etc/hostname")

    assert await names(store) == []


async def test_a_canceled_writer_leaves_nothing_open_and_nothing_behind(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    await store.put("packs/before", b"")
    descriptors = os.listdir("/proc/self/fd")

    for tenths in range(60):
        with suppress(TimeoutError):
            async with asyncio.timeout(tenths / 10_000):
                await store.put("packs/a", bytes(4_000_000))
        if "packs/a" in await names(store):
            await store.delete("packs/a")
    await asyncio.sleep(0.05)

    assert os.listdir(tmp_path / ".tmp") == []
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


@pytest.mark.parametrize("part", ["packs", "packs/ab"])
async def test_a_disk_that_fails_otherwise_is_unavailable(tmp_path: Path, part: str) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / part).parent.mkdir(exist_ok=True)
    (tmp_path / part).symlink_to(part.rpartition("/")[2])  # a loop: ELOOP

    with pytest.raises(StoreUnavailableError, match="disk failed"):
        await store.get("packs/ab/object")
    with pytest.raises(TidemarkError):
        await store.put("packs/ab/object", b"")


async def test_a_writer_that_was_left_opens_nothing_any_more(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    writer = store.writer("packs/a")
    assert isinstance(writer, _LocalWriter)

    writer._close()
    writer._open()  # the thread of a canceled call, which came late

    assert os.listdir(tmp_path) == []
