"""What is learnt before a backup: whole packs, or nothing of them."""

from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typing_extensions import override

from agent.daemon import SystemClock
from agent.recalling import recall
from agent.services import Services, Session, StoredChunks
from agent.state import State
from repository.errors import FencedError, StoreUnavailableError, TidemarkError
from repository.frames import Location
from repository.ids import ChunkId, PackNonce
from tests.fakes.coordinator import NODE, MemoryCoordinator
from tests.fakes.tracking import ToldTracking

pytestmark = pytest.mark.asyncio

VOLUME = b"V" * 16
FIRST, SECOND = PackNonce(b"1" * 16), PackNonce(b"2" * 16)
SESSION = Session(b"s" * 16, 1, b"", b"", 0, 60, packs_since_head=[FIRST, SECOND])


def chunk(number: int) -> ChunkId:
    return ChunkId(bytes([number]) * 32)


def frame(nonce: PackNonce, number: int) -> StoredChunks:
    """One frame of one chunk, which has the frame's number."""
    return StoredChunks([(chunk(number), Location(nonce, number, 0, 10))], borrowed=False)


class Telling(MemoryCoordinator):
    """Tells this, and then ends or fails."""

    def __init__(self, *told: StoredChunks | TidemarkError) -> None:
        super().__init__()
        self.told = told
        self.asked: Sequence[bytes] = ()

    @override
    async def read_base(
        self, session: Session, since_head: Sequence[bytes] = ()
    ) -> AsyncIterator[StoredChunks]:
        self.asked = since_head
        for each in self.told:
            if isinstance(each, TidemarkError):
                raise each
            yield each


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State(tmp_path / "state.db") as state:
        yield state


async def recalled(state: State, coordinator: Telling) -> tuple[set[int], list[tuple[str, str]]]:
    """The chunks of five that are known then, and what was said."""
    logged: list[tuple[str, str]] = []
    with ThreadPoolExecutor(1) as workers:
        services = Services(
            node_id=NODE,
            signing_key=coordinator.node,
            state=state,
            coordinator=coordinator,
            workers=workers,
            clock=SystemClock(),
            tracking=ToldTracking(None),
            progress=lambda _: None,
            log=lambda level, message: logged.append((level, message)),
        )
        await recall(SESSION, VOLUME, services, lambda _: None)
    return {number for number in range(5) if state.known([chunk(number)])}, logged


async def test_only_packs_of_which_nothing_is_known_are_asked_for(state: State) -> None:
    await state.remember_chunks(frame(FIRST, 0).chunks)
    coordinator = Telling(frame(SECOND, 1), frame(SECOND, 2))

    known, _ = await recalled(state, coordinator)

    assert (coordinator.asked, known) == ([SECOND], {0, 1, 2})
    coordinator.asked = ()
    await recalled(state, coordinator)
    assert coordinator.asked == ()


async def test_what_breaks_off_amid_a_pack_is_asked_for_again(state: State) -> None:
    told = [frame(FIRST, 0), frame(FIRST, 1), frame(SECOND, 2), frame(SECOND, 3)]
    broken = Telling(*told[:3], StoreUnavailableError("away"))

    known, logged = await recalled(state, broken)

    assert known == {0, 1}
    assert ("warning", "some of what is stored is sent again: away") in logged
    again = Telling(*told[2:])
    known, _ = await recalled(state, again)
    assert (again.asked, known) == ([SECOND], {0, 1, 2, 3})


async def test_a_session_that_may_write_no_more_ends_there(state: State) -> None:
    with pytest.raises(FencedError):
        await recalled(state, Telling(FencedError("another one writes")))
