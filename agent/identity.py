"""Who this node is: a TLS key and certificate, and the key with which it signs what it writes.

Everything lies below <state>/identity, readable by its owner only. The keys are made, and durable,
before the node asks to join, so that an answer that got lost can be asked for again; the node has
an identity once `node.json` is there, which is written last. Private keys never leave this machine.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typing_extensions import override

from agent.errors import StateError
from repository.keys import SigningKey

_DIRECTORY: Final = "identity"
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
    """PEM, for the TLS key."""
    ca_certificate: bytes
    """PEM of the one authority that this node trusts."""
    signing_certificate: bytes
    """The coordinator's statement that the signing key is this node's."""


class Identity(msgspec.Struct, frozen=True):
    """Keys and membership: a node that has joined."""

    keys: Keys
    membership: Membership


def load_keys(state: Path) -> Keys:
    """Return the node's keys; make them the first time."""
    directory = state / _DIRECTORY
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        tls = _read_or_make(directory / _TLS_KEY, _make_tls_key)
        seed = _read_or_make(directory / _SIGNING_KEY, lambda: os.urandom(32))
        return Keys(tls, SigningKey(seed))
    except OSError as error:
        raise _unusable(directory, error) from error


def load_membership(state: Path) -> Membership | None:
    """Return what the node was given when it joined; None before."""
    path = state / _DIRECTORY / _NODE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Membership)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from error
    except msgspec.DecodeError as error:
        raise StateError(
            f"{path} is damaged",
            hint="remove the directory it lies in, and join anew with a new token",
        ) from error


def save_membership(state: Path, membership: Membership) -> None:
    """Make the node a member, durably."""
    path = state / _DIRECTORY / _NODE
    try:
        write_private(path, msgspec.json.encode(membership))
    except OSError as error:
        raise _unusable(path, error) from error


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
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _read_or_make(path: Path, make: Callable[[], bytes]) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        write_private(path, make())
        return path.read_bytes()


def _make_tls_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _unusable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot use {path}: {(error.strerror or str(error)).lower()}",
        hint="give the agent a state directory that it may write, with --state",
    )
