"""Which chunks need not be stored again, and where they lie.

A chunk is known when this node has stored it before (the state's word, given only once a pack was
acknowledged) or placed it in this session. The latter are held in memory until the state has them.
"""

from collections.abc import Sequence

from agent.state import State
from repository.frames import Location
from repository.ids import ChunkId


class KnownChunks:
    """The chunks known to one session. Used from many threads."""

    def __init__(self, state: State) -> None:
        self._state = state
        # Single dict operations are atomic; two threads that place the same chunk at the same
        # moment store it twice, which costs its bytes and nothing else.
        self._placed: dict[ChunkId, Location] = {}

    def find(self, chunk_ids: Sequence[ChunkId]) -> dict[bytes, Location]:
        """Where those of the chunks lie that are known."""
        placed = self._placed
        found: dict[bytes, Location] = {}
        unplaced: list[bytes] = []
        for chunk_id in chunk_ids:
            place = placed.get(chunk_id)
            if place is None:
                unplaced.append(chunk_id)
            else:
                found[chunk_id] = place
        if unplaced:
            found.update(self._state.known(unplaced))
        return found

    def place(self, chunks: Sequence[tuple[ChunkId, Location]]) -> None:
        """Remember chunks that were just placed in a pack."""
        self._placed.update(chunks)

    async def settle(self, chunks: Sequence[tuple[ChunkId, Location]]) -> None:
        """Hand the chunks of an acknowledged pack over to the state."""
        await self._state.remember_chunks(chunks)
        for chunk_id, location in chunks:
            if self._placed.get(chunk_id) == location:
                del self._placed[chunk_id]
