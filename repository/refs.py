"""Refs: which frames a snapshot added to and dropped from its volume, with live bytes per frame.

A delta names the frames whose number of references changed since the volume's previous snapshot;
zero live bytes mean that the snapshot no longer needs the frame. A base names all frames that it
needs. Collection reads these and never walks a manifest.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3

from repository.errors import UNDECODABLE, FormatError
from repository.frames import FrameIdentity
from repository.ids import ID_BYTES, PackNonce

# More than a base of the largest volume that one commit may bring (4 million frames, 4 TiB).
REFS_BYTES_MAX: Final = 64 * 1024 * 1024


class Refs(msgspec.Struct, frozen=True, array_like=True):
    """Live bytes by frame number, by pack nonce; sorted, so that it has one encoding."""

    base: bool
    packs: list[tuple[PackNonce, list[tuple[int, int]]]]

    @staticmethod
    def of(live: Mapping[FrameIdentity, int], *, base: bool) -> "Refs":
        """From live bytes by frame."""
        packs: dict[PackNonce, list[tuple[int, int]]] = {}
        for identity, live_bytes in sorted(live.items()):
            packs.setdefault(identity.nonce, []).append((identity.number, live_bytes))
        return Refs(base, list(packs.items()))

    def live(self) -> dict[FrameIdentity, int]:
        """Live bytes by frame."""
        return {
            FrameIdentity(nonce, number): live_bytes
            for nonce, frames in self.packs
            for number, live_bytes in frames
        }

    def encode(self) -> bytes:
        """The one encoding."""
        return msgspec.msgpack.encode(self)


_refs = msgspec.msgpack.Decoder(Refs)


def decode_refs(encoded: bytes) -> Refs:
    """Refs; FormatError for anything else."""
    try:
        refs = _refs.decode(encoded)
    except UNDECODABLE as error:
        raise FormatError("refs do not decode") from error
    numbers = [number for _, frames in refs.packs for number, _ in frames]
    live = [live_bytes for _, frames in refs.packs for _, live_bytes in frames]
    possible = min(numbers + live, default=0) >= 0 and max(numbers, default=0) < 1 << 32
    if any(len(nonce) != ID_BYTES for nonce, _ in refs.packs) or not possible:
        raise FormatError("refs name an impossible frame")
    if Refs.of(refs.live(), base=refs.base).encode() != encoded:
        raise FormatError("refs are not encoded as refs are")
    return refs


def refs_hash(encoded: bytes) -> bytes:
    """What the root holds of the refs: 32 bytes."""
    return blake3(encoded).digest()


class Interval(NamedTuple):
    """A frame is needed by a volume's snapshots of sequences in [begin, end), for ever if None."""

    identity: FrameIdentity
    begin: int
    end: int | None
    live_bytes: int


class RefsLog:
    """What a volume's snapshots need, made of their refs one after the other."""

    def __init__(self) -> None:
        self._ended: list[Interval] = []
        self._open: dict[FrameIdentity, Interval] = {}
        self._sequence = 0

    def append(self, sequence: int, refs: Refs) -> None:
        """Add the refs of the next snapshot."""
        assert sequence > self._sequence, "a log goes forward"
        self._sequence = sequence
        changed = refs.live()
        for identity in list(self._open) if refs.base else changed:
            interval = self._open.pop(identity, None)
            if interval is not None:
                self._ended.append(interval._replace(end=sequence))
        for identity, live_bytes in changed.items():
            if live_bytes > 0:
                self._open[identity] = Interval(identity, sequence, None, live_bytes)

    def intervals(self) -> Iterator[Interval]:
        """All intervals, in no order."""
        yield from self._ended
        yield from self._open.values()

    def needed(self) -> dict[FrameIdentity, int]:
        """What the newest snapshot needs: live bytes by frame."""
        return {identity: interval.live_bytes for identity, interval in self._open.items()}
