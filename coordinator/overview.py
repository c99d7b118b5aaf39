"""The state of things, for people: volumes with their age and proof, totals, recovery kits."""

from dataclasses import dataclass, replace
from typing import Final

from coordinator.catalog import Catalog
from coordinator.custody import Custody
from coordinator.fleet import Fleet
from coordinator.model import (
    NANOSECONDS,
    Node,
    Phase,
    Snapshot,
    Totals,
    Volume,
    VolumeReport,
)
from coordinator.repositories import Repositories, Standing
from repository.ids import RepositoryId

_KIT_EXPORTED: Final = "recovery_kit_exported"
_GONE: Final = (
    "it is not on its node any more; its snapshots still restore, and `tidemark volume move` says "
    "where it is now"
)
_REPLACED: Final = "another volume goes on in its place; its snapshots still restore"


@dataclass(frozen=True, slots=True)
class VolumeView:
    """A volume and how well it is protected."""

    volume: Volume
    node: str
    policy: str | None
    head: Snapshot | None
    last_completed_at: int | None
    age_seconds: float | None
    last_proof_at: int | None
    last_phase: Phase | None
    last_message: str
    # What the repository is called that its next snapshot goes to.
    repository: str
    # The node that holds it, where the node above only claims it.
    held_by: str | None = None


class Overview:
    """Puts figures together."""

    def __init__(
        self,
        catalog: Catalog,
        repositories: Repositories,
        custody: Custody,
        fleet: Fleet,
        *,
        schedule_seconds: int | None,
    ) -> None:
        self._catalog = catalog
        self.repositories = repositories
        self._custody = custody
        self.fleet = fleet
        self._schedule_seconds = schedule_seconds

    @property
    def unlocked(self) -> bool:
        """Whether custody is open."""
        return self._custody.unlocked

    async def totals(self, repository_id: RepositoryId | None = None) -> Totals:
        """Figures of the whole, or of one repository."""
        return await self._catalog.ledger.totals(repository_id)

    async def known_volumes(self) -> list[Volume]:
        """All volumes ever seen."""
        return await self._catalog.fleet.volumes()

    async def volumes(self) -> list[VolumeView]:
        """Volumes that an agent names, or that have snapshots."""
        names = {node.node_id: node.name for node in await self._catalog.fleet.nodes()}
        heads = await self._catalog.ledger.heads()
        tasks = await self._catalog.jobs.last_backup_tasks()
        now = self.fleet.now()
        policy = None if self._schedule_seconds is None else "default"
        views = []
        for volume in await self._catalog.fleet.volumes():
            head, completed, proof = heads.get(volume.volume_id, (None, None, None))
            if head is None and not volume.present and volume.awaits is None:
                continue
            task = tasks.get(volume.volume_id)
            failure = None if task is None else task.failure
            node = names.get(volume.node_id, volume.node_id.hex())
            if not volume.present:
                reason = _why_absent(volume, node)
                volume = replace(volume, verdict="unprotected", reason=reason)  # noqa: PLW2901
            views.append(
                VolumeView(
                    volume=volume,
                    node=node,
                    policy=policy if volume.verdict == "protected" else None,
                    head=head,
                    last_completed_at=completed,
                    age_seconds=None if completed is None else _seconds(now - completed),
                    last_proof_at=proof,
                    last_phase=None if task is None else task.phase,
                    last_message="" if failure is None else failure.message,
                    repository=self.repositories.name_of(volume.repository_id),
                )
            )
        return views

    async def claims(self) -> list[VolumeView]:
        """What agents name that other nodes hold; nothing of it is backed up from there."""
        nodes = await self._catalog.fleet.nodes()
        names = {node.node_id: node.name for node in nodes}
        known = {each.volume_id: each for each in await self._catalog.fleet.volumes()}
        return [
            _claim(
                report,
                node,
                held,
                holder=names.get(held.node_id, held.node_id.hex()),
                repository=self.repositories.name_of(held.repository_id),
            )
            for node in nodes
            for report in self.fleet.claims(node.node_id)
            if (held := known.get(report.local_id)) is not None
        ]

    async def last_success(self) -> dict[tuple[str, str], float]:
        """When each volume was last backed up wholly, in seconds since 1970."""
        return {
            (view.node, view.volume.name): _seconds(view.last_completed_at)
            for view in await self.volumes()
            if view.last_completed_at is not None
        }

    # ---- the recovery kit -----------------------------------------------------------------------

    async def export_kit(self, standing: Standing) -> str:
        """The recovery kit of a repository; from now on it counts as exported."""
        config = standing.config
        kit = self._custody.recovery_kit(config.repository, config.signing_public)
        await self._catalog.fleet.set_meta(self._exported(standing), b"1")
        return kit

    async def kit_exported(self, standing: Standing) -> bool:
        """Whether anybody ever asked for it."""
        return await self._catalog.fleet.get_meta(self._exported(standing)) is not None

    async def kits_exported(self) -> bool:
        """Whether somebody has asked for those of all repositories."""
        return all([await self.kit_exported(each) for each in self.repositories.all()])

    def _exported(self, standing: Standing) -> str:
        """The name of that fact; that of the first repository is from before there were others."""
        if standing.opened is self.repositories.first:
            return _KIT_EXPORTED
        return f"{_KIT_EXPORTED}/{standing.repository_id.hex()}"


def _why_absent(volume: Volume, node: str) -> str:
    if volume.awaits is not None:
        return (
            f"it was moved to {node}, which names no volume {volume.awaits} yet: name it in the "
            f"settings there, or say with `tidemark volume move --as` what it is called"
        )
    return _GONE if volume.local_id is not None else _REPLACED


def _claim(
    report: VolumeReport, node: Node, held: Volume, *, holder: str, repository: str
) -> VolumeView:
    what_to_do = (
        f"node {holder} holds it, and backs it up; if it is on {node.name} now: "
        f"tidemark volume move {held.volume_id.hex()} --to {node.name}"
    )
    return VolumeView(
        volume=replace(
            held,
            node_id=node.node_id,
            name=report.name,
            source=report.source,
            path=report.path,
            # What this node does not want to have backed up is not missed either.
            verdict="unprotected" if report.verdict == "protected" else report.verdict,
            reason=what_to_do if report.verdict == "protected" else report.reason,
            present=True,
            workload=report.workload,
        ),
        node=node.name,
        policy=None,
        head=None,
        last_completed_at=None,
        age_seconds=None,
        last_proof_at=None,
        last_phase=None,
        last_message="",
        repository=repository,
        held_by=holder,
    )


def _seconds(nanoseconds: int) -> float:
    return nanoseconds / NANOSECONDS
