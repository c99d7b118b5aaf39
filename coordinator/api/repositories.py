"""Repositories to messages and back. Pure."""

from coordinator.api import translate
from coordinator.config import parse_lock
from coordinator.errors import UsageError
from coordinator.model import Totals
from coordinator.repositories import Secrets, Standing, Wish
from proto.tidemark.v1 import admin_pb2
from repository.store.s3.location import Addressing

_ADDRESSING: dict[str, Addressing] = {"auto": "auto", "path": "path", "virtual": "virtual"}


def repository(
    standing: Standing, totals: Totals, *, kit_exported: bool, unlocked: bool
) -> admin_pb2.GetRepositoryResponse:
    """A repository, and what it holds."""
    config, opened = standing.config, standing.opened
    return admin_pb2.GetRepositoryResponse(
        repository_id=config.repository.hex(),
        format=config.format,
        location=standing.location,
        created_at=translate.timestamp(config.created_ns),
        packs=totals.packs,
        stored_bytes=totals.stored_bytes,
        snapshots=totals.snapshots,
        recovery_kit_exported=kit_exported,
        unlocked=unlocked,
        features=config.features,
        name=standing.name,
        opened=opened is not None,
        problem="" if opened is not None else standing.why_absent.message,
        lock_seconds=0 if opened is None else opened.locks.seconds,
        signs_requests=opened is not None and opened.repository.signing_store is not None,
    )


def absent(standing: Standing) -> admin_pb2.AbsentRepository:
    """One that cannot be opened, and why."""
    why = standing.why_absent
    return admin_pb2.AbsentRepository(name=standing.name, message=why.message, hint=why.hint)


def _lock_back(text: str) -> int | None:
    try:
        return parse_lock(text)
    except ValueError as error:
        raise UsageError(f"{text!r} {error}", hint="say --lock 30d") from error


def wish_back(request: admin_pb2.InitRepositoryRequest) -> tuple[Wish, Secrets]:
    """What is asked for; UsageError."""
    addressing = request.addressing if request.HasField("addressing") else "auto"
    if addressing not in _ADDRESSING:
        raise UsageError(f"{addressing!r} is no addressing", hint="say auto, path or virtual")
    wish = Wish(
        url=request.url,
        endpoint=request.endpoint if request.HasField("endpoint") else None,
        region=request.region if request.HasField("region") else None,
        addressing=_ADDRESSING[addressing],
        lock_seconds=_lock_back(request.lock) if request.HasField("lock") else None,
    )
    secrets = Secrets(
        credentials=request.credentials if request.HasField("credentials") else None,
        ca=request.ca if request.HasField("ca") else None,
    )
    return wish, secrets
