"""Grants from the packs of a coordinator in memory, some of its bytes damaged or missing."""

from collections.abc import Sequence

from msgspec import structs
from typing_extensions import override

from agent.errors import CoordinatorError
from agent.services import Grant, GrantedFrame, GrantedPack, RestoreClient
from repository.frames import FrameIdentity
from repository.keys import frame_key, seal, wrap
from repository.layout import GRANT_INFO, ReaderKeys
from repository.snapshot import Countersigning, Verdict, countersign, sign_root
from tests.fakes.coordinator import REPOSITORY, MemoryCoordinator

_KEY = b"g" * 32


class MemoryGrants(RestoreClient):
    """Grants the coordinator's last snapshot."""

    def __init__(self, coordinator: MemoryCoordinator) -> None:
        self._coordinator = coordinator
        self.single_frames = False
        """Whether frames are granted one by one, as those of another volume are."""
        self.missing: set[str] = set()
        self.root_errors = 0
        """Paths that could not be read when the snapshot was made, as its root says."""
        self.asked: list[tuple[str, list[tuple[int, int]]]] = []
        self.breaks = False
        """Whether a bit of each range is flipped when it is read for the first time."""
        self._broken: set[tuple[str, int]] = set()

    @override
    async def open_restore(self, task_id: str, public_key: bytes) -> Grant:
        packs, frames = [], []
        for nonce, (name, table, key) in self._coordinator.store._tables.items():
            if not self.single_frames:
                wrapped = wrap(_KEY, key, b"pack" + nonce)
                packs.append(GrantedPack(nonce, name, wrapped, table.encode()))
                continue
            for number, (offset, length) in table.places[nonce].items():
                context = b"frame" + nonce + number.to_bytes(4, "big")
                wrapped = wrap(_KEY, frame_key(key, number), context)
                frames.append(GrantedFrame(nonce, number, name, wrapped, offset, length))
        reader_keys = ReaderKeys(REPOSITORY, self._coordinator.ids).encode()
        return Grant(
            root=self._root(),
            sealed_grant_key=seal(public_key, _KEY, GRANT_INFO),
            wrapped_reader_keys=wrap(_KEY, reader_keys, b"reader keys"),
            packs=packs,
            frames=frames,
        )

    def _root(self) -> bytes:
        if not self.root_errors:
            return self._coordinator.roots[-1]
        body = structs.replace(self._coordinator.body(), errors_total=self.root_errors)
        signed = sign_root(body, self._coordinator.node)
        addition = Countersigning(1, 0, 1, Verdict.PARTIALLY_FAILED)
        return countersign(signed, addition, self._coordinator.node)

    @override
    async def read_pack(
        self, task_id: str, name: str, ranges: Sequence[tuple[int, int]], endpoint: str = ""
    ) -> list[memoryview]:
        self.asked.append((name, list(ranges)))
        pack = memoryview(self._coordinator.store.packs[name])
        if name in self.missing or any(at + length > len(pack) for at, length in ranges):
            raise CoordinatorError(f"pack {name} is not there, or not all of it")
        return [self._arrived(name, at, pack[at : at + length]) for at, length in ranges]

    def _arrived(self, name: str, at: int, sent: memoryview) -> memoryview:
        if not self.breaks or (name, at) in self._broken:
            return sent
        self._broken.add((name, at))
        flipped = bytearray(sent)
        flipped[len(sent) // 2] ^= 1
        return memoryview(flipped)

    def damage(self, identity: FrameIdentity) -> None:
        """Flip one byte of a frame."""
        name, table, _ = self._coordinator.store._tables[identity.nonce]
        place = table.find(identity)
        assert place is not None
        pack = bytearray(self._coordinator.store.packs[name])
        pack[place[0] + place[1] // 2] ^= 1
        self._coordinator.store.packs[name] = bytes(pack)
