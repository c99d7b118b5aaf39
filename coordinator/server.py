"""The composition root: what the coordinator is made of, how it starts, serves and drains."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from secrets import token_bytes
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from coordinator.api.admin import AdminParts, AdminService
from coordinator.api.agent import AgentParts, AgentService
from coordinator.api.authorise import Gate
from coordinator.api.bulk import add_agent_service
from coordinator.api.guard import guard
from coordinator.assignments import Assignments
from coordinator.bandwidth import Bandwidth
from coordinator.bases import Bases
from coordinator.browse import Browser
from coordinator.catalog import Catalog, open_catalog
from coordinator.config import Address, Config, read_passphrase
from coordinator.custody import (
    DRAWN,
    Custody,
    LockedCustody,
    Random,
    create_custody,
    draw_passphrase,
    open_custody,
)
from coordinator.dispatch import Clock, Dispatcher
from coordinator.doctor import Doctor
from coordinator.enrolment import Authority, open_authority
from coordinator.errors import CatalogError, TidemarkError
from coordinator.fleet import Fleet, Program
from coordinator.founding import is_founded, open_repository
from coordinator.http import HttpServer
from coordinator.intake import Intake
from coordinator.locks import Locks
from coordinator.logs import get_logger
from coordinator.metrics import Metrics
from coordinator.moves import Moves
from coordinator.orders import Orders
from coordinator.overview import Overview
from coordinator.process import DataLock
from coordinator.reading import Workers
from coordinator.repositories import Opened, Repositories, lock_of
from coordinator.restores import Restores
from coordinator.running import Limits
from coordinator.scheduler import Scheduler
from coordinator.selection import Selection
from coordinator.sessions import Sessions
from coordinator.siting import FIRST
from coordinator.stores import OpenPlace, open_place
from coordinator.vault import write_secret
from coordinator.verify import Verifier
from proto.tidemark.v1 import admin_pb2_grpc
from proto.versions import PROTOCOL, Versions
from repository.failpoints import failpoint

log = get_logger()

# Packs and files travel in pieces of 1 MiB; nothing larger is ever sent.
_MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
# What is under way when SIGTERM comes may go on for so long; children of `up` must end within 5 s.
_DRAIN_SECONDS: Final = 2.0
_INCARNATION: Final = "incarnation"

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
    # Two coordinators must never share a port unnoticed.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Agents ask for a sign, too. Who asked more often than this would be cut off.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


@dataclass(frozen=True)
class Services:
    """Everything that serves, put together."""

    agent: AgentService
    admin: AdminService
    dispatcher: Dispatcher
    sessions: Sessions
    repositories: Repositories
    verifier: Verifier
    scheduler: Scheduler
    bandwidth: Bandwidth
    http: HttpServer


class _Stopping(Exception):  # noqa: N818 - not an error: the way out of the task group
    """SIGTERM or SIGINT came."""


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    lock = DataLock(config.data)
    try:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(config, stop, clock=time.time_ns, random=token_bytes)
    finally:
        lock.close()


async def serve(  # noqa: PLR0913 - what a test exchanges, and nobody else
    config: Config,
    stop: asyncio.Event,
    *,
    clock: Clock,
    random: Random,
    limits: Limits | None = None,
    started: asyncio.Event | None = None,
    open_at: OpenPlace = open_place,
    protocol: Versions = PROTOCOL,
) -> None:
    """Open everything, serve until told to stop, close everything in reverse."""
    now = clock()
    custody = await asyncio.to_thread(_open_custody, config, random)
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(open_at(config.where, clock))
        repository = await open_repository(
            place, config.data / "keys", custody, random=random, now=now
        )
        authority = open_authority(config.data, now, config.certificate_seconds)
        catalog = await open_catalog(config.data / "catalog.db", now)
        stack.push_async_callback(catalog.close)
        workers = Workers()
        stack.callback(workers.close)
        failpoint("coordinator.catalog.opened", CatalogError)
        await _begin_incarnation(catalog)
        await catalog.ledger.attribute(repository.config.repository)
        program = Program(version("tidemark-backup"), protocol)
        metrics = Metrics(program.version)
        locks = Locks(catalog, repository, lock_of(config.where), clock=clock)
        repositories = Repositories(
            Opened(FIRST, repository, locks),
            config.data,
            catalog,
            custody,
            metrics,
            places=config.repository_places,
            open_at=open_at,
            clock=clock,
            random=random,
        )
        stack.push_async_callback(repositories.close)
        await repositories.open()
        services = _compose(
            config,
            catalog,
            repositories,
            custody,
            authority,
            workers,
            metrics,
            program,
            clock=clock,
            random=random,
            limits=limits,
        )
        failpoint("coordinator.start.composed", CatalogError)
        await services.sessions.recover()
        failpoint("coordinator.start.commits_settled", CatalogError)
        await locks.begin()
        await services.dispatcher.recover()
        await services.bandwidth.load()
        await _serve(stop, started or asyncio.Event(), config, services, authority, now)


async def _serve(
    stop: asyncio.Event,
    started: asyncio.Event,
    config: Config,
    services: Services,
    authority: Authority,
    now: int,
) -> None:
    """Everything that runs, in one group. Calls are drained while the rest still works."""
    try:
        async with asyncio.TaskGroup() as group:
            services.dispatcher.begin(group, services.verifier.verify)
            group.create_task(services.scheduler.run(), name="scheduler")
            group.create_task(services.sessions.run(), name="settling")
            group.create_task(services.bandwidth.run(), name="bandwidth")
            group.create_task(services.repositories.run(), name="repositories")
            async with _listening(config, services, authority, now):
                started.set()
                await stop.wait()
                log.info("stopping")
                services.dispatcher.end()
            _stop()
    except* _Stopping:
        pass


def _stop() -> NoReturn:
    """The one way to end a task group as a whole."""
    raise _Stopping


@asynccontextmanager
async def _listening(
    config: Config, services: Services, authority: Authority, now: int
) -> AsyncIterator[None]:
    """Both ports, open to everybody who may come in; drained on leaving."""
    server = grpc.aio.server(options=_OPTIONS)
    add_agent_service(services.agent, server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(services.admin, server)
    port = _listen(server, config.listen, authority, now)
    try:
        http_port = await services.http.open(config.http)
        await server.start()
        grpc_address = Address(_reachable(config.listen.host), port)
        http_address = Address(_reachable(config.http.host), http_port)
        endpoints = {"grpc": str(grpc_address), "http": str(http_address)}
        told = {
            **endpoints,
            "stores": services.repositories.store_endpoints(),
            "directories": [str(each) for each in services.repositories.directories()],
        }
        _announce(config.data, told, authority, now)
        failpoint("coordinator.start.announced", CatalogError)
        log.info("serving", grpc=str(grpc_address), http=str(http_address))
        yield
    finally:
        await server.stop(_DRAIN_SECONDS)
        await services.http.close()


def _compose(  # noqa: PLR0913 - this is where everything meets
    config: Config,
    catalog: Catalog,
    repositories: Repositories,
    custody: Custody,
    authority: Authority,
    workers: Workers,
    metrics: Metrics,
    program: Program,
    *,
    clock: Clock,
    random: Random,
    limits: Limits | None,
) -> Services:
    first = repositories.first.repository
    dispatcher = Dispatcher(catalog, metrics, clock=clock, random=random, limits=limits)
    sessions = Sessions(
        catalog, repositories, dispatcher, clock=clock, random=random, incarnation=1
    )
    fleet = Fleet(catalog, first, authority, dispatcher, program, clock=clock, random=random)
    selection = Selection(catalog)
    bandwidth = Bandwidth(
        catalog,
        first.config.repository,
        metrics,
        working_with=dispatcher.repositories,
        clock=clock,
        floor_bytes=config.floor_bytes,
    )
    overview = Overview(
        catalog,
        repositories,
        custody,
        fleet,
        schedule_seconds=config.every_seconds,
    )
    gate = Gate(catalog, clock)
    agent = AgentService(
        AgentParts(
            fleet=fleet,
            dispatcher=dispatcher,
            sessions=sessions,
            bases=Bases(catalog, sessions),
            intake=Intake(catalog, custody, sessions, metrics, clock=clock),
            restores=Restores(catalog, repositories, custody, dispatcher, random=random),
            repositories=repositories,
            program=program,
            bandwidth=bandwidth,
        ),
        gate,
    )
    admin = AdminService(
        AdminParts(
            dispatcher=dispatcher,
            orders=Orders(dispatcher, selection),
            overview=overview,
            selection=selection,
            moves=Moves(catalog, dispatcher, sessions, fleet, selection),
            assignments=Assignments(catalog, repositories, selection),
            doctor=Doctor(catalog, custody, dispatcher, overview),
            browser=Browser(catalog, repositories, custody, workers),
            bandwidth=bandwidth,
            version=program.version,
            schedule_seconds=config.every_seconds,
        )
    )
    return Services(
        agent=guard(agent, "tidemark.v1.AgentService", gate),
        admin=guard(admin, "tidemark.v1.AdminService", gate),
        dispatcher=dispatcher,
        sessions=sessions,
        repositories=repositories,
        verifier=Verifier(catalog, repositories, custody, workers, clock=clock),
        scheduler=Scheduler(catalog, dispatcher, clock=clock, every_seconds=config.every_seconds),
        bandwidth=bandwidth,
        http=HttpServer(metrics, overview, dispatcher, custody),
    )


def _open_custody(config: Config, random: Random) -> Custody:
    """Custody as far as it opens. A wrong passphrase locks it; it does not stop backups."""
    path = config.data / "custody"
    generated = config.data / "custody.passphrase"
    if not path.exists():
        if is_founded(config.data / "keys"):
            return LockedCustody(f"the custody file {path} is missing")
        if config.passphrase_file is not None:
            return create_custody(path, read_passphrase(config.passphrase_file), random)
        passphrase = draw_passphrase(random)
        write_secret(generated, passphrase + b"\n")
        return create_custody(path, passphrase, random, DRAWN)
    try:
        passphrase = read_passphrase(config.passphrase_file or generated)
        return open_custody(path, passphrase)
    except TidemarkError as error:
        log.warning("custody is locked", reason=error.message, hint=error.hint)
        return LockedCustody(f"custody of the recovery secret is locked: {error.message}")


async def _begin_incarnation(catalog: Catalog) -> None:
    """The first incarnation of this catalog; a rebuild will begin the next."""
    if await catalog.fleet.get_meta(_INCARNATION) is None:
        await catalog.fleet.set_meta(_INCARNATION, b"1")


def _listen(server: grpc.aio.Server, address: Address, authority: Authority, now: int) -> int:
    """MTLS only, with certificates of our own authority required from everybody."""
    pair = authority.server(address.host, now)
    credentials = grpc.ssl_server_credentials(
        [(pair.private_key, pair.certificate)],
        root_certificates=authority.certificate,
        require_client_auth=True,
    )
    try:
        port: int = server.add_secure_port(str(address), credentials)
    except RuntimeError as error:
        raise TidemarkError(
            f"cannot listen on {address}: the port is in use or not ours",
            hint="stop what listens there, or choose another --listen",
        ) from error
    return port


def _reachable(host: str) -> str:
    """Where a process on this machine reaches what listens on this host."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104


def _announce(data: Path, endpoints: dict[str, Any], authority: Authority, now: int) -> None:
    """Tell `up` and scripts of this machine where we serve; written once we do."""
    admin = authority.admin("local", now)
    context = {
        "address": endpoints["grpc"],
        "ca": authority.certificate.decode(),
        "certificate": admin.certificate.decode(),
        "key": admin.private_key.decode(),
    }
    write_secret(data / "admin.context", json.dumps(context, indent=1).encode())
    told = {**endpoints, "pid": os.getpid()}
    write_secret(data / "endpoints.json", json.dumps(told).encode())
