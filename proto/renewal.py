"""What a node signs to renew its certificate: one statement, made alike on both sides."""

import hashlib
from typing import Final

RENEWAL_DOMAIN: Final = b"tidemark renewal"
CHALLENGE_BYTES: Final = 32


def renewal_statement(node_id: bytes, challenge: bytes, certificate_request: bytes) -> bytes:
    """Return node id (16 bytes), challenge (32) and SHA-256 of the request (32), joined.

    The challenge is of this call alone, so a statement that was seen once is of no use again, and
    no clock has a part in it.
    """
    return node_id + challenge + hashlib.sha256(certificate_request).digest()
