"""Custody of the recovery secret: the only module that ever holds it.

What leaves here are derived keys for one purpose at a time (the key of a session, pack keys for a
grant), the signature of a repository's first objects, and, when asked by a human, the recovery
kit. While custody is locked every one of these fails with LockedError and everything else goes on.

At rest the secret is sealed under a passphrase: Argon2id stretches it, AES-GCM seals and, by its
tag, tells a wrong passphrase. How much it stretches stands in the file, so that an operator's
passphrase is dear to guess, and one that was drawn, which nobody guesses, costs a start nothing.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from typing_extensions import override

from coordinator.errors import FormatError, LockedError, WrongKeyError
from coordinator.vault import read_secret, write_secret
from repository.ids import PackNonce, RepositoryId
from repository.keys import (
    KEY_BYTES,
    PackKey,
    RecoverySecret,
    Secret,
    SigningKey,
    pack_key,
)
from repository.layout import DATA_KEY_INFO, RecoveryKit, render_kit

Random = Callable[[int], bytes]


class Cost(NamedTuple):
    """What one guess of a passphrase costs, as Argon2id counts."""

    memory_kib: int
    passes: int
    lanes: int


# RFC 9106's second choice: 64 MiB and three passes, 0.3 s on the machines this was measured on.
THOUGHT_OF: Final = Cost(memory_kib=64 * 1024, passes=3, lanes=4)
# The least that Argon2id does, 0.1 ms: nobody searches 256 bits, whatever one guess costs.
DRAWN: Final = Cost(memory_kib=8, passes=1, lanes=1)
_DRAWN_BYTES: Final = 32

# What a file may ask for, so that an altered one cannot exhaust the machine.
_MEMORY_KIB_MAX: Final = 1024 * 1024
_PASSES_MAX: Final = 64
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_ASSOCIATED: Final = b"tidemark custody"

# Session keys at hand while a restore or a verification walks the packs of many sessions.
_SESSION_KEYS_MAX: Final = 4096

_UNLOCK_HINT: Final = "start the coordinator with --passphrase-file naming the right passphrase"


class Custody(Protocol):
    """What may be asked of whoever keeps the recovery secret."""

    @property
    def unlocked(self) -> bool:
        """Whether the calls below can succeed."""
        ...

    def signing_key(self) -> SigningKey:
        """The repository's own key, to certify a coordinator. LockedError."""
        ...

    def recovery_public(self) -> bytes:
        """What session keys are sealed to. LockedError."""
        ...

    def pack_key(
        self, repository: RepositoryId, sealed_data_key: bytes, nonce: PackNonce
    ) -> PackKey:
        """The key of one pack of a session that writes there. LockedError, WrongKeyError."""
        ...

    def recovery_kit(self, repository: RepositoryId, signing_public: bytes) -> str:
        """The text that a human keeps elsewhere. LockedError."""
        ...


class LockedCustody(Custody):
    """Custody that cannot be opened for now, and says why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    @property
    @override
    def unlocked(self) -> bool:
        return False

    def _locked(self) -> LockedError:
        return LockedError(self._reason, hint=_UNLOCK_HINT)

    @override
    def signing_key(self) -> SigningKey:
        raise self._locked()

    @override
    def recovery_public(self) -> bytes:
        raise self._locked()

    @override
    def pack_key(
        self, repository: RepositoryId, sealed_data_key: bytes, nonce: PackNonce
    ) -> PackKey:
        raise self._locked()

    @override
    def recovery_kit(self, repository: RepositoryId, signing_public: bytes) -> str:
        raise self._locked()


class OpenCustody(Custody):
    """Custody that holds the secret in memory."""

    def __init__(self, secret: RecoverySecret) -> None:
        self._secret = secret
        self._unsealing = secret.unsealing_key()
        self._data_keys: OrderedDict[tuple[RepositoryId, bytes], bytes] = OrderedDict()

    @override
    def __repr__(self) -> str:
        return "OpenCustody(hidden)"

    @property
    @override
    def unlocked(self) -> bool:
        return True

    @override
    def signing_key(self) -> SigningKey:
        return self._secret.signing_key()

    @override
    def recovery_public(self) -> bytes:
        return self._unsealing.public

    @override
    def pack_key(
        self, repository: RepositoryId, sealed_data_key: bytes, nonce: PackNonce
    ) -> PackKey:
        data_key = self._data_keys.get((repository, sealed_data_key))
        if data_key is None:
            data_key = self._unsealing.unseal(sealed_data_key, DATA_KEY_INFO + repository)
            if len(data_key) != KEY_BYTES:
                raise WrongKeyError("a session's data key is not of the right length")
            self._data_keys[repository, sealed_data_key] = data_key
            if len(self._data_keys) > _SESSION_KEYS_MAX:
                self._data_keys.popitem(last=False)
        return pack_key(data_key, nonce)

    @override
    def recovery_kit(self, repository: RepositoryId, signing_public: bytes) -> str:
        return render_kit(RecoveryKit(self._secret, repository, signing_public))


class _Sealed(msgspec.Struct, frozen=True, array_like=True):
    """The custody file."""

    version: int
    memory_kib: int
    passes: int
    lanes: int
    salt: bytes
    nonce: bytes
    sealed: bytes


_decoder = msgspec.msgpack.Decoder(_Sealed)


def draw_passphrase(random: Random) -> bytes:
    """A passphrase for which DRAWN is enough; printable."""
    return random(_DRAWN_BYTES).hex().encode()


def create_custody(
    path: Path, passphrase: bytes, random: Random, cost: Cost = THOUGHT_OF
) -> OpenCustody:
    """Draw a recovery secret and seal it into the file. Never replaces one."""
    assert read_secret(path) is None, "a recovery secret is never overwritten"
    secret = random(KEY_BYTES)
    salt, nonce = random(_SALT_BYTES), random(_NONCE_BYTES)
    key = _stretch(passphrase, salt, cost)
    sealed = AESGCM(key).encrypt(nonce, secret, _ASSOCIATED)
    file = _Sealed(1, *cost, salt, nonce, sealed)
    write_secret(path, msgspec.msgpack.encode(file))
    return OpenCustody(RecoverySecret(Secret(secret)))


def open_custody(path: Path, passphrase: bytes) -> OpenCustody:
    """Open the file with its passphrase; WrongKeyError if it is another, FormatError if damaged."""
    content = read_secret(path)
    if content is None:
        raise LockedError(
            f"the custody file {path} is missing",
            hint="put it back from a copy; with the recovery kit alone, ask for a rebuild",
        )
    try:
        file = _decoder.decode(content)
    except (msgspec.DecodeError, ValueError) as error:
        raise FormatError(
            f"the custody file {path} is damaged", hint="put it back from a copy"
        ) from error
    if file.version != 1 or file.memory_kib > _MEMORY_KIB_MAX or file.passes > _PASSES_MAX:
        raise FormatError(f"the custody file {path} is not one that this version can read")
    key = _stretch(passphrase, file.salt, Cost(file.memory_kib, file.passes, file.lanes))
    try:
        secret = AESGCM(key).decrypt(file.nonce, file.sealed, _ASSOCIATED)
    except (InvalidTag, ValueError) as error:
        raise WrongKeyError(
            "the passphrase does not open custody of the recovery secret", hint=_UNLOCK_HINT
        ) from error
    return OpenCustody(RecoverySecret(Secret(secret)))


def _stretch(passphrase: bytes, salt: bytes, cost: Cost) -> bytes:
    try:
        derivation = Argon2id(
            salt=salt,
            length=KEY_BYTES,
            iterations=cost.passes,
            lanes=cost.lanes,
            memory_cost=cost.memory_kib,
        )
        return derivation.derive(passphrase)
    except ValueError as error:
        raise FormatError("the custody file asks for what Argon2id does not do") from error
