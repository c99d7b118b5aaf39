"""Keeps the node's certificates good: renews them in time, keeps them, and tells who uses them.

A certificate lives a day; the one that renews it lives a year and may do nothing else, so a node
that was switched off for a week comes back by itself. A theft of the TLS key renews nothing: the
signing key answers a challenge (proto/renewal.py).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from agent.config import Address
from agent.errors import StateError, UnreachableError
from agent.identity import Identity, save_renewed
from agent.logs import get_logger
from agent.services import Clock
from agent.session import renew_certificates
from agent.validity import Validity, read_validity, retry_seconds, wait_seconds
from repository.errors import TidemarkError
from repository.failpoints import failpoint

_random: Final = random.SystemRandom()
_log = get_logger()


class Renewal:
    """Renews, for as long as the agent runs."""

    def __init__(
        self,
        address: Address,
        state: Path,
        identity: Identity,
        *,
        clock: Clock,
        renewed: Callable[[Identity], Awaitable[None]],
    ) -> None:
        self._address = address
        self._state = state
        self._clock = clock
        self._renewed = renewed
        self._take(identity)

    def _take(self, identity: Identity) -> None:
        self._identity = identity
        self._validity: Validity = read_validity(identity.membership.certificate)
        self._renew_at = self._validity.renew_at(_random.random())

    async def until_valid(self) -> None:
        """Return once the node has a certificate that is good now."""
        if self._validity.expired(self._clock.now_ns()):
            await self._renew()

    async def run(self) -> None:
        """Renew whenever it is time, until canceled."""
        while True:
            wait = wait_seconds(self._renew_at, self._clock.now_ns())
            if wait:
                await asyncio.sleep(wait)
            else:
                await self._renew()

    async def _renew(self) -> None:
        """Ask until there is an answer, however long it takes."""
        failures = 0
        while not await self._ask():
            failures += 1
            await asyncio.sleep(retry_seconds(failures, _random.random()))
        _log.info("certificate renewed", expires_in_seconds=self._seconds_left())
        await self._renewed(self._identity)

    async def _ask(self) -> bool:
        """Ask once; whether there was an answer, and it was kept."""
        try:
            membership = await renew_certificates(self._address, self._identity)
            failpoint("agent.renewal.answered", UnreachableError)
            await asyncio.to_thread(save_renewed, self._state, membership)
            failpoint("agent.renewal.kept", StateError)
        except TidemarkError as error:
            _log.warning(
                "certificate not renewed",
                reason=error.message,
                hint=error.hint,
                expires_in_seconds=self._seconds_left(),
            )
            return False
        self._take(Identity(self._identity.keys, membership))
        return True

    def _seconds_left(self) -> int:
        return (self._validity.expires_ns - self._clock.now_ns()) // 1_000_000_000
