"""The ends of packs, read from a store: one or two reads tell what a pack holds and who says so."""

from typing import Final

from repository.ids import RepositoryId
from repository.keys import UnsealingKey
from repository.pack import PackEnd, PackIndex, PackTail, Signers, parse_tail
from repository.store.interface import Store

# Of a pack's end, in which most footers lie whole.
END_BYTES: Final = 1024 * 1024


async def read_pack_end(
    store: Store, name: str, size: int, end: bytes = b""
) -> tuple[PackTail, PackEnd]:
    """Tail and sealed footer of a pack of so many bytes; DamagedError, StoreError.

    `end` is what was read of it already, if anything.
    """
    if not end:
        length = min(size, END_BYTES)
        end = await store.get_range(name, size - length, length)
    tail = parse_tail(end, size)
    missing = size - len(end) - tail.footer_offset
    if missing > 0:
        end = await store.get_range(name, tail.footer_offset, missing) + end
    footer = end[len(end) - (size - tail.footer_offset) :]
    return tail, PackEnd(tail, footer)


async def read_pack_index(store: Store, name: str, metadata_key: UnsealingKey) -> PackIndex:
    """A pack's footer, opened; DamagedError, KeyMaterialError, StoreError.

    Whose it is was checked before, or does not matter.
    """
    size = (await store.head(name)).size
    _, end = await read_pack_end(store, name, size)
    return end.open_with_metadata_key(metadata_key)


async def read_signed_index(
    store: Store,
    name: str,
    metadata_key: UnsealingKey,
    repository: RepositoryId,
    signers: Signers,
) -> PackIndex:
    """As `read_pack_index`; DamagedError, too, unless one of these signed the pack."""
    size = (await store.head(name)).size
    tail, end = await read_pack_end(store, name, size)
    tail.check_signer(repository, signers)
    return end.open_with_metadata_key(metadata_key)
