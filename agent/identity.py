"""Who this node is: a TLS key, its certificates, and the key with which it signs what it writes.

Everything lies below <state>/identity, readable by its owner only, and that directory is there if
and only if the node has joined. Before, the keys lie in <state>/identity.new: they are durable
before the node asks to join, so that an answer that got lost can be asked for again. Private keys
never leave this machine.
"""

import os
import secrets
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typing_extensions import override

from agent.errors import StateError
from repository.failpoints import failpoint
from repository.keys import SigningKey

_DIRECTORY: Final = "identity"
_DIRECTORY_BEFORE: Final = "identity.new"
_TLS_KEY: Final = "tls.key"
_SIGNING_KEY: Final = "signing.key"
_NODE: Final = "node.json"


class Keys(msgspec.Struct, frozen=True):
    """The private keys of a node."""

    tls: bytes
    """PEM, P-256: what every TLS library knows."""
    signing: SigningKey

    @override
    def __repr__(self) -> str:
        return "Keys(hidden)"

    def certificate_request(self, node_name: str) -> bytes:
        """Ask, in PEM, for a certificate for the TLS key."""
        key = serialization.load_pem_private_key(self.tls, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        # X.520 allows 64 characters; what counts is the node id that the coordinator puts in.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_name[:64])])
        request = x509.CertificateSigningRequestBuilder().subject_name(name)
        return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Membership(msgspec.Struct, frozen=True):
    """What the coordinator answered when the node joined."""

    node_id: bytes
    node_name: str
    certificate: bytes
    """PEM, for the TLS key; good for a day."""
    renewal_certificate: bytes
    """PEM, for the TLS key; good for a year, and for getting new certificates alone."""
    ca_certificate: bytes
    """PEM of the one authority that this node trusts."""
    signing_certificate: bytes
    """The coordinator's statement that the signing key is this node's."""


class Identity(msgspec.Struct, frozen=True):
    """Keys and membership: a node that has joined."""

    keys: Keys
    membership: Membership


def load_identity(state: Path) -> Identity | None:
    """Return who the node is; None before it has joined."""
    directory = state / _DIRECTORY
    if not directory.exists():
        return None
    try:
        keys = _load_keys(directory)
        membership = msgspec.json.decode((directory / _NODE).read_bytes(), type=Membership)
        for certificate in (membership.certificate, membership.renewal_certificate):
            x509.load_pem_x509_certificate(certificate)
    except OSError as error:
        raise _unusable(directory, error) from error
    except ValueError as error:  # msgspec's, too
        raise StateError(
            f"the node's identity in {directory} is damaged, or of an older version",
            hint="remove that directory, and join anew with a new token",
        ) from error
    return Identity(keys, membership)


def prepare_keys(state: Path) -> Keys:
    """Return the keys to join with; make them the first time."""
    directory = state / _DIRECTORY_BEFORE
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, make in ((_TLS_KEY, _make_tls_key), (_SIGNING_KEY, _make_seed)):
            if not (directory / name).exists():
                write_private(directory / name, make())
        return _load_keys(directory)
    except (OSError, ValueError) as error:
        raise _unusable(directory, error) from error


def save_membership(state: Path, membership: Membership) -> None:
    """Make the node, whose keys were prepared, a member: durably, and all at once."""
    directory = state / _DIRECTORY_BEFORE
    try:
        write_private(directory / _NODE, msgspec.json.encode(membership))
        failpoint("agent.join.written")
        directory.rename(state / _DIRECTORY)
        _sync_directory(state)
    except OSError as error:
        raise _unusable(directory, error) from error


def save_renewed(state: Path, membership: Membership) -> None:
    """Keep what was renewed: durably, and all at once."""
    directory = state / _DIRECTORY
    try:
        write_private(directory / _NODE, msgspec.json.encode(membership))
        failpoint("agent.renewal.written")
    except OSError as error:
        raise _unusable(directory, error) from error


def _load_keys(directory: Path) -> Keys:
    tls = (directory / _TLS_KEY).read_bytes()
    return Keys(tls, SigningKey((directory / _SIGNING_KEY).read_bytes()))


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone may read: whole and durable, or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_seed() -> bytes:
    return secrets.token_bytes(32)


def _make_tls_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _unusable(path: Path, error: OSError | ValueError) -> StateError:
    return StateError(
        f"cannot use {path}: {error}",
        hint="give the agent a state directory that it may write, with --state",
    )
