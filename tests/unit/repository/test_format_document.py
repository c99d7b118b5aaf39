"""docs/FORMAT.md is enough to write a reader: this is one, made from the page alone.

It imports nothing from the code that it reads after; only the tests below do, to have something
to read.
"""

import base64
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from repository.content import ContentWriter
from repository.copying import Collector, copy_frames, open_source
from repository.editing import Editor
from repository.entries import (
    ChunkClass,
    Content,
    Entry,
    EntryType,
    Extent,
    Pointer,
    encode_attributes,
    encode_entry,
)
from repository.frames import FrameIdentity, Location
from repository.ids import (
    IdKeys,
    NodeId,
    ObjectType,
    PackNonce,
    SessionId,
    VolumeId,
    stated_volume_id,
    volume_id,
)
from repository.keys import (
    Certificate,
    RecoverySecret,
    Secret,
    SigningKey,
    certify,
    seal,
)
from repository.layout import (
    LABEL_INFO,
    REFS_INFO,
    RecoveryKit,
    RepositoryConfig,
    RepositoryKeys,
    render_kit,
)
from repository.pack import PackKind, Signer
from repository.refs import Refs
from repository.snapshot import (
    Countersigning,
    Detection,
    Label,
    RootBody,
    Verdict,
    countersign,
    sign_root,
    snapshot_id,
)
from repository.tree import Boundaries
from tests.unit.repository.packs import (
    DATA_KEY,
    IDS,
    METADATA,
    NODE,
    NONCE,
    RECOVERY,
    REPOSITORY,
    SESSION,
    SIGNING,
    make_pack,
)

# ---------------------------------------------------------------------- the reader


def derive(context: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=context).digest()


def unseal(private: bytes, info: bytes, sealed: bytes) -> bytes:
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    return suite.decrypt(sealed, X25519PrivateKey.from_private_bytes(private), info)


def unwrap(key: bytes, context: bytes, wrapped: bytes) -> bytes:
    derived = derive("tidemark 0 wrapping key", key + context)
    return AESGCM(derived).decrypt(bytes(12), wrapped, context)


def verify(public: bytes, domain: bytes, message: bytes, signature: bytes) -> None:
    signed = bytes([len(domain)]) + domain + message
    Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)


def unpack(encoded: bytes) -> Any:
    return msgspec.msgpack.decode(encoded)


class PackReader:
    """A pack, its end read and its frames opened one at a time."""

    def __init__(self, raw: bytes, name: str, repository: bytes, id_keys: list[bytes]) -> None:
        self.raw, self.repository, self.id_keys = raw, repository, id_keys
        tail = struct.unpack(">QIIB16s32s32s64s8s", raw[-169:])
        body, footer, origins, self.signer, self.signer_id, digest, end_digest = tail[:7]
        self.signature, magic = tail[7:]
        assert magic == b"TMPKEND0"
        assert 32 + body + footer + origins + 169 == len(raw)
        assert len(raw) % max(512, 1 << (len(raw).bit_length() - 7)) == 0
        assert blake3(raw[:-169]).digest() == digest
        assert blake3(raw[32 + body : -169]).digest() == end_digest
        head = struct.unpack(">8sHB5s16s", raw[:32])
        assert head[:2] == (b"TIDEMARK", 0)
        self.kind, self.random = head[2], head[4]
        assert name == (f"packs/{head[4][:1].hex()}/{head[4].hex()}-{blake3(raw).digest(16).hex()}")
        start = 32 + body
        self.footer = raw[start : start + footer]
        self.footer_keys_for_metadata, self.origins = unpack(
            raw[start + footer : start + footer + origins]
        )

    def check_signature(self, public: bytes) -> None:
        signed = self.repository + self.raw[-169 : -169 + 97]
        verify(public, b"tidemark pack", signed, self.signature)

    def footer_key(self, origin: int, data_key: bytes) -> bytes:
        """The footer's key by way of one origin's pack key."""
        nonce, _, _, _, wrapped, relayed = self.origins[origin]
        pack_key = derive("tidemark 0 pack key", data_key + nonce)
        opened = unwrap(pack_key, b"tidemark pack footer", wrapped)
        if relayed == b"":
            return opened
        return unwrap(opened, b"tidemark pack footer relayed" + self.random, relayed)

    def frames(self, footer_key: bytes) -> list[Any]:
        frames: list[Any] = unpack(unwrap(footer_key, b"tidemark pack footer", self.footer))
        return frames

    def chunks(self, frame: Any, data_key: bytes) -> list[bytes]:
        origin, number, kind, offset, length, table = frame
        nonce = self.origins[origin][0]
        pack_key = derive("tidemark 0 pack key", data_key + nonce)
        key = derive("tidemark 0 frame key", pack_key + number.to_bytes(4, "big"))
        associated = b"TMF0" + self.repository + nonce + struct.pack(">IB", number, kind)
        assert len(associated) == 41
        sealed = self.raw[offset : offset + length]
        plaintext = AESGCM(key).decrypt(number.to_bytes(12, "big"), sealed, associated)
        codec, count, raw_length = struct.unpack(">BHI", plaintext[:7])
        assert 1 <= count <= 8192
        assert raw_length <= 8_388_608
        headers = [struct.unpack_from(">I32s", plaintext, 7 + 36 * at) for at in range(count)]
        assert [list(header) for header in headers] == table
        payload = plaintext[7 + 36 * count :]
        if codec == 1:
            assert zstandard.frame_content_size(payload) == raw_length
            payload = zstandard.decompress(payload)
        assert len(payload) == raw_length == sum(length for length, _ in headers)
        found, position = [], 0
        for chunk_length, chunk_id in headers:
            content = payload[position : position + chunk_length]
            assert blake3(content, key=self.id_keys[kind - 1]).digest() == chunk_id
            found.append(content)
            position += chunk_length
        return found


Load = Callable[[list[Any]], bytes]


def walk(load: Load, pointer: Any) -> Iterator[tuple[bytes, Any]]:
    """Entries by key, in order."""
    level, items = unpack(load(pointer))
    for key, value in items:
        if level == 0:
            yield key, value
        else:
            yield from walk(load, value)


def look_up(load: Load, pointer: Any, key: bytes) -> Any:
    level, items = unpack(load(pointer))
    value = [value for first, value in items if first <= key][-1]
    return value if level == 0 else look_up(load, value, key)


def extents_in(load: Load, content: Any) -> Iterator[Any]:
    _, extents, pointer = content
    yield from extents
    pending = [] if pointer is None else [pointer]
    while pending:
        level, items = unpack(load(pending.pop(0)))
        if level == 0:
            yield from items
        else:
            pending = items + pending


def are_one(entry: Any, other: Any) -> bool:
    """Whether two names are names of one thing, generations being known."""
    if entry[0] == 1 or min(entry[8], other[8]) < 2 or not entry[6]:
        return False
    return bool((entry[0], entry[6], entry[15]) == (other[0], other[6], other[15]) and entry[15])


def file_bytes(load: Load, entry: Any) -> bytes:
    pieces = []
    for nonce, frame, chunk, skip, length, chunk_id in extents_in(load, entry[14]):
        if nonce == b"":
            pieces.append(bytes(length))
        else:
            content = load([chunk_id, nonce, frame, chunk, None])
            assert skip + length <= len(content)
            pieces.append(content[skip : skip + length])
    return b"".join(pieces)


def attributes_of(load: Load, entry: Any) -> list[tuple[bytes, bytes]]:
    found = entry[12] if entry[13] is None else unpack(load(entry[13]))
    return [(name, value) for name, value in found]


# ---------------------------------------------------------------------- what it reads

ENTRY = Entry(EntryType.DIRECTORY, 0o755, 1, 2, 3, 0, 4, 5, 1, 0, 0, None, None, None, None)
BOUNDARIES_KEY = b"b" * 32


class Frames:
    """Collects chunks for a pack, a few to a frame, and says where they will lie."""

    def __init__(self, kind: ObjectType, nonce: PackNonce, frame_chunks: int) -> None:
        self.kind, self.nonce, self.frame_chunks = kind, nonce, frame_chunks
        self.frames: list[tuple[ObjectType, list[bytes]]] = []

    def put(self, content: bytes) -> Pointer:
        if not self.frames or len(self.frames[-1][1]) == self.frame_chunks:
            self.frames.append((self.kind, []))
        frame, chunk = len(self.frames) - 1, len(self.frames[-1][1])
        self.frames[-1][1].append(content)
        place = Location(self.nonce, frame, chunk, len(content))
        return Pointer.at(IDS.chunk_id(self.kind, content), place)


def no_node(_: Pointer) -> bytes:
    raise AssertionError


class Written:
    """A small snapshot: 600 names, a sliced file with a hole, and one of very many extents."""

    def __init__(self) -> None:
        data = Frames(ObjectType.DATA, NONCE, 3)
        lists = Frames(ObjectType.LIST, PackNonce(b"l" * 16), 2)
        nodes = Frames(ObjectType.NODE, PackNonce(b"n" * 16), 5)
        first = self._extent(data.put(b"some text, " * 1000))
        hole = Extent.hole(5000)
        content = Content(ChunkClass.GENERAL, [first, hole, _sliced(first, 2, 7)], None)
        self.sliced = b"some text, " * 1000 + bytes(5000) + b"me text"
        writer = ContentWriter(ChunkClass.PAGED, lists.put)
        pieces = [b"%05d" % number for number in range(1500)]
        for piece in pieces:
            writer.add(self._extent(data.put(piece)))
        self.many = b"".join(pieces)
        entries = {b"dir\x00%03d" % number: ENTRY for number in range(600)}
        entries |= {b"": ENTRY, b"dir": ENTRY}
        entries[b"file"] = _file(len(self.sliced), content)
        entries[b"many"] = _file(len(self.many), writer.finish())
        self.attributes = {
            b"short": [(b"user.a", b"1"), (b"user.b", b"")],
            b"long": [(b"trusted.x", b"2" * 2000), (b"user.a", b"\0\xff")],
        }
        short, long = self.attributes.values()
        pipe = msgspec.structs.replace(ENTRY, type=EntryType.FIFO, links=2, generation=1 << 63)
        entries |= {b"name": pipe, b"other": msgspec.structs.replace(pipe, ctime_ns=9)}
        entries[b"reused"] = msgspec.structs.replace(pipe, generation=7)
        entries[b"short"] = msgspec.structs.replace(ENTRY, xattrs=short)
        at = lists.put(encode_attributes(long))
        entries[b"long"] = msgspec.structs.replace(ENTRY, long_xattrs=at)
        self.entries = {key: encode_entry(entry) for key, entry in entries.items()}
        editor = Editor(Boundaries(BOUNDARIES_KEY), no_node, nodes.put)
        root = editor.edit(None, sorted(self.entries.items())).root
        assert root is not None
        self.root = root
        self.packs = [
            make_pack(data.frames, PackKind.DATA, data.nonce),
            make_pack(lists.frames, PackKind.METADATA, lists.nonce),
            make_pack(nodes.frames, PackKind.METADATA, nodes.nonce),
        ]

    @staticmethod
    def _extent(pointer: Pointer) -> Extent:
        place = Location(pointer.nonce, pointer.frame, pointer.chunk, pointer.length)
        return Extent.at(pointer.id, place)


def _sliced(extent: Extent, skip: int, length: int) -> Extent:
    return msgspec.structs.replace(extent, skip=skip, length=length)


def _file(size: int, content: Content) -> Entry:
    return msgspec.structs.replace(ENTRY, type=EntryType.FILE, size=size, content=content)


@pytest.fixture(scope="module")
def written() -> Written:
    return Written()


@pytest.fixture(scope="module")
def packs(written: Written) -> list[PackReader]:
    id_keys = [IDS.data, IDS.node, IDS.list]
    return [PackReader(pack.raw, pack.name, REPOSITORY, id_keys) for pack in written.packs]


@pytest.fixture(scope="module")
def load(packs: list[PackReader]) -> Load:
    """Any chunk by its place, from packs opened with the recovery key."""
    found: dict[tuple[bytes, int, int], bytes] = {}
    for pack in packs:
        nonce, _, _, sealed_data_key = pack.origins[0][:4]
        info = b"tidemark session data key" + REPOSITORY
        data_key = unseal(RECOVERY.reveal(), info, sealed_data_key)
        assert data_key == DATA_KEY
        for frame in pack.frames(pack.footer_key(0, data_key)):
            for index, content in enumerate(pack.chunks(frame, data_key)):
                found[nonce, frame[1], index] = content

    def chunk(pointer: list[Any]) -> bytes:
        content = found[pointer[1], pointer[2], pointer[3]]
        assert pointer[4] in {None, len(content)}
        return content

    return chunk


def test_a_pack_says_who_wrote_it(packs: list[PackReader]) -> None:
    for pack, kind in zip(packs, [1, 2, 2], strict=True):
        pack.check_signature(SIGNING.public)
        assert (pack.kind, pack.signer, pack.signer_id) == (kind, 1, NODE)
        assert pack.origins[0][1:3] == [SESSION, NODE]


def test_the_metadata_key_opens_a_footer(written: Written, packs: list[PackReader]) -> None:
    for pack, made in zip(packs, written.packs, strict=True):
        sealed = pack.footer_keys_for_metadata
        footer_key = unseal(METADATA.reveal(), b"tidemark pack footer", sealed)
        assert len(footer_key) == 32

        assert [frame[1] for frame in pack.frames(footer_key)] == [
            frame.number for frame in made.frames
        ]


def test_copied_frames_are_read_by_what_named_them(written: Written) -> None:
    coordinator, signer_id = SigningKey(b"c" * 32), b"C" * 16
    signers = {(Signer.NODE, bytes(NODE)): SIGNING.public}
    collector = Collector(REPOSITORY, signer_id, coordinator, METADATA, signers)
    chosen = []
    for made in written.packs[1:]:
        nonce = made.locations[0].nonce
        some = [FrameIdentity(nonce, frame.number) for frame in made.frames[::2]]
        chosen.append((open_source(made.name, made.raw, collector), some))
    copied = copy_frames(chosen, collector, random=b"q" * 16, footer_key=b"k" * 32)

    pack = PackReader(copied.raw, copied.name, REPOSITORY, [IDS.data, IDS.node, IDS.list])
    pack.check_signature(coordinator.public)
    opened = unseal(METADATA.reveal(), b"tidemark pack footer", pack.footer_keys_for_metadata)
    keys = [opened[at : at + 32] for at in range(0, len(opened), 32)]

    assert (pack.kind, pack.signer, pack.signer_id) == (2, 2, signer_id)
    assert keys[0] == b"k" * 32
    assert len(keys) == 1 + len(pack.origins) == 3
    for number, origin in enumerate(pack.origins):
        before = written.packs[1 + number]
        pack_key = derive("tidemark 0 pack key", DATA_KEY + origin[0])
        assert unwrap(pack_key, b"tidemark pack footer", origin[4]) == keys[1 + number]
        assert pack.footer_key(number, DATA_KEY) == keys[0]
        mine = [frame for frame in pack.frames(keys[0]) if frame[0] == number]
        assert [frame[1] for frame in mine] == [frame.number for frame in before.frames][::2]
        for frame, old in zip(mine, before.frames[::2], strict=True):
            contents = pack.chunks(frame, DATA_KEY)
            assert [len(content) for content in contents] == [length for length, _ in old.chunks]


def test_the_manifest_is_walked(written: Written, load: Load) -> None:
    root = unpack(msgspec.msgpack.encode(written.root))

    walked = list(walk(load, root))

    assert [key for key, _ in walked] == sorted(written.entries)
    assert [msgspec.msgpack.encode(entry) for _, entry in walked] == [
        written.entries[key] for key in sorted(written.entries)
    ]
    for key in (b"", b"dir\x00077", b"many"):
        assert msgspec.msgpack.encode(look_up(load, root, key)) == written.entries[key]


def test_attributes_are_read_wherever_they_stand(written: Written, load: Load) -> None:
    root = unpack(msgspec.msgpack.encode(written.root))

    for key, attributes in written.attributes.items():
        assert attributes_of(load, look_up(load, root, key)) == attributes


def test_files_are_read(written: Written, load: Load) -> None:
    root = unpack(msgspec.msgpack.encode(written.root))

    for key, expected in ((b"file", written.sliced), (b"many", written.many)):
        entry = look_up(load, root, key)
        assert file_bytes(load, entry) == expected
        assert len(expected) == entry[5]


def test_names_of_one_thing_are_told(written: Written, load: Load) -> None:
    root = unpack(msgspec.msgpack.encode(written.root))
    one, other, later = (look_up(load, root, key) for key in (b"name", b"other", b"reused"))

    assert len(one) == 16
    assert are_one(one, other)
    assert one[6] == later[6]
    assert not are_one(one, later)
    assert not are_one(look_up(load, root, b"dir"), look_up(load, root, b""))


def test_the_manifest_is_cut_where_the_document_says(written: Written, load: Load) -> None:
    pointer = unpack(msgspec.msgpack.encode(written.root))
    level = unpack(load(pointer))[0]
    nodes = [pointer]
    for _ in range(level):
        nodes = [value for node in nodes for _, value in unpack(load(node))[1]]
    firsts = {unpack(load(node))[1][0][0] for node in nodes}

    key = derive("tidemark 0 tree boundary", BOUNDARIES_KEY + b"\x00")
    starts = {
        name
        for name in written.entries
        if int.from_bytes(blake3(name, key=key).digest(4), "big") < 1 << 26
    }
    assert firsts == starts | {b""}
    assert len(firsts) > 3


def test_the_keys_of_a_repository_are_read() -> None:
    kit = RecoveryKit(RecoverySecret(Secret(b"r" * 32)), REPOSITORY, b"s" * 32)
    keys = RepositoryKeys(IdKeys(b"d" * 32, b"n" * 32, b"l" * 32), b"c" * 32, b"b" * 32, b"m" * 32)
    sealed = keys.sealed_to(kit.secret.unsealing_key().public, REPOSITORY)

    lines = render_kit(kit).splitlines()
    assert lines[0] == "-----BEGIN TIDEMARK RECOVERY KIT-----"
    assert lines[-1] == "-----END TIDEMARK RECOVERY KIT-----"
    letters = "".join("".join(line for line in lines[1:-1] if line[:11] != "repository ").split())
    typed = base64.b32decode(letters + "=" * (-len(letters) % 8))
    secret, repository, signing_public = typed[:32], typed[32:48], typed[48:80]

    assert typed[80:] == blake3(typed[:80]).digest(4)
    assert (secret, repository, signing_public) == (b"r" * 32, REPOSITORY, b"s" * 32)
    private = derive("tidemark 0 recovery key agreement", secret)
    opened = unpack(unseal(private, b"tidemark repository keys" + repository, sealed))
    ids, chunker, boundaries, metadata = opened
    assert ids == [b"d" * 32, b"n" * 32, b"l" * 32]
    assert (chunker, boundaries, metadata) == (b"c" * 32, b"b" * 32, b"m" * 32)
    seed = derive("tidemark 0 repository signing", secret)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert public == kit.secret.signing_key().public


def test_config_and_certificates_are_read() -> None:
    features = ["erasure-codes", "später"]
    config = RepositoryConfig(
        "0-draft", REPOSITORY, 9, features, b"r" * 32, SIGNING.public, b"m" * 32
    )
    encoded = config.encode(SIGNING)
    certified = certify(SIGNING, Certificate("node", NODE, b"p" * 32))

    verify(SIGNING.public, b"tidemark repository config", encoded[64:], encoded[:64])
    assert unpack(encoded[64:]) == [
        "0-draft",
        REPOSITORY,
        9,
        ["erasure-codes", "später"],
        b"r" * 32,
        SIGNING.public,
        b"m" * 32,
    ]
    verify(SIGNING.public, b"tidemark certificate", certified[64:], certified[:64])
    assert unpack(certified[64:]) == ["node", NODE, b"p" * 32]


def test_roots_and_refs_are_read(written: Written) -> None:
    coordinator, volume = SigningKey(b"c" * 32), VolumeId(b"V" * 16)
    refs = Refs.of({FrameIdentity(NONCE, 1): 7, FrameIdentity(NONCE, 0): 0}, base=False).encode()
    label = Label("data", "node", "path", b"/srv", [(b"a", "gone", "look")], "sweep: first")
    body = RootBody(
        format=0,
        repository=REPOSITORY,
        volume=volume,
        node=NodeId(NODE),
        session=SessionId(SESSION),
        parent=b"",
        manifest=written.root,
        refs_hash=blake3(refs).digest(),
        detection=Detection.SWEEP,
        started_ns=1,
        total_files=2,
        total_bytes=3,
        fuzzy_files=4,
        errors_total=5,
        label=seal(METADATA.public, label.encode(), LABEL_INFO + REPOSITORY),
    )
    signed = sign_root(body, SIGNING)
    root = countersign(signed, Countersigning(6, 7, 8, Verdict.COMPLETED), coordinator)
    sealed_refs = seal(METADATA.public, refs, REFS_INFO + REPOSITORY + volume)

    verify(coordinator.public, b"tidemark root countersigned", root[64:], root[:64])
    countersigning, inner = unpack(root[64:])
    verify(SIGNING.public, b"tidemark root", inner[64:], inner[:64])
    read = unpack(inner[64:])
    opened = unseal(METADATA.reveal(), b"tidemark refs" + REPOSITORY + volume, sealed_refs)

    assert countersigning == [6, 7, 8, 1]
    assert read[:6] == [0, REPOSITORY, volume, NODE, SESSION, b""]
    assert read[6] == unpack(msgspec.msgpack.encode(written.root))
    assert read[8:14] == [2, 1, 2, 3, 4, 5]
    assert blake3(inner).digest(16) == snapshot_id(signed)
    assert blake3(opened).digest() == read[7]
    assert unpack(opened) == [False, [[NONCE, [[0, 0], [1, 7]]]]]
    said = unpack(unseal(METADATA.reveal(), b"tidemark snapshot label" + REPOSITORY, read[14]))
    assert said == ["data", "node", "path", b"/srv", [[b"a", "gone", "look"]], "sweep: first"]


def test_the_id_of_a_volume_is_computed() -> None:
    parts = (bytes(NODE), b"path", b"data")
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    found = derive("tidemark 0 volume identity", framed)[:16]
    stated = derive("tidemark 0 stated volume identity", "größe".encode())[:16]

    assert found == volume_id(NODE, "path", "data")
    assert stated == stated_volume_id("größe")
