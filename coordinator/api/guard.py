"""What every method of both services is wrapped in: the gate before it, the errors after it.

The one place where our errors become gRPC statuses. The detail travels beside the status, so that
the other side can say the same thing in its own words.
"""

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn

import grpc

from coordinator.api.authorise import Context, Gate
from coordinator.errors import (
    BusyError,
    CanceledError,
    CatalogError,
    DamagedError,
    FencedError,
    ForbiddenError,
    IncompatibleError,
    KeyMaterialError,
    NotFoundError,
    RejectedError,
    StoreFullError,
    StoreUnavailableError,
    TidemarkError,
    UnauthenticatedError,
    UnsupportedFormatError,
    UsageError,
)
from coordinator.logs import get_logger
from proto.tidemark.v1 import common_pb2

log = get_logger()

ERROR_METADATA: Final = "tidemark-error-bin"
# Streams of requests that come to an end by themselves, unlike an agent's connection.
_FINITE_STREAMS: Final = frozenset(
    {"/tidemark.v1.AgentService/UploadPack", "/tidemark.v1.AgentService/Commit"}
)
# What is read of a stream that is refused: more than any pack or refs hold, and not for ever.
_REFUSED_BYTES_MAX: Final = 128 * 1024 * 1024
_REFUSED_SECONDS: Final = 30.0

# The first class that fits. What is not listed is UNKNOWN, with its detail.
_STATUSES: Final[tuple[tuple[type[TidemarkError], grpc.StatusCode], ...]] = (
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (ForbiddenError, grpc.StatusCode.PERMISSION_DENIED),
    (RejectedError, grpc.StatusCode.INVALID_ARGUMENT),
    (IncompatibleError, grpc.StatusCode.FAILED_PRECONDITION),
    (FencedError, grpc.StatusCode.ABORTED),
    (BusyError, grpc.StatusCode.UNAVAILABLE),
    (KeyMaterialError, grpc.StatusCode.FAILED_PRECONDITION),
    (UnsupportedFormatError, grpc.StatusCode.FAILED_PRECONDITION),
    (CanceledError, grpc.StatusCode.CANCELLED),
    (DamagedError, grpc.StatusCode.DATA_LOSS),
    (StoreFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StoreUnavailableError, grpc.StatusCode.UNAVAILABLE),
    (CatalogError, grpc.StatusCode.UNAVAILABLE),
)


def status_of(error: TidemarkError) -> grpc.StatusCode:
    """The status under which an error leaves."""
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status
    return grpc.StatusCode.UNKNOWN


def detail_of(error: TidemarkError) -> common_pb2.ErrorDetail:
    """What travels beside the status."""
    return common_pb2.ErrorDetail(
        exit_code=error.exit_code,
        message=error.message,
        hint=error.hint,
        retryable=error.retryable,
    )


async def _abort(context: Context, error: TidemarkError) -> NoReturn:
    metadata = ((ERROR_METADATA, detail_of(error).SerializeToString()),)
    await context.abort(status_of(error), error.message, trailing_metadata=metadata)


async def _abort_defect(context: Context, method: str, error: Exception) -> NoReturn:
    log.error("a call failed unexpectedly", method=method, exc_info=error)
    defect = TidemarkError(
        f"the coordinator failed unexpectedly: {type(error).__name__}",
        hint="see the coordinator's log; this is a defect worth reporting",
    )
    await _abort(context, defect)


def guard(servicer: Any, service: str, gate: Gate) -> Any:
    """Put every method of a servicer behind the gate and in front of the error table."""
    for name, method in inspect.getmembers(servicer, inspect.ismethod):
        if name.startswith("_"):
            continue
        full = f"/{service}/{name}"
        wrap = _guard_stream if inspect.isasyncgenfunction(method) else _guard_call
        setattr(servicer, name, wrap(method, full, gate))
    return servicer


def _guard_call(
    method: Callable[[Any, Context], Awaitable[Any]], name: str, gate: Gate
) -> Callable[[Any, Context], Awaitable[Any]]:
    @functools.wraps(method)
    async def guarded(request: Any, context: Context) -> Any:
        try:
            await gate.check(name, context)
            return await method(request, context)
        except TidemarkError as error:
            await _hear_out(name, request)
            await _abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001 - the guard: a defect ends its call, not the server
            await _hear_out(name, request)
            await _abort_defect(context, name, error)

    return guarded


async def _hear_out(name: str, request: Any) -> None:
    """Let a caller who streams come to an end before refusing, within bounds.

    gRPC tells whoever is still sending when a call ends that something internal went wrong, and
    not what: a full disk would look like a defect of the agent.
    """
    if name not in _FINITE_STREAMS:
        return
    left = _REFUSED_BYTES_MAX
    with contextlib.suppress(TimeoutError, grpc.RpcError):
        async with asyncio.timeout(_REFUSED_SECONDS):
            async for message in request:
                left -= len(message) if isinstance(message, memoryview) else message.ByteSize()
                if left < 0:
                    return


def _guard_stream(
    method: Callable[[Any, Context], AsyncIterator[Any]], name: str, gate: Gate
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    @functools.wraps(method)
    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            await gate.check(name, context)
            async for response in method(request, context):
                yield response
        except TidemarkError as error:
            await _abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001 - the guard: a defect ends its call, not the server
            await _abort_defect(context, name, error)

    return guarded
