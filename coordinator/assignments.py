"""Which repository the next snapshots of a volume go to: an operator's word, until policies say it.

A backup that runs goes to where it began. The first one elsewhere stores everything anew, since
nothing in one repository rests on another; what was stored before stays where it is, and restores.
"""

from collections.abc import Sequence

from coordinator.catalog import Catalog
from coordinator.errors import UsageError
from coordinator.logs import get_logger
from coordinator.model import Volume
from coordinator.repositories import Repositories
from coordinator.selection import Selection

log = get_logger()


class Assignments:
    """Assigns volumes."""

    def __init__(self, catalog: Catalog, repositories: Repositories, selection: Selection) -> None:
        self._catalog = catalog
        self._repositories = repositories
        self._selection = selection

    async def assign(
        self, selectors: Sequence[str], repository: str, *, everything: bool
    ) -> list[Volume]:
        """Say where volumes go from their next backup on; UsageError, and nothing is changed."""
        if everything == bool(selectors):
            raise UsageError("which volumes?", hint="name volumes, or give --all")
        to = self._repositories.find(repository)
        if everything:
            volumes = await self._selection.protected_volumes()
        else:
            volumes = [await self._selection.volume(each) for each in selectors]
        await self._catalog.fleet.assign_volumes(
            [each.volume_id for each in volumes], to.repository_id
        )
        log.warning(
            "volumes assigned",
            repository=to.name,
            volumes=[each.volume_id.hex() for each in volumes],
        )
        return volumes
