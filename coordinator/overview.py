"""The state of things, for people: volumes with their age and proof, totals, and a doctor."""

import asyncio
import shutil
from dataclasses import dataclass, replace
from typing import Final

from coordinator.catalog import Catalog
from coordinator.custody import Custody
from coordinator.dispatch import Dispatcher
from coordinator.errors import NotFoundError, TidemarkError
from coordinator.fleet import Fleet
from coordinator.founding import Repository, check_ours, read_config
from coordinator.locks import Locks
from coordinator.model import (
    NANOSECONDS,
    Node,
    Phase,
    Snapshot,
    Totals,
    Volume,
    VolumeReport,
)
from repository.ids import RepositoryId

# Shorter beginnings of an id are hardly meant.
_PREFIX_MIN: Final = 4
_KIT_EXPORTED: Final = "recovery_kit_exported"
_GONE: Final = (
    "it is not on its node any more; its snapshots still restore, and `tidemark volume move` says "
    "where it is now"
)
_REPLACED: Final = "another volume goes on in its place; its snapshots still restore"
# Less than a person waits, more than a slow store needs for the ten questions or so.
_REPOSITORY_SECONDS: Final = 20.0
# Below this a backup may not find room for what it adds.
_FREE_BYTES_MIN: Final = 1024**3


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
    # The node that holds it, where the node above only claims it.
    held_by: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the doctor looked at."""

    name: str
    ok: bool
    message: str
    hint: str = ""


class Overview:
    """Puts figures together."""

    def __init__(  # noqa: PLR0913 - the parts that it needs
        self,
        catalog: Catalog,
        repository: Repository,
        custody: Custody,
        fleet: Fleet,
        dispatcher: Dispatcher,
        locks: Locks,
        *,
        schedule_seconds: int | None,
    ) -> None:
        self._catalog = catalog
        self.repository = repository
        self._custody = custody
        self.fleet = fleet
        self._dispatcher = dispatcher
        self._locks = locks
        self._schedule_seconds = schedule_seconds

    @property
    def unlocked(self) -> bool:
        """Whether custody is open."""
        return self._custody.unlocked

    @property
    def lock_seconds(self) -> int:
        """For how long snapshots are locked; 0 where none is."""
        return 0 if self._locks.lock is None else self._locks.lock.length_ns // NANOSECONDS

    def repository_id(self, selector: str) -> RepositoryId:
        """The repository of that id, or of one that begins so; NotFoundError."""
        found = self.repository.config.repository
        if len(selector) < _PREFIX_MIN or not found.hex().startswith(selector):
            raise NotFoundError(
                f"there is no repository {selector!r}", hint="see tidemark repo show for its id"
            )
        return found

    async def totals(self) -> Totals:
        """Figures of the whole."""
        return await self._catalog.ledger.totals()

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
                )
            )
        return views

    async def claims(self) -> list[VolumeView]:
        """What agents name that other nodes hold; nothing of it is backed up from there."""
        nodes = await self._catalog.fleet.nodes()
        names = {node.node_id: node.name for node in nodes}
        known = {each.volume_id: each for each in await self._catalog.fleet.volumes()}
        return [
            _claim(report, node, held, names.get(held.node_id, held.node_id.hex()))
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

    async def export_kit(self) -> str:
        """The recovery kit; from now on it counts as exported."""
        config = self.repository.config
        kit = self._custody.recovery_kit(config.repository, config.signing_public)
        await self._catalog.fleet.set_meta(_KIT_EXPORTED, b"1")
        return kit

    async def kit_exported(self) -> bool:
        """Whether anybody ever asked for it."""
        return await self._catalog.fleet.get_meta(_KIT_EXPORTED) is not None

    # ---- the doctor -----------------------------------------------------------------------------

    async def doctor(self) -> list[Check]:
        """What is well and what is not."""
        return [
            await self._check_repository(),
            await self._check_space(),
            *await self._check_locks(),
            self._check_custody(),
            await self._check_kit(),
            await self._check_agents(),
            *await self._check_engines(),
            await self._check_volumes(),
        ]

    async def _check_repository(self) -> Check:
        try:
            async with asyncio.timeout(_REPOSITORY_SECONDS):
                warnings = await self._look_at_repository()
        except TidemarkError as error:
            return Check("repository", ok=False, message=error.message, hint=error.hint)
        except TimeoutError:
            return Check(
                "repository",
                ok=False,
                message=f"{self.repository.location} did not answer within "
                f"{_REPOSITORY_SECONDS:.0f} s",
                hint="check the way to it: network and endpoint, or the disk",
            )
        if warnings:
            return Check("repository", ok=False, message="; ".join(warnings))
        return Check("repository", ok=True, message=f"{self.repository.location} answers")

    async def _look_at_repository(self) -> list[str]:
        """Warnings; the first error that there is. Whatever asks again later does not do so here.

        The key and the bucket come first: what is wrong with them explains the rest.
        """
        repository, place = self.repository, self.repository.place
        warnings = [] if place.check is None else await place.check()
        found = await read_config(place, place.impatient)
        check_ours(place, found, repository.config.repository)
        repository.config.check_writable()
        return warnings

    async def _check_space(self) -> Check:
        directory = self.repository.place.directory
        if directory is None:
            return Check("space", ok=True, message="a bucket has no size that can be asked for")
        try:
            usage = await asyncio.to_thread(shutil.disk_usage, directory)
        except OSError as error:
            return Check("space", ok=False, message=f"cannot tell: {error.strerror}")
        message = f"{usage.free // 1024**2} MiB free"
        return Check(
            "space",
            ok=usage.free >= _FREE_BYTES_MIN,
            message=message,
            hint="" if usage.free >= _FREE_BYTES_MIN else "free space on the repository's disk",
        )

    async def _check_locks(self) -> list[Check]:
        """One check where locks are asked for."""
        if (lock := self._locks.lock) is None:
            return []
        if (problem := await self._locks.problem()) is not None:
            return [Check("object lock", ok=False, message=problem.message, hint=problem.hint)]
        days = lock.length_ns / (86400 * NANOSECONDS)
        return [Check("object lock", ok=True, message=f"{days:g} days from each commit on")]

    def _check_custody(self) -> Check:
        if self._custody.unlocked:
            return Check("custody", ok=True, message="the recovery secret is unlocked")
        return Check(
            "custody",
            ok=False,
            message="the recovery secret is locked: no restore, no verification of data",
            hint="start the coordinator with the right --passphrase-file",
        )

    async def _check_kit(self) -> Check:
        if await self.kit_exported():
            return Check("recovery kit", ok=True, message="was exported")
        return Check(
            "recovery kit",
            ok=False,
            message="was never exported: if this machine is lost, so are all backups",
            hint="tidemark repo recovery-kit, then keep it elsewhere",
        )

    async def _check_agents(self) -> Check:
        connected = self._dispatcher.connected()
        nodes = [node for node in await self._catalog.fleet.nodes() if not node.revoked]
        absent = [node for node in nodes if node.node_id not in connected]
        refused = [
            (node.name, refusal)
            for node in absent
            if (refusal := self.fleet.refusal(node.node_id)) is not None
        ]
        if refused:
            return Check(
                "agents",
                ok=False,
                message="; ".join(f"{name}: {error.message}" for name, error in refused[:10]),
                hint=refused[0][1].hint,
            )
        away = [node.name for node in absent]
        if away or not nodes:
            missing = ", ".join(away[:10]) if away else "no node has ever joined"
            return Check(
                "agents",
                ok=False,
                message=f"not connected: {missing}" if away else missing,
                hint="start tidemark-agent there, or tidemark node token for a new one",
            )
        return Check("agents", ok=True, message=f"{len(nodes)} connected")

    async def _check_engines(self) -> list[Check]:
        """One check if any agent asks an engine for volumes."""
        connected = self._dispatcher.connected()
        asked = [
            (node.name, engine)
            for node in await self._catalog.fleet.nodes()
            if node.node_id in connected
            for engine in self.fleet.engines(node.node_id)
        ]
        silent = [f"{name}: {engine.message}" for name, engine in asked if not engine.answers]
        if silent:
            return [
                Check(
                    "docker",
                    ok=False,
                    message="; ".join(silent[:10]),
                    hint="start dockerd there; until then new volumes are not found",
                )
            ]
        versions = ", ".join(sorted({engine.version for _, engine in asked}))
        answering = f"{len(asked)} answering, version {versions}"
        return [Check("docker", ok=True, message=answering)] if asked else []

    async def _check_volumes(self) -> Check:
        views = [
            view
            for view in await self.volumes()
            if view.volume.present or view.volume.awaits is not None
        ]
        views += await self.claims()
        failed = [view for view in views if view.last_phase is Phase.FAILED]
        unprotected = [view for view in views if view.volume.verdict == "unprotected"]
        if not failed and not unprotected:
            return Check("volumes", ok=True, message=f"{len(views)} known, none failing")
        names = ", ".join(view.volume.name for view in [*failed, *unprotected][:10])
        return Check(
            "volumes",
            ok=False,
            message=f"failing or unprotected: {names}",
            hint="see tidemark volume list and tidemark job list",
        )


def _why_absent(volume: Volume, node: str) -> str:
    if volume.awaits is not None:
        return (
            f"it was moved to {node}, which names no volume {volume.awaits} yet: name it in the "
            f"settings there, or say with `tidemark volume move --as` what it is called"
        )
    return _GONE if volume.local_id is not None else _REPLACED


def _claim(report: VolumeReport, node: Node, held: Volume, holder: str) -> VolumeView:
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
        held_by=holder,
    )


def _seconds(nanoseconds: int) -> float:
    return nanoseconds / NANOSECONDS
