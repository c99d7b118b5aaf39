"""Frames copied into a new pack as they are, so that the packs they lay in can go.

Whoever copies needs no key that opens a frame: a frame's key, nonce and associated data depend on
its identity and on nothing else, so manifests and extents that name it stay as they are. What is
needed is the metadata key, which opens footers, and the key with which a coordinator signs.

A pack is copied from only after all of it was checked: its hash, its name, its signer. Otherwise a
coordinator would answer for damage. All frames of an origin that are still needed go into one pack
together, since a pack nonce leads to one pack; which ones those are is the caller's to know.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import msgspec
from blake3 import blake3

from repository.errors import DamagedError, UsageError
from repository.frames import FrameIdentity
from repository.ids import ID_BYTES, PackNonce, RepositoryId
from repository.keys import KEY_BYTES, SigningKey, UnsealingKey
from repository.layout import pack_name, parse_pack_name
from repository.pack import (
    FOOTER_BYTES_MAX,
    PACK_BYTES_MAX,
    TAIL_BYTES,
    FooterKeys,
    FrameEntry,
    Origin,
    PackEnd,
    PackIndex,
    PackKind,
    PackSigning,
    Signer,
    Signers,
    decode_head,
    encode_head,
    finish_copy,
    parse_tail,
    read_index,
)
from repository.store.interface import Store

T = TypeVar("T")


class Run(Protocol):
    """Runs work where it holds nobody up, as in a thread."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """What the work returns."""
        ...


class Collector(msgspec.Struct, frozen=True):
    """Whoever copies: a coordinator, and the keys that it has while custody is locked."""

    repository: RepositoryId
    coordinator_id: bytes
    signing: SigningKey
    metadata: UnsealingKey
    signers: Signers


@dataclass(frozen=True)
class Source:
    """A whole pack in memory that was checked."""

    kind: PackKind
    raw: bytes
    index: PackIndex
    keys: FooterKeys


@dataclass(frozen=True)
class Copied:
    """A new pack."""

    name: str
    raw: bytes
    index: PackIndex


def open_source(name: str, raw: bytes, collector: Collector) -> Source:
    """Check all of a pack but the insides of its frames; DamagedError, KeyMaterialError."""
    random, digest = parse_pack_name(name)
    if blake3(raw).digest(ID_BYTES) != digest or decode_head(raw)[1] != random:
        raise DamagedError(f"{name} is not the pack that was stored under this name")
    tail = parse_tail(raw[-TAIL_BYTES:], len(raw))
    tail.check_signer(collector.repository, collector.signers)
    kind, index = read_index(raw, collector.metadata)
    keys = PackEnd(tail, raw[tail.footer_offset :]).footer_keys(collector.metadata)
    return Source(kind, raw, index, keys)


def copy_frames(
    chosen: Sequence[tuple[Source, Collection[FrameIdentity]]],
    collector: Collector,
    *,
    random: bytes,
    footer_key: bytes,
) -> Copied:
    """A pack of the chosen frames of these packs, which are of one kind; UsageError.

    `random` is 16 and `footer_key` 32 random bytes, used for this pack alone.
    """
    assert (len(random), len(footer_key)) == (ID_BYTES, KEY_BYTES)
    kinds = {source.kind for source, _ in chosen}
    if len(kinds) != 1:
        raise UsageError("frames are copied from packs of one kind, and at least one pack")
    body = bytearray(encode_head(kinds.pop(), random))
    origins: dict[PackNonce, Origin] = {}
    origin_keys: list[bytes] = []
    frames: list[FrameEntry] = []
    for source, identities in chosen:
        numbers = _add_origins(source, identities, origins, origin_keys)
        for entry in _entries(source, identities):
            origin = numbers[entry.origin]
            frames.append(msgspec.structs.replace(entry, origin=origin, offset=len(body)))
            body += memoryview(source.raw)[entry.offset : entry.offset + entry.length]
    relayed = [
        origin.relayed(key, footer_key, random)
        for origin, key in zip(origins.values(), origin_keys, strict=True)
    ]
    index = PackIndex(relayed, frames)
    return _finished(body, random, index, FooterKeys(footer_key, origin_keys), collector)


def _add_origins(
    source: Source,
    identities: Collection[FrameIdentity],
    origins: dict[PackNonce, Origin],
    keys: list[bytes],
) -> dict[int, int]:
    """Add those origins of a pack whose frames are chosen: their old numbers and the new ones."""
    wanted = {identity.nonce for identity in identities}
    numbers: dict[int, int] = {}
    for number, origin in enumerate(source.index.origins):
        if origin.nonce not in wanted:
            continue
        if origin.nonce in origins:
            raise UsageError(f"frames of {origin.nonce.hex()} are chosen from two packs")
        numbers[number] = len(origins)
        origins[origin.nonce] = origin
        keys.append(source.keys.origins[number])
    return numbers


def _entries(source: Source, identities: Collection[FrameIdentity]) -> list[FrameEntry]:
    """The chosen frames in the order in which they lie; UsageError where one does not."""
    wanted = set(identities)
    found = [entry for entry in source.index.frames if source.index.identity(entry) in wanted]
    if not found or len(found) != len(wanted):
        raise UsageError("a frame is to be copied that its pack does not hold, or none at all")
    return sorted(found, key=lambda entry: entry.offset)


def _finished(
    body: bytearray, random: bytes, index: PackIndex, keys: FooterKeys, collector: Collector
) -> Copied:
    """The pack, read back before anybody relies on it."""
    kind, _ = decode_head(bytes(body))
    signing = PackSigning(
        collector.repository, Signer.COORDINATOR, collector.coordinator_id, collector.signing
    )
    trailer, digest = finish_copy(body, index, keys, collector.metadata.public, signing)
    size = len(body) + len(trailer)
    if size > PACK_BYTES_MAX or len(trailer) > FOOTER_BYTES_MAX:
        raise UsageError("more frames are to be copied than a pack may hold")
    raw = bytes(body) + trailer
    if read_index(raw, collector.metadata) != (kind, index):
        raise DamagedError(
            "a pack of copied frames does not read back",
            hint="check this machine's memory; nothing was stored or removed",
        )
    return Copied(pack_name(random, digest), raw, index)


async def copy_packs(
    store: Store,
    chosen: Mapping[str, Collection[FrameIdentity]],
    collector: Collector,
    *,
    random: Callable[[int], bytes],
    run: Run,
) -> Copied:
    """Store a new pack with these frames of the packs of these names; the old ones stay.

    It is durable when this returns. Sources and copy are in memory together: choose no more than
    fits. DamagedError where a source is not whole, StoreError, UsageError.
    """
    sources = []
    for name, identities in chosen.items():
        raw = await store.get(name)
        sources.append((await run(partial(open_source, name, raw, collector)), identities))
    bits, footer_key = random(ID_BYTES), random(KEY_BYTES)
    copied = await run(partial(copy_frames, sources, collector, random=bits, footer_key=footer_key))
    await store.put(copied.name, copied.raw)
    return copied
