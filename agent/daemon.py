"""The agent's composition root: everything is made here, once, and ends here.

One TaskGroup holds all that runs, each with a name. SIGTERM drains: tasks are stopped, their ends
told, and the process leaves within seconds. The state directory is locked for as long as it lives,
by the kernel, so a start after a crash finds nothing to clean up.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import importlib
import importlib.metadata
import json
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from typing_extensions import override

from agent.backup import run_backup
from agent.channel import NodeChannel, open_node_channel
from agent.clones import Clones
from agent.config import Address, Config
from agent.direct import DirectStore
from agent.disk import DiskThrottle
from agent.download import RestoreCalls
from agent.endpoint import Endpoint
from agent.errors import ConfigError, StateError, UnreachableError, VolumeError
from agent.gate import Gate
from agent.identity import Identity, load_identity, prepare_keys, save_membership
from agent.line import Line
from agent.load import read_load
from agent.logs import get_logger
from agent.metrics import Metrics, Sample, TrackingSample
from agent.polite import WarnOnce, give_way
from agent.pressure import allowed, workers
from agent.renewal import Renewal
from agent.restore import run_restore
from agent.services import (
    BackupOutcome,
    BackupStatistics,
    BackupTask,
    Clock,
    Phase,
    RestoreOutcome,
    RestorePlaces,
    RestoreStatistics,
    RestoreTask,
    Services,
    Verdict,
    Volume,
)
from agent.session import BackupWish, ControlStream, Greeting, Handler, enrol
from agent.state import State, remove_state
from agent.storing import GROUPS_IN_FLIGHT
from agent.tasks import Order, Report, Tasks
from agent.throttle import Demand, Grant, Throttles
from agent.tracking.opening import open_tracker
from agent.tracking.tracker import Tracker
from agent.upload import BackupCalls
from agent.volumes import Volumes, check_readable, excluded, never_read
from agent.watching import Watching
from repository.errors import BusyError, CanceledError, TidemarkError
from repository.failpoints import failpoint
from repository.ids import NodeId
from repository.store.counting import Tally, charged
from repository.store.interface import Operation

DISTRIBUTION: Final = "tidemark-backup"
# `up` promises that its children end within 5 s: first the tasks, then what they had to say.
_DRAIN_SECONDS: Final = 2.5
_LAST_WORDS_SECONDS: Final = 1.0
# A stat every so often costs less than a watch, and sees what Kubernetes does with links.
_PROTECT_FILE_SECONDS: Final = 2.0
_JOIN_BACKOFF_SECONDS: Final = (0.5, 15.0)
# The kernel's figures are of ten seconds, and a backup has seconds of work in hand.
_PRESSURE_SECONDS: Final = 2.0
# Enough to see what they have in common; the job's warnings name more.
_PATHS_LOGGED: Final = 20

if TYPE_CHECKING:
    from agent.discovering import Discovery

_T = TypeVar("_T")
_log = get_logger()

# What tasks hold while they run: packs under construction, or frames being opened, are what bounds
# the agent's memory, so there is one of each at a time (docs/decisions/0004).
_PACKING: Final = b"packing"
_WRITING: Final = b"writing"


class SystemClock(Clock):
    """Time as the machine tells it."""

    @override
    def now_ns(self) -> int:
        return time.time_ns()

    @override
    def monotonic(self) -> float:
        return time.monotonic()


async def run(config: Config) -> None:
    """Be the agent until SIGTERM or SIGINT. Raises TidemarkError where that is impossible."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _raise_file_limit()
    with _locked(config.state), _opened_state(config.state) as state:
        identity = await _unless(stop, _join(config))
        if identity is None:
            return
        version = importlib.metadata.version(DISTRIBUTION)
        tracker = await asyncio.to_thread(open_tracker, config.state, state)
        if state.lost:
            _log.warning("the agent's state is begun anew: all is read again", reason=state.lost)
        _log.info("agent starts", version=version, node=identity.membership.node_name)
        line = Line(open_node_channel(config.coordinator, identity))
        begin = partial(give_way, WarnOnce(_not_polite)) if config.polite else _nothing
        with (
            ThreadPoolExecutor(_worker_count(), "worker", initializer=begin) as backers,
            # Somebody waits for a restore.
            ThreadPoolExecutor(_worker_count(), "restore") as restorers,
        ):
            pools = _Pools(backers, restorers, begin)
            try:
                agent = _Agent(_Parts(config, identity, state, line, tracker, pools, version))
                await agent.run(stop)
            finally:
                await line.close()
                await asyncio.to_thread(tracker.close)


@dataclass(frozen=True)
class _Parts:
    """What an agent is made of."""

    config: Config
    identity: Identity
    state: State
    line: Line[NodeChannel]
    tracker: Tracker
    pools: "_Pools"
    version: str


@dataclass(frozen=True)
class _Pools:
    """Threads for batches. They begin when they are needed."""

    backups: Executor
    restores: Executor
    begin_thread: Callable[[], None]
    """What each thread of a backup does first."""


class _Agent(Handler):
    """What the coordinator's wishes come to."""

    def __init__(self, parts: _Parts) -> None:
        clock = SystemClock()
        self._config = parts.config
        self._version = parts.version
        node_id = NodeId(parts.identity.membership.node_id)
        self._volumes = Volumes(parts.config, node_id)
        self._discovery: Discovery | None = None
        if parts.config.docker is not None:
            # Only here, since an agent that asks no engine should not wait for Docker's client.
            self._discovery = importlib.import_module("agent.discovering").Discovery(
                parts.config.docker, self._volumes, clock, self._on_discovery
            )
        self._tracker = parts.tracker
        clones = Clones(parts.state, parts.config.clone_dirs, self._volumes.paths, _no_clone)
        self._watching = Watching(parts.tracker, clones, self._volumes.all, self._on_watching)
        self._line = parts.line
        self._throttles = Throttles(clock)
        self._store = DirectStore(
            parts.config.store_endpoint, parts.config.store_ca, throttles=self._throttles
        )
        self._welcomed = asyncio.Event()
        self._backup_calls = BackupCalls(parts.line, clock, self._throttles, self._store)
        self._restore_calls = RestoreCalls(parts.line, clock, self._throttles, self._store)
        self._control = ControlStream(parts.line, self, clock)
        self._throttles.tell_with(self._control.send_demand)
        self._renewal = Renewal(
            parts.config.coordinator,
            parts.config.state,
            parts.identity,
            clock=clock,
            renewed=self._certificate_renewed,
        )
        self._metrics = Metrics(parts.version)
        self._groups = Gate(GROUPS_IN_FLIGHT)
        rate = parts.config.disk_rate
        self._disk = None if rate is None else DiskThrottle(rate, clock.monotonic)
        self._tasks: Tasks
        self._services = Services(
            node_id=node_id,
            signing_key=parts.identity.keys.signing,
            state=parts.state,
            coordinator=self._backup_calls,
            workers=parts.pools.backups,
            clock=clock,
            tracking=parts.tracker,
            progress=lambda _: None,
            log=lambda _level, _message: None,
            clones=clones,
            disk=self._disk,
            groups=self._groups,
            begin_thread=parts.pools.begin_thread,
        )
        self._restorers = parts.pools.restores

    async def run(self, stop: asyncio.Event) -> None:
        endpoint = Endpoint(self._metrics, self._sample)
        try:
            async with asyncio.TaskGroup() as group:
                self._tasks = Tasks(group)
                self._metrics.watch(self._sample)
                await self._serve(endpoint)
                eternal = [
                    group.create_task(self._watch_protect_file(), name="protect file"),
                    group.create_task(self._watching.run(), name="watching"),
                    group.create_task(self._throttles.run(), name="throttles"),
                    group.create_task(self._watch_pressure(), name="pressure"),
                    group.create_task(self._load_store(), name="store"),
                ]
                if self._discovery is not None:
                    eternal.append(group.create_task(self._discovery.run(), name="docker"))
                    # The first hello should name what there is.
                    await _unless(stop, self._discovery.first_look())
                eternal.append(
                    group.create_task(self._stay_connected(group), name="control stream")
                )
                await stop.wait()
                _log.info("agent stops")
                if self._disk is not None:
                    self._disk.end()
                await self._tasks.drain(_DRAIN_SECONDS)
                await self._last_words()
                for task in eternal:
                    task.cancel()
        finally:
            await self._store.close()
            await endpoint.close()

    async def _stay_connected(self, group: asyncio.TaskGroup) -> None:
        """Hold the control stream; after a long time switched off, renew first."""
        await self._renewal.until_valid()
        renewing = group.create_task(self._renewal.run(), name="renewal")
        try:
            await self._control.run()
        finally:
            renewing.cancel()

    async def _certificate_renewed(self, identity: Identity) -> None:
        await self._line.replace(open_node_channel(self._config.coordinator, identity))
        self._control.reconnect()

    async def _load_store(self) -> None:
        """Be ready for the store, once whoever waits for the agent has it."""
        await self._welcomed.wait()
        await asyncio.to_thread(self._store.load)

    async def _serve(self, endpoint: Endpoint) -> None:
        try:
            bound = await endpoint.open(self._config.http)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {self._config.http}: {error.strerror or error}",
                hint="choose another address with --http",
            ) from error
        _write_endpoints(self._config.state, bound)

    async def _watch_protect_file(self) -> None:
        while True:
            await asyncio.sleep(_PROTECT_FILE_SECONDS)
            if self._volumes.refresh():
                _log.info("other volumes", volumes=len(self._volumes.all()))
                self._watching.look_again()
                self._control.send_volumes()

    async def _watch_pressure(self) -> None:
        """Have less in hand at once while the node has it hard."""
        while True:
            await asyncio.sleep(_PRESSURE_SECONDS)
            if not self._tasks.ids():
                continue
            load = await asyncio.to_thread(read_load)
            count = allowed(load, self._groups.most)
            if self._groups.allow(count):
                _log.info(
                    "node under pressure" if count < self._groups.most else "node at ease",
                    groups=count,
                )

    def _on_discovery(self) -> None:
        _log.info("discovery", volumes=len(self._volumes.all()))
        self._watching.look_again()
        self._control.send_volumes()

    def _on_watching(self) -> None:
        _log.info("watching", volumes=self._watching.count())
        self._control.send_volumes()

    async def _last_words(self) -> None:
        """Let the stream send the ends of what was stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._control.told_everything()

    def _sample(self) -> Sample:
        asked = self._store.total.snapshot()
        return Sample(
            tasks=self._tasks.count(),
            connected=self._control.is_connected,
            uploads_waiting=self._backup_calls.uploads_waiting,
            uploads_running=self._backup_calls.uploads_running,
            volumes=self._volumes.protected(),
            tracking=self._tracking_sample(),
            throttled={
                "backup": self._throttles.upload.waited_seconds,
                "restore": self._throttles.restore.waited_seconds,
                "disk": 0.0 if self._disk is None else self._disk.waited_seconds,
            },
            store_requests={operation: getattr(asked, operation) for operation in Operation},
        )

    def _tracking_sample(self) -> TrackingSample:
        figures = self._tracker.figures()
        names = {
            each.volume_id: each.name
            for each in self._volumes.all()
            if each.verdict is Verdict.PROTECTED
        }
        missed, places = Counter(dict.fromkeys(names.values(), 0)), Counter[str]()
        for volume_id, name in names.items():
            missed[name] += figures.missed.get(volume_id, 0)
            places[name] += figures.places.get(volume_id, 0)
        return TrackingSample(
            volumes=self._watching.count(),
            places=places,
            missed=missed,
            sweeps=figures.sweeps,
            suspects=figures.suspects,
        )

    # What the coordinator says.

    @override
    def greeting(self) -> Greeting:
        return Greeting(
            version=self._version,
            volumes=self._watching.told(self._volumes.all()),
            engines=[] if self._discovery is None else [self._discovery.engine],
            task_ids=self._tasks.ids(),
            restore_roots=[os.fsencode(root) for root in self._config.restore_roots],
        )

    @override
    def on_welcome(self, unknown_task_ids: Sequence[str]) -> None:
        self._welcomed.set()
        for task_id in unknown_task_ids:
            self._tasks.cancel(task_id)

    @override
    def on_backup(self, wish: BackupWish) -> None:
        failpoint("agent.task.accepted", asyncio.InvalidStateError)
        # A volume that is not ours any more has no path; its backup fails and says so.
        volume = self._volumes.get(wish.local_id) or Volume(wish.local_id, "", b"")
        task = BackupTask(
            task_id=wish.task_id,
            job_id=wish.job_id,
            volume=msgspec.structs.replace(volume, volume_id=wish.volume_id),
            repository_id=wish.repository_id,
            recovery_public_key=wish.recovery_public_key,
            local_id=wish.local_id,
            audit=wish.audit,
        )
        tally = Tally()
        order = Order(
            task_id=wish.task_id,
            job_id=wish.job_id,
            holds=_PACKING,
            perform=lambda: self._back_up(task, tally),
            failed=lambda error: self._backup_ended(task, _failed_backup(error), tally),
        )
        self._tasks.accept(order)

    @override
    def on_restore(self, task: RestoreTask) -> None:
        tally = Tally()
        order = Order(
            task_id=task.task_id,
            job_id=task.job_id,
            holds=_WRITING,
            perform=lambda: self._restore(task, tally),
            failed=lambda error: self._restore_ended(task, _failed_restore(error), tally),
        )
        self._tasks.accept(order)

    @override
    def on_cancel(self, task_id: str) -> None:
        self._tasks.cancel(task_id)

    @override
    def on_reported(self, task_id: str) -> None:
        self._tasks.reported(task_id)

    @override
    def on_bandwidth(self, grant: Grant | None) -> None:
        self._throttles.on_grant(grant)

    @override
    def demand(self) -> Demand | None:
        return self._throttles.demand()

    # Tasks.

    async def _back_up(self, task: BackupTask, tally: Tally) -> Report:
        if not task.volume.path:
            raise VolumeError(
                "this volume is not one of this node any more",
                hint="its snapshots still restore; see tidemark volume list",
            )
        never = never_read(self._config)
        check_readable(task.volume, never)
        skipped = (Path(os.fsdecode(each)) for each in task.volume.skip)
        task = dataclasses.replace(task, excludes=excluded([*never, *skipped]))
        _log.info("backup begins", volume=task.volume.name)
        failpoint("agent.backup.begun", VolumeError)
        with charged(tally):
            outcome = await run_backup(task, self._services_of(task.task_id, tally))
        failpoint("agent.task.ended", TidemarkError)
        # What told of the changes may have been lost, and another one taken.
        self._watching.look_again()
        return self._backup_ended(task, outcome, tally)

    def _backup_ended(self, task: BackupTask, outcome: BackupOutcome, tally: Tally) -> Report:
        outcome.statistics.store_requests = tally.snapshot()
        phase = _phase_of(outcome)
        self._metrics.tasks_total.labels("backup", phase.name.lower()).inc()
        self._metrics.source_read_bytes.inc(outcome.statistics.bytes_read)
        self._metrics.stored_bytes.inc(outcome.statistics.data_added_packed)
        if phase is Phase.COMPLETED:
            now = self._services.clock.now_ns() / 1e9
            self._metrics.last_success.labels(task.volume.name).set(now)
        _log_missed(outcome.statistics)
        _log_end("backup ends", phase, outcome.error)
        return lambda: self._control.send_backup_end(task, outcome)

    async def _restore(self, task: RestoreTask, tally: Tally) -> Report:
        _log.info("restore begins", snapshot=task.snapshot_id, target=_shown(task))
        places = RestorePlaces(
            roots=[os.fsencode(root) for root in self._config.restore_roots],
            volume_path=lambda volume_id: self._volume_path(task.local_id or volume_id),
            closed=excluded(never_read(self._config)),
        )
        services = dataclasses.replace(
            self._services_of(task.task_id, tally), workers=self._restorers
        )
        with charged(tally):
            outcome = await run_restore(task, services, self._restore_calls, places)
        return self._restore_ended(task, outcome, tally)

    def _volume_path(self, volume_id: bytes) -> bytes | None:
        volume = self._volumes.get(volume_id)
        return None if volume is None else volume.path

    def _restore_ended(self, task: RestoreTask, outcome: RestoreOutcome, tally: Tally) -> Report:
        outcome.statistics.store_requests = tally.snapshot()
        self._metrics.tasks_total.labels("restore", outcome.phase.name.lower()).inc()
        self._metrics.restored_bytes.inc(outcome.statistics.bytes_written)
        _log_end("restore ends", outcome.phase, outcome.error)
        return lambda: self._control.send_restore_end(task, outcome)

    def _services_of(self, task_id: str, tally: Tally) -> Services:
        return dataclasses.replace(
            self._services,
            tally=tally,
            progress=lambda progress: self._control.send_progress(task_id, progress),
            log=lambda level, message: self._control.send_log(task_id, level, message),
        )


def _not_polite(reason: str) -> None:
    _log.warning(reason, hint="allow setpriority and ioprio_set, or set polite: off")


def _nothing() -> None:
    """A thread that gives way to nobody."""


def _no_clone(reason: str) -> None:
    _log.warning("large files are read whole", reason=reason)


def _phase_of(outcome: BackupOutcome) -> Phase:
    if outcome.committed is not None:
        return outcome.committed.phase
    return Phase.CANCELED if isinstance(outcome.error, CanceledError) else Phase.FAILED


def _shown(task: RestoreTask) -> str:
    return "in place" if task.in_place else os.fsdecode(task.target)


def _failed_backup(error: TidemarkError) -> BackupOutcome:
    return BackupOutcome(BackupStatistics(), error=error)


def _failed_restore(error: TidemarkError) -> RestoreOutcome:
    phase = Phase.CANCELED if isinstance(error, CanceledError) else Phase.FAILED
    return RestoreOutcome(RestoreStatistics(), phase, error)


def _log_missed(statistics: BackupStatistics) -> None:
    audit, altered = statistics.audit, statistics.altered_files
    if audit is not None and audit.missed:
        _log.error("events missed changes", missed=audit.missed, paths=_named(audit.missed_paths))
    if altered:
        paths = _named(statistics.altered_paths)
        _log.error("files changed without a sign", missed=altered, paths=paths)


def _named(paths: Sequence[bytes]) -> list[str]:
    return [os.fsdecode(path) for path in paths[:_PATHS_LOGGED]]


def _log_end(event: str, phase: Phase, error: TidemarkError | None) -> None:
    if error is None:
        _log.info(event, phase=phase.name.lower())
    else:
        _log.warning(event, phase=phase.name.lower(), reason=error.message, hint=error.hint)


def _opened_state(state: Path) -> State:
    """The database of this node. What another one stored under it is of no use to a new node."""
    database = state / "state.db"
    if load_identity(state) is None:
        remove_state(database)
    return State(database)


async def _join(config: Config) -> Identity:
    """Return who this node is; join the cluster the first time, however long it takes."""
    identity = load_identity(config.state)
    if identity is not None:
        return identity
    keys = prepare_keys(config.state)
    failpoint("agent.join.keys_made", StateError)
    token = _read_token(config.token_file)
    delay, longest = _JOIN_BACKOFF_SECONDS
    while True:
        try:
            membership = await enrol(config.coordinator, token, config.node_name, keys)
        except UnreachableError as error:
            _log.warning("cannot join yet", reason=error.message, hint=error.hint)
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)
            continue
        failpoint("agent.join.answered", UnreachableError)
        save_membership(config.state, membership)
        failpoint("agent.join.joined", StateError)
        _log.info("joined", node=membership.node_name)
        return Identity(keys, membership)


def _read_token(path: Path | None) -> str:
    if path is None:
        raise ConfigError(
            "this node has not joined a cluster yet",
            hint="make a token with `tidemark node token` and name its file with --token-file",
        )
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the token file {path} cannot be read: {error}",
            hint="make a token with `tidemark node token`",
        ) from error


async def _unless(stop: asyncio.Event, work: Coroutine[object, object, _T]) -> _T | None:
    """Do the work, but leave it when asked to stop."""
    async with asyncio.TaskGroup() as group:
        working = group.create_task(work, name="join")
        stopping = group.create_task(stop.wait(), name="stop")
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        working.cancel()
    return None if working.cancelled() else working.result()


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Hold the state directory; BusyError if another agent does."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"cannot use the state directory {state}: {error.strerror}",
            hint="give the agent a directory that it may write, with --state",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BusyError(
            f"another agent works with {state}", hint="stop it first, or use another --state"
        ) from error
    finally:
        os.close(descriptor)


def _write_endpoints(state: Path, http: Address) -> None:
    """Say where we listen, for whoever started us on a free port. Replaced whole."""
    temporary = state / "endpoints.json.new"
    temporary.write_text(json.dumps({"http": str(http), "pid": os.getpid()}), encoding="ascii")
    temporary.rename(state / "endpoints.json")


def _worker_count() -> int:
    """Threads for batches: what they call releases the GIL, so as many as there are cores."""
    return workers(read_load(), len(os.sched_getaffinity(0)))


def _raise_file_limit() -> None:
    """Take what the system allows: deep volumes and many tasks hold many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
