"""A tracker that says what a test wants it to say, for backups that are told where to look."""

from typing_extensions import override

from agent.beneath import Tree
from agent.services import Tracking
from agent.tracking.dirty import Dirty
from agent.tracking.epochs import Way
from agent.tracking.suspects import Suspects
from agent.tracking.tracker import Done, Mode, Since, Taken
from agent.whereabouts import Whereabouts


class ToldTracking(Tracking):
    """Says `dirty` of every volume; None is a sweep."""

    def __init__(self, dirty: Dirty | None = None) -> None:
        self.dirty = dirty
        self.done: list[Done] = []
        """Of the backups that were committed."""
        self.altered_files = 0

    @override
    def begin(
        self, volume_id: bytes, path: bytes, tree: Tree, head: bytes, *, audit: bool = False
    ) -> Taken:
        way = Way(self.dirty, "" if self.dirty is not None else "nothing is watched")
        nobody = Suspects({}, None, 1 << 62)
        return Taken(volume_id, Mode("told", ""), way, "", nobody, Whereabouts())

    @override
    def since(self, taken: Taken, tree: Tree) -> Since:
        return Since(Dirty(), taken.suspects, None)

    @override
    def audited(self, taken: Taken, missed: int, now_ns: int) -> None:
        """Nothing is audited here."""

    @override
    def altered(self, taken: Taken, missed: int) -> None:
        self.altered_files += missed

    @override
    def committed(self, taken: Taken, done: Done) -> None:
        self.done.append(done)
