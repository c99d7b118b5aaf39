"""What a repository holds, told by its store and the recovery kit alone.

Everything that a catalog knows of packs and references stands in the store: each pack says which
frames lie where in it, each root which snapshot it makes, and the refs beside it which frames that
snapshot added and dropped. Nothing is taken over that is not signed by whom the kit vouches for:

    kit ──► signing key ──► certificates of coordinators ──► certificates of nodes
     └────► recovery key ──► keys/0001 ──► metadata key: footers, refs, labels

What cannot be read or believed is handed out as `Unreadable`, never left out: whoever deletes
because of something missing here destroys it. A store that does not answer raises. Packs and
volumes come one at a time, so that no repository is too large.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from repository.errors import (
    DamagedError,
    FormatError,
    KeyMaterialError,
    ObjectMissingError,
    TidemarkError,
    UnsupportedFormatError,
    WrongKeyError,
)
from repository.footers import read_pack_end
from repository.ids import ID_BYTES, PackNonce, VolumeId
from repository.keys import Certificate, SubjectKind, UnsealingKey, check_certificate
from repository.layout import (
    CONFIG_NAME,
    KEYS_NAME,
    REFS_INFO,
    RecoveryKit,
    RepositoryConfig,
    RepositoryKeys,
    certificate_name,
    decode_config,
    parse_pack_name,
    refs_name,
    root_name,
)
from repository.pack import (
    HEAD_BYTES,
    PackIndex,
    PackKind,
    PackTail,
    Signer,
    decode_head,
)
from repository.refs import Refs, RefsLog, decode_refs, refs_hash
from repository.snapshot import Root, check_countersigned, check_signed_root, root_hash, split_root
from repository.store.interface import ObjectInfo, Store

_PACKS = "packs/"
_ROOTS = "roots/"
_REFS = "refs/"
_CERTIFICATES = "certificates/"
_SEQUENCE_DIGITS = 20
# What makes one object unreadable; anything else is about the store or the kit, and ends it all.
_UNREADABLE = (DamagedError, KeyMaterialError, UnsupportedFormatError, ObjectMissingError)


@dataclass(frozen=True)
class StoredPack:
    """A pack as its end describes it. Its frames were not opened, nor its whole hash computed."""

    name: str
    size: int
    kind: PackKind
    tail: PackTail
    index: PackIndex


@dataclass(frozen=True)
class StoredRoot:
    """A snapshot, and the object that makes it one."""

    root: Root
    encoded: bytes


@dataclass(frozen=True)
class StoredVolume:
    """A volume's snapshots by sequence, and the frames that they need.

    `last_sequence` is the highest ever given out, to commits that were given up as well.
    """

    volume: VolumeId
    snapshots: dict[int, StoredRoot]
    log: RefsLog
    last_sequence: int


@dataclass(frozen=True)
class Unreadable:
    """An object that is damaged, missing, or signed by nobody known; with it goes its volume."""

    name: str
    error: TidemarkError


class _Certificates(NamedTuple):
    signers: dict[tuple[Signer, bytes], bytes]
    unreadable: list[Unreadable]


class Rebuilder:
    """Reads everything there is."""

    def __init__(
        self,
        store: Store,
        config: RepositoryConfig,
        keys: RepositoryKeys,
        certificates: _Certificates,
    ) -> None:
        """Made by `open`."""
        self._store = store
        self.config = config
        self.keys = keys
        self.signers = certificates.signers
        self.unreadable = certificates.unreadable
        """Certificates that are none; what their subjects signed is unreadable in its turn."""

    @classmethod
    async def open(cls, store: Store, kit: RecoveryKit) -> Self:
        """Open the repository's own keys with the kit.

        WrongKeyError for the kit of another repository, NoRepositoryError, DamagedError,
        StoreError.
        """
        config = decode_config(await store.get(CONFIG_NAME))
        recovery = kit.secret.unsealing_key()
        said = (config.repository, config.signing_public, config.recovery_public)
        if said != (kit.repository, kit.signing_public, recovery.public):
            raise WrongKeyError(
                "the recovery kit is not this repository's",
                hint=f"look for the kit that says: repository {config.repository.hex()}",
            )
        sealed = await store.get(KEYS_NAME)
        keys = RepositoryKeys.unseal(sealed, recovery, config.repository)
        if UnsealingKey(keys.metadata_private).public != config.metadata_public:
            raise DamagedError("the repository's metadata key is not the one that its config names")
        return cls(store, config, keys, await _read_certificates(store, config))

    @property
    def metadata_key(self) -> UnsealingKey:
        """Opens footers, refs and labels."""
        return UnsealingKey(self.keys.metadata_private)

    # ---- packs ----------------------------------------------------------------------------------

    async def packs(self) -> AsyncIterator[StoredPack | Unreadable]:
        """Every pack, in order of names; StoreError where that cannot be told for all."""
        async for info in self._store.list_objects(_PACKS):
            try:
                yield await self._pack(info)
            except _UNREADABLE as error:
                yield Unreadable(info.name, error)

    async def _pack(self, info: ObjectInfo) -> StoredPack:
        random, _ = parse_pack_name(info.name)
        tail, end = await read_pack_end(self._store, info.name, info.size)
        tail.check_signer(self.config.repository, self.signers)
        index = end.open_with_metadata_key(self.metadata_key)
        kind, named = decode_head(await self._store.get_range(info.name, 0, HEAD_BYTES))
        if named != random:
            raise DamagedError(f"{info.name} is not the pack that was stored under this name")
        if not all(kind.holds(entry.kind) for entry in index.frames):
            raise FormatError("a pack holds frames that belong into the other kind")
        return StoredPack(info.name, info.size, kind, tail, index)

    # ---- volumes --------------------------------------------------------------------------------

    async def volumes(self) -> AsyncIterator[StoredVolume | Unreadable]:
        """Every volume that ever began to commit, wholly known or not at all, in order of ids."""
        roots, strange = await self._sequences(_ROOTS)
        refs, more = await self._sequences(_REFS)
        for name in (*strange, *more):
            yield Unreadable(name, FormatError(f"{name} is not the name of a root or of refs"))
        for volume in sorted({*roots, *refs}):
            given = [*roots[volume], *refs[volume]]
            yield await self._volume(volume, sorted(roots[volume]), max(given))

    async def _sequences(self, prefix: str) -> tuple[defaultdict[VolumeId, list[int]], list[str]]:
        """Sequences by volume, and names that are none."""
        found: defaultdict[VolumeId, list[int]] = defaultdict(list)
        strange: list[str] = []
        async for info in self._store.list_objects(prefix):
            parsed = _parse_sequence(prefix, info.name)
            if parsed is None:
                strange.append(info.name)
            else:
                found[parsed[0]].append(parsed[1])
        return found, strange

    async def _volume(
        self, volume: VolumeId, sequences: Sequence[int], last_sequence: int
    ) -> StoredVolume | Unreadable:
        snapshots: dict[int, StoredRoot] = {}
        log = RefsLog()
        parent = b""
        for sequence in sequences:
            name = root_name(volume, sequence)
            try:
                stored = await self._root(volume, sequence)
                if stored.root.body.parent != parent:
                    raise DamagedError("the root before this one is missing from the repository")
                name = refs_name(volume, sequence)
                refs = await self._refs(volume, sequence, stored.root.body.refs_hash)
            except _UNREADABLE as error:
                return Unreadable(name, error)
            snapshots[sequence] = stored
            log.append(sequence, refs)
            parent = root_hash(stored.encoded)
        return StoredVolume(volume, snapshots, log, last_sequence)

    async def _root(self, volume: VolumeId, sequence: int) -> StoredRoot:
        encoded = await self._store.get(root_name(volume, sequence))
        root = self._countersigned(encoded)
        node = self.signers.get((Signer.NODE, root.body.node))
        if node is None:
            raise DamagedError(
                f"a root is signed by an unknown node {root.body.node.hex()}",
                hint="its certificate is missing from the repository",
            )
        check_signed_root(split_root(encoded)[1], node)
        said = (root.body.repository, root.body.volume, root.countersigning.sequence)
        if said != (self.config.repository, volume, sequence):
            raise DamagedError("a root was made for another repository, volume or sequence")
        return StoredRoot(root, encoded)

    def _countersigned(self, encoded: bytes) -> Root:
        """The root, if any of the repository's coordinators countersigned it."""
        keys = [public for (kind, _), public in self.signers.items() if kind is Signer.COORDINATOR]
        failure = DamagedError("a root is countersigned by nobody: no coordinator is certified")
        for public in keys:
            try:
                return check_countersigned(encoded, public)
            except DamagedError as error:
                failure = error
        raise failure

    async def _refs(self, volume: VolumeId, sequence: int, expected: bytes) -> Refs:
        sealed = await self._store.get(refs_name(volume, sequence))
        info = REFS_INFO + self.config.repository + volume
        encoded = self.metadata_key.unseal(sealed, info)
        if refs_hash(encoded) != expected:
            raise DamagedError("refs are not those that their root was signed with")
        return decode_refs(encoded)


def home_of(
    nonce: PackNonce, holders: Iterable[StoredPack], needed: Collection[int]
) -> StoredPack | None:
    """The pack to read an origin's frames from, where several hold it; None if none has all.

    While frames are copied, or after a crash, two packs hold the same ones. Of those with all that
    is needed it is the one with the fewest frames, then the copy, so that the others can go.
    """
    fitting = [
        (len(places), pack.tail.signer is not Signer.COORDINATOR, pack.name, pack)
        for pack in holders
        if (places := pack.index.table().places.get(nonce, {})).keys() >= set(needed)
    ]
    return min(fitting)[-1] if fitting else None


async def _read_certificates(store: Store, config: RepositoryConfig) -> _Certificates:
    """Coordinators as the repository certified them, nodes as those coordinators did."""
    encoded = {
        info.name: await store.get(info.name) async for info in store.list_objects(_CERTIFICATES)
    }
    signers: dict[tuple[Signer, bytes], bytes] = {}
    left = dict(encoded)
    for name, content in encoded.items():
        found = _certified([config.signing_public], name, content, "coordinator")
        if isinstance(found, Certificate):
            signers[Signer.COORDINATOR, found.subject_id] = found.public
            del left[name]
    coordinators = list(signers.values())
    unreadable = []
    for name, content in left.items():
        found = _certified(coordinators, name, content, "node")
        if isinstance(found, Certificate):
            signers[Signer.NODE, found.subject_id] = found.public
        else:
            unreadable.append(Unreadable(name, found))
    return _Certificates(signers, unreadable)


def _certified(
    issuers: Sequence[bytes], name: str, encoded: bytes, kind: SubjectKind
) -> Certificate | TidemarkError:
    """The certificate of this name, if one of the issuers signed it."""
    failure = DamagedError("a certificate is signed by nobody who is known")
    for public in issuers:
        try:
            found = check_certificate(public, encoded, kind)
        except DamagedError as error:
            failure = error
            continue
        if certificate_name(found.subject_id) == name:
            return found
        failure = DamagedError("a certificate stands under the name of another")
    return failure


def _parse_sequence(prefix: str, name: str) -> tuple[VolumeId, int] | None:
    """Volume and sequence of the name of a root or refs; None for another name."""
    volume, _, sequence = name.removeprefix(prefix).partition("/")
    if len(sequence) != _SEQUENCE_DIGITS or not sequence.isdecimal():
        return None
    try:
        identity = VolumeId(bytes.fromhex(volume))
    except ValueError:
        return None
    made = f"{prefix}{identity.hex()}/{int(sequence):020d}"
    return (identity, int(sequence)) if len(identity) == ID_BYTES and made == name else None
