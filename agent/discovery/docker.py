"""Asks a Docker engine what it has, at once when something changes and now and then anyway.

The engine's events only say *that* something changed; what there is now is always asked for whole,
so that an event that was lost costs a minute and nothing else. An engine that goes away, or that
does not answer in time, is tried again with a back-off, for ever. What it said last stays true
until it says otherwise: only an answer can make a volume vanish.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterator
from typing import Any, Final, Protocol, cast

import aiodocker
import aiohttp
import msgspec

from agent.discovery.answer import Answer, Container, Mount, NamedVolume
from agent.errors import EngineError, first_error
from agent.logs import get_logger
from agent.services import Clock

# Looking takes at most a fifth of the engine's time, however much happens.
_COSTS: Final = 4.0
_EVENTS: Final = {
    "type": ["container", "volume"],
    "event": ["create", "destroy", "rename", "start", "prune"],
}
_GONE: Final = 404

_HINT: Final = "is dockerd running, and is this its socket?"
_FAILURES: Final = (
    aiodocker.DockerError,
    aiohttp.ClientError,
    OSError,
    TimeoutError,
    ValueError,  # msgspec's errors, and what is no JSON
    # aiodocker's, where an answer has not the shape that it expects.
    KeyError,
    TypeError,
)

_random = random.SystemRandom()
_log = get_logger()


class Listener(Protocol):
    """Who wants to know."""

    async def on_answer(self, answer: Answer) -> None:
        """Take note of everything that the engine has. Raises EngineError to be asked again."""
        ...

    def on_silence(self, reason: str) -> None:
        """Take note that the engine does not answer just now."""
        ...


class _Info(msgspec.Struct, rename="pascal"):
    docker_root_dir: str
    server_version: str = ""


class _Volumes(msgspec.Struct, rename="pascal"):
    # Without a default: an answer that says nothing of volumes does not say that there are none.
    volumes: tuple[NamedVolume, ...] | None


class _HostConfig(msgspec.Struct, rename="pascal"):
    tmpfs: dict[str, str] | None = None


class _Inspected(msgspec.Struct, rename="pascal"):
    host_config: _HostConfig


class Patience(msgspec.Struct, frozen=True):
    """How long to wait for what, in seconds."""

    look: float = 60.0
    """Without an event, all is looked at anew so often: sources of bind mounts raise none."""
    answer: float = 30.0
    """An engine under load takes seconds to list a thousand containers."""
    settle: float = 0.3
    """Events come in bursts, as when a project starts; they are one reason to look."""
    backoff: tuple[float, float] = (0.5, 5.0)
    """The engine's socket is on this machine: to try it costs next to nothing."""
    good: float = 60.0
    """After a connection that lived so long the next failure begins with a short wait again."""


class Docker:
    """One engine, by the address of its socket."""

    def __init__(
        self,
        address: str,
        listener: Listener,
        clock: Clock,
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        self._patience = patience
        self._address = address
        self._listener = listener
        self._clock = clock
        self._stale = asyncio.Event()
        # Of each container that was inspected: its mounts that a listing leaves out, for ever.
        self._unlisted: dict[str, tuple[Mount, ...]] = {}

    async def run(self) -> None:
        """Watch the engine until canceled."""
        shortest, longest = self._patience.backoff
        delay = shortest
        while True:
            reason = ""
            began = self._clock.monotonic()
            try:
                await self._watch()
            except* EngineError as errors:
                reason = str(first_error(errors))
                self._listener.on_silence(reason)
            if self._clock.monotonic() - began > self._patience.good:
                delay = shortest
            wait = delay * _random.uniform(0.5, 1.5)
            _log.warning("docker lost", reason=reason, next_try_seconds=round(wait, 1))
            await asyncio.sleep(wait)
            delay = min(delay * 2, longest)

    async def _watch(self) -> None:
        """Look until the connection breaks; raises EngineError, perhaps in a group."""
        async with aiodocker.Docker(url=self._address) as client, asyncio.TaskGroup() as group:
            group.create_task(self._listen(client), name="docker events")
            while True:
                self._stale.clear()
                began = self._clock.monotonic()
                await self._listener.on_answer(await self._look(client))
                await self._until_stale(self._clock.monotonic() - began)

    async def _until_stale(self, cost_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience.look):
                await self._stale.wait()
        await asyncio.sleep(max(self._patience.settle, cost_seconds * _COSTS))

    async def _listen(self, client: aiodocker.Docker) -> None:
        """Tell of every event; raises EngineError when there will be no more."""
        events = cast("Any", client.events)
        subscriber = events.subscribe(create_task=False)
        with self._translated():
            async with asyncio.TaskGroup() as group:
                wanted = msgspec.json.encode(_EVENTS).decode()
                group.create_task(events.run(filters=wanted), name="docker event stream")
                while await subscriber.get() is not None:
                    self._stale.set()
        raise EngineError(f"Docker at {self._address} ended the stream of events", hint=_HINT)

    async def _look(self, client: aiodocker.Docker) -> Answer:
        with self._translated():
            async with asyncio.timeout(self._patience.answer):
                info = msgspec.convert(await client.system.info(), _Info)
                # Containers first: what they mount is then among the volumes, if it still is.
                containers = await self._containers(client)
                listed = await cast("Any", client.volumes).list()
            return Answer(
                version=info.server_version,
                data_root=info.docker_root_dir,
                containers=containers,
                volumes=msgspec.convert(listed, _Volumes).volumes or (),
            )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (ExceptionGroup, *_FAILURES) as error:
            # Not by except*: what that raises comes as a group again on Python 3.11.2.
            first = first_error(error)
            if not isinstance(first, _FAILURES):
                raise
            reason = _reason(first)
            raise EngineError(f"Docker at {self._address} {reason}", hint=_HINT) from error

    async def _containers(self, client: aiodocker.Docker) -> tuple[Container, ...]:
        listed = await client.containers.list(all=True)
        unlisted = {}
        found = []
        for each in listed:
            # Read first: to inspect a container replaces what the listing said of it.
            fields = {name: each[name] for name in ("Id", "Names", "Labels", "Mounts")}
            container = msgspec.convert(fields, Container)
            mounts = self._unlisted.get(container.id)
            if mounts is None:
                mounts = await _inspected(each)
            unlisted[container.id] = mounts
            found.append(
                msgspec.structs.replace(container, mounts=(*(container.mounts or ()), *mounts))
            )
        self._unlisted = unlisted
        return tuple(found)


async def _inspected(container: aiodocker.containers.DockerContainer) -> tuple[Mount, ...]:
    """Return what `--tmpfs` mounts, of which a listing says nothing."""
    try:
        shown = msgspec.convert(await container.show(), _Inspected)
    except aiodocker.DockerError as error:
        if error.status == _GONE:
            return ()
        raise
    tmpfs = sorted(shown.host_config.tmpfs or ())
    return tuple(Mount(type="tmpfs", destination=path) for path in tmpfs)


def _reason(error: BaseException) -> str:
    match error:
        case TimeoutError():
            return "did not answer in time"
        case aiodocker.DockerError(__context__=aiohttp.ClientConnectorError() as cause):
            return f"cannot be reached: {cause.os_error.strerror or cause.os_error}"
        case aiodocker.DockerError():
            return f"says no: {error.message}"
        case msgspec.ValidationError() | KeyError():
            return f"answers what nobody understands: {error}"
        case _:
            return f"cannot be asked: {str(error) or type(error).__name__}"
