"""Which node holds a volume, and as what. Pure.

A volume has one holder, and only an operator's move changes it. Its holder knows it under a local
id, which is the volume's own unless it was moved. What an agent tells is attributed to the volumes
of its node and to new ones, never to a volume that another node holds: that is a mere claim.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from coordinator.errors import NotFoundError, UsageError
from repository.ids import NodeId, VolumeId


@dataclass(frozen=True, slots=True)
class Holding:
    """A volume and its holder.

    Bound, with a local id; or moved and waiting, with the name that its holder is to tell of; or
    retired, with neither: another volume goes on in its place.
    """

    volume_id: VolumeId
    node_id: NodeId
    name: str
    local_id: VolumeId | None
    awaits: str | None = None
    has_snapshots: bool = False


@dataclass(frozen=True, slots=True)
class Named:
    """A volume as an agent names it."""

    local_id: VolumeId
    name: str


def attribute(
    node_id: NodeId, told: Sequence[Named], holdings: Iterable[Holding]
) -> dict[VolumeId, VolumeId | None]:
    """The volume that each local id stands for; None for a claim. Two never stand for one."""
    known = {holding.volume_id: holding for holding in holdings}
    here = [holding for holding in known.values() if holding.node_id == node_id]
    bound = {holding.local_id: holding.volume_id for holding in here if holding.local_id}
    found: dict[VolumeId, VolumeId | None] = {
        each.local_id: bound[each.local_id] for each in told if each.local_id in bound
    }
    for holding in here:
        if holding.awaits is not None:
            rest = [each for each in told if each.local_id not in found]
            if (awaited := _awaited(holding, rest)) is not None:
                found[awaited] = holding.volume_id
    for each in told:
        if each.local_id not in found:
            own = known.get(each.local_id)
            # What waits, or goes under another local id, is not found by its own.
            free = own is None or (
                own.node_id == node_id and own.local_id is None and own.awaits is None
            )
            found[each.local_id] = each.local_id if free else None
    return found


def _awaited(holding: Holding, told: Sequence[Named]) -> VolumeId | None:
    """What a volume that was moved here is called here, if that can be told for certain.

    Its own id says more than its name, unless another name was asked for.
    """
    named = {each.local_id for each in told if each.name == holding.awaits}
    if holding.awaits == holding.name and holding.volume_id in {each.local_id for each in told}:
        return holding.volume_id
    return named.pop() if len(named) == 1 else None


def move(
    volume_id: VolumeId,
    to: NodeId,
    name: str,
    holdings: Iterable[Holding],
    *,
    replacing: bool,
) -> list[Holding]:
    """The holdings that change when a volume moves to a node that calls it so, its own first.

    Asked again while it waits there, the same. UsageError where it is there already, or would end
    the history of another volume unasked.
    """
    known = {holding.volume_id: holding for holding in holdings}
    volume = known.get(volume_id)
    if volume is None:
        raise NotFoundError("the volume is gone, and never had a snapshot")
    if volume.node_id == to and volume.local_id is not None and volume.name == name:
        raise UsageError(f"volume {volume.name} is on that node already")
    rivals = [
        holding
        for holding in known.values()
        if holding.node_id == to and holding.volume_id != volume_id and _goes_by(holding, name)
    ]
    with_history = [holding for holding in rivals if holding.has_snapshots]
    if with_history and not replacing:
        raise UsageError(
            f"that node has a volume {name} with snapshots of its own, whose history would end",
            hint="--replace ends it, and its snapshots stay; --as NAME means another volume there",
        )
    retired = [replace(holding, local_id=None, awaits=None) for holding in rivals]
    return [replace(volume, node_id=to, local_id=None, awaits=name), *retired]


def _goes_by(holding: Holding, name: str) -> bool:
    return holding.awaits == name or (holding.local_id is not None and holding.name == name)
