"""Registers the agent's service with the two messages that carry packs spared their copies.

Everything else goes through the generated code. See proto/payload.py for what that saves.
"""

from typing import Any, Final

import grpc
import grpc.aio

from proto.payload import decode_bytes_field, encode_bytes_field
from proto.tidemark.v1 import agent_pb2, agent_pb2_grpc

_UPLOAD_DATA: Final = agent_pb2.UploadPackRequest.DATA_FIELD_NUMBER
_READ_DATA: Final = agent_pb2.ReadPackResponse.DATA_FIELD_NUMBER

# What arrives as an UploadPackRequest: its data alone, or a message of any other kind.
UploadPiece = memoryview | agent_pb2.UploadPackRequest


def add_agent_service(
    servicer: agent_pb2_grpc.AgentServiceServicer, server: grpc.aio.Server
) -> None:
    """Register the service; UploadPack takes `UploadPiece`, ReadPack yields bare data."""
    registrar: Any = _Registrar(server)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(servicer, registrar)


class _Registrar:
    """Stands in for the server while the generated code registers its handlers."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, _: object) -> None:
        """Wait for the handlers themselves."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Exchange two of them, then register all."""
        chosen = dict(handlers)
        chosen["UploadPack"] = handlers["UploadPack"]._replace(request_deserializer=_upload_piece)
        chosen["ReadPack"] = handlers["ReadPack"]._replace(response_serializer=_read_piece)
        generic = grpc.method_handlers_generic_handler(service, chosen)
        self._server.add_generic_rpc_handlers((generic,))
        self._server.add_registered_method_handlers(service, chosen)


def _upload_piece(message: bytes) -> UploadPiece:
    data = decode_bytes_field(_UPLOAD_DATA, message)
    return agent_pb2.UploadPackRequest.FromString(message) if data is None else data


def _read_piece(data: memoryview) -> bytes:
    return encode_bytes_field(_READ_DATA, [data])
