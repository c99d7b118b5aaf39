"""What lies where in a repository, and the objects that make it one.

    config                                the repository's identity and public keys, signed
    keys/0001                             the repository's own keys, sealed to the recovery key
    packs/<2 hex>/<random>-<hash>         frames
    refs/<volume>/<sequence>              which frames a snapshot added and dropped
    roots/<volume>/<sequence>             snapshots: the last object that a commit writes
    journal/<incarnation>/<number>        what was decided before it took effect
    certificates/<subject>                who may sign for whom

Names tell the store nothing but random bits, hashes, and how many snapshots a volume has.
"""

import base64
from typing import Final

import msgspec
from blake3 import blake3
from typing_extensions import override

from repository.errors import (
    UNDECODABLE,
    FormatError,
    NoRepositoryError,
    UnsupportedFormatError,
    WrongKeyError,
)
from repository.ids import ID_BYTES, IdKeys, RepositoryId, VolumeId
from repository.keys import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    RecoverySecret,
    Secret,
    SigningKey,
    UnsealingKey,
    seal,
    verify,
)

FORMAT: Final = "0-draft"
# Feature flags that this code knows; any other means: refuse to write and to collect.
FEATURES: Final[frozenset[str]] = frozenset()

CONFIG_NAME: Final = "config"
KEYS_NAME: Final = "keys/0001"

_CONFIG_DOMAIN: Final = b"tidemark repository config"
_KEYS_INFO: Final = b"tidemark repository keys"
DATA_KEY_INFO: Final = b"tidemark session data key"
GRANT_INFO: Final = b"tidemark restore grant"
# What each key in a grant is wrapped for; pack nonce and frame number follow.
GRANT_READER_KEYS: Final = b"reader keys"
GRANT_PACK: Final = b"pack"
GRANT_FRAME: Final = b"frame"
LABEL_INFO: Final = b"tidemark snapshot label"
REFS_INFO: Final = b"tidemark refs"


def pack_name(random: bytes, digest: bytes) -> str:
    """Name of a pack: 16 random bytes, and the first 16 bytes of its BLAKE3."""
    return f"packs/{random[:1].hex()}/{random.hex()}-{digest[:ID_BYTES].hex()}"


def parse_pack_name(name: str) -> tuple[bytes, bytes]:
    """(random, hash) of a pack's name; FormatError for any other name."""
    parts = name.split("/")
    pieces = parts[-1].split("-")
    try:
        random, digest = (bytes.fromhex(piece) for piece in pieces)
    except ValueError as error:
        raise FormatError(f"{name!r} is not the name of a pack") from error
    if (len(random), len(digest)) != (ID_BYTES, ID_BYTES) or pack_name(random, digest) != name:
        raise FormatError(f"{name!r} is not the name of a pack")
    return random, digest


def root_name(volume: VolumeId, sequence: int) -> str:
    """Name of the root of one snapshot; sorts by sequence."""
    return f"roots/{volume.hex()}/{sequence:020d}"


def refs_name(volume: VolumeId, sequence: int) -> str:
    """Name of the refs of one snapshot; sorts by sequence."""
    return f"refs/{volume.hex()}/{sequence:020d}"


def certificate_name(subject: bytes) -> str:
    """Name of the certificate of a coordinator or a node."""
    return f"certificates/{subject.hex()}"


class RepositoryConfig(msgspec.Struct, frozen=True, array_like=True):
    """What a repository is. Times in nanoseconds since the epoch; keys are public halves."""

    format: str
    repository: RepositoryId
    created_ns: int
    features: list[str]
    recovery_public: bytes
    signing_public: bytes
    metadata_public: bytes

    def encode(self, signing: SigningKey) -> bytes:
        """The object `config`, signed by the repository's own key."""
        body = msgspec.msgpack.encode(self)
        return signing.sign(_CONFIG_DOMAIN, body) + body

    def check_writable(self) -> None:
        """UnsupportedFormatError where a feature is unknown: nothing is written or collected.

        Reading goes on. Whoever does not know a feature cannot know what it asks of new objects,
        nor which old ones it still needs.
        """
        unknown = sorted(set(self.features) - FEATURES)
        if unknown:
            raise UnsupportedFormatError(
                "the repository has features that this version does not know: "
                f"{', '.join(map(repr, unknown))}; it is read, and neither written nor collected",
                hint="upgrade Tidemark",
            )


_configs = msgspec.msgpack.Decoder(RepositoryConfig)


def decode_config(encoded: bytes) -> RepositoryConfig:
    """The object `config`, its signature checked against the key in it.

    Who must know whose repository it is compares `signing_public` with the recovery kit's. Who
    writes or collects asks `check_writable` first: features are not looked at here.
    """
    try:
        config = _configs.decode(encoded[SIGNATURE_BYTES:])
    except UNDECODABLE as error:
        raise NoRepositoryError(
            "the object `config` is not a repository's",
            hint="check the location; an empty directory can be made a repository",
        ) from error
    body = encoded[SIGNATURE_BYTES:]
    verify(config.signing_public, _CONFIG_DOMAIN, body, encoded[:SIGNATURE_BYTES])
    if config.format != FORMAT:
        raise UnsupportedFormatError(
            f"the repository has format {config.format!r}, and this version knows {FORMAT!r}",
            hint="use the version of Tidemark that wrote it, or a newer one",
        )
    return config


class RepositoryKeys(msgspec.Struct, frozen=True, array_like=True):
    """The repository's own secrets: of ids, of the chunker, of the coordinator's metadata."""

    ids: IdKeys
    chunker: bytes
    boundaries: bytes
    metadata_private: bytes

    @override
    def __repr__(self) -> str:
        return "RepositoryKeys(hidden)"

    def sealed_to(self, recovery_public: bytes, repository: RepositoryId) -> bytes:
        """The object `keys/0001`."""
        return seal(recovery_public, msgspec.msgpack.encode(self), _KEYS_INFO + repository)

    @staticmethod
    def unseal(sealed: bytes, recovery: UnsealingKey, repository: RepositoryId) -> "RepositoryKeys":
        """What `sealed_to` sealed."""
        return RepositoryKeys.decode(recovery.unseal(sealed, _KEYS_INFO + repository))

    def encode(self) -> bytes:
        """As the coordinator keeps it beside its catalog."""
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(encoded: bytes) -> "RepositoryKeys":
        """What `encode` made; FormatError for anything else."""
        try:
            return _repository_keys.decode(encoded)
        except UNDECODABLE as error:
            raise FormatError("the repository's keys do not decode") from error


_repository_keys = msgspec.msgpack.Decoder(RepositoryKeys)


class WriterKeys(msgspec.Struct, frozen=True, array_like=True):
    """What an agent needs to write, and with which it can read nothing."""

    repository: RepositoryId
    ids: IdKeys
    chunker: bytes
    boundaries: bytes
    recovery_public: bytes
    metadata_public: bytes

    @override
    def __repr__(self) -> str:
        return "WriterKeys(hidden)"

    def encode(self) -> bytes:
        """As OpenSession carries it."""
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(encoded: bytes) -> "WriterKeys":
        """What `encode` made; FormatError for anything else."""
        try:
            return _writer_keys.decode(encoded)
        except UNDECODABLE as error:
            raise FormatError("the writer's keys do not decode") from error


class ReaderKeys(msgspec.Struct, frozen=True, array_like=True):
    """What a restore needs beside pack keys: ids are checked after every decryption."""

    repository: RepositoryId
    ids: IdKeys

    @override
    def __repr__(self) -> str:
        return "ReaderKeys(hidden)"

    def encode(self) -> bytes:
        """As a grant carries it."""
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(encoded: bytes) -> "ReaderKeys":
        """What `encode` made; FormatError for anything else."""
        try:
            return _reader_keys.decode(encoded)
        except UNDECODABLE as error:
            raise FormatError("the reader's keys do not decode") from error


_writer_keys = msgspec.msgpack.Decoder(WriterKeys)
_reader_keys = msgspec.msgpack.Decoder(ReaderKeys)


class RecoveryKit(msgspec.Struct, frozen=True):
    """What must be kept away from the machines it protects."""

    secret: RecoverySecret
    repository: RepositoryId
    signing_public: bytes


_KIT_BEGIN: Final = "-----BEGIN TIDEMARK RECOVERY KIT-----"
_KIT_END: Final = "-----END TIDEMARK RECOVERY KIT-----"
_KIT_CHECK_BYTES: Final = 4


def render_kit(kit: RecoveryKit) -> str:
    """The kit as text to print. A check sum of 4 bytes finds a mistyped character."""
    content = kit.secret.reveal() + kit.repository + kit.signing_public
    text = base64.b32encode(content + blake3(content).digest(_KIT_CHECK_BYTES)).decode().rstrip("=")
    groups = [text[index : index + 5] for index in range(0, len(text), 5)]
    lines = [" ".join(groups[index : index + 6]) for index in range(0, len(groups), 6)]
    return "\n".join([_KIT_BEGIN, f"repository {kit.repository.hex()}", "", *lines, _KIT_END, ""])


def parse_kit(text: str) -> RecoveryKit:
    """What `render_kit` rendered, whatever the spacing; WrongKeyError where it was mistyped."""
    _, begun, rest = text.partition(_KIT_BEGIN)
    body, ended, _ = rest.partition(_KIT_END)
    lines = [line for line in body.splitlines() if not line.lstrip().startswith("repository ")]
    letters = "".join("".join(lines).split()).upper()
    try:
        content = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except ValueError as error:
        raise WrongKeyError("the recovery kit is mistyped", hint="type it once more") from error
    payload, check = content[:-_KIT_CHECK_BYTES], content[-_KIT_CHECK_BYTES:]
    whole = len(payload) == KEY_BYTES + 16 + KEY_BYTES
    if not begun or not ended or not whole or blake3(payload).digest(_KIT_CHECK_BYTES) != check:
        raise WrongKeyError(
            "the recovery kit is incomplete or mistyped",
            hint="it begins and ends with a line of dashes; type it once more",
        )
    return RecoveryKit(
        secret=RecoverySecret(Secret(payload[:KEY_BYTES])),
        repository=RepositoryId(payload[KEY_BYTES : KEY_BYTES + 16]),
        signing_public=payload[KEY_BYTES + 16 :],
    )
