"""Moving a volume to another node: an operator's word, never that of an agent.

The catalog decides and writes in one transaction; from then on the former holder opens no session
and commits none. What is done afterwards only makes it known sooner than the next connection would.
"""

from dataclasses import dataclass

from coordinator.catalog import Catalog
from coordinator.dispatch import Dispatcher
from coordinator.errors import UsageError
from coordinator.fleet import Fleet
from coordinator.logs import get_logger
from coordinator.model import Node, Volume
from coordinator.selection import Selection
from coordinator.sessions import Sessions
from repository.ids import VolumeId

log = get_logger()


@dataclass(frozen=True, slots=True)
class Moved:
    """What was moved, and the name of the node that held it."""

    volume_id: VolumeId
    former_node: str


class Moves:
    """Hands volumes over."""

    def __init__(
        self,
        catalog: Catalog,
        dispatcher: Dispatcher,
        sessions: Sessions,
        fleet: Fleet,
        selection: Selection,
    ) -> None:
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._sessions = sessions
        self._fleet = fleet
        self._selection = selection

    async def move(self, selector: str, to: str, *, name: str | None, replacing: bool) -> Moved:
        """Make a node the holder of a volume, which is called `name` there; UsageError."""
        node = await self._selection.node(to)
        if node.revoked:
            raise UsageError(
                f"node {node.name} is revoked",
                hint="join it anew: tidemark node token; then name it by its new id",
            )
        volume = await self._selection.volume_to_move(selector, node.node_id)
        former = await self._catalog.fleet.node(volume.node_id)
        former_name = volume.node_id.hex() if former is None else former.name
        # What the node holds may be replaced, too.
        held = [
            each for each in await self._catalog.fleet.volumes() if each.node_id == node.node_id
        ]
        concerned = {volume.volume_id, *(each.volume_id for each in held)}
        # A commit that has begun is the former holder's last one, and its task is told so.
        async with self._sessions.between_commits(concerned):
            changed = await self._catalog.fleet.move_volume(
                volume.volume_id,
                node.node_id,
                name or self._name_on(node, volume),
                replacing=replacing,
            )
            await self._dispatcher.release(changed)
        for each in (node.node_id, volume.node_id):
            await self._fleet.hear_again(each)
        log.warning(
            "volume moved",
            volume=volume.name,
            volume_id=volume.volume_id.hex(),
            former_node=former_name,
            former_node_id=volume.node_id.hex(),
            node=node.name,
            node_id=node.node_id.hex(),
            replaced=[each.hex() for each in changed[1:]],
        )
        return Moved(volume.volume_id, former_name)

    def _name_on(self, node: Node, volume: Volume) -> str:
        """What the node calls it, if it tells of its very id; else it must be called as it is."""
        own = (each for each in self._fleet.told(node.node_id) if each.local_id == volume.volume_id)
        return next((each.name for each in own), volume.name)
