"""A directory as a store.

An object is written to a temporary file beside the others, flushed to disk, linked to its name
(which fails where the name is taken, unlike a rename), and the directory is flushed: after a power
cut it is there whole or not at all. Calls run in threads, so a slow disk stalls no event loop.
"""

import asyncio
import errno
import os
import secrets
import stat
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from typing_extensions import override

from repository.errors import (
    DamagedError,
    ObjectExistsError,
    ObjectMissingError,
    StoreFullError,
    StoreUnavailableError,
)
from repository.failpoints import failpoint
from repository.store.interface import ObjectInfo, ObjectWriter, Store, check_name, check_prefix

# Starts with a character that no object's name does.
_TEMPORARY: Final = ".tmp"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# A sector that cannot be read, and what XFS and ext4 say of wrong checksums.
_UNREADABLE: Final = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG})


@contextmanager
def _translated(name: str, top: Path) -> Iterator[None]:
    """Operating system errors as the store's own."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        # A disk that was unmounted is not a store that lost its objects.
        _check_present(top)
        raise ObjectMissingError(f"the repository has no object {name}") from error
    except FileExistsError as error:
        raise ObjectExistsError(f"the repository has an object {name} already") from error
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFullError(
                f"the repository's disk is full: cannot write {name}",
                hint="free space on the repository's disk or move the repository, then try again",
            ) from error
        raise StoreUnavailableError(
            f"the repository's disk failed at {name}: {error.strerror}",
            hint="check the disk that holds the repository",
        ) from error


@contextmanager
def _reading(name: str, top: Path) -> Iterator[None]:
    """The same for the bytes of an object: where they alone cannot be read, it is damaged.

    Whoever waits for a disk to come back would wait for a bad sector for ever.
    """
    with _translated(name, top):
        try:
            yield
        except OSError as error:
            if error.errno not in _UNREADABLE or not _can_be_read(top):
                raise
            raise DamagedError(
                f"{name} cannot be read: {error.strerror}",
                hint="check the repository's disk; tidemark verify says what it affects",
            ) from error


def _can_be_read(top: Path) -> bool:
    """Whether a disk still gives the bytes of anything: of the files beside the directories."""
    try:
        with os.scandir(top) as found:
            files = [Path(each) for each in found if each.is_file(follow_symlinks=False)]
        for path in files:
            with path.open("rb", buffering=0) as file:
                file.read(1)
    except OSError:
        return False
    return True


def _check_present(top: Path) -> None:
    if not top.is_dir():
        raise StoreUnavailableError(
            f"the repository's directory {top} is gone",
            hint="mount the disk that holds it, or restore it from a replica",
        )


class LocalStore(Store):
    """Objects as files below one directory, which must exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, name: str) -> Path:
        """Where an object lies."""
        return self._directory / check_name(name)

    @override
    def remove_leftovers(self) -> None:
        with _translated(_TEMPORARY, self._directory), suppress(FileNotFoundError):
            for leftover in sorted((self._directory / _TEMPORARY).iterdir()):
                leftover.unlink()

    @override
    def writer(self, name: str) -> ObjectWriter:
        temporary = self._directory / _TEMPORARY / secrets.token_hex(16)
        return _LocalWriter(name, temporary, self.path(name), self._directory)

    @override
    async def get(self, name: str) -> bytes:
        def read() -> bytes:
            with _translated(name, self._directory):
                return self.path(name).read_bytes()

        return await asyncio.to_thread(read)

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        data = await asyncio.to_thread(self._read_range, name, offset, length)
        if len(data) != length:
            raise DamagedError(
                f"{name} is shorter than it should be",
                hint="run tidemark verify to see what it affects",
            )
        return data

    def _read_range(self, name: str, offset: int, length: int) -> bytes:
        with _reading(name, self._directory), self.path(name).open("rb", buffering=0) as file:
            failpoint("store.read")
            file.seek(offset)
            pieces: list[bytes] = []
            while length > 0 and (piece := file.read(length)):
                pieces.append(piece)
                length -= len(piece)
            return b"".join(pieces)

    @override
    async def head(self, name: str) -> ObjectInfo:
        def size() -> int:
            with _translated(name, self._directory):
                status = self.path(name).stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    raise IsADirectoryError
                return status.st_size

        return ObjectInfo(name, await asyncio.to_thread(size))

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for info in await asyncio.to_thread(self._list, prefix):
            yield info

    def _list(self, prefix: str) -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        pending = [self._directory / check_prefix(prefix)]
        with _translated(prefix, self._directory):
            while pending:
                for entry in _entries(pending.pop()):
                    if entry.is_dir(follow_symlinks=False):
                        pending += [Path(entry.path)] if entry.name != _TEMPORARY else []
                    if not entry.is_file(follow_symlinks=False):
                        continue
                    # Deleted since its directory was read: then it is no object any more.
                    with suppress(FileNotFoundError):
                        size = entry.stat(follow_symlinks=False).st_size
                        name = str(Path(entry.path).relative_to(self._directory))
                        found.append(ObjectInfo(name, size))
        # What disappeared while it was listed does not look like an empty store.
        _check_present(self._directory)
        return sorted(found)

    @override
    async def delete(self, name: str) -> None:
        def remove() -> None:
            with _translated(name, self._directory):
                self.path(name).unlink()
                _flush_directory(self.path(name).parent)

        await asyncio.to_thread(remove)


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    """What a directory holds; nothing where there is none."""
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


class _LocalWriter(ObjectWriter):
    """An object on its way to disk.

    A canceled call's thread runs on for a while; so calls wait for each other, and the descriptor
    is never closed (and its number given to another file) under a thread that still writes.
    """

    def __init__(self, name: str, temporary: Path, final: Path, top: Path) -> None:
        self._name = name
        self._temporary = temporary
        self._final = final
        self._top = top
        self._descriptor = -1
        self._busy = threading.Lock()
        self._closed = False
        self._doubtful = False

    @override
    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self._open)
        except BaseException:
            await self._abort()
            raise
        return self

    def _open(self) -> None:
        with self._busy, _translated(self._name, self._top):
            if self._closed:
                return
            _check_present(self._top)
            self._temporary.parent.mkdir(exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._temporary, flags, 0o600)
            failpoint("store.opened")

    @override
    async def write(self, *pieces: bytes | bytearray | memoryview) -> None:
        await asyncio.to_thread(self._write, pieces)

    def _write(self, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        with self._busy, _translated(self._name, self._top):
            for piece in pieces:
                left = memoryview(piece)
                while left:
                    left = left[os.write(self._descriptor, left) :]
            failpoint("store.written")

    @override
    async def commit(self) -> None:
        await asyncio.to_thread(self._commit)

    def _commit(self) -> None:
        with self._busy, _translated(self._name, self._top):
            self._flush()
            failpoint("store.synced")
            _make_directories(self._final.parent, self._top)
            # A link, unlike a rename, fails where the name is taken.
            try:
                self._final.hardlink_to(self._temporary)
                failpoint("store.linked")
            finally:
                # A name that was there already may be that of a call whose flush failed.
                _flush_directory(self._final.parent)
            failpoint("store.committed")

    def _flush(self) -> None:
        # Linux forgets the pages that it could not write: a second flush of them would succeed.
        if self._doubtful:
            raise StoreUnavailableError(
                f"what was written of {self._name} may not have reached the repository's disk",
                hint="check the disk that holds the repository",
            )
        self._doubtful = True
        failpoint("store.syncing")
        os.fsync(self._descriptor)
        self._doubtful = False

    @override
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._abort()

    async def _abort(self) -> None:
        # Shielded: a second cancellation must not keep the file open.
        await asyncio.shield(asyncio.to_thread(self._close))

    def _close(self) -> None:
        with self._busy, _translated(self._name, self._top):
            self._closed = True
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
                with suppress(FileNotFoundError):
                    self._temporary.unlink()
                failpoint("store.closed")


def _make_directories(directory: Path, top: Path) -> None:
    """Make missing directories durable, from the top down."""
    missing = []
    while directory != top and not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        _flush_directory(each.parent)


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
