"""What people mean by the names they give: volumes, nodes and snapshots.

VOLUME is a name, node/name or an id; SNAPSHOT an id, a unique beginning of one, or `latest`.
Whatever fits several things is refused with the candidates, never guessed.
"""

from collections.abc import Sequence
from typing import Final

from coordinator.catalog import Catalog
from coordinator.errors import AmbiguousError, NotFoundError, UsageError
from coordinator.model import Node, Snapshot, SnapshotHex, Volume
from repository.ids import NodeId

_ID_HEX: Final = 32
# Shorter beginnings fit too much to be meant.
_PREFIX_MIN: Final = 4
_CANDIDATES_MAX: Final = 10


class Selection:
    """Resolves selectors against the catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def node(self, selector: str) -> Node:
        """The node of that name or id; revoked ones only by their id."""
        nodes = await self._catalog.fleet.nodes()
        for node in nodes:
            if node.node_id.hex() == selector:
                return node
        found = [node for node in nodes if node.name == selector and not node.revoked]
        if not found:
            raise NotFoundError(f"there is no node {selector}", hint="see tidemark node list")
        _refuse_several(selector, [node.node_id.hex() for node in found])
        return found[0]

    async def volume(self, selector: str) -> Volume:
        """The volume of that name, node/name or id."""
        nodes = {node.node_id: node for node in await self._catalog.fleet.nodes()}
        found = await self._volumes(selector, nodes)
        # A volume that its agent still names comes before one that is gone.
        return _only_volume(selector, [each for each in found if each.present] or found, nodes)

    async def volume_to_move(self, selector: str, to: NodeId) -> Volume:
        """As above, but none that the node holds already is meant while another could be.

        Nor is one in whose place another goes on.
        """
        nodes = {node.node_id: node for node in await self._catalog.fleet.nodes()}
        found = await self._volumes(selector, nodes)
        found = [each for each in found if each.local_id or each.awaits] or found
        return _only_volume(
            selector, [each for each in found if each.node_id != to] or found, nodes
        )

    async def _volumes(self, selector: str, nodes: dict[NodeId, Node]) -> list[Volume]:
        volumes = await self._catalog.fleet.volumes()
        found = [volume for volume in volumes if _fits(volume, selector, nodes)]
        if not found:
            raise NotFoundError(f"there is no volume {selector}", hint="see tidemark volume list")
        return found

    async def protected_volumes(self) -> list[Volume]:
        """All volumes that are to be backed up."""
        volumes = await self._catalog.fleet.volumes()
        return [each for each in volumes if each.present and each.verdict == "protected"]

    async def snapshot(self, selector: str, volume: str | None) -> Snapshot:
        """The snapshot of that id, beginning of an id, or `latest`."""
        if selector == "latest":
            return await self._latest(volume)
        lowered = selector.lower()
        hexadecimal = set(lowered) <= set("0123456789abcdef")
        if not hexadecimal or not _PREFIX_MIN <= len(lowered) <= _ID_HEX:
            raise UsageError(
                f"{selector!r} is not the id of a snapshot",
                hint=f"give at least {_PREFIX_MIN} of its digits, or `latest`",
            )
        found = await self._catalog.ledger.find_snapshots(lowered)
        if not found:
            raise NotFoundError(
                f"there is no snapshot {selector}", hint="see tidemark snapshot list"
            )
        _refuse_several(selector, list(found))
        return await self._one(found[0], selector)

    async def snapshots(self, selectors: Sequence[str], volume: str | None) -> list[Snapshot]:
        """These snapshots, or all (of a volume) where none is named."""
        if selectors:
            return [await self.snapshot(each, volume) for each in selectors]
        volume_id = None if volume is None else (await self.volume(volume)).volume_id
        return await self._catalog.ledger.snapshots(volume_id=volume_id)

    async def _latest(self, selector: str | None) -> Snapshot:
        if selector is not None:
            volume = await self.volume(selector)
            head = await self._catalog.ledger.head(volume.volume_id)
            if head is None:
                raise NotFoundError(
                    f"volume {selector} has no snapshot", hint="tidemark backup create makes one"
                )
            return head
        heads = [head for head, _, _ in (await self._catalog.ledger.heads()).values()]
        if not heads:
            raise NotFoundError("there is no snapshot yet", hint="tidemark backup create makes one")
        if len(heads) > 1:
            names = sorted(f"{head.node}/{head.volume}" for head in heads)
            raise AmbiguousError(
                f"`latest` of which volume? {_listed(names)}", hint="give --volume"
            )
        return heads[0]

    async def _one(self, snapshot_id: SnapshotHex, selector: str) -> Snapshot:
        snapshot = await self._catalog.ledger.snapshot(snapshot_id)
        if snapshot is None:
            raise NotFoundError(f"there is no snapshot {selector}")
        return snapshot


def _fits(volume: Volume, selector: str, nodes: dict[NodeId, Node]) -> bool:
    named = (volume.name, f"{_node_name(volume, nodes)}/{volume.name}", volume.volume_id.hex())
    return selector in named


def _only_volume(selector: str, found: list[Volume], nodes: dict[NodeId, Node]) -> Volume:
    names = [f"{_node_name(volume, nodes)}/{volume.name}" for volume in found]
    if len(set(names)) < len(names):
        names = [volume.volume_id.hex() for volume in found]
    _refuse_several(selector, names)
    return found[0]


def _node_name(volume: Volume, nodes: dict[NodeId, Node]) -> str:
    node = nodes.get(volume.node_id)
    return volume.node_id.hex() if node is None else node.name


def _refuse_several(selector: str, candidates: list[str]) -> None:
    if len(candidates) > 1:
        raise AmbiguousError(
            f"{selector} may be any of {_listed(candidates)}", hint="name one of them in full"
        )


def _listed(candidates: list[str]) -> str:
    shown = ", ".join(candidates[:_CANDIDATES_MAX])
    return shown + (", …" if len(candidates) > _CANDIDATES_MAX else "")
