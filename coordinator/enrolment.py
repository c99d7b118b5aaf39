"""Who is who: the certificate authority, the certificates it gives out, and one-time tokens.

Every gRPC connection shows a client certificate of this authority. Whom it belongs to stands in a
URI of its subject alternative names and nowhere else:

    tidemark://node/<hex id>          an agent, for a day
    tidemark://renewal/<hex id>       the same agent, for a year; may call RenewCertificate alone
    tidemark://bootstrap/<token id>   whoever holds a token; may call Enrol and nothing else
    tidemark://admin/<name>           a person's or script's context

A node that is revoked keeps a valid certificate: so every call also looks the node up. And a
connection outlives the certificate that it was opened with: so every call looks at its end, too.
"""

import functools
import hashlib
import ipaddress
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typing_extensions import override

from coordinator.catalog import TokenRecord
from coordinator.custody import Random
from coordinator.errors import FormatError, RejectedError
from coordinator.model import NANOSECONDS
from coordinator.vault import read_secret, write_secret
from proto.bootstrap import make_token
from repository.ids import ID_BYTES

# A name in every server certificate, for agents that reach the coordinator by another one.
SERVER_NAME: Final = "tidemark-coordinator"

_AUTHORITY_DAYS: Final = 3650
_SERVER_DAYS: Final = 825
_ADMIN_DAYS: Final = 825
# So long may a node be switched off and still come back by itself.
_RENEWAL_DAYS: Final = 397
# Clocks of nodes may be behind by so much.
_SKEW: Final = timedelta(minutes=10)
_DAY_SECONDS: Final = 86400
NODE_SECONDS_DEFAULT: Final = _DAY_SECONDS
_TOKEN_SECONDS_DEFAULT: Final = 3600
_TOKEN_SECONDS_MAX: Final = 7 * 86400
_SECRET_BYTES: Final = 32


class Role(StrEnum):
    """What a certificate lets its holder be."""

    NODE = "node"
    RENEWAL = "renewal"
    BOOTSTRAP = "bootstrap"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls."""

    role: Role
    name: str

    @property
    def uri(self) -> str:
        """As it stands in the certificate."""
        return f"tidemark://{self.role}/{self.name}"


def parse_identity(uri: str) -> Identity | None:
    """The identity that a URI names, None for any other URI."""
    scheme, _, rest = uri.partition("://")
    role, _, name = rest.partition("/")
    if scheme != "tidemark" or role not in set(Role) or not name:
        return None
    return Identity(Role(role), name)


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, in PEM."""

    certificate: bytes
    private_key: bytes

    @override
    def __repr__(self) -> str:
        return "KeyPair(hidden)"


@dataclass(frozen=True, slots=True)
class NodeCertificates:
    """What a node shows, in PEM, and when (Unix time in ns) the first of both expires."""

    certificate: bytes
    renewal_certificate: bytes
    expires_at: int


class Authority:
    """The coordinator's certificate authority."""

    def __init__(
        self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, node_seconds: int
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._node_seconds = node_seconds

    @property
    def certificate(self) -> bytes:
        """In PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 over the certificate's DER, which tokens carry."""
        return self._certificate.fingerprint(hashes.SHA256())

    def server(self, host: str, now: int) -> KeyPair:
        """For the coordinator's own port."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.DNSName(name)
            for name in dict.fromkeys(["localhost", SERVER_NAME, socket.gethostname()])
        ]
        for text in dict.fromkeys(["127.0.0.1", "::1", host]):
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(text)))
            except ValueError:
                names.append(x509.DNSName(text))
        certificate = self._issue(
            key.public_key(),
            SERVER_NAME,
            names,
            now=now,
            valid=timedelta(days=_SERVER_DAYS),
            server=True,
        )
        return KeyPair(certificate, _encode_key(key))

    def admin(self, name: str, now: int) -> KeyPair:
        """For a person or a script."""
        return self._client(Identity(Role.ADMIN, name), now, timedelta(days=_ADMIN_DAYS))

    def bootstrap(self, token_id: bytes, now: int, valid: timedelta) -> KeyPair:
        """For whoever holds a token, as long as the token is good."""
        return self._client(Identity(Role.BOOTSTRAP, token_id.hex()), now, valid)

    def node(self, node_id: bytes, request_pem: bytes, now: int) -> NodeCertificates:
        """A node's two certificates for its own request. RejectedError.

        Nothing in the request but its key is used: who the node is, is not its to say.
        """
        key = _requested_key(request_pem)
        seconds = {Role.NODE: self._node_seconds, Role.RENEWAL: _RENEWAL_DAYS * _DAY_SECONDS}
        made = {
            role: self._issue(
                key,
                node_id.hex(),
                [x509.UniformResourceIdentifier(Identity(role, node_id.hex()).uri)],
                now=now,
                valid=timedelta(seconds=valid),
            )
            for role, valid in seconds.items()
        }
        expires_at = expires_ns(made[Role.NODE])
        return NodeCertificates(made[Role.NODE], made[Role.RENEWAL], expires_at)

    def _client(self, identity: Identity, now: int, valid: timedelta) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.UniformResourceIdentifier(identity.uri)]
        certificate = self._issue(key.public_key(), identity.name, names, now=now, valid=valid)
        return KeyPair(certificate, _encode_key(key))

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        name: str,
        names: list[x509.UniformResourceIdentifier] | list[x509.GeneralName],
        *,
        now: int,
        valid: timedelta,
        server: bool = False,
    ) -> bytes:
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        begin = _moment(now)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            # A short life stays short: its holder takes two thirds of the whole for its time.
            .not_valid_before(begin - min(_SKEW, valid / 10))
            .not_valid_after(begin + valid)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


def open_authority(
    directory: Path, now: int, node_seconds: int = NODE_SECONDS_DEFAULT
) -> Authority:
    """The authority kept in this directory, made on first use. Nodes get such short lives."""
    path = directory / "authority.pem"
    content = read_secret(path)
    if content is None:
        authority = _new_authority(now, node_seconds)
        write_secret(path, _encode_key(authority._key) + authority.certificate)  # noqa: SLF001
        return authority
    try:
        key = serialization.load_pem_private_key(content, password=None)
        certificate = x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise FormatError(
            f"the certificate authority {path} is damaged", hint="put the file back from a copy"
        ) from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Authority(certificate, key, node_seconds)


def _new_authority(now: int, node_seconds: int) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    begin = _moment(now)
    name = _name("Tidemark authority")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _SKEW)
        .not_valid_after(begin + timedelta(days=_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key, node_seconds)


def new_token(
    authority: Authority, *, valid_seconds: int, random: Random, now: int
) -> tuple[str, TokenRecord]:
    """A token's text, which is shown once, and what the catalog keeps of it."""
    seconds = min(valid_seconds or _TOKEN_SECONDS_DEFAULT, _TOKEN_SECONDS_MAX)
    token_id, secret = random(ID_BYTES), random(_SECRET_BYTES)
    pair = authority.bootstrap(token_id, now, timedelta(seconds=seconds))
    text = make_token(
        ca_certificate=authority.certificate,
        ca_sha256=authority.fingerprint,
        certificate=pair.certificate,
        private_key=pair.private_key,
        secret=secret,
    )
    record = TokenRecord(token_id, secret_hash(secret), now, now + seconds * NANOSECONDS)
    return text, record


@functools.lru_cache(maxsize=1024)
def expires_ns(certificate_pem: bytes) -> int:
    """When a certificate expires: Unix time in ns. Remembered, since every call asks."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return round(certificate.not_valid_after_utc.timestamp()) * NANOSECONDS


def _requested_key(request_pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(request_pem)
        key = request.public_key()
        if not request.is_signature_valid:
            raise RejectedError("the certificate request is not signed by its own key")
    except (ValueError, InvalidSignature) as error:
        raise RejectedError("the certificate request does not decode") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise RejectedError("a node's certificate needs a P-256 key")
    return key


def secret_hash(secret: bytes) -> bytes:
    """What is kept of a token's secret. It is random, so a plain hash serves."""
    return hashlib.sha256(secret).digest()


def _encode_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _moment(now: int) -> datetime:
    return datetime.fromtimestamp(now // NANOSECONDS, tz=UTC)
