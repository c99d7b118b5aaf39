"""What is well and what is not: `tidemark doctor`."""

import asyncio
import shutil
from dataclasses import dataclass, replace
from typing import Final

from coordinator.catalog import Catalog
from coordinator.custody import Custody
from coordinator.dispatch import Dispatcher
from coordinator.errors import TidemarkError
from coordinator.founding import check_ours, read_config
from coordinator.model import NANOSECONDS, Phase
from coordinator.overview import Overview
from coordinator.repositories import Opened, Standing

# Less than a person waits, more than a slow store needs for the ten questions or so.
_REPOSITORY_SECONDS: Final = 20.0
# Below this a backup may not find room for what it adds.
_FREE_BYTES_MIN: Final = 1024**3


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the doctor looked at."""

    name: str
    ok: bool
    message: str
    hint: str = ""


class Doctor:
    """Looks at everything once."""

    def __init__(
        self, catalog: Catalog, custody: Custody, dispatcher: Dispatcher, overview: Overview
    ) -> None:
        self._catalog = catalog
        self._custody = custody
        self._dispatcher = dispatcher
        self._overview = overview
        self._repositories = overview.repositories
        self._fleet = overview.fleet

    async def look(self) -> list[Check]:
        """All checks. Those of several repositories are made at once."""
        async with asyncio.TaskGroup() as group:
            looking = [
                group.create_task(self._check_standing(each), name=f"check {each.name}")
                for each in self._repositories.all()
            ]
        return [
            *(check for each in looking for check in each.result()),
            self._check_custody(),
            await self._check_kits(),
            await self._check_agents(),
            *await self._check_engines(),
            await self._check_volumes(),
        ]

    async def _check_standing(self, standing: Standing) -> list[Check]:
        """The checks of one repository, named after it if it is not the first."""
        opened = standing.opened
        if opened is None:
            why, name = standing.why_absent, f"repository {standing.name}"
            return [Check(name, ok=False, message=why.message, hint=why.hint)]
        checks = [
            await _check_repository(opened),
            await _check_space(opened),
            *await _check_locks(opened),
        ]
        if opened is self._repositories.first:
            return checks
        return [replace(check, name=f"{check.name} {opened.name}") for check in checks]

    def _check_custody(self) -> Check:
        if self._custody.unlocked:
            return Check("custody", ok=True, message="the recovery secret is unlocked")
        return Check(
            "custody",
            ok=False,
            message="the recovery secret is locked: no restore, no verification of data",
            hint="start the coordinator with the right --passphrase-file",
        )

    async def _check_kits(self) -> Check:
        missing = [
            each for each in self._repositories.all() if not await self._overview.kit_exported(each)
        ]
        if not missing:
            return Check("recovery kit", ok=True, message="was exported")
        others = [each.name for each in missing if each.opened is not self._repositories.first]
        which = f" (of {', '.join(others)})" if others else ""
        return Check(
            "recovery kit",
            ok=False,
            message=f"was never exported{which}: if this machine is lost, so are all backups",
            hint=f"tidemark repo recovery-kit{' NAME' * bool(others)}, then keep it elsewhere",
        )

    async def _check_agents(self) -> Check:
        connected = self._dispatcher.connected()
        nodes = [node for node in await self._catalog.fleet.nodes() if not node.revoked]
        absent = [node for node in nodes if node.node_id not in connected]
        refused = [
            (node.name, refusal)
            for node in absent
            if (refusal := self._fleet.refusal(node.node_id)) is not None
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
            for engine in self._fleet.engines(node.node_id)
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
            for view in await self._overview.volumes()
            if view.volume.present or view.volume.awaits is not None
        ]
        views += await self._overview.claims()
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


async def _check_repository(opened: Opened) -> Check:
    location = opened.repository.location
    try:
        async with asyncio.timeout(_REPOSITORY_SECONDS):
            warnings = await _look_at_repository(opened)
    except TidemarkError as error:
        return Check("repository", ok=False, message=error.message, hint=error.hint)
    except TimeoutError:
        return Check(
            "repository",
            ok=False,
            message=f"{location} did not answer within {_REPOSITORY_SECONDS:.0f} s",
            hint="check the way to it: network and endpoint, or the disk",
        )
    if warnings:
        return Check("repository", ok=False, message="; ".join(warnings))
    return Check("repository", ok=True, message=f"{location} answers")


async def _look_at_repository(opened: Opened) -> list[str]:
    """Warnings; the first error that there is. Whatever asks again later does not do so here.

    The key and the bucket come first: what is wrong with them explains the rest.
    """
    repository, place = opened.repository, opened.repository.place
    warnings = [] if place.check is None else await place.check()
    found = await read_config(place, place.impatient)
    check_ours(place, found, repository.config.repository)
    repository.config.check_writable()
    return warnings


async def _check_space(opened: Opened) -> Check:
    directory = opened.repository.place.directory
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


async def _check_locks(opened: Opened) -> list[Check]:
    """One check where locks are asked for."""
    if (lock := opened.locks.lock) is None:
        return []
    if (problem := await opened.locks.problem()) is not None:
        return [Check("object lock", ok=False, message=problem.message, hint=problem.hint)]
    days = lock.length_ns / (86400 * NANOSECONDS)
    return [Check("object lock", ok=True, message=f"{days:g} days from each commit on")]
