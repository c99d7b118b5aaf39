"""The connection to the coordinator: both sides show certificates; and what its errors mean.

Whatever fails in a call comes back as one of our own errors, mapped here and nowhere else. What
goes over the connection is said by session.py, upload.py and download.py.
"""

from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from agent.config import Address
from agent.errors import CoordinatorError, UnreachableError
from agent.identity import Identity
from agent.throttle import PIECE_BYTES
from proto.payload import decode_bytes_field
from proto.tidemark.v1 import agent_pb2, common_pb2
from proto.tidemark.v1.agent_pb2_grpc import AgentServiceStub
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

Channel = grpc.aio.Channel

# The coordinator's certificate carries this name wherever it listens, so that it may move.
_SERVER_NAME: Final = "tidemark-coordinator"
# After so long without a sign the coordinator is asked for one, and given up after as long again:
# together as long as it waits for heartbeats, and less often than it forbids.
KEEPALIVE_SECONDS: Final = 15.0
_MESSAGE_BYTES_MAX: Final = 4 * PIECE_BYTES
_SERVICE: Final = agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name
_READ_DATA: Final = agent_pb2.ReadPackResponse.DATA_FIELD_NUMBER
_ERROR_METADATA: Final = "tidemark-error-bin"


def open_channel(
    address: Address, *, ca_certificate: bytes, certificate: bytes, private_key: bytes
) -> Channel:
    """Open a channel that trusts one authority and shows one certificate. There is no other."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=ca_certificate, private_key=private_key, certificate_chain=certificate
    )
    options = [
        ("grpc.ssl_target_name_override", _SERVER_NAME),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        # A proxy of the environment is not meant for the coordinator.
        ("grpc.enable_http_proxy", 0),
        # The stream's own back-off decides when to try again.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5000),
        # A network that swallows everything tells nobody, and a kernel goes on trying for a quarter
        # of an hour: a connection on which nothing is answered is given up, and made anew.
        ("grpc.keepalive_time_ms", round(KEEPALIVE_SECONDS * 1000)),
        ("grpc.keepalive_timeout_ms", round(KEEPALIVE_SECONDS * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    return grpc.aio.secure_channel(str(address), credentials, options=options)


class NodeChannel:
    """A channel with the node's certificate, and the calls that go over it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.stub = AgentServiceStub(channel)
        # The two calls that carry packs, spared the generated code's copies (proto/payload.py).
        self.upload: Any = channel.stream_unary(
            f"/{_SERVICE}/UploadPack",
            response_deserializer=agent_pb2.UploadPackResponse.FromString,
        )
        self.read: Any = channel.unary_stream(
            f"/{_SERVICE}/ReadPack",
            request_serializer=agent_pb2.ReadPackRequest.SerializeToString,
            response_deserializer=_read_piece,
        )

    async def close(self) -> None:
        """End it, and whatever still uses it."""
        await self._channel.close()


def open_node_channel(address: Address, identity: Identity) -> NodeChannel:
    """Open a channel as the node that we are."""
    channel = open_channel(
        address,
        ca_certificate=identity.membership.ca_certificate,
        certificate=identity.membership.certificate,
        private_key=identity.keys.tls,
    )
    return NodeChannel(channel)


def _read_piece(message: bytes) -> memoryview:
    data = decode_bytes_field(_READ_DATA, message)
    if data is None:
        data = memoryview(agent_pb2.ReadPackResponse.FromString(message).data)
    return data


def translated(error: grpc.RpcError) -> TidemarkError:
    """Return what a failed call means to us."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return UnreachableError(f"the call to the coordinator failed: {error}")
    for key, value in error.trailing_metadata():
        if key == _ERROR_METADATA and isinstance(value, bytes):
            try:
                return _from_detail(common_pb2.ErrorDetail.FromString(value))
            except DecodeError:
                break
    return _from_status(error.code(), error.details() or "no reason given")


def _from_detail(detail: common_pb2.ErrorDetail) -> TidemarkError:
    kinds: dict[int, type[TidemarkError]] = {
        UsageError.exit_code: UsageError,
        NoRepositoryError.exit_code: NoRepositoryError,
        FencedError.exit_code: BusyError if detail.retryable else FencedError,
        KeyMaterialError.exit_code: KeyMaterialError,
        CanceledError.exit_code: CanceledError,
    }
    otherwise = StoreUnavailableError if detail.retryable else CoordinatorError
    return kinds.get(detail.exit_code, otherwise)(detail.message, hint=detail.hint)


def _from_status(code: grpc.StatusCode, details: str) -> TidemarkError:
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        return CoordinatorError(
            f"the coordinator refuses this node: {details}",
            hint="join anew with a token, if the node was revoked by mistake",
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return CoordinatorError(
            "the coordinator does not know this call", hint="it is older than this agent"
        )
    if code is grpc.StatusCode.UNAVAILABLE and "certificate" in details.lower():
        return UnreachableError(
            f"no trust between this node and the coordinator: {details}",
            hint="check that --coordinator is the one that this node has joined",
        )
    if code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
    }:
        return UnreachableError(
            f"the coordinator cannot be reached: {details}",
            hint="see that it runs, and that the address in --coordinator is its",
        )
    return CoordinatorError(f"{details} ({code.name.lower()})")
