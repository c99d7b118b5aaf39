"""The repositories of this coordinator: the first, which its settings name, and those made later.

What belongs to one of the later ones lies in a directory of its own below the coordinator's data:
where it is, the key of its bucket, and what founding it has drawn. One that cannot be opened keeps
nothing else from working: it is tried again, and whatever needs it is told why it is not there.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.catalog import Catalog
from coordinator.config import Where
from coordinator.custody import Custody, Random
from coordinator.errors import (
    NotFoundError,
    StoreError,
    StoreUnavailableError,
    TidemarkError,
    UsageError,
)
from coordinator.founding import Repository, founded_config, open_repository
from coordinator.locking import Lock
from coordinator.locks import Locks
from coordinator.logs import get_logger
from coordinator.metrics import Metrics
from coordinator.model import NANOSECONDS
from coordinator.sites import Secrets, Site, Wish, check_fit, sites_in
from coordinator.siting import (
    FIRST,
    check_apart,
    check_bucket,
    check_buckets_apart,
    check_directory,
    check_name,
    directory_of,
)
from coordinator.stores import Clock, OpenPlace
from repository.ids import RepositoryId
from repository.layout import RepositoryConfig
from repository.store.s3.location import S3Location

log = get_logger()

# One that could not be opened is tried again after a second, for a disk that was only late, then
# after twice as long each time, and so often in the end.
_AGAIN_SECONDS_MIN: Final = 1.0
_AGAIN_SECONDS: Final = 10.0
# A start waits no longer for them: a directory on a server that is away may hang for ever.
_START_SECONDS: Final = 20.0
# Shorter beginnings of an id are hardly meant.
_PREFIX_MIN: Final = 4


@dataclass(frozen=True, slots=True)
class Opened:
    """A repository that is there."""

    name: str
    repository: Repository
    locks: Locks


@dataclass(slots=True)
class Standing:
    """A repository that this coordinator has, whether it can be opened or not."""

    name: str
    config: RepositoryConfig
    location: str
    opened: Opened | None = None
    problem: TidemarkError | None = None

    @property
    def repository_id(self) -> RepositoryId:
        """Which one it is."""
        return self.config.repository

    @property
    def why_absent(self) -> TidemarkError:
        """Why it is not opened, where it is not."""
        return self.problem or StoreError("it was not tried yet", hint="wait some seconds")


def lock_of(where: Where) -> Lock | None:
    """The lock that is asked for."""
    if isinstance(where, Path) or where.lock_seconds is None:
        return None
    return Lock(where.lock_seconds * NANOSECONDS)


class Repositories:
    """All of them. Used from one event loop only."""

    def __init__(  # noqa: PLR0913 - the parts that it needs
        self,
        first: Opened,
        data: Path,
        catalog: Catalog,
        custody: Custody,
        metrics: Metrics,
        *,
        places: tuple[str, ...],
        open_at: OpenPlace,
        clock: Clock,
        random: Random,
    ) -> None:
        """`places`: where further ones may be made, as siting.py reads it."""
        self.first = first
        self._directory = data / "repositories"
        self._catalog = catalog
        self._custody = custody
        self._metrics = metrics
        self._places = places
        self._open_at = open_at
        self._clock = clock
        self._random = random
        # What is asked for is compared with all others, so one is made after the other.
        self._making = asyncio.Lock()
        # Each is opened by one at a time; one that hangs holds up no other.
        self._opening: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stack = AsyncExitStack()
        self._wishes: dict[str, Wish] = {}
        repository = first.repository
        self._standing = {
            FIRST: Standing(FIRST, repository.config, repository.location, opened=first)
        }
        self._watch(first)

    # ---- which one ------------------------------------------------------------------------------

    def all(self) -> list[Standing]:
        """The first one first, the others by name."""
        first, *others = self._standing.values()
        return [first, *sorted(others, key=lambda each: each.name)]

    def opened(self) -> Iterator[Opened]:
        """Those that are there."""
        return (each.opened for each in self.all() if each.opened is not None)

    def absent(self) -> list[Standing]:
        """Those that are not there."""
        return [each for each in self.all() if each.opened is None]

    def of(self, repository_id: RepositoryId | None) -> Opened:
        """The one with that id, or the first; StoreError while it is not there."""
        found = self.standing(repository_id)
        if found.opened is not None:
            return found.opened
        # Nobody waits for it: a node would do nothing else meanwhile, and this may take days.
        why = found.why_absent
        raise StoreError(f"repository {found.name} cannot be opened: {why.message}", hint=why.hint)

    def standing(self, repository_id: RepositoryId | None) -> Standing:
        """The one with that id, or the first; StoreError where there is none."""
        if repository_id is None:
            return self._standing[FIRST]
        for each in self._standing.values():
            if each.repository_id == repository_id:
                return each
        raise StoreError(
            f"this coordinator has no repository {repository_id.hex()}",
            hint=f"put {self._directory} back from a copy",
        )

    def name_of(self, repository_id: RepositoryId | None) -> str:
        """What people call it."""
        try:
            return self.standing(repository_id).name
        except StoreError:
            return "" if repository_id is None else repository_id.hex()

    def find(self, selector: str) -> Standing:
        """The one of that name or id, or of an id that begins so; NotFoundError.

        The first one, where nothing is said.
        """
        if (named := self._standing.get(selector or FIRST)) is not None:
            return named
        all_of_them = self._standing.values()
        found = [each for each in all_of_them if each.repository_id.hex().startswith(selector)]
        if len(selector) < _PREFIX_MIN or len(found) != 1:
            raise NotFoundError(
                f"there is no repository {selector!r}", hint="see tidemark repo list"
            )
        return found[0]

    # ---- opening --------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open all that were made before; those that cannot be are tried again by `run`."""
        for site in await asyncio.to_thread(lambda: list(sites_in(self._directory))):
            try:
                await asyncio.to_thread(self._recall, site)
            except TidemarkError as error:
                log.error(  # noqa: TRY400 - what lies in the others is none the worse for it
                    "repository not known", reason=error.message, hint=error.hint
                )
        try:
            async with asyncio.timeout(_START_SECONDS), asyncio.TaskGroup() as group:
                for each in self.absent():
                    group.create_task(self._try(each), name=f"open repository {each.name}")
        except TimeoutError:
            silent = StoreUnavailableError(
                "it has not answered yet", hint="check its disk or server; it is tried again"
            )
            for each in self.absent():
                if each.problem is None:
                    self._note(each, silent)

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            pause = _AGAIN_SECONDS_MIN
            while True:
                await asyncio.sleep(min(pause, _AGAIN_SECONDS))
                pause = min(2 * pause, _AGAIN_SECONDS)
                for each in self.absent():
                    if not self._opening[each.name].locked():
                        group.create_task(self._try(each), name=f"open repository {each.name}")

    async def close(self) -> None:
        """Let go of all but the first."""
        await self._stack.aclose()

    def _recall(self, site: Site) -> None:
        """Know of one, if its founding ever began."""
        config = founded_config(site.keys)
        wish = None if config is None else site.read()
        if config is not None and wish is not None:
            self._wishes[site.name] = wish
            self._standing[site.name] = Standing(site.name, config, wish.location)

    async def _try(self, standing: Standing) -> None:
        try:
            async with self._opening[standing.name]:
                if self._standing[standing.name].opened is None:
                    await self._open(standing.name)
        except TidemarkError as error:
            self._note(standing, error)

    def _note(self, standing: Standing, error: TidemarkError) -> None:
        before, standing.problem = standing.problem, error
        self._metrics.repository_opened(standing.name, opened=False)
        if before is None or before.message != error.message:
            log.warning(
                "repository not opened",
                repository=standing.name,
                reason=error.message,
                hint=error.hint,
            )

    async def _open(self, name: str) -> Opened:
        """Found it, if that is not done, and serve it."""
        wish, site = self._wishes[name], self._site(name)
        try:
            return await self._open_site(name, site, site.where(wish))
        except OSError as error:  # whatever a disk or a file of keys may say
            raise StoreError(
                f"{wish.url} cannot be used: {error.strerror or error}",
                hint=f"check the place, and the files in {site.path}",
            ) from error

    async def _open_site(self, name: str, site: Site, where: Where) -> Opened:
        async with AsyncExitStack() as stack:
            place = await stack.enter_async_context(self._open_at(where, self._clock))
            repository = await open_repository(
                place, site.keys, self._custody, random=self._random, now=self._clock()
            )
            locks = Locks(self._catalog, repository, lock_of(where), clock=self._clock)
            await locks.begin()
            self._stack.push_async_callback(stack.pop_all().aclose)
        opened = Opened(name, repository, locks)
        self._standing[name] = Standing(name, repository.config, repository.location, opened)
        self._watch(opened)
        log.info("repository opened", repository=name, location=repository.location)
        return opened

    def _watch(self, opened: Opened) -> None:
        place = opened.repository.place
        self._metrics.watch_store(opened.name, place.tally, place.breaker)
        self._metrics.repository_opened(opened.name, opened=True)

    def _site(self, name: str) -> Site:
        return Site(self._directory / name)

    # ---- making more ----------------------------------------------------------------------------

    async def make(self, name: str, wish: Wish, secrets: Secrets, *, by: str) -> Standing:
        """Make a repository, or go on with making it; the same asked for again changes nothing.

        Secrets that are given with it replace those of before. UsageError, ForbiddenError, and
        whatever is wrong with the place.
        """
        check_name(name)
        wish = wish.plain()
        check_fit(wish, secrets)
        async with self._making, self._opening[name]:
            if name in self._standing:
                return await self._once_more(name, wish, secrets)
            await self._check_place(wish)
            site = self._site(name)
            await asyncio.to_thread(site.prepare, wish, secrets)
            self._wishes[name] = wish
            try:
                await self._open(name)
            finally:  # whoever asked may have gone away, too
                if name not in self._standing:
                    self._give_up(site)
            log.warning("repository made", repository=name, by=by)
            return self._standing[name]

    async def _once_more(self, name: str, wish: Wish, secrets: Secrets) -> Standing:
        if self._wishes[name] != wish:
            raise UsageError(
                f"repository {name} lies at {self._standing[name].location}, and was made with "
                "other settings than these",
                hint="see tidemark repo list; choose another name for another place",
            )
        await asyncio.to_thread(self._site(name).keep, secrets)
        if self._standing[name].opened is None:
            await self._open(name)
        return self._standing[name]

    def _give_up(self, site: Site) -> None:
        """Forget what never began; once its keys are drawn, founding goes on by itself."""
        self._recall(site)
        if site.name not in self._standing:
            del self._wishes[site.name]
            site.remove()

    async def _check_place(self, wish: Wish) -> None:
        directory = directory_of(wish.url)
        if directory is None:
            check_bucket(wish.url, wish.endpoint, self._places)
            check_buckets_apart(wish.bucket(), self._buckets())
            return
        try:
            real = await asyncio.to_thread(directory.resolve)
        except (OSError, RuntimeError) as error:  # the latter of links in a circle
            raise UsageError(
                f"{directory} leads nowhere: {error}", hint="choose another directory"
            ) from error
        check_directory(real, self._places)
        volumes = [each for each in await self._catalog.fleet.volumes() if each.present]
        check_apart(
            real,
            [self._directory.parent.resolve(), *self.directories()],
            [Path(os.fsdecode(each.path)) for each in volumes],
        )

    def directories(self) -> list[Path]:
        """The directories that are repositories, all links resolved."""
        first = self.first.repository.place.directory
        later = (directory_of(wish.url) for wish in self._wishes.values())
        return [each.resolve() for each in (first, *later) if each is not None]

    def store_endpoints(self) -> list[str]:
        """What signed URLs of stores begin with that this machine's agent can speak with.

        That one trusts whom the first one's settings name, and whom the machine trusts; packs for a
        store that others vouch for go through the coordinator.
        """
        found: dict[str, None] = {}
        for each in self.opened():
            signing = each.repository.signing_store
            vouched = each is self.first or not self._site(each.name).ca.exists()
            if signing is not None and vouched:
                found[signing.endpoint] = None
        return list(found)

    def _buckets(self) -> Iterator[tuple[str, S3Location]]:
        """The buckets that hold repositories, with the names of these."""
        if (first := self.first.repository.place.bucket) is not None:
            yield FIRST, first
        for name, wish in self._wishes.items():
            if directory_of(wish.url) is None:
                yield name, wish.bucket()
