"""Keeps the volumes of this node in step with a container engine.

Between the engine's answer and the volumes stands a survey of the paths, in a thread of its own: a
dead network filesystem may hold it for ever, and nothing else.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
from typing_extensions import override

from agent.discovery.answer import Answer
from agent.discovery.docker import Docker, Listener
from agent.discovery.ledger import ENGINE, printable
from agent.errors import EngineError
from agent.logs import get_logger
from agent.services import Clock, Engine
from agent.volumes import Volumes

_SURVEY_SECONDS: Final = 20.0
# An agent that starts names its volumes at once if the engine is quick, and without it else.
_FIRST_LOOK_SECONDS: Final = 5.0
# An engine's own words may be long.
_TEXT_MAX: Final = 1000
_log = get_logger()


class Discovery(Listener):
    """One engine's volumes, for as long as it runs."""

    def __init__(
        self, address: str, volumes: Volumes, clock: Clock, changed: Callable[[], None]
    ) -> None:
        """`changed` is called after the volumes, or how it stands with the engine, changed."""
        self.engine = Engine(ENGINE, address)
        self._volumes = volumes
        self._changed = changed
        self._docker = Docker(address, self, clock)
        self._looked = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="survey")

    async def run(self) -> None:
        """Watch the engine until canceled."""
        try:
            await self._docker.run()
        finally:
            # Not waited for: it may hang in the kernel.
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def first_look(self) -> None:
        """Wait until the engine has answered or failed to, but not long."""
        try:
            async with asyncio.timeout(_FIRST_LOOK_SECONDS):
                await self._looked.wait()
        except TimeoutError:
            _log.warning("docker is slow; its volumes follow", address=self.engine.address)

    @override
    async def on_answer(self, answer: Answer) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_SURVEY_SECONDS):
                found = await loop.run_in_executor(self._thread, self._volumes.survey, answer)
        except TimeoutError as error:
            raise EngineError(
                "the source of a mount does not answer",
                hint="look for a dead network filesystem among the bind mounts",
            ) from error
        other = self._volumes.found(found)
        self._stands(answers=True, version=answer.version, message="", other=other)

    @override
    def on_silence(self, reason: str) -> None:
        self._stands(answers=False, version=self.engine.version, message=reason, other=False)

    def _stands(self, *, answers: bool, version: str, message: str, other: bool) -> None:
        before = self.engine
        self.engine = msgspec.structs.replace(
            before,
            answers=answers,
            version=printable(version)[:_TEXT_MAX],
            message=printable(message)[:_TEXT_MAX],
        )
        self._looked.set()
        if other or self.engine != before:
            self._changed()
