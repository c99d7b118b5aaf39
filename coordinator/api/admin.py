"""AdminService: what people and scripts may ask. Translates and calls."""

from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

from typing_extensions import override

from coordinator.api import bandwidth, repositories, translate
from coordinator.api.authorise import Context, identity_of
from coordinator.assignments import Assignments
from coordinator.bandwidth import Bandwidth
from coordinator.browse import Browser, Listed
from coordinator.dispatch import Dispatcher
from coordinator.doctor import Doctor
from coordinator.limits import Limit, Scope
from coordinator.model import JobId, Snapshot
from coordinator.moves import Moves
from coordinator.orders import Orders
from coordinator.overview import Overview, VolumeView
from coordinator.repositories import Standing
from coordinator.selection import Selection
from proto.tidemark.v1 import admin_pb2, admin_pb2_grpc
from repository.ids import VolumeId

T = TypeVar("T")

_JOBS_DEFAULT: Final = 50
_JOBS_MAX: Final = 1000
# Entries of one message: well below gRPC's 4 MiB with the longest paths.
_ENTRIES: Final = 500
# At most twice a second, and a sign of life each minute.
_WATCH_PAUSE_SECONDS: Final = 0.5
_WATCH_SILENCE_SECONDS: Final = 60.0
_PIECE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class AdminParts:
    """What the service calls."""

    dispatcher: Dispatcher
    orders: Orders
    overview: Overview
    selection: Selection
    moves: Moves
    assignments: Assignments
    doctor: Doctor
    browser: Browser
    bandwidth: Bandwidth
    version: str
    schedule_seconds: int | None


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """The administrators' side of the coordinator."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts

    # ---- the whole ------------------------------------------------------------------------------

    @override
    async def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: Context
    ) -> admin_pb2.GetStatusResponse:
        overview = self._parts.overview
        names = await self._names()
        return admin_pb2.GetStatusResponse(
            coordinator_version=self._parts.version,
            repository_id=overview.repositories.find("").repository_id.hex(),
            unlocked=overview.unlocked,
            recovery_kit_exported=await overview.kits_exported(),
            nodes=await self._nodes(),
            volumes=[
                _volume(each) for each in (*await overview.volumes(), *await overview.claims())
            ],
            running_jobs=[translate.job(job, names) for job in self._parts.dispatcher.running()],
            schedule_seconds=self._parts.schedule_seconds or 0,
            absent_repositories=map(repositories.absent, overview.repositories.absent()),
        )

    @override
    async def GetRepository(
        self, request: admin_pb2.GetRepositoryRequest, context: Context
    ) -> admin_pb2.GetRepositoryResponse:
        return await self._repository(self._parts.overview.repositories.find(request.repository))

    async def _repository(self, standing: Standing) -> admin_pb2.GetRepositoryResponse:
        overview = self._parts.overview
        return repositories.repository(
            standing,
            await overview.totals(standing.repository_id),
            kit_exported=await overview.kit_exported(standing),
            unlocked=overview.unlocked,
        )

    @override
    async def ListRepositories(
        self, request: admin_pb2.ListRepositoriesRequest, context: Context
    ) -> admin_pb2.ListRepositoriesResponse:
        found = self._parts.overview.repositories.all()
        return admin_pb2.ListRepositoriesResponse(
            repositories=[await self._repository(each) for each in found]
        )

    @override
    async def InitRepository(
        self, request: admin_pb2.InitRepositoryRequest, context: Context
    ) -> admin_pb2.InitRepositoryResponse:
        wish, secrets = repositories.wish_back(request)
        made = await self._parts.overview.repositories.make(
            request.name, wish, secrets, by=identity_of(context).name
        )
        return admin_pb2.InitRepositoryResponse(repository=await self._repository(made))

    @override
    async def ExportRecoveryKit(
        self, request: admin_pb2.ExportRecoveryKitRequest, context: Context
    ) -> admin_pb2.ExportRecoveryKitResponse:
        overview = self._parts.overview
        standing = overview.repositories.find(request.repository)
        return admin_pb2.ExportRecoveryKitResponse(kit=await overview.export_kit(standing))

    @override
    async def RunDoctor(
        self, request: admin_pb2.RunDoctorRequest, context: Context
    ) -> admin_pb2.RunDoctorResponse:
        checks = await self._parts.doctor.look()
        return admin_pb2.RunDoctorResponse(
            checks=[
                admin_pb2.DoctorCheck(
                    name=check.name, ok=check.ok, message=check.message, hint=check.hint
                )
                for check in checks
            ]
        )

    def _name_of(self, snapshot: Snapshot) -> str:
        return self._parts.overview.repositories.name_of(snapshot.repository_id)

    # ---- nodes and volumes ----------------------------------------------------------------------

    async def _names(self) -> translate.Names:
        overview = self._parts.overview
        return translate.Names(await overview.fleet.nodes(), await overview.known_volumes())

    async def _nodes(self) -> list[admin_pb2.Node]:
        fleet = self._parts.overview.fleet
        connected = self._parts.dispatcher.connected()
        volumes = await self._parts.overview.known_volumes()
        return [
            translate.node(
                node,
                connected=node.node_id in connected,
                volumes=sum(each.node_id == node.node_id and each.present for each in volumes),
                engines=fleet.engines(node.node_id),
                protocol_version=fleet.protocol_version(node.node_id),
                refusal=fleet.refusal(node.node_id),
            )
            for node in await fleet.nodes()
        ]

    @override
    async def ListNodes(
        self, request: admin_pb2.ListNodesRequest, context: Context
    ) -> admin_pb2.ListNodesResponse:
        return admin_pb2.ListNodesResponse(nodes=await self._nodes())

    @override
    async def CreateNodeToken(
        self, request: admin_pb2.CreateNodeTokenRequest, context: Context
    ) -> admin_pb2.CreateNodeTokenResponse:
        token, expires_at = await self._parts.overview.fleet.new_token(request.valid_seconds)
        return admin_pb2.CreateNodeTokenResponse(
            token=token, expires_at=translate.timestamp(expires_at)
        )

    @override
    async def RevokeNode(
        self, request: admin_pb2.RevokeNodeRequest, context: Context
    ) -> admin_pb2.RevokeNodeResponse:
        node = await self._parts.selection.node(request.node)
        revoked = await self._parts.overview.fleet.revoke(node)
        return admin_pb2.RevokeNodeResponse(
            node=translate.node(revoked, connected=False, volumes=0)
        )

    @override
    async def ListVolumes(
        self, request: admin_pb2.ListVolumesRequest, context: Context
    ) -> admin_pb2.ListVolumesResponse:
        views = await self._parts.overview.volumes()
        if request.HasField("volume"):
            wanted = (await self._parts.selection.volume(request.volume)).volume_id
            views = [view for view in views if view.volume.volume_id == wanted]
        else:
            views += await self._parts.overview.claims()
        if request.unprotected_only:
            views = [view for view in views if view.volume.verdict != "protected"]
        return admin_pb2.ListVolumesResponse(volumes=[_volume(view) for view in views])

    @override
    async def MoveVolume(
        self, request: admin_pb2.MoveVolumeRequest, context: Context
    ) -> admin_pb2.MoveVolumeResponse:
        moved = await self._parts.moves.move(
            request.volume,
            request.node,
            name=request.name if request.HasField("name") else None,
            replacing=request.replace,
        )
        [volume] = await self._volumes({moved.volume_id})
        return admin_pb2.MoveVolumeResponse(volume=volume, former_node=moved.former_node)

    @override
    async def AssignVolumes(
        self, request: admin_pb2.AssignVolumesRequest, context: Context
    ) -> admin_pb2.AssignVolumesResponse:
        assigned = await self._parts.assignments.assign(
            request.volumes, request.repository, everything=request.all
        )
        volumes = await self._volumes({each.volume_id for each in assigned})
        return admin_pb2.AssignVolumesResponse(volumes=volumes)

    async def _volumes(self, wanted: Collection[VolumeId]) -> list[admin_pb2.Volume]:
        views = await self._parts.overview.volumes()
        return [_volume(view) for view in views if view.volume.volume_id in wanted]

    # ---- jobs -----------------------------------------------------------------------------------

    @override
    async def CreateBackup(
        self, request: admin_pb2.CreateBackupRequest, context: Context
    ) -> admin_pb2.CreateBackupResponse:
        job = await self._parts.orders.backup(
            request.volumes, everything=request.all, audit=request.audit
        )
        return admin_pb2.CreateBackupResponse(job=translate.job(job, await self._names()))

    @override
    async def CreateRestore(
        self, request: admin_pb2.CreateRestoreRequest, context: Context
    ) -> admin_pb2.CreateRestoreResponse:
        snapshot = await self._parts.selection.snapshot(
            request.snapshot, request.volume if request.HasField("volume") else None
        )
        job = await self._parts.orders.restore(
            snapshot,
            target=request.target,
            in_place=request.in_place,
            paths=tuple(request.paths),
            overwrite=request.overwrite,
            delete_extra=request.delete_extra,
            dry_run=request.dry_run,
            node=request.node if request.HasField("node") else None,
        )
        return admin_pb2.CreateRestoreResponse(job=translate.job(job, await self._names()))

    @override
    async def CreateVerify(
        self, request: admin_pb2.CreateVerifyRequest, context: Context
    ) -> admin_pb2.CreateVerifyResponse:
        job = await self._parts.orders.verify(
            translate.DEPTHS_BACK[request.depth], request.snapshots, everything=request.all
        )
        return admin_pb2.CreateVerifyResponse(job=translate.job(job, await self._names()))

    @override
    async def ListJobs(
        self, request: admin_pb2.ListJobsRequest, context: Context
    ) -> admin_pb2.ListJobsResponse:
        kind = translate.KINDS_BACK.get(request.kind) if request.HasField("kind") else None
        limit = min(request.limit or _JOBS_DEFAULT, _JOBS_MAX)
        names = await self._names()
        jobs = await self._parts.dispatcher.jobs(kind=kind, limit=limit)
        return admin_pb2.ListJobsResponse(jobs=[translate.job(job, names) for job in jobs])

    @override
    async def GetJob(
        self, request: admin_pb2.GetJobRequest, context: Context
    ) -> admin_pb2.GetJobResponse:
        job = await self._parts.dispatcher.job(JobId(request.job_id))
        return admin_pb2.GetJobResponse(job=translate.job(job, await self._names()))

    @override
    async def WatchJob(
        self, request: admin_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[admin_pb2.WatchJobResponse]:
        names = await self._names()
        async for job in self._parts.dispatcher.watch(
            JobId(request.job_id),
            pause_seconds=_WATCH_PAUSE_SECONDS,
            silence_seconds=_WATCH_SILENCE_SECONDS,
        ):
            yield admin_pb2.WatchJobResponse(job=translate.job(job, names))

    @override
    async def CancelJob(
        self, request: admin_pb2.CancelJobRequest, context: Context
    ) -> admin_pb2.CancelJobResponse:
        job = await self._parts.dispatcher.cancel(JobId(request.job_id))
        return admin_pb2.CancelJobResponse(job=translate.job(job, await self._names()))

    @override
    async def GetJobLogs(
        self, request: admin_pb2.GetJobLogsRequest, context: Context
    ) -> admin_pb2.GetJobLogsResponse:
        lines = await self._parts.dispatcher.log_lines(JobId(request.job_id))
        return admin_pb2.GetJobLogsResponse(lines=[translate.log_line(line) for line in lines])

    # ---- snapshots ------------------------------------------------------------------------------

    @override
    async def ListSnapshots(
        self, request: admin_pb2.ListSnapshotsRequest, context: Context
    ) -> admin_pb2.ListSnapshotsResponse:
        volume = request.volume if request.HasField("volume") else None
        found = await self._parts.selection.snapshots((), volume)
        return admin_pb2.ListSnapshotsResponse(
            snapshots=[translate.snapshot(each, self._name_of(each)) for each in found]
        )

    @override
    async def GetSnapshot(
        self, request: admin_pb2.GetSnapshotRequest, context: Context
    ) -> admin_pb2.GetSnapshotResponse:
        found = await self._parts.selection.snapshot(
            request.snapshot, request.volume if request.HasField("volume") else None
        )
        return admin_pb2.GetSnapshotResponse(
            snapshot=translate.snapshot(found, self._name_of(found)),
            result=translate.result_of(found),
        )

    @override
    async def ListEntries(
        self, request: admin_pb2.ListEntriesRequest, context: Context
    ) -> AsyncIterator[admin_pb2.ListEntriesResponse]:
        snapshot = await self._parts.selection.snapshot(
            request.snapshot, request.volume if request.HasField("volume") else None
        )
        listing = self._parts.browser.entries(snapshot, request.path, recursive=request.recursive)
        async for listed in listing:
            for some in _pieces(listed):
                yield admin_pb2.ListEntriesResponse(entries=map(translate.entry, some))

    @override
    async def FindEntries(
        self, request: admin_pb2.FindEntriesRequest, context: Context
    ) -> AsyncIterator[admin_pb2.FindEntriesResponse]:
        snapshots = await self._parts.selection.snapshots(
            request.snapshots, request.volume if request.HasField("volume") else None
        )
        async for snapshot_id, listed in self._parts.browser.find(snapshots, request.patterns):
            for some in _pieces(listed):
                yield _found(snapshot_id, some)

    @override
    async def ReadFile(
        self, request: admin_pb2.ReadFileRequest, context: Context
    ) -> AsyncIterator[admin_pb2.ReadFileResponse]:
        snapshot = await self._parts.selection.snapshot(
            request.snapshot, request.volume if request.HasField("volume") else None
        )
        async for content in self._parts.browser.content(snapshot, request.path):
            for start in range(0, len(content), _PIECE_BYTES):
                yield admin_pb2.ReadFileResponse(data=content[start : start + _PIECE_BYTES])

    @override
    async def DiffSnapshots(
        self, request: admin_pb2.DiffSnapshotsRequest, context: Context
    ) -> AsyncIterator[admin_pb2.DiffSnapshotsResponse]:
        volume = request.volume if request.HasField("volume") else None
        before = await self._parts.selection.snapshot(request.snapshot_a, volume)
        after = await self._parts.selection.snapshot(request.snapshot_b, volume)
        async for changes in self._parts.browser.differences(before, after):
            for some in _pieces(changes):
                yield admin_pb2.DiffSnapshotsResponse(changes=map(translate.change, some))

    # ---- bandwidth ------------------------------------------------------------------------------

    @override
    async def GetBandwidth(
        self, request: admin_pb2.GetBandwidthRequest, context: Context
    ) -> admin_pb2.GetBandwidthResponse:
        budget = self._parts.bandwidth
        return admin_pb2.GetBandwidthResponse(
            limits=[await self._limit(each) for each in budget.limits()],
            nodes=[bandwidth.node(node, use) for node, use in budget.uses()],
        )

    @override
    async def SetBandwidth(
        self, request: admin_pb2.SetBandwidthRequest, context: Context
    ) -> admin_pb2.SetBandwidthResponse:
        scope = bandwidth.scope_back(request)
        subject = b""
        if scope is Scope.NODE:
            subject = bytes((await self._parts.selection.node(request.node)).node_id)
        elif scope is Scope.REPOSITORY:
            found = self._parts.overview.repositories.find(request.repository)
            subject = bytes(found.repository_id)
        limit = await self._parts.bandwidth.add_rule(
            scope, subject, bandwidth.rule_back(request), by=identity_of(context).name
        )
        return admin_pb2.SetBandwidthResponse(limit=await self._limit(limit))

    async def _limit(self, limit: Limit) -> admin_pb2.BandwidthLimit:
        nodes = await self._parts.overview.fleet.nodes()
        names = {
            **{bytes(node.node_id): node.name for node in nodes},
            **{
                bytes(each.repository_id): each.name
                for each in self._parts.overview.repositories.all()
            },
        }
        return bandwidth.limit(limit, names, self._parts.bandwidth.now())


def _found(snapshot_id: str, listed: list[Listed]) -> admin_pb2.FindEntriesResponse:
    return admin_pb2.FindEntriesResponse(
        found=[
            admin_pb2.FoundEntry(snapshot_id=snapshot_id, entry=translate.entry(each))
            for each in listed
        ]
    )


def _pieces(items: list[T]) -> Iterator[list[T]]:
    """Lists that fit into one message."""
    iterator = iter(items)
    while some := list(islice(iterator, _ENTRIES)):
        yield some


def _volume(view: VolumeView) -> admin_pb2.Volume:
    volume = view.volume
    message = admin_pb2.Volume(
        volume=volume.name,
        volume_id=volume.volume_id.hex(),
        node=view.node,
        source=volume.source,
        path=volume.path,
        verdict=volume.verdict,
        reason=volume.reason,
        policy=view.policy,
        last_completed_at=translate.timestamp(view.last_completed_at),
        age_seconds=view.age_seconds,
        last_proof_at=translate.timestamp(view.last_proof_at),
        last_message=view.last_message,
        containers=volume.workload.containers,
        project=volume.workload.project,
        labels=volume.workload.labels,
        present=volume.present,
        held_by=view.held_by,
        tracked_by=volume.tracking.source,
        tracking_reason=volume.tracking.reason,
        repository=view.repository,
    )
    if view.head is not None:
        message.last_snapshot_id = view.head.snapshot_id
        message.change_detection = translate.DETECTIONS[view.head.statistics.change_detection]
    if view.last_phase is not None:
        message.last_phase = translate.PHASES[view.last_phase]
    return message
