"""Making the new manifest: nodes and lists into metadata frames, and the count of what is used.

Nodes point at their children's places, so a place is promised before its frame is sealed: nodes
gather in one frame at a time, and move on when it is full. Everything here happens in the one
thread that edits the tree.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Final

from agent.known import KnownChunks
from agent.packing import Packs, Reservation
from agent.state import FrameChange, State
from repository.content import read_extents
from repository.entries import Entry, Extent, Pointer
from repository.frames import FrameEncoder, FrameIdentity, Location, PlainChunk
from repository.ids import IdKeys, ObjectType, PackNonce
from repository.needs import drive
from repository.pack import PackKind
from repository.refs import Refs

# Plain bytes of nodes in a frame: what one look into a manifest fetches at the least, and what
# zstd has to work with.
_FRAME_BYTES: Final = 256 * 1024
_FRAME_CHUNKS: Final = 512
# Nodes that are written to the agent's state at a time, about 2 MiB.
_STAGED_TOGETHER: Final = 256
# No single node or list is longer (tree.NODE_BYTES_MAX plus one entry of the largest kind).
_NODE_BYTES_MAX: Final = 2 * 1024 * 1024


class _Frame:
    """A metadata frame that fills up; its place is promised."""

    def __init__(self, place: Reservation) -> None:
        self.place = place
        self.chunks: list[PlainChunk] = []
        self.raw_bytes = 0


class MetadataWriter:
    """Stores nodes and lists, each once, and stages them in the agent's own state."""

    def __init__(
        self,
        packs: Packs,
        known: KnownChunks,
        ids: IdKeys,
        stage: Callable[[Sequence[tuple[bytes, bytes]]], Future[None]],
    ) -> None:
        """`stage`: keeps nodes (id, encoded) for the commit."""
        self._packs = packs
        self._known = known
        self._ids = ids
        self._encoder = FrameEncoder()
        self._frames: dict[ObjectType, _Frame] = {}
        self._stage = stage
        self._unstaged: list[tuple[bytes, bytes]] = []
        self._staging: Future[None] | None = None
        self.lists: dict[bytes, bytes] = {}
        """List nodes of the file at hand. Whoever has counted what is in them clears this."""
        self.bytes_added = 0

    def put_node(self, encoded: bytes) -> Pointer:
        """Store a manifest node."""
        pointer = self._put(ObjectType.NODE, encoded)
        self._remember(pointer, encoded)
        return pointer

    def put_list(self, encoded: bytes) -> Pointer:
        """Store a list node."""
        pointer = self._put(ObjectType.LIST, encoded)
        self._remember(pointer, encoded)
        self.lists[pointer.id] = encoded
        return pointer

    def put_attributes(self, encoded: bytes) -> Pointer:
        """Store attributes that are too long for their entry; nothing here reads them again."""
        return self._put(ObjectType.LIST, encoded)

    def flush(self) -> None:
        """Seal the frames that are not full, and have everything staged."""
        for kind in list(self._frames):
            self._seal(kind)
        self._stage_rest()
        self._await_staging()

    def _remember(self, pointer: Pointer, encoded: bytes) -> None:
        self._unstaged.append((pointer.id, encoded))
        if len(self._unstaged) == _STAGED_TOGETHER:
            self._stage_rest()

    def _stage_rest(self) -> None:
        """Hand nodes on; those before must have been written, so that they don't pile up."""
        self._await_staging()
        self._staging = self._stage(self._unstaged)
        self._unstaged = []

    def _await_staging(self) -> None:
        if self._staging is not None:
            self._staging.result()
            self._staging = None

    def _put(self, kind: ObjectType, encoded: bytes) -> Pointer:
        chunk_id = self._ids.chunk_id(kind, encoded)
        known = self._known.find([chunk_id]).get(chunk_id)
        if known is not None:
            return Pointer.at(chunk_id, known)
        frame = self._frames.get(kind)
        full = frame is not None and (
            frame.raw_bytes + len(encoded) > _FRAME_BYTES or len(frame.chunks) == _FRAME_CHUNKS
        )
        if frame is None or full:
            self._seal(kind)
            frame = self._frames[kind] = _Frame(
                self._packs.reserve(PackKind.METADATA, _NODE_BYTES_MAX, _FRAME_CHUNKS)
            )
        identity = frame.place.identity
        place = Location(identity.nonce, identity.number, len(frame.chunks), len(encoded))
        frame.chunks.append(PlainChunk(chunk_id, encoded))
        frame.raw_bytes += len(encoded)
        self._known.place([(chunk_id, place)])
        return Pointer.at(chunk_id, place)

    def _seal(self, kind: ObjectType) -> None:
        frame = self._frames.pop(kind, None)
        if frame is None:
            return
        plaintext = self._encoder.encode(frame.chunks)
        self._packs.fill(frame.place, kind, plaintext, frame.chunks)
        self.bytes_added += frame.raw_bytes


class Usage:
    """How often, and for how many bytes, each frame is used more or less than before."""

    def __init__(self) -> None:
        self._changes: dict[tuple[PackNonce, int], list[int]] = {}

    def count(self, uses: Iterable[Extent | Pointer], sign: int) -> None:
        """Count uses that came (1) or went (-1)."""
        changes = self._changes
        for use in uses:
            if use.nonce:
                change = changes.get((use.nonce, use.frame))
                if change is None:
                    change = changes[FrameIdentity(use.nonce, use.frame)] = [0, 0]
                change[0] += sign
                change[1] += sign * use.length

    def count_entry(self, entry: Entry, load_list: Callable[[Pointer], bytes], sign: int) -> None:
        """Count all that an entry points at: extents, and what stands outside of it."""
        if entry.long_xattrs is not None:
            self.count((entry.long_xattrs,), sign)
        content = entry.content
        if content is None:
            return
        if content.list is None:
            self.count(content.extents, sign)
            return

        def load(pointer: Pointer) -> bytes:
            self.count((pointer,), sign)
            return load_list(pointer)

        for extents in drive(read_extents(content), load):
            self.count(extents, sign)

    def against(
        self, state: State, volume_id: bytes, *, base: bool
    ) -> "tuple[list[FrameChange], Refs]":
        """The new counts of all frames whose use changed, and the refs of the snapshot.

        With `base` nothing was used before.
        """
        changed = {at: change for at, change in self._changes.items() if change != [0, 0]}
        before = {} if base else state.frame_counts(volume_id, changed)
        counts: list[FrameChange] = []
        for identity, (uses, live_bytes) in changed.items():
            old = before.get(identity, (0, 0))
            counts.append(FrameChange(*identity, old[0] + uses, old[1] + live_bytes))
        live = {
            FrameIdentity(PackNonce(change.pack_nonce), change.frame): change.live_bytes
            for change in counts
        }
        return counts, Refs.of(live, base=base)
