"""The control stream to the coordinator: join, say hello, take tasks, report.

The agent always calls. One stream at a time carries heartbeats, progress, logs and ends of tasks
up, and tasks down; when it breaks it is opened anew with a back-off that is spread at random, so
that a thousand agents do not come back in one second. Tasks know nothing of that: they go on, and
what they have to say waits here, progress and logs within bounds, ends of tasks for as long as it
takes.
"""

import asyncio
import contextlib
import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import grpc
import grpc.aio
import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from agent.channel import NodeChannel, open_channel, translated
from agent.config import Address
from agent.errors import ConfigError, CoordinatorError, UnreachableError, first_error
from agent.identity import Identity, Keys, Membership
from agent.line import Line
from agent.logs import get_logger
from agent.messages import backup_result, path_errors, store_requests
from agent.services import (
    BackupOutcome,
    BackupTask,
    Clock,
    Engine,
    Phase,
    Progress,
    RestoreOutcome,
    RestoreTask,
    Volume,
)
from agent.throttle import Demand, Flow, Grant
from agent.tracking.tracker import Mode
from agent.validity import read_validity
from proto.bootstrap import InvalidTokenError, parse_token
from proto.renewal import RENEWAL_DOMAIN, renewal_statement
from proto.tidemark.v1 import agent_pb2, common_pb2
from proto.tidemark.v1.agent_pb2_grpc import AgentServiceStub
from proto.versions import PROTOCOL, Side, agree, told
from repository.errors import CanceledError, TidemarkError
from repository.failpoints import failpoint

_ENROL_SECONDS: Final = 30.0
_WELCOME_SECONDS: Final = 30.0
_HEARTBEAT_SECONDS: Final = 10  # until the coordinator says how often
_BACKOFF_SECONDS: Final = (0.5, 30.0)
# A stream that lived so long was a good one: the next failure begins with a short wait again.
_GOOD_SECONDS: Final = 60.0
# Progress of all tasks is sent at most so often.
_PROGRESS_SECONDS: Final = 0.25
# `job logs` keeps a job's last 1,000 lines; more need not wait here.
_LOG_LINES_MAX: Final = 1000
# What was written to a stream may be lost with it. So ends told this recently are mentioned when
# the next one begins, and told again where the coordinator still waits for them.
_TOLD_SECONDS: Final = 120.0
_TOLD_MAX: Final = 256
_MILLISECONDS: Final = 1000

_random = random.SystemRandom()
_log = get_logger()


async def enrol(address: Address, token_text: str, node_name: str, keys: Keys) -> Membership:
    """Exchange a one-time token for a place in the cluster. Errors say what to do about them."""
    try:
        token = parse_token(token_text)
    except InvalidTokenError as error:
        raise ConfigError(
            str(error), hint="make a new one with `tidemark node token` and give it whole"
        ) from error
    channel = open_channel(
        address,
        ca_certificate=token.ca_certificate,
        certificate=token.certificate,
        private_key=token.private_key,
    )
    request = agent_pb2.EnrolRequest(
        token_secret=token.secret,
        node_name=node_name,
        certificate_request=keys.certificate_request(node_name),
        signing_public_key=keys.signing.public,
    )
    async with channel:
        try:
            answer = await AgentServiceStub(channel).Enrol(request, timeout=_ENROL_SECONDS)
        except grpc.RpcError as error:
            raise translated(error) from error
    membership = Membership(
        node_id=answer.node_id,
        node_name=node_name,
        certificate=answer.certificate,
        renewal_certificate=answer.renewal_certificate,
        # Not the one in the answer: what the token pinned is what stays trusted.
        ca_certificate=token.ca_certificate,
        signing_certificate=answer.signing_certificate,
    )
    return _usable(membership)


async def renew_certificates(address: Address, identity: Identity) -> Membership:
    """Get new certificates for the same keys. Errors say what to do about them."""
    keys, membership = identity.keys, identity.membership
    channel = open_channel(
        address,
        ca_certificate=membership.ca_certificate,
        certificate=membership.renewal_certificate,
        private_key=keys.tls,
    )
    request = keys.certificate_request(membership.node_name)
    async with channel:
        call = AgentServiceStub(channel).RenewCertificate(timeout=_ENROL_SECONDS)
        try:
            first = await call.read()
            if isinstance(first, agent_pb2.RenewCertificateResponse):
                statement = renewal_statement(membership.node_id, first.challenge, request)
                answer = agent_pb2.RenewCertificateRequest(
                    certificate_request=request,
                    signature=keys.signing.sign(RENEWAL_DOMAIN, statement),
                )
                await call.write(answer)
                last = await call.read()
                if isinstance(last, agent_pb2.RenewCertificateResponse):
                    renewed = msgspec.structs.replace(
                        membership,
                        certificate=last.renewed.certificate,
                        renewal_certificate=last.renewed.renewal_certificate,
                    )
                    return _usable(renewed)
            await call.code()  # raises what the coordinator ended the stream with
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise _renewal_error(error) from error
        raise CoordinatorError("the coordinator gave no certificate")


def _usable(membership: Membership) -> Membership:
    """Return it, if both certificates are some; what is not must not replace what is."""
    try:
        read_validity(membership.certificate)
        read_validity(membership.renewal_certificate)
    except ValueError as error:
        raise CoordinatorError(
            "the coordinator sent what is no certificate", hint="update the coordinator"
        ) from error
    return membership


def _renewal_error(error: grpc.RpcError | asyncio.InvalidStateError) -> TidemarkError:
    if isinstance(error, grpc.RpcError):
        return translated(error)
    return UnreachableError("the call to the coordinator broke")


@dataclass(frozen=True)
class Greeting:
    """What the agent says of itself when a stream begins."""

    version: str
    volumes: Sequence[Volume]
    engines: Sequence[Engine]
    task_ids: Sequence[str]
    restore_roots: Sequence[bytes]


@dataclass(frozen=True)
class BackupWish:
    """A backup that the coordinator asks for."""

    task_id: str
    job_id: str
    volume_id: bytes
    local_id: bytes
    """What this node calls the volume."""
    repository_id: bytes
    recovery_public_key: bytes
    audit: bool = False


class Handler(Protocol):
    """Who does what the coordinator asks for. Nothing here may block or raise."""

    def greeting(self) -> Greeting:
        """Say what the agent is and does just now."""
        ...

    def on_welcome(self, unknown_task_ids: Sequence[str]) -> None:
        """Take note of a new stream, and of the tasks that the coordinator no longer knows."""
        ...

    def on_backup(self, wish: BackupWish) -> None:
        """Take on a backup."""
        ...

    def on_restore(self, task: RestoreTask) -> None:
        """Take on a restore."""
        ...

    def on_cancel(self, task_id: str) -> None:
        """Stop a task, if there is one of that id."""
        ...

    def on_reported(self, task_id: str) -> None:
        """Take note that the end of a task was sent."""
        ...

    def on_bandwidth(self, grant: Grant | None) -> None:
        """Use no more of the network than this; None: as much as there is."""
        ...

    def demand(self) -> Demand | None:
        """Say what the network is wanted for; None while nothing limits it."""
        ...


class ControlStream:
    """The stream, and what waits to be sent on it."""

    def __init__(self, line: Line[NodeChannel], handler: Handler, clock: Clock) -> None:
        self._line = line
        self._handler = handler
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._finished: dict[str, agent_pb2.ConnectRequest] = {}
        self._told: deque[tuple[float, str, agent_pb2.ConnectRequest]] = deque(maxlen=_TOLD_MAX)
        self._logs: deque[agent_pb2.ConnectRequest] = deque(maxlen=_LOG_LINES_MAX)
        self._progress: dict[str, Progress] = {}
        self._progress_lock = threading.Lock()
        self._volumes_changed = False
        self._demand_changed = False
        # A coordinator that grants nothing may be too old to take what it did not ask for.
        self._is_granted = False
        self._leaving = False
        self._heartbeat_seconds = float(_HEARTBEAT_SECONDS)
        self._told_all = asyncio.Condition()
        self.is_connected = False

    # What tasks have to say. Progress and logs may come from any thread, ends from the loop's.

    def send_progress(self, task_id: str, progress: Progress) -> None:
        """Let the coordinator know how far a task is; only the newest word counts."""
        with self._progress_lock:
            first = not self._progress
            self._progress[task_id] = progress
        if first:
            self._loop.call_soon_threadsafe(self._wake.set)

    def send_log(self, task_id: str, level: str, message: str) -> None:
        """Add a line to the job's log."""
        line = agent_pb2.TaskLog(task_id=task_id, at=self._now(), level=level, message=message)
        self._logs.append(agent_pb2.ConnectRequest(log=line))
        self._loop.call_soon_threadsafe(self._wake.set)

    def send_volumes(self) -> None:
        """Let the coordinator know that there are other volumes now."""
        self._volumes_changed = True
        self._wake.set()

    def send_demand(self) -> None:
        """Let the coordinator know what the network is wanted for."""
        self._demand_changed = True
        self._wake.set()

    def send_backup_end(self, task: BackupTask, outcome: BackupOutcome) -> None:
        """Report the end of a backup."""
        result = backup_result(outcome.statistics)
        result.volume = task.volume.name
        result.volume_id = task.volume.volume_id.hex()
        if outcome.committed is not None:
            result.snapshot_id = outcome.committed.snapshot_id
            result.phase = common_pb2.Phase.ValueType(outcome.committed.phase)
        end = agent_pb2.BackupFinished(
            task_id=task.task_id,
            error=_detail(outcome.error),
            canceled=isinstance(outcome.error, CanceledError),
            result=result,
        )
        self._send_end(task.task_id, agent_pb2.ConnectRequest(backup_finished=end))

    def send_restore_end(self, task: RestoreTask, outcome: RestoreOutcome) -> None:
        """Report the end of a restore."""
        statistics = outcome.statistics
        result = common_pb2.RestoreResult(
            files_restored=statistics.files_restored,
            bytes_restored=statistics.bytes_restored,
            bytes_written=statistics.bytes_written,
            bytes_fetched=statistics.bytes_fetched,
            warnings=path_errors(statistics.warnings),
            errors=path_errors(statistics.errors),
            errors_total=statistics.errors_total,
            files_unchanged=statistics.files_unchanged,
            files_removed=statistics.files_removed,
            dry_run=statistics.dry_run,
            changes=[
                common_pb2.PathChange(path=each.path, change=each.change)
                for each in statistics.changes
            ],
            changes_total=statistics.changes_total,
            store_requests=store_requests(statistics.store_requests),
        )
        end = agent_pb2.RestoreFinished(
            task_id=task.task_id,
            error=_detail(outcome.error),
            canceled=outcome.phase is Phase.CANCELED,
            result=result,
        )
        self._send_end(task.task_id, agent_pb2.ConnectRequest(restore_finished=end))

    def _send_end(self, task_id: str, message: agent_pb2.ConnectRequest) -> None:
        self._finished[task_id] = message
        with self._progress_lock:
            self._progress.pop(task_id, None)
        self._wake.set()

    async def told_everything(self) -> None:
        """Wait until the coordinator was told of every end."""
        async with self._told_all:
            await self._told_all.wait_for(lambda: not self._finished)

    # The stream.

    def reconnect(self) -> None:
        """Change over to the line's new connection as soon as no task runs."""
        self._leaving = True
        self._wake.set()

    async def run(self) -> None:
        """Keep a stream to the coordinator, until canceled."""
        shortest, longest = _BACKOFF_SECONDS
        delay = shortest
        while True:
            began = self._clock.monotonic()
            try:
                if await self._converse():
                    continue
                reason, hint = "the coordinator ended the stream", ""
            except TidemarkError as error:
                reason, hint = error.message, error.hint
            # A stream that broke in the very moment in which we were canceled hides that.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError
            if self._clock.monotonic() - began > _GOOD_SECONDS:
                delay = shortest
            wait = delay * _random.uniform(0.5, 1.5)
            next_try = round(wait, 1)
            _log.warning("not connected", reason=reason, hint=hint, next_try_seconds=next_try)
            await asyncio.sleep(wait)
            delay = min(delay * 2, longest)

    async def _converse(self) -> bool:
        """Hold one stream from hello to its end. True if it was we who left it."""
        self._leaving = False
        async with self._line.use() as channel:
            await self._hold(channel.stub.Connect())
        return self._leaving

    async def _hold(self, call: "_Call") -> None:
        try:
            failpoint("agent.connect.hello", UnreachableError)
            await call.write(agent_pb2.ConnectRequest(hello=self._hello()))
            async with asyncio.timeout(_WELCOME_SECONDS):
                first = await call.read()
            if not isinstance(first, agent_pb2.ConnectResponse):
                await call.code()  # raises what the coordinator ended the stream with
                return
            self._welcome(first.welcome)
            failpoint("agent.connect.welcomed", UnreachableError)
            await self._exchange(call)
        except TimeoutError as error:
            raise UnreachableError(
                "the coordinator does not answer", hint="see the coordinator's log"
            ) from error
        except grpc.RpcError as error:
            raise translated(error) from error
        except asyncio.InvalidStateError as error:  # the stream ended under a write
            raise UnreachableError("the stream to the coordinator broke") from error
        finally:
            if self.is_connected:
                self.is_connected = False
                _log.info("disconnected")
            call.cancel()

    async def _exchange(self, call: "_Call") -> None:
        """Send and receive until one of both ends."""
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks.append(group.create_task(self._receive(call), name="receive"))
                tasks.append(group.create_task(self._send(call), name="send"))
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
        except ExceptionGroup as errors:  # by except*, Python 3.11.2 would raise a group again
            raise first_error(errors) from None

    async def _receive(self, call: "_Call") -> None:
        while True:
            message = await call.read()
            if not isinstance(message, agent_pb2.ConnectResponse):
                return
            failpoint("agent.connect.received", asyncio.InvalidStateError)
            match message.WhichOneof("message"):
                case "run_backup":
                    self._lift_old_limit()
                    self._handler.on_backup(_backup_wish(message.run_backup))
                case "run_restore":
                    self._lift_old_limit()
                    self._handler.on_restore(_restore_task(message.run_restore))
                case "cancel_task":
                    self._handler.on_cancel(message.cancel_task.task_id)
                case "bandwidth":
                    self._is_granted = True
                    self._handler.on_bandwidth(_grant(message.bandwidth))
                case "welcome" | None:  # None is of a newer coordinator
                    pass

    def _lift_old_limit(self) -> None:
        """Forget the limit of a former stream: of one that holds we are told before any work."""
        if not self._is_granted and self._handler.demand() is not None:
            self._handler.on_bandwidth(None)

    async def _send(self, call: "_Call") -> None:
        last_progress = last_beat = self._clock.monotonic()
        while not self._may_leave():
            due = last_beat + self._heartbeat_seconds
            if self._progress:
                due = min(due, last_progress + _PROGRESS_SECONDS)
            await self._woken(due - self._clock.monotonic())
            await self._send_waiting(call)
            now = self._clock.monotonic()
            if self._progress and now - last_progress >= _PROGRESS_SECONDS:
                await self._send_newest_progress(call)
                last_progress = now
            if now - last_beat >= self._heartbeat_seconds:
                beat = agent_pb2.Heartbeat(sent_at=self._now())
                await call.write(agent_pb2.ConnectRequest(heartbeat=beat))
                last_beat = now
        # The coordinator says what it has left to say, and ends the stream.
        await call.done_writing()
        await asyncio.sleep(_WELCOME_SECONDS)

    def _may_leave(self) -> bool:
        """Whether to leave, and nothing would be lost by it: an end is told, a task goes on."""
        return self._leaving and not self._finished and not self._handler.greeting().task_ids

    async def _woken(self, seconds: float) -> None:
        """Wait until there is something to send, but not longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._wake.wait()
        self._wake.clear()

    async def _send_waiting(self, call: "_Call") -> None:
        if self._demand_changed:
            self._demand_changed = False
            demand = self._handler.demand()
            if demand is not None and self._is_granted:
                await call.write(agent_pb2.ConnectRequest(bandwidth=_demand(demand)))
        if self._volumes_changed:
            self._volumes_changed = False
            greeting = self._handler.greeting()
            report = agent_pb2.VolumesReport(
                volumes=[_volume_report(volume) for volume in greeting.volumes],
                engines=[_engine(engine) for engine in greeting.engines],
            )
            await call.write(agent_pb2.ConnectRequest(volumes=report))
        while self._logs:
            line = self._logs.popleft()
            try:
                await call.write(line)
            except BaseException:
                self._logs.appendleft(line)
                raise
        for task_id, message in list(self._finished.items()):
            failpoint("agent.end.sending", asyncio.InvalidStateError)
            await call.write(message)
            failpoint("agent.end.sent", asyncio.InvalidStateError)
            del self._finished[task_id]
            self._told.append((self._clock.monotonic(), task_id, message))
            self._handler.on_reported(task_id)
        async with self._told_all:
            self._told_all.notify_all()

    async def _send_newest_progress(self, call: "_Call") -> None:
        with self._progress_lock:
            newest, self._progress = self._progress, {}
        for task_id, progress in newest.items():
            message = agent_pb2.TaskProgress(task_id=task_id, progress=_progress(progress))
            await call.write(agent_pb2.ConnectRequest(progress=message))

    def _hello(self) -> agent_pb2.Hello:
        greeting = self._handler.greeting()
        self._volumes_changed = False
        # Ends told on the last stream may have got lost with it: the answer shows which.
        oldest = self._clock.monotonic() - _TOLD_SECONDS
        told = [task_id for at, task_id, _ in self._told if at >= oldest]
        known = dict.fromkeys([*greeting.task_ids, *self._finished, *told])
        return agent_pb2.Hello(
            agent_version=greeting.version,
            protocol_version=PROTOCOL.newest,
            oldest_protocol_version=PROTOCOL.oldest,
            volumes=[_volume_report(volume) for volume in greeting.volumes],
            engines=[_engine(engine) for engine in greeting.engines],
            running_task_ids=list(known),
            restore_roots=greeting.restore_roots,
        )

    def _welcome(self, welcome: agent_pb2.Welcome) -> None:
        check_protocol(welcome)
        self._is_granted = False
        self._heartbeat_seconds = float(welcome.heartbeat_seconds or _HEARTBEAT_SECONDS)
        unknown = set(welcome.unknown_task_ids)
        oldest = self._clock.monotonic() - _TOLD_SECONDS - _WELCOME_SECONDS
        again = {id_: end for at, id_, end in self._told if id_ not in unknown and at >= oldest}
        self._told.clear()
        for task_id in unknown:
            if self._finished.pop(task_id, None) is not None:
                self._handler.on_reported(task_id)
        self._finished = again | self._finished
        self._wake.set()
        self.is_connected = True
        _log.info("connected", coordinator_version=welcome.coordinator_version)
        self._handler.on_welcome(list(unknown))

    def _now(self) -> Timestamp:
        seconds, nanos = divmod(self._clock.now_ns(), 1_000_000_000)
        return Timestamp(seconds=seconds, nanos=nanos)


if TYPE_CHECKING:
    _Call = grpc.aio.StreamStreamCall[agent_pb2.ConnectRequest, agent_pb2.ConnectResponse]


def check_protocol(welcome: agent_pb2.Welcome) -> None:
    """CoordinatorError for a coordinator that let us in and speaks nothing that we speak."""
    version = welcome.coordinator_version
    try:
        protocol = told(welcome.oldest_protocol_version, welcome.protocol_version)
    except ValueError as error:
        raise CoordinatorError(f"coordinator {version} does not tell what it speaks") from error
    agreed = agree(PROTOCOL, protocol)
    if isinstance(agreed, Side):
        raise CoordinatorError(
            f"coordinator {version} speaks version {protocol} of the protocol, "
            f"and this agent speaks {PROTOCOL}",
            hint=f"upgrade the {agreed.value}",
        )


def _volume_report(volume: Volume) -> agent_pb2.VolumeReport:
    tracked = volume.tracked or Mode("", "")
    return agent_pb2.VolumeReport(
        local_id=volume.volume_id,
        name=volume.name,
        source=volume.source,
        path=volume.path,
        verdict=volume.verdict,
        reason=volume.reason,
        containers=volume.containers,
        project=volume.project,
        labels=dict(volume.labels),
        tracked_by=tracked.source,
        tracking_reason=tracked.reason,
    )


def _engine(engine: Engine) -> common_pb2.Engine:
    return common_pb2.Engine(
        name=engine.name,
        address=engine.address,
        answers=engine.answers,
        version=engine.version,
        message=engine.message,
    )


def _backup_wish(ask: agent_pb2.RunBackup) -> BackupWish:
    return BackupWish(
        task_id=ask.task_id,
        job_id=ask.job_id,
        volume_id=ask.volume_id,
        local_id=ask.local_id or ask.volume_id,
        repository_id=ask.repository_id,
        recovery_public_key=ask.recovery_public_key,
        audit=ask.audit,
    )


def _restore_task(ask: agent_pb2.RunRestore) -> RestoreTask:
    return RestoreTask(
        task_id=ask.task_id,
        job_id=ask.job_id,
        snapshot_id=ask.snapshot_id,
        target=ask.target,
        paths=tuple(ask.paths),
        in_place=ask.in_place,
        overwrite=ask.overwrite,
        delete_extra=ask.delete_extra,
        dry_run=ask.dry_run,
        local_id=ask.local_id,
    )


def _grant(grant: agent_pb2.BandwidthGrant) -> Grant | None:
    if grant.unlimited:
        return None
    return Grant(
        number=grant.number,
        upload=grant.backup,
        restore=grant.restore,
        floor=grant.floor,
        lease_seconds=grant.lease_milliseconds / _MILLISECONDS,
    )


def _demand(demand: Demand) -> agent_pb2.BandwidthDemand:
    return agent_pb2.BandwidthDemand(
        grant_number=demand.number,
        measured_milliseconds=round(demand.seconds * _MILLISECONDS),
        backup=_traffic(demand.upload),
        restore=_traffic(demand.restore),
    )


def _traffic(flow: Flow) -> agent_pb2.Traffic:
    return agent_pb2.Traffic(
        wants=flow.wants,
        used_bytes=flow.used_bytes,
        blocked_milliseconds=round(flow.blocked_seconds * _MILLISECONDS),
    )


def _progress(progress: Progress) -> common_pb2.Progress:
    return common_pb2.Progress(
        files_done=progress.files_done,
        files_total=progress.files_total,
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        activity=progress.activity,
    )


def _detail(error: TidemarkError | None) -> common_pb2.ErrorDetail | None:
    if error is None:
        return None
    return common_pb2.ErrorDetail(
        exit_code=error.exit_code,
        message=error.message,
        hint=error.hint,
        retryable=error.retryable,
    )
