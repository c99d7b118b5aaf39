"""Keys: what they are derived from, what they seal, who signs for whom.

    recovery secret ──► X25519 pair: opens every sealed session key and the files in keys/
                   └──► Ed25519 pair: certifies coordinators, which certify nodes
    data key of a session (random, sealed to the recovery key)
                   └──► pack key (one per pack nonce) ──► frame key (one per frame number)

A node holds public halves and its own session's data key, never a key that opens what it wrote
before. Nothing here draws randomness itself but HPKE's ephemeral key, inside the library.
"""

from typing import Final, Literal, NewType

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from typing_extensions import override

from repository.errors import UNDECODABLE, DamagedError, FormatError, WrongKeyError
from repository.ids import PackNonce

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

# RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
_HPKE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)

_RECOVERY_CONTEXT = "tidemark 0 recovery key agreement"
_SIGNING_CONTEXT = "tidemark 0 repository signing"
_PACK_CONTEXT = "tidemark 0 pack key"
_FRAME_CONTEXT = "tidemark 0 frame key"
_WRAP_CONTEXT = "tidemark 0 wrapping key"
# A wrapping key is derived for one context and used once, so its nonce may be constant.
_WRAP_NONCE = bytes(12)

SubjectKind = Literal["coordinator", "node"]
PackKey = NewType("PackKey", bytes)
FrameKey = NewType("FrameKey", bytes)


class Secret:
    """Bytes that must not be printed: their text form hides them."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """The bytes themselves, for the one place that uses them."""
        return self._value

    @override
    def __repr__(self) -> str:
        return "Secret(hidden)"


class RecoverySecret:
    """The 32 bytes from which a repository can be read and its coordinators certified."""

    def __init__(self, secret: Secret) -> None:
        if len(secret.reveal()) != KEY_BYTES:
            raise WrongKeyError("a recovery secret has 32 bytes", hint="check the recovery kit")
        self._secret = secret

    @override
    def __repr__(self) -> str:
        return "RecoverySecret(hidden)"

    def reveal(self) -> bytes:
        """The raw secret, for sealing it under a passphrase and for printing the kit."""
        return self._secret.reveal()

    def unsealing_key(self) -> "UnsealingKey":
        """The X25519 half."""
        return UnsealingKey(_derive(_RECOVERY_CONTEXT, self.reveal()))

    def signing_key(self) -> "SigningKey":
        """The Ed25519 half."""
        return SigningKey(_derive(_SIGNING_CONTEXT, self.reveal()))


class UnsealingKey:
    """An X25519 private key: opens what was sealed to its public half."""

    def __init__(self, private: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)

    @override
    def __repr__(self) -> str:
        return "UnsealingKey(hidden)"

    @property
    def public(self) -> bytes:
        """The 32 bytes that others seal to."""
        return self._private.public_key().public_bytes_raw()

    def reveal(self) -> bytes:
        """The private bytes, for the one place that stores them."""
        return self._private.private_bytes_raw()

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """What `seal` sealed with the same info; WrongKeyError for anything else."""
        try:
            return _HPKE.decrypt(sealed, self._private, info)
        except (InvalidTag, ValueError) as error:
            raise WrongKeyError(
                "a sealed key does not open with this key",
                hint="check that the recovery key belongs to this repository",
            ) from error


class SigningKey:
    """An Ed25519 private key. Each use signs under a domain of its own."""

    def __init__(self, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)

    @override
    def __repr__(self) -> str:
        return "SigningKey(hidden)"

    @property
    def public(self) -> bytes:
        """The 32 bytes that verify."""
        return self._private.public_key().public_bytes_raw()

    def reveal(self) -> bytes:
        """The seed, for the one place that stores it."""
        return self._private.private_bytes_raw()

    def sign(self, domain: bytes, message: bytes) -> bytes:
        """64 bytes over domain and message."""
        return self._private.sign(_in_domain(domain, message))


def verify(public: bytes, domain: bytes, message: bytes, signature: bytes) -> None:
    """Accept a signature of `SigningKey.sign` silently; DamagedError for any other."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _in_domain(domain, message))
    except (InvalidSignature, ValueError) as error:
        raise DamagedError(
            "a signature does not match",
            hint="the object was altered or signed by somebody else; run tidemark verify",
        ) from error


def _in_domain(domain: bytes, message: bytes) -> bytes:
    return len(domain).to_bytes(1, "big") + domain + message


def seal(public: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Seal to an X25519 public key (RFC 9180). Info binds the purpose and is needed to open."""
    return _HPKE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public), info)


def wrap(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """Seal under a symmetric key. One key must wrap only one plaintext per context."""
    return AESGCM(_derive(_WRAP_CONTEXT, key, context)).encrypt(_WRAP_NONCE, plaintext, context)


def unwrap(key: bytes, wrapped: bytes, context: bytes) -> bytes:
    """What `wrap` wrapped; WrongKeyError for anything else."""
    try:
        return AESGCM(_derive(_WRAP_CONTEXT, key, context)).decrypt(_WRAP_NONCE, wrapped, context)
    except (InvalidTag, ValueError) as error:
        raise WrongKeyError(
            "a wrapped key does not open with this key",
            hint="the object was altered, or the key belongs to something else",
        ) from error


def pack_key(data_key: bytes, nonce: PackNonce) -> PackKey:
    """Key of all frames whose identity holds this pack nonce."""
    return PackKey(_derive(_PACK_CONTEXT, data_key, nonce))


def frame_key(key: PackKey, number: int) -> FrameKey:
    """Key of one frame."""
    return FrameKey(_derive(_FRAME_CONTEXT, key, number.to_bytes(4, "big")))


def _derive(context: str, key: bytes, salt: bytes = b"") -> bytes:
    # BLAKE3's key derivation mode; key and salt cannot run into each other since keys have
    # one length.
    return blake3(key + salt, derive_key_context=context).digest()


class Certificate(msgspec.Struct, frozen=True, array_like=True):
    """A statement that a signing key belongs to a coordinator or a node."""

    kind: SubjectKind
    subject_id: bytes
    public: bytes


_CERTIFICATE_DOMAIN = b"tidemark certificate"
_certificates = msgspec.msgpack.Decoder(Certificate)


def certify(issuer: SigningKey, certificate: Certificate) -> bytes:
    """The certificate, signed."""
    body = msgspec.msgpack.encode(certificate)
    return issuer.sign(_CERTIFICATE_DOMAIN, body) + body


def check_certificate(issuer_public: bytes, encoded: bytes, kind: SubjectKind) -> Certificate:
    """The certificate, if the issuer signed it and it is of the kind asked for."""
    signature, body = encoded[:SIGNATURE_BYTES], encoded[SIGNATURE_BYTES:]
    verify(issuer_public, _CERTIFICATE_DOMAIN, body, signature)
    try:
        certificate = _certificates.decode(body)
    except UNDECODABLE as error:
        raise FormatError("a certificate does not decode") from error
    if certificate.kind != kind:
        raise DamagedError(f"a {certificate.kind}'s certificate where a {kind}'s is needed")
    return certificate
