"""The one-time token by which a node joins: what the coordinator makes and the agent reads.

All gRPC is mTLS, enrolment included. So a token brings a certificate of its own that is good for
enrolling and for nothing else, and names the authority that the agent must find at the other end:
an agent compares `ca_certificate` with `ca_sha256` and trusts no other. Pure; knows no gRPC.
"""

import base64
import binascii
import hashlib
from typing import Final

import msgspec
from typing_extensions import override

# Tells a token from any other long word, in an error message as on paper.
_PREFIX: Final = "tidemark-"
_VERSION: Final = 1


class InvalidTokenError(ValueError):
    """The text is not a whole token."""


class BootstrapToken(msgspec.Struct, frozen=True, array_like=True):
    """What a token holds. Secret as a whole: its text form hides it."""

    version: int
    # SHA-256 over the authority's certificate in DER, and that certificate in PEM.
    ca_sha256: bytes
    ca_certificate: bytes
    # PEM; short-lived, accepted for Enrol only.
    certificate: bytes
    private_key: bytes
    # Good once; the coordinator keeps only its hash.
    secret: bytes

    @override
    def __repr__(self) -> str:
        return "BootstrapToken(hidden)"


_decoder = msgspec.msgpack.Decoder(BootstrapToken)


def make_token(
    *,
    ca_certificate: bytes,
    ca_sha256: bytes,
    certificate: bytes,
    private_key: bytes,
    secret: bytes,
) -> str:
    """One word of text that `parse_token` reads."""
    token = BootstrapToken(_VERSION, ca_sha256, ca_certificate, certificate, private_key, secret)
    encoded = base64.urlsafe_b64encode(msgspec.msgpack.encode(token)).rstrip(b"=")
    return _PREFIX + encoded.decode()


def parse_token(text: str) -> BootstrapToken:
    """The token; InvalidTokenError unless it is whole and its authority matches its hash."""
    word = text.strip()
    if not word.startswith(_PREFIX):
        raise InvalidTokenError("this is not a node token")
    encoded = word.removeprefix(_PREFIX)
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        token = _decoder.decode(raw)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise InvalidTokenError("the node token is damaged or cut short") from error
    if token.version != _VERSION:
        raise InvalidTokenError("the node token is for another version of Tidemark")
    if certificate_sha256(token.ca_certificate) != token.ca_sha256:
        raise InvalidTokenError("the node token's authority does not match its hash")
    return token


def certificate_sha256(pem: bytes) -> bytes:
    """SHA-256 over the DER inside a PEM certificate; of nothing, if there is none."""
    lines = pem.split(b"\n")
    body = b"".join(line.strip() for line in lines if line and not line.startswith(b"-----"))
    try:
        return hashlib.sha256(base64.b64decode(body, validate=True)).digest()
    except binascii.Error as error:
        raise InvalidTokenError("the node token's authority is not a certificate") from error
