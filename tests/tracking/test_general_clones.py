"""What is cut by content is cut again only where its clone changed, on real disks."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from typing_extensions import override

from agent.clones import Clones
from agent.services import BackupStatistics
from agent.syscalls import punch_hole
from repository import chunking
from repository.chunking import BLOCK_BYTES
from repository.content import read_extents
from repository.entries import ChunkClass
from repository.needs import drive
from tests.integration.agent.test_backup import Agent
from tests.tracking.test_clones import (
    DISKS,
    Site,
    disks,
    entry_of,
    fallocate,
    last,
    share,
    site_on,
    small_files_are_large,
)

__all__ = ["disks", "small_files_are_large"]  # fixtures of these tests, too

pytestmark = pytest.mark.asyncio

KEY: Final = b"app.log"
MIB: Final = 1024 * 1024
SIZE: Final = 14 * MIB - 777


class GeneralSite(Site):
    """A volume with one large file that no program is known to change in place."""

    key = KEY

    @override
    def start(self, directory: Path | None = None) -> None:
        super().start(directory)
        self.whole.clones = Clones(self.whole.state, [self.disk / "whole"])

    @override
    async def backup(self) -> BackupStatistics:
        """Back up in both ways, from clones of one moment: both have the very same chunks."""
        outcome = await self.agent.backup()
        assert self.whole.clones is not None
        self.whole.clones.drop(self.whole.state.clones())
        whole = await self.whole.backup()
        assert (outcome.error, whole.error) == (None, None)
        await self.agent.check()
        assert cut(self.agent) == cut(self.whole)
        entry = entry_of(self.agent, KEY)
        assert entry.content is not None
        assert (entry.flags, entry.content.chunking) == (0, ChunkClass.GENERAL)
        if whole.statistics.bytes_read:
            assert whole.statistics.bytes_read >= outcome.statistics.bytes_read
        return outcome.statistics


def cut(agent: Agent) -> list[tuple[bytes, int]]:
    """The chunks of the file, and its holes."""
    content = entry_of(agent, KEY).content
    extents = () if content is None else drive(read_extents(content), last(agent).load)
    return [(each.id, each.length) for each in itertools.chain.from_iterable(extents)]


@pytest.fixture(params=DISKS)
def site(request: pytest.FixtureRequest, disks: dict[str, Path]) -> Iterator[GeneralSite]:
    disk = disks[request.param]
    (disk / "whole").mkdir(exist_ok=True)
    with site_on(disk, GeneralSite) as site:
        yield site


async def test_only_the_chunks_that_changed_are_read(site: GeneralSite) -> None:
    site.make(SIZE)
    first = await site.backup()
    for place in (3 * MIB, 11 * MIB, SIZE - 10):
        site.write(place, 10)

    second = await site.backup()

    assert first.bytes_read == SIZE
    assert 0 < second.bytes_read < 8 * MIB
    assert 0 < second.data_added <= second.bytes_read + 100_000
    assert len(site.clones()) == 1
    assert site.clones() == site.kept()


async def test_nothing_of_an_unchanged_file_is_read(site: GeneralSite) -> None:
    site.make(SIZE)
    await site.backup()
    os.utime(site.file)

    touched = await site.backup()

    assert (touched.bytes_read, touched.files_changed) == (0, 1)


def append(site: Site) -> None:
    with site.file.open("ab") as file:
        file.write(site.chance.randbytes(MIB))


def append_a_little(site: Site) -> None:
    with site.file.open("ab") as file:
        file.write(b"one line more\n")


def grow_by_a_hole(site: Site) -> None:
    os.truncate(site.file, SIZE + 9 * MIB)


def preallocate(site: Site) -> None:
    with site.file.open("r+b") as file:
        os.posix_fallocate(file.fileno(), SIZE, 2 * MIB)


def shrink(site: Site) -> None:
    os.truncate(site.file, 9 * MIB + 77)


def shrink_and_grow(site: Site) -> None:
    os.truncate(site.file, 11 * MIB + 77)
    os.truncate(site.file, SIZE)


def rotate(site: Site) -> None:
    """Written anew under the same name and inode."""
    site.file.write_bytes(site.chance.randbytes(SIZE))


def punch(site: Site) -> None:
    with site.file.open("r+b") as file:
        assert punch_hole(file.fileno(), 5 * MIB, 3 * MIB)
        assert punch_hole(file.fileno(), 12 * MIB + 100, 10_000)


def punch_and_fill(site: Site) -> None:
    punch(site)
    site.write(6 * MIB + 5, 2 * MIB)


def zero(site: Site) -> None:
    fallocate(site.file, 0x10, 4 * MIB + 100, BLOCK_BYTES)


def share_within(site: Site) -> None:
    with site.file.open("r+b") as file:
        share(file.fileno(), 2 * MIB, 11 * MIB, MIB)


def insert(site: Site) -> None:
    """Put something in the middle, as an editor does that writes in place."""
    data = site.file.read_bytes()
    with site.file.open("r+b") as file:
        file.seek(10 * MIB)
        file.write(b"inserted" + data[10 * MIB :])


CHANGES: Final[list[tuple[Callable[[Site], None], int]]] = [
    (append, 4),
    (append_a_little, 3),
    (grow_by_a_hole, 3),
    (preallocate, 6),
    (shrink, 4),
    (shrink_and_grow, 5),
    (rotate, 14),
    (punch, 8),
    (punch_and_fill, 10),
    (zero, 4),
    (share_within, 4),
    (insert, 9),
]


@pytest.mark.parametrize(("change", "mebibytes"), CHANGES)
async def test_a_change_of_whatever_kind_is_cut_as_if_all_were_read(
    site: GeneralSite, change: Callable[[Site], None], mebibytes: int
) -> None:
    site.make(SIZE)
    await site.backup()
    change(site)

    statistics = await site.backup()

    assert statistics.bytes_read <= mebibytes * MIB
    assert statistics.files_changed == 1
    site.write(MIB, 10)
    assert (await site.backup()).bytes_read <= 4 * MIB


async def test_many_changes_follow_one_another(site: GeneralSite) -> None:
    site.make(SIZE)
    await site.backup()
    for _ in range(5):
        for change in site.chance.sample([append, punch, zero, shrink_and_grow, share_within], 2):
            change(site)
        site.write(site.chance.randrange(SIZE), 5000)
        await site.backup()


async def test_what_is_cut_by_other_rules_is_read_whole(
    site: GeneralSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.make(SIZE)
    await site.backup()
    site.write(5 * MIB)
    with monkeypatch.context() as patched:
        patched.setattr(chunking, "CHUNK_BYTES_AVERAGE", MIB // 2)
        statistics = await site.backup()

    assert statistics.bytes_read == SIZE


async def test_a_file_that_becomes_a_general_one_is_read_whole(site: GeneralSite) -> None:
    site.make(SIZE)
    await site.backup()
    os.truncate(site.file, 1000)
    assert (await site.agent.backup()).error is None
    site.make(SIZE)

    assert (await site.backup()).bytes_read == SIZE
    assert len(site.clones()) == 1
