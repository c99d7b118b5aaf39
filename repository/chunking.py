"""Where a file's content is cut into chunks, by kind of file.

Under 256 KiB a file is one chunk. Files that programs change in place, page by page (databases,
images of disks), are cut into aligned blocks of 64 KiB, so that one changed page costs one block.
All others are cut by content (FastCDC, keyed), so that an insertion moves no later boundary.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Final

# The extension module itself: the package falls back to pure Python at 0.5 % of the speed with a
# warning only, and a backup tool that slow is broken. This import fails instead.
from pyfastcdc.cy import FastCDC

from repository.entries import ChunkClass

SMALL_BYTES_MAX: Final = 256 * 1024
BLOCK_BYTES: Final = 64 * 1024
CHUNK_BYTES_MIN: Final = 256 * 1024
CHUNK_BYTES_AVERAGE: Final = 1024 * 1024
CHUNK_BYTES_MAX: Final = 4 * 1024 * 1024
# What `classify` wants to see of a file's beginning.
MAGIC_BYTES: Final = 8192

# Beginnings by which paged files are known. LMDB's magic stands behind its 16-byte page header.
_MAGICS: Final[tuple[tuple[int, bytes], ...]] = (
    (0, b"SQLite format 3\x00"),
    (0, b"QFI\xfb"),  # qcow2
    (0, b"KDMV"),  # VMDK
    (16, b"\xde\xc0\xef\xbe"),  # LMDB on little-endian machines
)
# Names by which they are known: PostgreSQL's relations (with forks and segments) and InnoDB's.
_NAMES: Final = re.compile(
    rb"(?:(?:^|/)(?:base/\d+|global|pg_tblspc/\d+/[^/]+/\d+)/\d+(?:_[a-z]+)?(?:\.\d+)?"
    rb"|\.(?:ibd|ibu|mdb|qcow2|vmdk|vdi|raw|img|sqlite|sqlite3|db)"
    rb"|(?:^|/)(?:ibdata\d+|undo_?\d+))\Z"
)


def classify(path: bytes, size: int, beginning: bytes, previous: ChunkClass | None) -> ChunkClass:
    """The class of a file of this path and size (bytes) that begins so. Sticky once paged/general.

    `beginning` is its first MAGIC_BYTES, or all of it.
    """
    if previous is ChunkClass.PAGED:
        return previous
    if size < SMALL_BYTES_MAX:
        return ChunkClass.SMALL
    if previous is ChunkClass.GENERAL:
        return previous
    by_magic = any(beginning[at : at + len(magic)] == magic for at, magic in _MAGICS)
    if by_magic or _NAMES.search(path):
        return ChunkClass.PAGED
    return ChunkClass.GENERAL


class ContentCutter:
    """FastCDC with a gear table keyed by the repository. Not for two threads at once."""

    def __init__(self, secret: bytes) -> None:
        """`secret`: the repository's chunker key; its first 63 bits re-key the gear table."""
        bounds = (BLOCK_BYTES, CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX)
        self.parameters = hashlib.blake2b(repr(bounds).encode(), key=secret[:64]).digest()
        """Names what decides where contents are cut."""
        self._cutter = FastCDC(
            avg_size=CHUNK_BYTES_AVERAGE,
            min_size=CHUNK_BYTES_MIN,
            max_size=CHUNK_BYTES_MAX,
            # 63 bits, since pyfastcdc refuses a seed with the 64th set.
            seed=int.from_bytes(secret[:8], "big") >> 1 | 1,
        )

    def cut(self, window: memoryview, *, last: bool) -> Iterator[int]:
        """Lengths of the chunks at the start of a window that are certain.

        While more is to come (`last` is False) a final chunk that the window's end may have cut
        short is left out; the caller brings those bytes again at the start of the next window.
        """
        position = 0
        for chunk in self._cutter.cut_buf(window):
            at_end = position + chunk.length == len(window)
            if at_end and not last and chunk.length < CHUNK_BYTES_MAX:
                return
            yield chunk.length
            position += chunk.length


def blocks(length: int) -> Iterator[int]:
    """Lengths of the aligned blocks of a paged file, the last one possibly shorter."""
    full, rest = divmod(length, BLOCK_BYTES)
    for _ in range(full):
        yield BLOCK_BYTES
    if rest:
        yield rest
