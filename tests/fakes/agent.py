"""An agent that does what a test says, sound or not, over real mTLS gRPC.

It makes whole packs and roots as the real one does, out of a few files in memory, so that what the
coordinator checks is real; each step can be taken alone and its parts exchanged.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Self

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from proto.bootstrap import BootstrapToken, parse_token
from proto.renewal import RENEWAL_DOMAIN, renewal_statement
from proto.tidemark.v1 import agent_pb2, agent_pb2_grpc, common_pb2
from proto.versions import PROTOCOL
from repository.entries import (
    ChunkClass,
    Content,
    Entry,
    EntryType,
    Extent,
    Pointer,
    encode_entry,
    key_of,
)
from repository.frames import (
    TAG_BYTES,
    FrameCipher,
    FrameEncoder,
    FrameIdentity,
    Location,
    PlainChunk,
)
from repository.ids import NodeId, ObjectType, PackNonce, SessionId, VolumeId, volume_id
from repository.keys import SigningKey, frame_key, pack_key, seal
from repository.layout import DATA_KEY_INFO, WriterKeys, pack_name
from repository.pack import FrameEntry, PackKind, PackSeal, encode_head
from repository.refs import Refs, refs_hash
from repository.snapshot import FORMAT, Detection, RootBody, root_hash, sign_root
from repository.tree import encode_node

TIMEOUT_SECONDS = 20


def channel(address: str, authority: bytes, certificate: bytes, key: bytes) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return grpc.aio.secure_channel(address, credentials)


@dataclass
class Writing:
    """A session and the keys to write with it."""

    session_id: bytes
    fencing_token: int
    keys: WriterKeys
    data_key: bytes
    sealed_data_key: bytes
    head_root: bytes
    head_sequence: int
    packs_since_head: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class MadePack:
    """A whole pack, and where its chunks lie."""

    name: str
    raw: bytes
    locations: list[Location]
    chunk_ids: list[bytes]


@dataclass
class MadeSnapshot:
    """What one backup uploads and commits."""

    packs: list[MadePack]
    manifest: Pointer
    refs: bytes
    total_files: int
    total_bytes: int


@dataclass
class FakeAgent:
    """One enrolled node."""

    address: str
    name: str
    node_id: bytes
    authority: bytes
    certificate: bytes
    key: bytes
    signing: SigningKey
    renewal_certificate: bytes
    volumes: list[agent_pb2.VolumeReport] = field(default_factory=list)
    version: str = "0.0-fake"
    # Oldest and newest version of the protocol, as they are told.
    speaks: tuple[int, int] = PROTOCOL

    @classmethod
    async def enrol(
        cls,
        address: str,
        token_text: str,
        name: str = "node",
        key: ec.EllipticCurvePrivateKey | None = None,
        signing: SigningKey | None = None,
    ) -> Self:
        """Join with a token."""
        token = parse_token(token_text)
        key = key or ec.generate_private_key(ec.SECP256R1())
        signing = signing or SigningKey(token_bytes(32))
        answer = await ask_to_enrol(address, token, key, signing.public, name)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return cls(
            address,
            name,
            answer.node_id,
            answer.ca_certificate,
            answer.certificate,
            pem,
            signing,
            answer.renewal_certificate,
        )

    @asynccontextmanager
    async def calls(self) -> "AsyncIterator[agent_pb2_grpc.AgentServiceAsyncStub]":
        """The service, as this node."""
        async with channel(self.address, self.authority, self.certificate, self.key) as open_:
            yield agent_pb2_grpc.AgentServiceStub(open_)

    def request(self) -> bytes:
        """Ask for a certificate for the TLS key."""
        key = serialization.load_pem_private_key(self.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return certificate_request(key, self.name)

    async def renew(
        self,
        *,
        certificate: bytes | None = None,
        challenge: bytes | None = None,
        signing: SigningKey | None = None,
    ) -> agent_pb2.RenewedCertificates:
        """Answer the challenge, or another one, and with other keys."""
        shown = certificate or self.renewal_certificate
        async with channel(self.address, self.authority, shown, self.key) as open_:
            stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(open_)
            call = stub.RenewCertificate(timeout=TIMEOUT_SECONDS)
            first = await call.read()
            assert isinstance(first, agent_pb2.RenewCertificateResponse)
            request = self.request()
            statement = renewal_statement(self.node_id, challenge or first.challenge, request)
            signature = (signing or self.signing).sign(RENEWAL_DOMAIN, statement)
            answer = agent_pb2.RenewCertificateRequest(
                certificate_request=request, signature=signature
            )
            await call.write(answer)
            last = await call.read()
            assert isinstance(last, agent_pb2.RenewCertificateResponse)
            return last.renewed

    def volume(self, name: str) -> VolumeId:
        """Report a volume of this name from the next connection on."""
        identity = volume_id(NodeId(self.node_id), "path", name)
        self.volumes.append(
            agent_pb2.VolumeReport(
                local_id=identity,
                name=name,
                source="path",
                path=b"/srv/" + name.encode(),
                verdict="protected",
            )
        )
        return identity

    @asynccontextmanager
    async def connected(self, running: list[str] | None = None) -> AsyncIterator["Connection"]:
        """Say hello and be welcomed."""
        async with self.calls() as stub:
            stream = stub.Connect()
            hello = agent_pb2.Hello(
                agent_version=self.version,
                oldest_protocol_version=self.speaks[0],
                protocol_version=self.speaks[1],
                volumes=self.volumes,
                running_task_ids=running or [],
            )
            await stream.write(agent_pb2.ConnectRequest(hello=hello))
            connection = Connection(self, stub, stream)
            connection.welcome = (await connection.next_message()).welcome
            yield connection
            stream.cancel()

    def make(self, writing: Writing, files: Mapping[str, bytes]) -> MadeSnapshot:
        """Packs and manifest of these files."""
        data = self.make_pack(writing, PackKind.DATA, ObjectType.DATA, list(files.values()))
        entries = {b"": entry(EntryType.DIRECTORY)}
        for path, content, place, chunk in zip(
            files, files.values(), data.locations, data.chunk_ids, strict=True
        ):
            extent = Extent(place.nonce, place.frame, place.chunk, 0, place.length, chunk)  # type: ignore[arg-type]
            entries[key_of(path.encode())] = entry(
                EntryType.FILE, len(content), Content(ChunkClass.SMALL, [extent], None)
            )
        node = encode_node(0, [(key, encode_entry(each)) for key, each in sorted(entries.items())])
        metadata = self.make_pack(writing, PackKind.METADATA, ObjectType.NODE, [node])
        packs = [data, metadata] if files else [metadata]
        live = {
            FrameIdentity(place.nonce, place.frame): place.length
            for pack in packs
            for place in pack.locations
        }
        place = metadata.locations[0]
        manifest = Pointer.at(metadata.chunk_ids[0], place)  # type: ignore[arg-type]
        refs = Refs.of(live, base=True).encode()
        return MadeSnapshot(packs, manifest, refs, len(files), sum(map(len, files.values())))

    def make_pack(
        self, writing: Writing, kind: PackKind, chunk_kind: ObjectType, contents: list[bytes]
    ) -> MadePack:
        """One pack with one frame for each content."""
        nonce = PackNonce(token_bytes(16))
        random = token_bytes(16)
        body = bytearray(encode_head(kind, random))
        frames, locations, chunk_ids = [], [], []
        for number, content in enumerate(contents):
            chunk = PlainChunk(writing.keys.ids.chunk_id(chunk_kind, content), content)
            plaintext = FrameEncoder().encode([chunk])
            sealed = bytearray(len(plaintext) + TAG_BYTES)
            FrameCipher(writing.keys.repository).seal_into(
                sealed,
                plaintext,
                frame_key(pack_key(writing.data_key, nonce), number),
                FrameIdentity(nonce, number),
                chunk_kind,
            )
            table = [(len(content), chunk.id)]
            frames.append(FrameEntry(0, number, chunk_kind, len(body), len(sealed), table))
            locations.append(Location(nonce, number, 0, len(content)))
            chunk_ids.append(chunk.id)
            body += sealed
        closing = PackSeal(
            repository=writing.keys.repository,
            nonce=nonce,
            session=SessionId(writing.session_id),
            node=NodeId(self.node_id),
            sealed_data_key=writing.sealed_data_key,
            pack_key=pack_key(writing.data_key, nonce),
            metadata_public=writing.keys.metadata_public,
            signing=self.signing,
        )
        trailer, digest = closing.finish(body, frames, token_bytes(32))
        name = pack_name(random, digest)
        return MadePack(name, bytes(body) + trailer, locations, list(chunk_ids))

    def sign(
        self,
        writing: Writing,
        volume: bytes,
        made: MadeSnapshot,
        *,
        parent: bytes | None = None,
        errors_total: int = 0,
    ) -> bytes:
        """The signed root of a snapshot."""
        head = root_hash(writing.head_root) if writing.head_root else b""
        body = RootBody(
            format=FORMAT,
            repository=writing.keys.repository,
            volume=VolumeId(volume),
            node=NodeId(self.node_id),
            session=SessionId(writing.session_id),
            parent=head if parent is None else parent,
            manifest=made.manifest,
            refs_hash=refs_hash(made.refs),
            detection=Detection.SWEEP,
            started_ns=0,
            total_files=made.total_files,
            total_bytes=made.total_bytes,
            fuzzy_files=0,
            errors_total=errors_total,
            label=b"",
        )
        return sign_root(body, self.signing)


@dataclass
class Connection:
    """An agent's open stream, and its calls."""

    agent: FakeAgent
    stub: "agent_pb2_grpc.AgentServiceAsyncStub"
    stream: "grpc.aio.StreamStreamCall[agent_pb2.ConnectRequest, agent_pb2.ConnectResponse]"
    welcome: agent_pb2.Welcome = field(default_factory=agent_pb2.Welcome)

    async def next_message(self) -> agent_pb2.ConnectResponse:
        """What the coordinator says next."""
        message = await self.stream.read()
        assert isinstance(message, agent_pb2.ConnectResponse), "the stream has ended"
        return message

    async def say(self, request: agent_pb2.ConnectRequest) -> None:
        """Say something on the stream."""
        await self.stream.write(request)

    async def open_session(self, task: agent_pb2.RunBackup) -> Writing:
        """Begin to write."""
        data_key = token_bytes(32)
        info = DATA_KEY_INFO + task.repository_id
        sealed = seal(task.recovery_public_key, data_key, info)
        opened = await self.stub.OpenSession(
            agent_pb2.OpenSessionRequest(task_id=task.task_id, sealed_data_key=sealed),
            timeout=TIMEOUT_SECONDS,
        )
        return Writing(
            opened.session_id,
            opened.fencing_token,
            WriterKeys.decode(opened.writer_keys),
            data_key,
            sealed,
            opened.head_root,
            opened.head_sequence,
            list(opened.packs_since_head),
        )

    async def upload(
        self, writing: Writing, pack: MadePack, *, raw: bytes | None = None, size: int = 0
    ) -> None:
        """Upload a pack, or other bytes under its name."""
        content = pack.raw if raw is None else raw

        async def requests() -> AsyncIterator[agent_pb2.UploadPackRequest]:
            header = agent_pb2.PackHeader(
                session_id=writing.session_id,
                fencing_token=writing.fencing_token,
                name=pack.name,
                size_bytes=size or len(content),
            )
            yield agent_pb2.UploadPackRequest(header=header)
            # Uneven pieces, one of them shorter than a pack's tail.
            for start, end in ((0, 7), (7, 1000), (1000, len(content) - 5), (-5, None)):
                yield agent_pb2.UploadPackRequest(data=content[slice(start, end)])

        await self.stub.UploadPack(requests(), timeout=TIMEOUT_SECONDS)

    async def commit(
        self,
        writing: Writing,
        signed_root: bytes,
        refs: bytes,
        result: common_pb2.BackupResult | None = None,
    ) -> agent_pb2.CommitResponse:
        """Make the snapshot."""

        async def requests() -> AsyncIterator[agent_pb2.CommitRequest]:
            header = agent_pb2.CommitHeader(
                session_id=writing.session_id,
                fencing_token=writing.fencing_token,
                signed_root=signed_root,
                result=result or common_pb2.BackupResult(files_new=1, bytes_read=5),
            )
            yield agent_pb2.CommitRequest(header=header)
            for start in range(0, len(refs), 50):
                yield agent_pb2.CommitRequest(refs=refs[start : start + 50])

        return await self.stub.Commit(requests(), timeout=TIMEOUT_SECONDS)

    async def back_up(
        self, task: agent_pb2.RunBackup, files: Mapping[str, bytes]
    ) -> agent_pb2.CommitResponse:
        """A whole backup, as a sound agent does it, but for saying that it is finished."""
        writing = await self.open_session(task)
        made = self.agent.make(writing, files)
        for pack in made.packs:
            await self.upload(writing, pack)
        signed = self.agent.sign(writing, task.volume_id, made)
        return await self.commit(writing, signed, made.refs)

    async def finish_backup(
        self, task_id: str, *, message: str = "", canceled: bool = False
    ) -> None:
        """Say that a backup has ended."""
        finished = agent_pb2.BackupFinished(task_id=task_id, canceled=canceled)
        if message:
            finished.error.CopyFrom(common_pb2.ErrorDetail(message=message, exit_code=1))
        await self.say(agent_pb2.ConnectRequest(backup_finished=finished))


def certificate_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """A PKCS#10 request, in PEM."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


async def ask_to_enrol(
    address: str,
    token: BootstrapToken,
    key: ec.EllipticCurvePrivateKey,
    signing_public_key: bytes,
    name: str,
) -> agent_pb2.EnrolResponse:
    """The call Enrol."""
    async with channel(
        address, token.ca_certificate, token.certificate, token.private_key
    ) as open_:
        stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(open_)
        return await stub.Enrol(
            agent_pb2.EnrolRequest(
                token_secret=token.secret,
                node_name=name,
                certificate_request=certificate_request(key, name),
                signing_public_key=signing_public_key,
            ),
            timeout=TIMEOUT_SECONDS,
        )


def entry(kind: EntryType, size: int = 0, content: Content | None = None) -> Entry:
    return Entry(
        type=kind,
        mode=0o755,
        uid=0,
        gid=0,
        mtime_ns=10**18,
        size=size,
        inode=0,
        ctime_ns=0,
        links=1,
        flags=0,
        device=0,
        target=None,
        xattrs=None,
        long_xattrs=None,
        content=content,
    )
