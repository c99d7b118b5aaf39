"""What a task tells the coordinator and is told, as messages of the protocol word it. Pure.

Only words: nothing is decided or sent here. What the control stream alone says, of volumes, tasks
and bandwidth, is worded where it is said, in session.py.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from agent.services import (
    AuditOutcome,
    BackupStatistics,
    GrantedFrame,
    GrantedPack,
    PathProblem,
    SignedUploads,
)
from proto.tidemark.v1 import agent_pb2, common_pb2
from repository.frames import Location
from repository.ids import CHUNK_ID_BYTES, ChunkId, PackNonce
from repository.snapshot import Detection
from repository.store.counting import Requests
from repository.store.interface import Checksum, SignedRequest

# Lists of errors hold so many; the total counts all.
_ERRORS_MAX: Final = 100
_DETECTIONS: Final = {
    Detection.EVENTS: common_pb2.CHANGE_DETECTION_EVENTS,
    Detection.SWEEP: common_pb2.CHANGE_DETECTION_SWEEP,
}
_CHECKSUMS: Final = {
    agent_pb2.PACK_CHECKSUM_MD5: Checksum.MD5,
    agent_pb2.PACK_CHECKSUM_SHA256: Checksum.SHA256,
}


def backup_result(statistics: BackupStatistics) -> common_pb2.BackupResult:
    """Return statistics as the protocol words them."""
    return common_pb2.BackupResult(
        files_new=statistics.files_new,
        files_changed=statistics.files_changed,
        files_removed=statistics.files_removed,
        files_unmodified=statistics.files_unmodified,
        total_files_processed=statistics.total_files_processed,
        total_bytes_processed=statistics.total_bytes_processed,
        bytes_read=statistics.bytes_read,
        data_added=statistics.data_added,
        data_added_packed=statistics.data_added_packed,
        fuzzy_files=statistics.fuzzy_files,
        warnings=path_errors(statistics.warnings),
        errors=path_errors(statistics.errors),
        errors_total=statistics.errors_total,
        change_detection=_DETECTIONS[statistics.detection],
        proof=statistics.proof,
        audit=_audit_result(statistics.audit),
        store_requests=store_requests(statistics.store_requests),
    )


def _audit_result(audit: AuditOutcome | None) -> common_pb2.AuditResult | None:
    if audit is None:
        return None
    return common_pb2.AuditResult(
        audited=audit.audited,
        reason=audit.reason,
        places_told=audit.places,
        candidates=audit.candidates,
        missed=audit.missed,
        missed_paths=audit.missed_paths[:_ERRORS_MAX],
    )


def path_errors(problems: Sequence[PathProblem]) -> list[common_pb2.PathError]:
    """Return the first of the problems as the protocol words them."""
    return [
        common_pb2.PathError(path=problem.path, message=problem.message, hint=problem.hint)
        for problem in problems[:_ERRORS_MAX]
    ]


def store_requests(asked: Requests) -> common_pb2.StoreRequests:
    """Return what the store was asked as the protocol words it."""
    return common_pb2.StoreRequests(**asked._asdict())


def signed_uploads(answer: agent_pb2.OpenSessionResponse) -> SignedUploads | None:
    """Return how packs may be sent to the store; None, too, where that is newer than we are."""
    told = answer.signed_uploads
    if not answer.HasField("signed_uploads") or told.checksum not in _CHECKSUMS:
        return None
    return SignedUploads(told.endpoint, _CHECKSUMS[told.checksum])


def signed_request(told: agent_pb2.SignedRequest) -> SignedRequest:
    """Return a request that the coordinator has signed for the store."""
    return SignedRequest(told.method, told.url, dict(told.headers))


def chunks_of(frame: agent_pb2.StoredFrame) -> Iterator[tuple[ChunkId, Location]]:
    """Yield the chunks of a stored frame, and where they lie."""
    nonce = PackNonce(frame.pack_nonce)
    for number, length in enumerate(frame.lengths):
        start = number * CHUNK_ID_BYTES
        chunk_id = ChunkId(frame.chunk_ids[start : start + CHUNK_ID_BYTES])
        yield chunk_id, Location(nonce, frame.frame_number, number, length)


def granted_pack(pack: agent_pb2.PackGrant) -> GrantedPack:
    """Return a pack of a grant."""
    return GrantedPack(
        pack_nonce=pack.pack_nonce,
        name=pack.name,
        wrapped_pack_key=pack.wrapped_pack_key,
        frame_table=pack.frame_table,
    )


def granted_frame(frame: agent_pb2.FrameGrant) -> GrantedFrame:
    """Return a frame of a grant."""
    return GrantedFrame(
        pack_nonce=frame.pack_nonce,
        frame=frame.frame_number,
        name=frame.name,
        wrapped_frame_key=frame.wrapped_frame_key,
        offset=frame.offset,
        length=frame.length,
    )
