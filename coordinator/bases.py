"""What is stored of a volume, for an agent that does not know it.

That is what the last snapshot holds, where the agent has lost its own copy of that; and packs that
its attempts since have stored, where it died, or was cut off, before it heard that they were taken.

Ids and places of chunks, and no keys: enough to know what need not be sent again, and nothing that
opens it. They stand in the footers of packs, which the coordinator reads with its metadata key.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Final

from coordinator.catalog import Catalog
from coordinator.errors import (
    CatalogError,
    DamagedError,
    KeyMaterialError,
    ObjectMissingError,
    StoreUnavailableError,
)
from coordinator.founding import Repository
from coordinator.logs import get_logger
from coordinator.model import Node, Session
from coordinator.sessions import Sessions
from repository.failpoints import failpoint
from repository.footers import read_signed_index
from repository.frames import FrameIdentity
from repository.ids import ChunkId, PackNonce, SessionId
from repository.pack import FrameTable, Signer, Signers, identities
from repository.store.counting import charged

log = get_logger()

# Footers of so many packs are read before the places of the next are looked up.
_NONCES: Final = 64


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """The chunks of a frame in their order, each with its length in bytes."""

    identity: FrameIdentity
    chunks: list[tuple[int, ChunkId]]
    # Another node stored it: only the volume that held it may name it.
    borrowed: bool


class Bases:
    """Tells what is stored."""

    def __init__(self, catalog: Catalog, sessions: Sessions) -> None:
        self._catalog = catalog
        self._sessions = sessions

    async def read(
        self,
        session_id: SessionId,
        fencing_token: int,
        node: Node,
        since_head: Collection[PackNonce] = (),
    ) -> AsyncIterator[list[StoredFrame]]:
        """The frames of the newest snapshot of a session's volume, pack by pack; FencedError.

        With `since_head` those of these packs instead, as far as the session was told of them. A
        pack that cannot be read is left out: what it held is then stored anew.
        """
        session = await self._sessions.writing(session_id, fencing_token, node)
        failpoint("coordinator.base.begun", CatalogError)
        repository = self._sessions.of(session).repository
        if since_head:
            needed = await self._since_head(session, since_head)
        else:
            head = await self._sessions.head(session)
            needed = {} if head is None else await self._catalog.ledger.references(head)
        nonces = list(needed)
        signers = await self._signers(repository)
        for start in range(0, len(nonces), _NONCES):
            places = await self._catalog.ledger.places(nonces[start : start + _NONCES])
            wanted: defaultdict[str, set[FrameIdentity]] = defaultdict(set)
            borrowed: set[PackNonce] = set()
            for nonce, place in places.items():
                wanted[place.name] |= {FrameIdentity(nonce, each) for each in needed[nonce]}
                if place.origin.node_id != node.node_id:
                    borrowed.add(nonce)
            for name, frames in wanted.items():
                self._sessions.still_writing(session)
                with charged(self._sessions.tally(session)):
                    found = await _stored(repository, name, frames, signers, borrowed)
                if found:
                    failpoint("coordinator.base.read", StoreUnavailableError)
                    yield found

    async def _since_head(
        self, session: Session, asked: Collection[PackNonce]
    ) -> dict[PackNonce, list[int]]:
        """All frames of those packs that the session was told of; others are nobody's to name."""
        told = set(await self._sessions.packs_since_head(session))
        nonces = [nonce for nonce in asked if nonce in told]
        needed = {}
        for start in range(0, len(nonces), _NONCES):
            places = await self._catalog.ledger.places(nonces[start : start + _NONCES])
            for nonce, place in places.items():
                needed[nonce] = list(FrameTable.decode(place.frame_table).places.get(nonce, {}))
        return needed

    async def _signers(self, repository: Repository) -> Signers:
        """Everybody whose packs were ever taken in, and this coordinator."""
        nodes = await self._catalog.fleet.nodes()
        mine = (Signer.COORDINATOR, repository.coordinator_id)
        signers = {(Signer.NODE, bytes(node.node_id)): node.signing_public_key for node in nodes}
        return {**signers, mine: repository.signing.public}


async def _stored(
    repository: Repository,
    name: str,
    frames: Collection[FrameIdentity],
    signers: Signers,
    borrowed: Collection[PackNonce],
) -> list[StoredFrame]:
    """The chunks of these frames, as the pack's signer says."""
    store, key = repository.store, repository.metadata_key
    try:
        index = await read_signed_index(store, name, key, repository.config.repository, signers)
    except (DamagedError, KeyMaterialError, ObjectMissingError) as error:
        log.warning("pack left out of a base", pack=name, reason=error.message)
        return []
    return await asyncio.to_thread(
        lambda: [
            StoredFrame(identity, entry.chunks, identity.nonce in borrowed)
            for identity, entry in identities(index)
            if identity in frames
        ]
    )
