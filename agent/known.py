"""Which chunks need not be stored again, and where they lie.

A chunk is known when this node has stored it before (the state's word, given only once the
coordinator has said that it has the pack), when the volume held it on another node, or when it was
placed in this session. The latter are held in memory until the state has them. Whoever is about to
store unknown chunks claims them, so that two workers with the same content, as from two names of
one file, don't both store it.
"""

import threading
from collections.abc import Collection, Iterable, Sequence

from agent.state import State
from repository.frames import Location
from repository.ids import ChunkId


class KnownChunks:
    """The chunks known to one session of a volume. Used from many threads."""

    def __init__(self, state: State, volume_id: bytes) -> None:
        self._state = state
        self._volume_id = volume_id
        # Most volumes were never anywhere else, and need not be asked for each chunk.
        self._borrows = state.borrows(volume_id)
        self._placed: dict[ChunkId, Location] = {}
        self._claimed: set[ChunkId] = set()
        self._changed = threading.Condition()

    def find(self, chunk_ids: Sequence[ChunkId]) -> dict[bytes, Location]:
        """Where those of the chunks lie that are known."""
        placed = self._placed
        looked_up = [(chunk_id, placed.get(chunk_id)) for chunk_id in chunk_ids]
        found: dict[bytes, Location] = {id_: place for id_, place in looked_up if place is not None}
        if len(found) < len(looked_up):
            unplaced = [chunk_id for chunk_id, place in looked_up if place is None]
            found.update(self._state.known(unplaced))
            if self._borrows:
                rest = [chunk_id for chunk_id in unplaced if chunk_id not in found]
                found.update(self._state.borrowed(self._volume_id, rest))
        return found

    def claim(self, chunk_ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Those of the unknown chunks that are now the caller's to place or to give up."""
        with self._changed:
            # One after the other: with two arguments it would go through the second as a whole.
            free = set(chunk_ids).difference(self._claimed).difference(self._placed)
            self._claimed |= free
        return free

    def place(self, chunks: Sequence[tuple[ChunkId, Location]]) -> None:
        """Remember chunks that were just placed in a pack."""
        with self._changed:
            self._placed.update(chunks)
            self._claimed.difference_update([chunk_id for chunk_id, _ in chunks])
            self._changed.notify_all()

    def give_up(self, chunk_ids: Collection[ChunkId]) -> None:
        """Let others claim what could not be placed."""
        with self._changed:
            self._claimed.difference_update(chunk_ids)
            self._changed.notify_all()

    def wait(self, chunk_ids: Collection[ChunkId]) -> dict[bytes, Location]:
        """Where chunks lie that others have claimed, once they are placed; not those given up.

        Must not be called with claims of one's own: two who wait for each other would never end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._claimed.isdisjoint(chunk_ids))
        return self.find(list(chunk_ids))

    async def settle(self, chunks: Sequence[tuple[ChunkId, Location]]) -> None:
        """Hand the chunks of an acknowledged pack over to the state."""
        await self._state.remember_chunks(chunks)
        with self._changed:
            for chunk_id, location in chunks:
                if self._placed.get(chunk_id) == location:
                    del self._placed[chunk_id]
