"""Hand-made messages are those that the generated code makes."""

from hypothesis import example, given
from hypothesis import strategies as st

from proto.payload import decode_bytes_field, encode_bytes_field
from proto.tidemark.v1 import agent_pb2


@given(st.lists(st.binary(max_size=300), max_size=3))
@example([bytes(1 << 20)])
@example([bytes(127)])
@example([bytes(128)])
def test_a_hand_made_message_is_the_generated_one(pieces: list[bytes]) -> None:
    joined = b"".join(pieces)

    assert encode_bytes_field(2, pieces) == (
        agent_pb2.UploadPackRequest(data=joined).SerializeToString()
    )
    decoded = decode_bytes_field(2, encode_bytes_field(2, pieces))
    assert decoded is not None
    assert bytes(decoded) == joined


@given(st.binary(max_size=300))
def test_any_bytes_are_the_one_field_or_none(raw: bytes) -> None:
    content = decode_bytes_field(1, raw)

    if content is not None:
        assert agent_pb2.ReadPackResponse.FromString(raw).data == content


def test_other_messages_are_left_to_the_generated_code() -> None:
    header = agent_pb2.UploadPackRequest(header=agent_pb2.PackHeader(name="packs/x"))

    assert decode_bytes_field(2, header.SerializeToString()) is None
    assert decode_bytes_field(2, b"") is None
    assert decode_bytes_field(2, b"\x12\x85") is None
    assert decode_bytes_field(2, b"\x12\x05abc") is None
