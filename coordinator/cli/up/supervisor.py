"""The life of `up`: start both processes, say when all is ready, and end them together.

One of them dying ends the other: half a Tidemark looks alive and protects nothing.
"""

import asyncio
import contextlib
import signal
import sys
from dataclasses import dataclass

from coordinator.cli.client import Client, UnreachableError
from coordinator.cli.contexts import Context, home_context, read_context
from coordinator.cli.failure import BUSY, CommandError
from coordinator.cli.up.children import Child, start_child
from coordinator.cli.up.directory import (
    Directory,
    open_processes_lock,
    own_node,
    processes_gone,
)
from coordinator.cli.up.endpoints import (
    ANY_PORT,
    Endpoints,
    former_address,
    former_listen,
    is_free,
    read_endpoints,
    write_contexts,
)
from coordinator.cli.up.protection import Protected, write_private
from proto.tidemark.v1.admin_pb2 import (
    CreateNodeTokenRequest,
    GetStatusRequest,
    GetStatusResponse,
    Volume,
)

# Children end within 5 s of their parent; this is for a slow disk.
_FORMER_PROCESSES_SECONDS = 15.0
# A start may have a crash to recover from.
_START_SECONDS = 300.0
_CALL_SECONDS = 10.0
_TOKEN_SECONDS = 600
_POLL_SECONDS = 0.05
_LOG_CHECK_SECONDS = 60.0


class _SignalledError(Exception):
    """Somebody asked `up` to end."""


@dataclass(frozen=True)
class Settings:
    """What `up` was asked for."""

    directory: Directory
    volumes: list[Protected]
    # The address of a container engine whose volumes are protected, too.
    engine: str | None
    # Flags of the coordinator that name a bucket; none for a repository in the directory.
    bucket: dict[str, str]
    every_seconds: int | None
    # None: the port of the last time if it is free, else any, on loopback.
    listen: str | None


async def supervise(settings: Settings) -> None:
    """Run until a signal (then return) or until a child dies (then raise)."""
    children: list[Child] = []
    failure: BaseException | None = None
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_raise_on(stop), name="signals")
            group.create_task(_run(settings, children, group), name="up")
    except* _SignalledError:
        _say("stopping")
    except* CommandError as errors:
        failure = errors.exceptions[0]
    finally:
        # The agent first: it may still have something to hand over.
        for child in reversed(children):
            await child.stop()
    # Ctrl-C on a terminal reaches the children too, and they may be quicker.
    if failure is not None and not stop.is_set():
        raise failure


async def _run(settings: Settings, children: list[Child], group: asyncio.TaskGroup) -> None:
    lock = await _locked_processes(settings.directory)

    def adopt(child: Child) -> None:
        group.create_task(_watch(child), name=f"watch the {child.name}")

    directory = settings.directory
    try:
        async with asyncio.timeout(_START_SECONDS):
            _say("starting the coordinator")
            endpoints = await _start_serving(settings, children, lock)
            adopt(children[0])
            former = former_address(directory)
            context = write_contexts(directory, endpoints)
            with contextlib.closing(Client(context)) as client:
                await _make_token(directory, client)
                _say("starting the agent")
                children.append(await _start_agent(settings, endpoints, lock))
                adopt(children[-1])
                status = await _all_announced(settings, client)
    except TimeoutError as error:
        raise CommandError(
            f"not ready after {_START_SECONDS:.0f} seconds",
            hint=f"see the logs {directory.log('coordinator')} and {directory.log('agent')}",
        ) from error
    directory.token.unlink(missing_ok=True)
    if (warning := left_behind(status, directory, former, endpoints.grpc)) is not None:
        _say(warning)
    _announce(settings, endpoints, context, status)
    while True:
        await asyncio.sleep(_LOG_CHECK_SECONDS)
        for child in children:
            child.rotate_log()


async def _locked_processes(directory: Directory) -> int:
    """The lock that the children inherit, once those of a killed `up` have ended."""
    lock = open_processes_lock(directory)
    try:
        async with asyncio.timeout(_FORMER_PROCESSES_SECONDS):
            told = False
            while not processes_gone(lock):
                if not told:
                    _say("waiting for the processes of a former `up` to end")
                    told = True
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError as error:
        raise CommandError(
            f"processes of a former `up` on {directory.path} do not end",
            hint=f"fuser {directory.path}/.processes names them; end them, and try again",
            exit_code=BUSY,
        ) from error
    return lock


async def _start_serving(settings: Settings, children: list[Child], lock: int) -> Endpoints:
    """Start the coordinator, and return where it answers; CommandError where it ends before.

    Another program may take the port of the last time after it was found free.
    """
    directory = settings.directory
    listen = settings.listen or former_listen(directory)
    children.append(await _start_coordinator(settings, listen, lock))
    endpoints = await _serving(directory, children[0])
    if endpoints is None and settings.listen is None and not is_free(listen):
        _say(f"another program has taken {listen}: taking another port")
        children[0] = await _start_coordinator(settings, ANY_PORT, lock)
        endpoints = await _serving(directory, children[0])
    if endpoints is None:
        raise children[0].death()
    return endpoints


async def _start_coordinator(settings: Settings, listen: str, lock: int) -> Child:
    directory = settings.directory
    directory.endpoints.unlink(missing_ok=True)
    every = "off" if settings.every_seconds is None else f"{settings.every_seconds}s"
    where = settings.bucket or {"repository": str(directory.repository)}
    arguments = [
        # A fleet's settings on this machine are not meant for the embedded one.
        *("--config", "/dev/null"),
        *("--data", str(directory.coordinator)),
        *(part for flag, value in where.items() for part in (f"--{flag}", value)),
        # Whoever may ask it for another repository may do anything on this machine as it is.
        *("--repository-places", "any"),
        *("--listen", listen),
        *("--http", "127.0.0.1:0"),
        *("--every", every),
        "--exit-with-parent",
    ]
    return await start_child(
        "coordinator", arguments, log=directory.log("coordinator"), inherited=lock
    )


async def _start_agent(settings: Settings, endpoints: Endpoints, lock: int) -> Child:
    directory = settings.directory
    ca_file = settings.bucket.get("repository-ca")
    arguments = [
        *("--config", "/dev/null"),
        *("--state", str(directory.agent)),
        *("--coordinator", endpoints.grpc),
        *("--token-file", str(directory.token)),
        *("--http", "127.0.0.1:0"),
        *("--protect-file", str(directory.protect)),
        *("--exclude", str(directory.path)),
        *(flag for path in endpoints.directories for flag in ("--exclude", path)),
        # Whoever runs `up` is master of this machine already.
        *("--restore-root", "/"),
        *(flag for store in endpoints.stores for flag in ("--store-endpoint", store)),
        *(("--store-ca", ca_file) if ca_file is not None else ()),
        *(("--docker", settings.engine) if settings.engine is not None else ()),
        "--exit-with-parent",
    ]
    return await start_child("agent", arguments, log=directory.log("agent"), inherited=lock)


async def _serving(directory: Directory, coordinator: Child) -> Endpoints | None:
    """Where it answers, once it does; None if it ends before."""
    # Another process writes the file, so there is nothing but to look.
    while (endpoints := read_endpoints(directory, coordinator.pid)) is None:
        if coordinator.ended:
            return None
        await asyncio.sleep(_POLL_SECONDS)
    return endpoints


async def _make_token(directory: Directory, client: Client) -> None:
    """A token for the agent, unless it joined before."""
    if directory.identity.exists():
        return
    request = CreateNodeTokenRequest(valid_seconds=_TOKEN_SECONDS)
    answer = await asyncio.to_thread(
        client.ask, client.admin.CreateNodeToken, request, timeout_seconds=_CALL_SECONDS
    )
    write_private(directory.token, answer.token.encode() + b"\n")


async def _all_announced(settings: Settings, client: Client) -> GetStatusResponse:
    """The status, once the agent is connected, and watches every protected path."""
    while True:
        try:
            status = await asyncio.to_thread(
                client.ask,
                client.admin.GetStatus,
                GetStatusRequest(),
                timeout_seconds=_CALL_SECONDS,
            )
        except UnreachableError:
            status = GetStatusResponse()
        if (reason := why_never(status, settings.directory)) is not None:
            raise reason
        if is_ready(status, settings.volumes):
            return status
        await asyncio.sleep(_POLL_SECONDS)


def is_ready(status: GetStatusResponse, volumes: list[Protected]) -> bool:
    """Whether one connected node announced every one of these paths, and how all are tracked."""
    for node in status.nodes:
        own = [each for each in status.volumes if each.node == node.name]
        if any(_is_untracked(each) for each in own):
            continue
        announced = {(each.volume, each.path) for each in own}
        if node.state == "connected" and announced >= {(one.name, one.path) for one in volumes}:
            return True
    return False


def _is_untracked(volume: Volume) -> bool:
    return volume.present and volume.verdict == "protected" and not volume.tracked_by


def why_never(status: GetStatusResponse, directory: Directory) -> CommandError | None:
    """Why the agent of this directory will not be let in, however long one waits; None if it may.

    It goes on asking, which is right for a fleet, where somebody may mend what is wrong.
    """
    own = own_node(directory)
    for node in status.nodes:
        if node.node_id != own or node.state not in {"revoked", "incompatible"}:
            continue
        if node.state == "incompatible":
            return CommandError(node.message, hint=node.hint)
        return CommandError(
            f"the node {node.name} of {directory.path} is revoked",
            hint=f"to join as a new node, remove {directory.identity} and start again; "
            "snapshots stay, and the first backup of each volume reads everything",
        )
    return None


def left_behind(
    status: GetStatusResponse, directory: Directory, former: str | None, address: str
) -> str | None:
    """What to say of nodes that were told another address; None where there are none."""
    own = own_node(directory)
    others = [node.name for node in status.nodes if node.node_id != own and node.state != "revoked"]
    if former in {None, address} or not others:
        return None
    return (
        f"WARNING: the coordinator was at {former} and is at {address} now; nodes that look for it "
        f"there need --coordinator {address}, or `up` its former --listen: {', '.join(others)}"
    )


async def _raise_on(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _SignalledError


async def _watch(child: Child) -> None:
    await child.wait()
    raise child.death()


def _announce(
    settings: Settings, endpoints: Endpoints, context: Context, status: GetStatusResponse
) -> None:
    count = sum(each.verdict == "protected" and each.present for each in status.volumes)
    _say(
        f"{count} volume{'' if count == 1 else 's'} protected, everything in "
        f"{settings.directory.path}"
    )
    for engine in (engine for node in status.nodes for engine in node.engines):
        if not engine.answers:
            _say(f"WARNING: {engine.message}; its volumes are protected once it answers")
    _say("try: tidemark status | tidemark backup create --all --wait | tidemark snapshot list")
    if _speaks_elsewhere(context):
        _say(f"your own context names another coordinator; say --context {context.path}")
    if not status.recovery_kit_exported:
        _say(
            "WARNING: nobody has the recovery kit; without it a lost machine is lost backups: "
            "tidemark repo recovery-kit"
        )
    sys.stdout.write(
        f"ready coordinator={endpoints.grpc} context={context.path} "
        f"metrics=http://{endpoints.http}/metrics\n"
    )
    sys.stdout.flush()


def _speaks_elsewhere(context: Context) -> bool:
    try:
        return read_context(home_context(), named_by="home").address != context.address
    except CommandError:
        return True


def _say(text: str) -> None:
    sys.stderr.write(f"tidemark: {text}\n")
    sys.stderr.flush()
