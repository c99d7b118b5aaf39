"""What a failed call to the coordinator means."""

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from agent.channel import translated
from agent.errors import CoordinatorError, UnreachableError
from proto.tidemark.v1.common_pb2 import ErrorDetail
from repository.errors import (
    BusyError,
    CanceledError,
    FencedError,
    KeyMaterialError,
    NoRepositoryError,
    StoreUnavailableError,
    TidemarkError,
    UsageError,
)


def failed(
    code: grpc.StatusCode, detail: ErrorDetail | None = None, details: str = "why"
) -> AioRpcError:
    trailing = Metadata()
    if detail is not None:
        trailing.add("tidemark-error-bin", detail.SerializeToString())
    return AioRpcError(code, Metadata(), trailing, details)


@pytest.mark.parametrize(
    ("exit_code", "retryable", "kind"),
    [
        (1, False, CoordinatorError),
        (1, True, StoreUnavailableError),
        (2, False, UsageError),
        (10, False, NoRepositoryError),
        (11, False, FencedError),
        (11, True, BusyError),
        (12, False, KeyMaterialError),
        (130, False, CanceledError),
    ],
)
def test_the_coordinators_errors_come_back_as_what_they_were(
    exit_code: int, retryable: bool, kind: type[TidemarkError]
) -> None:
    detail = ErrorDetail(exit_code=exit_code, message="m", hint="h", retryable=retryable)

    error = translated(failed(grpc.StatusCode.INTERNAL, detail))

    assert type(error) is kind
    assert (error.message, error.hint) == ("m", "h")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnreachableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnreachableError),
        (grpc.StatusCode.UNAUTHENTICATED, CoordinatorError),
        (grpc.StatusCode.UNIMPLEMENTED, CoordinatorError),
        (grpc.StatusCode.INTERNAL, CoordinatorError),
    ],
)
def test_a_call_that_failed_without_words_says_what_it_means(
    code: grpc.StatusCode, kind: type[TidemarkError]
) -> None:
    assert type(translated(failed(code))) is kind


def test_a_foreign_certificate_is_named_as_such() -> None:
    error = translated(
        failed(grpc.StatusCode.UNAVAILABLE, details="Ssl handshake: CERTIFICATE_VERIFY_FAILED")
    )

    assert isinstance(error, UnreachableError)
    assert "no trust" in error.message


def test_damaged_details_are_no_details() -> None:
    trailing = Metadata(("tidemark-error-bin", b"\xff\xff"))

    error = translated(AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), trailing, "why"))

    assert isinstance(error, UnreachableError)
