"""Messages that are one large bytes field, put together and taken apart without the generated code.

The generated code copies such a field twice on each side; a pack's worth of copies is a fifth of
what the daemons spend on sending it. The bytes on the wire are the same (protobuf's encoding, wire
type 2), so either side may go on using the generated code; a test compares the two.
"""

from collections.abc import Sequence
from typing import Final

from typing_extensions import Buffer

_LENGTH_DELIMITED: Final = 2
_VARINT_BYTES_MAX: Final = 5


def encode_bytes_field(number: int, pieces: Sequence[Buffer]) -> bytes:
    """A message whose field `number` (below 16) holds these pieces joined."""
    size = sum(memoryview(piece).nbytes for piece in pieces)
    prefix = bytearray([number << 3 | _LENGTH_DELIMITED])
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return b"".join([prefix, *pieces])


def decode_bytes_field(number: int, message: bytes) -> memoryview | None:
    """The content of field `number` (below 16) of a message that holds nothing else, else None."""
    if not message or message[0] != number << 3 | _LENGTH_DELIMITED:
        return None
    size = 0
    for index in range(1, min(len(message), 1 + _VARINT_BYTES_MAX)):
        size |= (message[index] & 0x7F) << (7 * (index - 1))
        if message[index] < 0x80:
            content = memoryview(message)[index + 1 :]
            return content if len(content) == size else None
    return None
