"""The stable read: the bytes of a regular file as they were at one moment, or the word that not.

A read counts as stable when the file's stat before and after are equal and as many bytes came as
that stat says. What kept changing for twenty tries is handed over all the same, and marked fuzzy.
A store into a page that is dirty already moves no time. So a suspect, which some process may be
storing to, is written out first: a stat that is equal on both sides of that says that every page
was clean at the second, and whoever stores from then on moves the ctime first. On tmpfs nothing is
ever written out, and nothing proves that a suspect there was read untorn, or is unchanged.
Bytes that were not read are never made up: a file that shrank is as long as what was read of it.
Nothing here blocks on a FIFO or a device, since nothing but a regular file is ever opened.
"""

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import msgspec

from agent.attributes import NO_ATTRIBUTES, Had, attributes_of
from agent.beneath import Tree, TreeCursor
from agent.errors import SourceError
from agent.syscalls import file_handle, write_out

# At 1 kHz a writer always leaves a gap within so many tries; at 5 kHz it never does.
TRIES = 20
# Kernels before 6.13 stamp files with a clock that moves every 1 to 10 ms: what changes twice
# within a tick has the same stamp. So a stamp younger than this proves nothing yet.
_TICK_NS = 20_000_000
# A write stamps the file when it begins, and a fault before the page is dirty: for as long as it
# is under way, bytes change under a stamp that was there before. Disks are given up on after 30 s.
_UNDER_WAY_NS = 30_000_000_000
_GENERATION_BYTES = 8
# What st_blocks counts, whatever the filesystem's own blocks are.
_STAT_BLOCK_BYTES = 512
# No file is larger, and no read may begin there.
_SIZE_MAX = (1 << 63) - 1
_VANISHED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EINVAL})


class VanishedError(SourceError):
    """The file is gone, or no longer a regular file. That is a change, not a failure."""


class Scanned(NamedTuple):
    """What a scan for files told that may be written to without an event."""

    suspects: frozenset[int] = frozenset()
    """Their inode numbers."""
    begun_ns: int | None = None
    """When it began, by the clock that stamps files; None if there was none."""


class Stat(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The fields of a stat that an entry holds, as they cross from one process to another."""

    st_mode: int
    st_ino: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_rdev: int
    st_mtime_ns: int
    st_ctime_ns: int

    @staticmethod
    def of(found: "os.stat_result | Stat") -> "Stat":
        """The same fields of a system call's answer."""
        return Stat(
            found.st_mode,
            found.st_ino,
            found.st_nlink,
            found.st_uid,
            found.st_gid,
            found.st_rdev,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )


class Content(msgspec.Struct, frozen=True, gc=False):
    """A file's whole content."""

    data: bytes | memoryview
    stat: os.stat_result | Stat
    fuzzy: bool
    """It changed while it was read, every time."""
    settled: bool
    """Later changes will show in its times. If not, its entry must make the next sweep read it."""
    bytes_read: int
    """Retries included."""
    had: Had
    generation: int
    """As `generation_of` says."""


class Other(msgspec.Struct, frozen=True, gc=False):
    """A name that is no regular file: a directory, a link, a device."""

    stat: os.stat_result
    target: bytes | None
    had: Had
    settled: bool
    generation: int


def read_small(
    tree: Tree | TreeCursor,
    key: bytes,
    size_bytes_max: int,
    now_ns: Callable[[], int] = time.time_ns,
    *,
    suspect: bool = False,
    scanned_ns: int | None = None,
) -> Content | None:
    """Read a file as a whole; None if it is larger than that, or grew while it was read.

    A `suspect` is one that a process had open for writing, or mapped and shared, at `scanned_ns`.
    Raises VanishedError, or SourceError for this path.
    """
    try:
        descriptor, before = tree.open_regular(key)
        try:
            return _read_stable(
                descriptor, before, size_bytes_max, now_ns, scanned_ns, suspect=suspect
            )
        finally:
            os.close(descriptor)
    except OSError as error:
        raise meaning_of(error) from error


def _read_stable(
    descriptor: int,
    before: os.stat_result,
    size_bytes_max: int,
    now_ns: Callable[[], int],
    scanned_ns: int | None,
    *,
    suspect: bool,
) -> Content | None:
    bytes_read = tries = 0
    data, had, read_at = b"", NO_ATTRIBUTES, 0
    fuzzy = quiet = provable = True
    while fuzzy and tries < TRIES:
        tries += 1
        if suspect:
            before, quiet, provable, more = _written_out(descriptor, before, TRIES + 1 - tries)
            tries += more - 1
        if before.st_size > size_bytes_max:
            return None
        if bytes_read:
            os.lseek(descriptor, 0, os.SEEK_SET)
        data = _read_whole(descriptor, before.st_size, size_bytes_max)
        had = attributes_of(descriptor)
        bytes_read += len(data)
        read_at = now_ns()
        after = os.fstat(descriptor)
        fuzzy = not (quiet and len(data) == before.st_size and is_same(before, after))
        before = after
    if len(data) > size_bytes_max:
        return None
    return Content(
        data,
        before,
        fuzzy=fuzzy,
        settled=not fuzzy and provable and is_settled(before, read_at, scanned_ns, suspect=suspect),
        bytes_read=bytes_read,
        had=had,
        generation=generation_of(descriptor, before),
    )


class _WrittenOut(NamedTuple):
    """What became of writing out a file that may be stored to."""

    stat: os.stat_result
    quiet: bool
    """It was the same before: whatever is stored from now on will show."""
    provable: bool
    """False on a filesystem where it never shows."""
    tries: int


def _written_out(descriptor: int, before: os.stat_result, tries_max: int) -> _WrittenOut:
    """Write the file out until nobody stored to it meanwhile, or as often as that."""
    provable, tries = True, 0
    while tries < tries_max:
        tries += 1
        provable = write_out(descriptor)
        after = os.fstat(descriptor)
        if is_same(before, after):
            return _WrittenOut(after, quiet=True, provable=provable, tries=tries)
        before = after
    return _WrittenOut(before, quiet=False, provable=provable, tries=tries)


def _read_whole(descriptor: int, size: int, size_bytes_max: int) -> bytes:
    # One byte more than there should be: the end of the file shows in the same call.
    data = os.read(descriptor, size + 1)
    if len(data) == size:
        return data
    parts = [data]
    total = len(data)
    while parts[-1] and total <= size_bytes_max:
        parts.append(os.read(descriptor, size_bytes_max + 1 - total))
        total += len(parts[-1])
    return b"".join(parts)


def is_same(before: os.stat_result, after: os.stat_result) -> bool:
    """Tell whether nothing was written to the file between the two."""
    return (
        before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
        and before.st_size == after.st_size
        and before.st_ino == after.st_ino
    )


def is_settled(
    found: os.stat_result, now_ns: int, scanned_ns: int | None = None, *, suspect: bool = False
) -> bool:
    """Tell whether whatever changes the file from now on will show in its times.

    The last change must be old enough for a later one to have another stamp; older than the scan
    that told of suspects, since which somebody may have mapped the file and made a page dirty; and
    of a suspect so old that it must be over. Only then does an equal stat mean an equal content.
    """
    begun_ns = now_ns if scanned_ns is None else min(now_ns, scanned_ns)
    age_ns = begun_ns - found.st_ctime_ns
    if suspect:
        return age_ns >= _UNDER_WAY_NS
    return age_ns >= _TICK_NS or found.st_ctime_ns > now_ns  # of a clock that was set back


def generation_of(descriptor: int, found: os.stat_result) -> int:
    """A number that only names of one inode share: inode numbers are given away again.

    0 for what has one name, or lies where the filesystem has no such thing.
    """
    if found.st_nlink <= 1 or stat.S_ISDIR(found.st_mode):
        return 0
    handle = file_handle(descriptor)
    if handle is None:
        return 0
    return int.from_bytes(hashlib.blake2b(handle, digest_size=_GENERATION_BYTES).digest(), "big")


class LargeFile:
    """A file read in windows. After the last one, `is_stable` says whether they fit together."""

    def __init__(self, tree: Tree, key: bytes, *, suspect: bool = False) -> None:
        """Open it; a `suspect` as in `read_small`. Raises VanishedError, or SourceError."""
        self._suspect = suspect
        self._quiet = self._provable = True
        with _translated():
            self.descriptor, self.stat = tree.open_regular(key)
        self._content = self.descriptor
        self.length, self.allocated = self.stat.st_size, self.stat.st_blocks * _STAT_BLOCK_BYTES
        """Of what is read: how long it is, and how much of that is no hole."""
        self.bytes_read = 0
        self.had = NO_ATTRIBUTES
        """Its attributes as they were when the last pass began; so with the generation."""
        self.generation = 0
        self.size = 0
        """Where the last complete pass over the file met its end."""

    def __enter__(self) -> Self:
        """Return itself; leaving closes."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = self._content = -1

    def begin(self) -> None:
        """Begin a pass over the file: from now on it must not change."""
        with _translated():
            self.stat = os.fstat(self.descriptor)
            if self._suspect:
                self.stat, self._quiet, self._provable, _ = _written_out(
                    self.descriptor, self.stat, TRIES
                )
            self.had = attributes_of(self.descriptor)
            self.generation = generation_of(self.descriptor, self.stat)
        self._content = self.descriptor
        self.length, self.allocated = self.stat.st_size, self.stat.st_blocks * _STAT_BLOCK_BYTES
        self.size = 0

    def read_clone(self, descriptor: int) -> None:
        """Read what a clone holds, from now on, that was made since the pass began.

        The stat stays the file's. Nobody writes to a clone, so all of it is of one moment.
        """
        found = os.fstat(descriptor)
        self._content = descriptor
        self.length, self.allocated = found.st_size, found.st_blocks * _STAT_BLOCK_BYTES

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill the buffer from there; fewer bytes than it holds mean the file ends there."""
        filled = 0
        with _translated():
            while filled < len(buffer):
                count = os.preadv(self._content, [buffer[filled:]], offset + filled)
                if not count:
                    break
                filled += count
        self.bytes_read += filled
        return filled

    def windows(self, take: Callable[[], memoryview]) -> Iterator[tuple[int, memoryview]]:
        """Begin a pass, and yield (offset, bytes) to the file's end, never an empty window.

        Each window lies in a buffer that `take` gave. A file that grows without end is read as
        far as it was long when the pass began.
        """
        self.begin()
        offset = 0
        while offset < self.length:
            buffer = take()[: self.length - offset]
            filled = self.read_into(buffer, offset)
            if filled:
                yield offset, buffer[:filled]
            offset += filled
            if filled < len(buffer):
                break
        self.size = offset

    def is_unchanged(self) -> bool:
        """Tell whether the file is what it was when the pass began."""
        with _translated():
            return self._quiet and is_same(self.stat, os.fstat(self.descriptor))

    def is_stable(self) -> bool:
        """Tell whether the file is what it was when the pass began, and was read completely.

        Raises SourceError for one that holds more than its size says, as those that a kernel makes
        up may: where it ends, if it does, cannot be known.
        """
        with _translated():
            end = self.stat.st_size
            beyond = end < _SIZE_MAX and os.pread(self.descriptor, 1, end)
        if not self.is_unchanged():
            return False
        if beyond:
            raise SourceError(
                f"it holds more than the {end} bytes that its size says",
                hint="exclude it: it is no file that could be restored",
            )
        return self.size == self.stat.st_size

    def is_settled(self, now_ns: int, scanned_ns: int | None = None) -> bool:
        """Tell whether a change since the last pass began will show, as the function says."""
        settled = is_settled(self.stat, now_ns, scanned_ns, suspect=self._suspect)
        return self._provable and settled

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, end) of what is no hole, so that a sparse giant costs what it holds."""
        with _translated():
            yield from data_ranges(self._content, begin, end)


def data_ranges(descriptor: int, offset: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, end) of what is no hole between two offsets of an open file."""
    while offset < end:
        try:
            begin = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        if begin >= end:
            return
        offset = min(end, os.lseek(descriptor, begin, os.SEEK_HOLE))
        yield begin, offset


def read_other(tree: Tree, key: bytes, now_ns: Callable[[], int] = time.time_ns) -> Other:
    """What there is to know of a name that is no regular file.

    Raises VanishedError, or SourceError for this path.
    """
    with _translated(), tree.held(key) as held:
        before = os.fstat(held)
        # Of a link itself, whose target never changes: an empty name means the descriptor's own.
        target = os.readlink(b"", dir_fd=held) if stat.S_ISLNK(before.st_mode) else None
        had = attributes_of(held, opened=False)
        after = os.fstat(held)
        tries = 1
        while not is_same(before, after) and tries < TRIES:
            before = after
            had = attributes_of(held, opened=False)
            after = os.fstat(held)
            tries += 1
        generation = generation_of(held, after)
    settled = is_same(before, after) and is_settled(after, now_ns())
    return Other(after, target, had, settled, generation)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise meaning_of(error) from error


def meaning_of(error: OSError) -> SourceError:
    """Say what an OSError means for a file that was about to be read."""
    if error.errno in _VANISHED:
        reason = (error.strerror or str(error)).lower()
        return VanishedError(f"gone while it was backed up: {reason}")
    return source_error(error)


def source_error(error: OSError) -> SourceError:
    """Say what an OSError means for the path of a volume that it happened to."""
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return SourceError("permission denied", hint="let the agent's user read it")
        case errno.EIO:
            return SourceError("the disk could not read it", hint="check the disk of the volume")
        case errno.EMFILE | errno.ENFILE:
            return SourceError("too many open files", hint="raise the limit (ulimit -n)")
        case _:
            return SourceError(f"cannot read it: {(error.strerror or str(error)).lower()}")
