"""Repositories to messages and back. Pure."""

from collections.abc import Callable
from typing import TypeVar

from coordinator.api import translate
from coordinator.config import parse_addressing, parse_lock
from coordinator.errors import UsageError
from coordinator.model import Totals
from coordinator.repositories import Standing
from coordinator.sites import Secrets, Wish
from proto.tidemark.v1 import admin_pb2

T = TypeVar("T")


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


def _read(parse: Callable[[str], T], text: str) -> T:
    """As the settings are read."""
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{text!r} {error}", hint="see tidemark repo init --help") from error


def wish_back(request: admin_pb2.InitRepositoryRequest) -> tuple[Wish, Secrets]:
    """What is asked for; UsageError."""
    wish = Wish(
        url=request.url,
        endpoint=request.endpoint if request.HasField("endpoint") else None,
        region=request.region if request.HasField("region") else None,
        addressing=_read(
            parse_addressing, request.addressing if request.HasField("addressing") else "auto"
        ),
        lock_seconds=_read(parse_lock, request.lock if request.HasField("lock") else "off"),
    )
    secrets = Secrets(
        credentials=request.credentials if request.HasField("credentials") else None,
        ca=request.ca if request.HasField("ca") else None,
    )
    return wish, secrets
