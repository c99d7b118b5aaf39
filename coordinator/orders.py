"""What people order, checked before it becomes a job."""

from collections.abc import Sequence

from coordinator.dispatch import Dispatcher
from coordinator.errors import UsageError
from coordinator.model import (
    Job,
    Node,
    Origin,
    RestoreOrder,
    Snapshot,
    VerifyDepth,
    VerifyOrder,
    Volume,
)
from coordinator.selection import Selection


class Orders:
    """Makes jobs out of requests."""

    def __init__(self, dispatcher: Dispatcher, selection: Selection) -> None:
        self._dispatcher = dispatcher
        self._selection = selection

    async def backup(
        self, selectors: Sequence[str], *, everything: bool, audit: bool = False
    ) -> Job:
        """Back up these volumes, or all that are protected; and audit what tells of changes."""
        if everything and selectors:
            raise UsageError("give volumes or --all, not both")
        if everything:
            volumes = await self._selection.protected_volumes()
            if not volumes:
                raise UsageError(
                    "no volume is protected", hint="see tidemark volume list --unprotected"
                )
        else:
            volumes = await self._named(selectors)
        return await self._dispatcher.create_backup(volumes, Origin.MANUAL, audit=audit)

    async def _named(self, selectors: Sequence[str]) -> list[Volume]:
        if not selectors:
            raise UsageError("which volume?", hint="name volumes, or give --all")
        found = {}
        for selector in selectors:
            volume = await self._selection.volume(selector)
            if volume.verdict != "protected":
                raise UsageError(
                    f"volume {selector} is {volume.verdict}: {volume.reason}",
                    hint="see tidemark volume show",
                )
            if volume.local_id is None:
                why = "another volume goes on in its place"
                if volume.awaits is not None:
                    why = "it was moved to a node that does not name it yet"
                raise UsageError(f"volume {selector}: {why}", hint="see tidemark volume show")
            found[volume.volume_id] = volume
        return list(found.values())

    async def restore(  # noqa: PLR0913 - the options of one command
        self,
        snapshot: Snapshot,
        *,
        target: bytes,
        in_place: bool,
        paths: tuple[bytes, ...],
        overwrite: bool,
        delete_extra: bool,
        dry_run: bool,
        node: str | None,
    ) -> Job:
        """Restore a snapshot, on the node that holds its volume unless another is named."""
        if in_place == bool(target):
            raise UsageError("a restore goes to a directory or in place", hint="give --to DIR")
        if target and not target.startswith(b"/"):
            raise UsageError("a restore's target is an absolute path", hint="give --to /DIR")
        if delete_extra and not (in_place or overwrite):
            raise UsageError("--delete needs --in-place or --overwrite")
        volume = await self._selection.volume(snapshot.volume_id.hex())
        where = await self._node(volume, node)
        if in_place and where.node_id != volume.node_id:
            raise UsageError("in place is on the node that holds the volume", hint="give --to DIR")
        order = RestoreOrder(
            snapshot_id=snapshot.snapshot_id,
            target=target,
            paths=paths,
            in_place=in_place,
            overwrite=overwrite,
            delete_extra=delete_extra,
            dry_run=dry_run,
            local_id=volume.local_id,
            volume_id=snapshot.volume_id if in_place and not dry_run else None,
            repository_id=snapshot.repository_id,
        )
        return await self._dispatcher.create_restore(order, where)

    async def _node(self, volume: Volume, selector: str | None) -> Node:
        node = await self._selection.node(selector or volume.node_id.hex())
        if node.revoked:
            raise UsageError(
                f"node {node.name} is revoked", hint="restore on another node: give --node"
            )
        return node

    async def verify(
        self, depth: VerifyDepth, selectors: Sequence[str], *, everything: bool
    ) -> Job:
        """Verify these snapshots, or all."""
        if everything == bool(selectors):
            raise UsageError("which snapshots?", hint="name snapshots, or give --all")
        snapshots = await self._selection.snapshots(selectors, None)
        order = VerifyOrder(depth, tuple(each.snapshot_id for each in snapshots))
        subjects = ("all",) if everything else tuple(order.snapshot_ids)
        return await self._dispatcher.create_verify(order, subjects)
