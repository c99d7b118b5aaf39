"""The connection to the coordinator: the only place of the command line that speaks gRPC.

Errors of the coordinator arrive as ErrorDetail in the trailing metadata and are mapped here, once.
"""

from collections.abc import Iterator
from typing import TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from coordinator.cli.contexts import Context
from coordinator.cli.failure import FAILED, USAGE, CommandError
from proto.tidemark.v1.admin_pb2_grpc import AdminServiceStub
from proto.tidemark.v1.common_pb2 import ErrorDetail

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

ERROR_METADATA = "tidemark-error-bin"
# The coordinator's certificate carries this name wherever it listens, so that it may move.
SERVER_NAME = "tidemark-coordinator"
# An answer that takes longer is none: long work is a job, and a job answers at once.
CALL_SECONDS = 60.0
# Fifty jobs with a hundred errors each pass gRPC's own limit of 4 MiB.
_MESSAGE_BYTES_MAX = 256 * 1024 * 1024


class UnreachableError(CommandError):
    """The coordinator did not answer; the same call may succeed later."""


class Client:
    """Calls to one coordinator. Blocks; one thread."""

    def __init__(self, context: Context) -> None:
        self._context = context
        credentials = grpc.ssl_channel_credentials(
            root_certificates=context.ca.encode(),
            private_key=context.key.encode(),
            certificate_chain=context.certificate.encode(),
        )
        options = [
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
            # A proxy of the environment is not meant for the coordinator.
            ("grpc.enable_http_proxy", 0),
        ]
        self._channel = grpc.secure_channel(context.address, credentials, options=options)
        self.admin = AdminServiceStub(self._channel)

    def close(self) -> None:
        """Hang up; running streams end."""
        self._channel.close()

    def ask(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        timeout_seconds: float = CALL_SECONDS,
    ) -> Response:
        """One answer, or CommandError."""
        try:
            return method(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise self._mapped(error) from error

    def stream(
        self, method: "grpc.UnaryStreamMultiCallable[Request, Response]", request: Request
    ) -> Iterator[Response]:
        """Answers as they come, or CommandError in their midst. Closing it ends the call."""
        call = method(request)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._mapped(error) from error
        finally:
            call.cancel()

    def _mapped(self, error: grpc.RpcError) -> CommandError:
        # Every error of a call is one, which the types cannot say.
        call = cast("grpc.Call", error)
        for key, value in call.trailing_metadata() or ():
            if key == ERROR_METADATA and (mapped := _from_detail(value)):
                return mapped
        return self._from_status(call.code(), call.details() or "no reason given")

    def _from_status(self, code: grpc.StatusCode, details: str) -> CommandError:
        where = f"{self._context.address} (context {self._context.path})"
        if code is grpc.StatusCode.UNAVAILABLE:
            return UnreachableError(
                f"cannot reach the coordinator at {where}: {details}", hint=_advice(details)
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnreachableError(
                f"the coordinator at {where} did not answer in time",
                hint="see its log, and try again",
            )
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return CommandError(
                f"the coordinator at {where} refuses this certificate: {details}",
                hint="use a context of an administrator of this cluster",
            )
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return CommandError(
                f"the coordinator at {where} does not know this call",
                hint="it is older than this command; upgrade it",
            )
        exit_code = USAGE if code is grpc.StatusCode.INVALID_ARGUMENT else FAILED
        return CommandError(f"{details} ({code.name.lower()})", exit_code=exit_code)


def _from_detail(value: str | bytes) -> CommandError | None:
    try:
        detail = ErrorDetail.FromString(value if isinstance(value, bytes) else value.encode())
    except DecodeError:
        return None
    return CommandError(detail.message, hint=detail.hint, exit_code=detail.exit_code or FAILED)


def _advice(details: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in details or "handshake" in details.lower():
        return "the context does not belong to the coordinator at this address; use its own context"
    return "is it running? `tidemark up --data DIR` starts it; see the logs below DIR/logs"
