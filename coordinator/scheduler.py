"""The loop around coordinator/schedule.py: asks for what is due."""

import asyncio
from typing import Final

from coordinator import schedule
from coordinator.catalog import Catalog
from coordinator.dispatch import Clock, Dispatcher
from coordinator.errors import TidemarkError
from coordinator.logs import get_logger
from coordinator.model import NANOSECONDS, Origin

log = get_logger()

# New volumes appear, and wait no longer than this.
_LOOK_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 1.0


class Scheduler:
    """Runs as long as the server."""

    def __init__(
        self,
        catalog: Catalog,
        dispatcher: Dispatcher,
        *,
        clock: Clock,
        every_seconds: int | None,
    ) -> None:
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._clock = clock
        self._every_ns = None if every_seconds is None else every_seconds * NANOSECONDS

    async def run(self) -> None:
        """Never returns; a failed round is told and tried again."""
        while True:
            try:
                pause = await self.look()
            except TidemarkError as error:
                log.error("scheduling failed", reason=error.message, hint=error.hint)  # noqa: TRY400
                pause = _LOOK_SECONDS
            await asyncio.sleep(pause)

    async def look(self) -> float:
        """One round; how many seconds until the next."""
        if self._every_ns is None:
            return _LOOK_SECONDS
        now = self._clock()
        volumes = await self._catalog.fleet.volumes()
        busy = self._dispatcher.busy_volumes()
        due = schedule.due(volumes, busy=busy, interval_ns=self._every_ns, now=now)
        if due:
            # Marked first: a crash in between costs one run, the other order could storm.
            await self._catalog.fleet.mark_scheduled([each.volume_id for each in due], now)
            for volume in due:
                await self._dispatcher.create_backup([volume], Origin.SCHEDULE)
        waiting = [volume for volume in volumes if volume not in due]
        soonest = schedule.soonest(waiting, interval_ns=self._every_ns)
        if soonest is None:
            # A volume that is first seen right now is due after one interval.
            soonest = now + self._every_ns
        return min(_LOOK_SECONDS, max(_PAUSE_SECONDS, (soonest - now) / NANOSECONDS))
