"""What is stored of a volume and not known here, learnt before anything is read.

Nothing is known before the coordinator has it in its catalog. So two things may be stored and not
known: what the last snapshot holds, where our state was lost, and packs of attempts since then that
were taken while we died or were cut off. Learnt, none of that is sent again. No pack is kept before
all of it was told: one of which anything is kept is not asked for any more.
"""

from collections.abc import Callable, Sequence

from agent.errors import StateError, UnreachableError
from agent.services import Services, Session, StoredChunks
from repository.errors import CanceledError, FencedError, TidemarkError
from repository.failpoints import failpoint


async def recall(
    session: Session, volume_id: bytes, services: Services, report: Callable[[str], None]
) -> None:
    """Learn what is stored of a volume and not in our state.

    Where that fails more is sent than must be. Raises what ends the session.
    """
    state = services.state
    head = state.head(volume_id)
    if session.head_root and (head is None or head.root != session.head_root):
        report("recalling")
        chunks = await _Recall(session, volume_id, services).learn()
        services.log("info", f"the last manifest is not here; knows {chunks} chunks of it again")
    if unheard := state.unheard_of(session.packs_since_head):
        report("recalling")
        chunks = await _Recall(session, volume_id, services).learn(unheard)
        services.log(
            "info",
            f"{len(unheard)} packs were stored and not heard of; knows their {chunks} chunks",
        )


class _Recall:
    """One question, and what became of it."""

    def __init__(self, session: Session, volume_id: bytes, services: Services) -> None:
        self._session = session
        self._volume_id = volume_id
        self._services = services
        # Of one pack, and of one owner.
        self._told: list[StoredChunks] = []
        self._chunks = 0

    async def learn(self, packs: Sequence[bytes] = ()) -> int:
        """Keep what is told of these packs, or of the last snapshot; how many chunks that were."""
        try:
            async for stored in self._services.coordinator.read_base(self._session, packs):
                failpoint("agent.base.told", UnreachableError)
                if self._told and not _belong_together(self._told[-1], stored):
                    await self._keep()
                self._told.append(stored)
            await self._keep()
        except TidemarkError as error:
            if isinstance(error, CanceledError | FencedError):
                raise
            self._services.log("warning", f"some of what is stored is sent again: {error.message}")
        return self._chunks

    async def _keep(self) -> None:
        """Take what was told of a pack into the state, all at once."""
        chunks = [chunk for stored in self._told for chunk in stored.chunks]
        if not chunks:
            return
        borrower = self._volume_id if self._told[0].borrowed else None
        await self._services.state.remember_chunks(chunks, borrower=borrower)
        failpoint("agent.base.kept", StateError)
        self._chunks += len(chunks)
        self._told = []


def _belong_together(one: StoredChunks, other: StoredChunks) -> bool:
    return one.borrowed == other.borrowed and one.chunks[-1][1].nonce == other.chunks[0][1].nonce
