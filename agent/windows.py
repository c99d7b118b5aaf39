"""What files of a restore lack, in portions of a bounded size: one is written, another is planned.

Within a portion each frame is fetched once, and neighbours by one call. Where a portion ends in the
middle of a pack, the frames there wait for those that follow: else each portion would ask a store
twice more for a pack, once for its last bytes and once for what lay across. So a snapshot whose
files take turns between an old pack and a newer one has the newer one fetched in few calls, too.
Pure.
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from agent.fetching import Place, Wanted, in_pack_order
from agent.writing import File
from repository.entries import Extent
from repository.errors import DamagedError
from repository.frames import FrameIdentity
from repository.ids import PackNonce

# Extents planned at once: 8 GiB of a general file, 16,000 small files, some 10 MiB of memory; twice
# as many where all of the portion before had to wait.
WINDOW_EXTENTS: Final = 16_384
# A pack that so many extents have not named is done with, as far as anybody knows.
_LATELY_PART: Final = 8


class Piece(NamedTuple):
    """Where the bytes of one extent belong."""

    file: File
    offset: int
    extent: Extent
    is_small_file: bool = False
    """Whether it is all of a small file, whose name is free."""

    @property
    def frame(self) -> FrameIdentity:
        """Where the bytes are."""
        return FrameIdentity(self.extent.nonce, self.extent.frame)


Window = dict[FrameIdentity, list[Piece]]
_Counts = dict[PackNonce, int]


class Windows:
    """Gathers pieces, and says which are worth being fetched."""

    def __init__(
        self,
        place: Callable[[FrameIdentity], Place],
        fetch_bytes: int,
        extents: int,
    ) -> None:
        """`place` says where a frame lies, or raises DamagedError.

        One call fetches `fetch_bytes`; one portion has some `extents`, and never twice as many.
        """
        self._place = place
        self._fetch_bytes = fetch_bytes
        self._extents = extents
        self._gathered: Window = {}
        self._planned = 0
        self._taken_at = 0
        # How many extents were planned when one named a pack last.
        self._named: _Counts = {}

    def add(self, pieces: Iterable[Piece]) -> None:
        """Have these fetched some time."""
        for piece in pieces:
            frame = piece.frame
            self._gathered.setdefault(frame, []).append(piece)
            self._planned += 1
            self._named[frame.nonce] = self._planned

    @property
    def is_full(self) -> bool:
        """Whether so much was added since the last portion that there should be another."""
        return self._planned - self._taken_at >= self._extents

    def take(self) -> Window:
        """A portion, without what had better wait; that is never more than a portion has."""
        gathered, waiting = self._gathered, self._that_wait()
        if sum(len(gathered[frame]) for frame in waiting) > self._extents:
            waiting = []
        self._gathered = {frame: gathered.pop(frame) for frame in waiting}
        self._taken_at = self._planned
        return gathered

    def rest(self) -> Window:
        """All that is left."""
        gathered, self._gathered = self._gathered, {}
        return gathered

    def _that_wait(self) -> list[FrameIdentity]:
        """The last frames of each pack that was named lately, as far as one call has them all."""
        wanted = []
        for frame in self._gathered:
            try:
                wanted.append(Wanted(self._place(frame), frame))
            except DamagedError:
                continue  # to be told by whoever fetches it
        last = {group[0].place.pack: group for group in in_pack_order(wanted, self._fetch_bytes)}
        since = self._planned - self._extents // _LATELY_PART
        return [
            each.identity
            for group in last.values()
            if any(self._named[each.identity.nonce] > since for each in group)
            for each in group
        ]
