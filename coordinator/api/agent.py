"""AgentService: what agents may ask. Translates and calls."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, TypeVar

from typing_extensions import override

from coordinator.api import bandwidth, translate
from coordinator.api.authorise import (
    Context,
    Gate,
    certificate_expires_at,
    identity_of,
    node_id_of,
)
from coordinator.api.bulk import UploadPiece
from coordinator.bandwidth import Bandwidth
from coordinator.bases import Bases, StoredFrame
from coordinator.dispatch import Dispatcher
from coordinator.errors import CatalogError, RejectedError, StoreError
from coordinator.fleet import Fleet, Program, Told
from coordinator.founding import SIGNED_SECONDS
from coordinator.intake import Intake, PackDigest, PackHeader
from coordinator.links import AgentLink, GrantBandwidth, RunTask
from coordinator.logs import get_logger
from coordinator.model import (
    NANOSECONDS,
    BackupOrder,
    Failure,
    LogLine,
    Node,
    RestoreOrder,
    Task,
    TaskId,
)
from coordinator.repositories import Repositories
from coordinator.restores import GrantHeader, GrantPart, PackGrant, Restores
from coordinator.sessions import CommitRequest, Sessions
from proto.tidemark.v1 import agent_pb2, agent_pb2_grpc
from proto.versions import told
from repository.failpoints import failpoint
from repository.ids import PackNonce, SessionId
from repository.refs import REFS_BYTES_MAX
from repository.store.interface import Checksum, SignedRequest, Signing

log = get_logger()

T = TypeVar("T")

HEARTBEAT_SECONDS: Final = 10
# An agent that misses so many heartbeats is gone, whatever its connection says.
_HEARTBEATS_MISSED: Final = 3
# Between two pieces of one upload.
_PIECE_SECONDS: Final = 60.0
# Frames of one message: at 512 chunks each, well below what a message may hold.
_BASE_FRAMES: Final = 64
# From the challenge to its answer.
_RENEWAL_SECONDS: Final = 20.0
_CHECKSUMS: Final = {
    Checksum.MD5: agent_pb2.PACK_CHECKSUM_MD5,
    Checksum.SHA256: agent_pb2.PACK_CHECKSUM_SHA256,
}


@dataclass(frozen=True)
class AgentParts:
    """What the service calls."""

    fleet: Fleet
    dispatcher: Dispatcher
    sessions: Sessions
    bases: Bases
    intake: Intake
    restores: Restores
    repositories: Repositories
    program: Program
    bandwidth: Bandwidth


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """The agents' side of the coordinator."""

    def __init__(self, parts: AgentParts, gate: Gate) -> None:
        self._parts = parts
        self._gate = gate

    async def _node(self, context: Context) -> Node:
        return await self._gate.node(identity_of(context))

    @override
    async def Enrol(
        self, request: agent_pb2.EnrolRequest, context: Context
    ) -> agent_pb2.EnrolResponse:
        enrolled = await self._parts.fleet.enrol(
            secret=request.token_secret,
            name=request.node_name,
            certificate_request=request.certificate_request,
            signing_public_key=request.signing_public_key,
        )
        return agent_pb2.EnrolResponse(
            node_id=enrolled.node.node_id,
            certificate=enrolled.certificates.certificate,
            ca_certificate=enrolled.ca_certificate,
            signing_certificate=enrolled.node.signing_certificate,
            renewal_certificate=enrolled.certificates.renewal_certificate,
        )

    @override
    async def RenewCertificate(
        self,
        request_iterator: AsyncIterator[agent_pb2.RenewCertificateRequest],
        context: Context,
    ) -> AsyncIterator[agent_pb2.RenewCertificateResponse]:
        node = await self._node(context)
        challenge = self._parts.fleet.new_challenge()
        yield agent_pb2.RenewCertificateResponse(challenge=challenge)
        failpoint("coordinator.renewal.challenged", CatalogError)
        request = await anext(_timely(request_iterator, _RENEWAL_SECONDS), None)
        if request is None:
            raise RejectedError("a renewal answers the challenge")
        made = await self._parts.fleet.renew(
            node,
            challenge=challenge,
            certificate_request=request.certificate_request,
            signature=request.signature,
        )
        renewed = agent_pb2.RenewedCertificates(
            certificate=made.certificate, renewal_certificate=made.renewal_certificate
        )
        yield agent_pb2.RenewCertificateResponse(renewed=renewed)

    @override
    async def Connect(  # type: ignore[override]  # writes to the context instead of yielding
        self, request_iterator: AsyncIterator[agent_pb2.ConnectRequest], context: Context
    ) -> None:
        node = await self._node(context)
        requests = _timely(request_iterator, HEARTBEAT_SECONDS * _HEARTBEATS_MISSED)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "hello":
            raise RejectedError("an agent says hello first")
        hello = first.hello
        dispatcher = self._parts.dispatcher
        await self._parts.fleet.said_hello(node, _program(hello), _told(hello))
        failpoint("coordinator.node.hello", CatalogError)
        link = dispatcher.connect(node)
        self._parts.bandwidth.join(link, is_at_work=bool(hello.running_task_ids))
        try:
            # It may have been revoked since the gate let it in; from here on, the link is closed.
            await self._node(context)
            running = [TaskId(each) for each in hello.running_task_ids]
            unknown = await dispatcher.compare(link, running)
            welcome = agent_pb2.Welcome(
                protocol_version=self._parts.program.protocol.newest,
                oldest_protocol_version=self._parts.program.protocol.oldest,
                coordinator_version=self._parts.program.version,
                heartbeat_seconds=HEARTBEAT_SECONDS,
                unknown_task_ids=unknown,
            )
            await context.write(agent_pb2.ConnectResponse(welcome=welcome))
            failpoint("coordinator.node.welcomed", CatalogError)
            await dispatcher.welcomed(link)
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(
                    self._listen(requests, node, link), name=f"agent {node.name}"
                )
                # What is stolen with its stream open is not worth more than a day either.
                seconds = (certificate_expires_at(context) - self._parts.fleet.now()) / NANOSECONDS
                expiry = asyncio.get_running_loop().call_later(seconds, link.close)
                await self._speak(link, context)
                expiry.cancel()
                listening.cancel()
        except ExceptionGroup as errors:  # by except*, Python 3.11.2 would raise a group again
            raise errors.exceptions[0] from None
        finally:
            self._parts.bandwidth.leave(link)
            await dispatcher.disconnect(link)

    async def _speak(self, link: AgentLink, context: Context) -> None:
        while (message := await link.outbox.get()) is not None:
            if isinstance(message, RunTask):
                await self._hand_over(message.task, link.node, context)
            elif isinstance(message, GrantBandwidth):
                await context.write(bandwidth.grant(message.grant))
            else:
                cancel = agent_pb2.CancelTask(task_id=message.task_id)
                await context.write(agent_pb2.ConnectResponse(cancel_task=cancel))

    async def _hand_over(self, task: Task, node: Node, context: Context) -> None:
        try:
            response = self._run_task(task)
        except StoreError as error:
            # Of a repository that is not known: the node's other tasks are none the worse for it.
            await self._parts.dispatcher.finished(
                task.task_id, node.node_id, failure=Failure.of(error), canceled=False, result=None
            )
        else:
            await context.write(response)

    def _run_task(self, task: Task) -> agent_pb2.ConnectResponse:
        assert isinstance(task.order, BackupOrder | RestoreOrder)
        standing = self._parts.repositories.standing(task.order.repository_id)
        return translate.run_task(task, standing.config)

    async def _listen(
        self,
        requests: AsyncIterator[agent_pb2.ConnectRequest],
        node: Node,
        link: AgentLink,
    ) -> None:
        try:
            async for request in requests:
                await self._heard(request, node)
        except TimeoutError:
            log.warning("agent fell silent", node=node.name)
        finally:
            link.close()

    async def _heard(self, request: agent_pb2.ConnectRequest, node: Node) -> None:
        dispatcher = self._parts.dispatcher
        match request.WhichOneof("message"):
            case "volumes":
                await self._parts.fleet.report(node, _told(request.volumes))
            case "progress":
                dispatcher.progress(
                    TaskId(request.progress.task_id),
                    node.node_id,
                    translate.progress_back(request.progress.progress),
                )
            case "log":
                line = LogLine(0, request.log.level, request.log.message)
                await dispatcher.add_log(TaskId(request.log.task_id), node.node_id, line)
            case "backup_finished":
                backup = request.backup_finished
                await dispatcher.finished(
                    TaskId(backup.task_id),
                    node.node_id,
                    failure=translate.failure_back(backup.error)
                    if backup.HasField("error")
                    else None,
                    canceled=backup.canceled,
                    result=translate.statistics_back(backup.result),
                )
            case "restore_finished":
                restore = request.restore_finished
                await dispatcher.finished(
                    TaskId(restore.task_id),
                    node.node_id,
                    failure=translate.failure_back(restore.error)
                    if restore.HasField("error")
                    else None,
                    canceled=restore.canceled,
                    result=translate.restore_back(restore.result),
                )
            case "heartbeat":
                self._parts.fleet.heard(node)
            case "bandwidth":
                report = bandwidth.report_back(request.bandwidth)
                self._parts.bandwidth.hear(node.node_id, report)
            case _:
                raise RejectedError("an agent says hello once, and nothing that is unknown")

    @override
    async def OpenSession(
        self, request: agent_pb2.OpenSessionRequest, context: Context
    ) -> agent_pb2.OpenSessionResponse:
        node = await self._node(context)
        opened = await self._parts.sessions.open(
            TaskId(request.task_id), node, request.sealed_data_key
        )
        return agent_pb2.OpenSessionResponse(
            session_id=opened.session.session_id,
            fencing_token=opened.session.fencing_token,
            writer_keys=opened.writer_keys,
            head_root=opened.head_root,
            head_sequence=opened.head_sequence,
            lease_seconds=opened.lease_seconds,
            signed_uploads=_signed_uploads(opened.signed_uploads),
            packs_since_head=opened.packs_since_head,
        )

    @override
    async def ReadBase(
        self, request: agent_pb2.ReadBaseRequest, context: Context
    ) -> AsyncIterator[agent_pb2.ReadBaseResponse]:
        node = await self._node(context)
        session_id = SessionId(request.session_id)
        since_head = [PackNonce(nonce) for nonce in request.pack_nonces]
        packs = self._parts.bases.read(session_id, request.fencing_token, node, since_head)
        async for frames in packs:
            for start in range(0, len(frames), _BASE_FRAMES):
                some = [_stored_frame(each) for each in frames[start : start + _BASE_FRAMES]]
                yield agent_pb2.ReadBaseResponse(frames=some)

    @override
    async def UploadPack(
        self, request_iterator: AsyncIterator[UploadPiece], context: Context
    ) -> agent_pb2.UploadPackResponse:
        node = await self._node(context)
        requests = _timely(request_iterator, _PIECE_SECONDS)
        first = await anext(requests, None)
        if not isinstance(first, agent_pb2.UploadPackRequest) or not first.HasField("header"):
            raise RejectedError("an upload begins with its header")
        header = _pack_header(first.header)

        async def pieces() -> AsyncIterator[memoryview]:
            async for request in requests:
                if not isinstance(request, memoryview):
                    raise RejectedError("an upload goes on with data")
                yield request

        await self._parts.intake.take(header, node, pieces())
        return agent_pb2.UploadPackResponse()

    @override
    async def SignUpload(
        self, request: agent_pb2.SignUploadRequest, context: Context
    ) -> agent_pb2.SignUploadResponse:
        node = await self._node(context)
        signed = await self._parts.intake.sign(_pack_digest(request.pack), node)
        told = None if signed is None else _signed_request(signed)
        return agent_pb2.SignUploadResponse(request=told)

    @override
    async def ConfirmUpload(
        self, request: agent_pb2.ConfirmUploadRequest, context: Context
    ) -> agent_pb2.ConfirmUploadResponse:
        node = await self._node(context)
        await self._parts.intake.confirm(_pack_digest(request.pack), node)
        return agent_pb2.ConfirmUploadResponse()

    @override
    async def Commit(
        self, request_iterator: AsyncIterator[agent_pb2.CommitRequest], context: Context
    ) -> agent_pb2.CommitResponse:
        node = await self._node(context)
        requests = _timely(request_iterator, _PIECE_SECONDS)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "header":
            raise RejectedError("a commit begins with its header")
        refs = bytearray()
        async for request in requests:
            refs += request.refs
            if len(refs) > REFS_BYTES_MAX:
                raise RejectedError("the refs are larger than refs may be")
        snapshot = await self._parts.sessions.commit(
            CommitRequest(
                session_id=SessionId(first.header.session_id),
                fencing_token=first.header.fencing_token,
                signed_root=first.header.signed_root,
                statistics=translate.statistics_back(first.header.result),
                refs_object=bytes(refs),
            ),
            node,
        )
        failpoint("coordinator.commit.answering", CatalogError)
        return agent_pb2.CommitResponse(
            snapshot_id=snapshot.snapshot_id,
            sequence=snapshot.sequence,
            phase=translate.PHASES[snapshot.phase],
            root=snapshot.root_object,
        )

    @override
    async def OpenRestore(
        self, request: agent_pb2.OpenRestoreRequest, context: Context
    ) -> AsyncIterator[agent_pb2.OpenRestoreResponse]:
        node = await self._node(context)
        parts = self._parts.restores.open(TaskId(request.task_id), node, request.public_key)
        async for part in parts:
            yield _grant_part(part)

    @override
    async def ReadPack(  # type: ignore[override]  # bulk.py makes the message
        self, request: agent_pb2.ReadPackRequest, context: Context
    ) -> AsyncIterator[memoryview]:
        # The gate has looked the node up already; to do so again costs more than some reads.
        node_id = node_id_of(identity_of(context))
        ranges = [(each.offset, each.length) for each in request.ranges]
        pieces = self._parts.restores.read(TaskId(request.task_id), node_id, request.name, ranges)
        async for piece in pieces:
            yield piece

    @override
    async def SignReads(
        self, request: agent_pb2.SignReadsRequest, context: Context
    ) -> agent_pb2.SignReadsResponse:
        node_id = node_id_of(identity_of(context))
        names = list(request.names)
        signed = await self._parts.restores.sign_reads(TaskId(request.task_id), node_id, names)
        told = [_signed_request(each) for each in signed]
        return agent_pb2.SignReadsResponse(requests=told)


def _pack_header(header: agent_pb2.PackHeader) -> PackHeader:
    return PackHeader(
        session_id=SessionId(header.session_id),
        fencing_token=header.fencing_token,
        name=header.name,
        size_bytes=header.size_bytes,
    )


def _pack_digest(pack: agent_pb2.PackDigest) -> PackDigest:
    return PackDigest(_pack_header(pack.header), pack.checksum, pack.blake3, pack.end_bytes)


def _signed_uploads(signing: Signing | None) -> agent_pb2.SignedUploads | None:
    if signing is None:
        return None
    checksum = _CHECKSUMS[signing.checksum]
    return agent_pb2.SignedUploads(endpoint=signing.endpoint, checksum=checksum)


def _signed_request(request: SignedRequest) -> agent_pb2.SignedRequest:
    return agent_pb2.SignedRequest(
        method=request.method,
        url=request.url,
        headers=request.headers,
        valid_seconds=SIGNED_SECONDS,
    )


def _program(hello: agent_pb2.Hello) -> Program:
    try:
        protocol = told(hello.oldest_protocol_version, hello.protocol_version)
    except ValueError as error:
        raise RejectedError("an agent tells an impossible range of protocol versions") from error
    return Program(hello.agent_version, protocol)


def _told(said: agent_pb2.Hello | agent_pb2.VolumesReport) -> Told:
    return Told(
        volumes=[translate.volume_report(each) for each in said.volumes],
        engines=[translate.engine(each) for each in said.engines],
    )


def _stored_frame(frame: StoredFrame) -> agent_pb2.StoredFrame:
    return agent_pb2.StoredFrame(
        pack_nonce=frame.identity.nonce,
        frame_number=frame.identity.number,
        chunk_ids=b"".join([chunk_id for _, chunk_id in frame.chunks]),
        lengths=[length for length, _ in frame.chunks],
        borrowed=frame.borrowed,
    )


def _grant_part(part: GrantPart) -> agent_pb2.OpenRestoreResponse:
    if isinstance(part, GrantHeader):
        header = agent_pb2.GrantHeader(
            root=part.root,
            sealed_grant_key=part.sealed_grant_key,
            wrapped_reader_keys=part.wrapped_reader_keys,
            endpoint=part.endpoint,
        )
        return agent_pb2.OpenRestoreResponse(header=header)
    if isinstance(part, PackGrant):
        pack = agent_pb2.PackGrant(
            pack_nonce=part.pack_nonce,
            name=part.name,
            wrapped_pack_key=part.wrapped_pack_key,
            frame_table=part.frame_table,
        )
        return agent_pb2.OpenRestoreResponse(pack=pack)
    frame = agent_pb2.FrameGrant(
        pack_nonce=part.pack_nonce,
        frame_number=part.frame_number,
        name=part.name,
        wrapped_frame_key=part.wrapped_frame_key,
        offset=part.offset,
        length=part.length,
    )
    return agent_pb2.OpenRestoreResponse(frame=frame)


async def _timely(requests: AsyncIterator[T], seconds: float) -> AsyncIterator[T]:
    """The same, with a deadline for each; TimeoutError when the other side falls silent."""
    iterator = aiter(requests)
    while True:
        async with asyncio.timeout(seconds):
            try:
                request = await anext(iterator)
            except StopAsyncIteration:
                return
        yield request
