"""Making a repository, and telling whether the one at hand is this coordinator's.

A repository is made in an order that a crash cannot spoil: first everything that must be written is
kept in the coordinator's own state, then the objects are written, the config last, and only then is
it called founded. Nothing is ever founded over something that exists.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

import msgspec
from typing_extensions import override

from coordinator.custody import Custody, Random
from coordinator.errors import (
    FormatError,
    NoRepositoryError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
    UnsupportedFormatError,
)
from coordinator.logs import get_logger
from coordinator.stores import CAPABILITIES_NAME, PROBE_PREFIX, Place
from coordinator.vault import read_secret, write_secret
from repository.failpoints import failpoint
from repository.ids import ID_BYTES, IdKeys, NodeId, RepositoryId
from repository.keys import (
    KEY_BYTES,
    Certificate,
    SigningKey,
    UnsealingKey,
    certify,
)
from repository.layout import (
    CONFIG_NAME,
    FORMAT,
    KEYS_NAME,
    ReaderKeys,
    RepositoryConfig,
    RepositoryKeys,
    WriterKeys,
    certificate_name,
    decode_config,
)
from repository.store.interface import Locking, Signing, Store
from repository.store.readonly import ReadOnlyStore

log = get_logger()

# A request to the store that is signed for an agent begins within this, or is signed anew; how long
# it then takes does not matter.
SIGNED_SECONDS: Final = 300
# More than the objects that found a repository, with their directories.
_TRIED_BYTES: Final = 64 * 1024

_REBUILD_HINT: Final = "give the --data directory that belongs to it, or choose an empty directory"
_BUCKET_HINT: Final = (
    "give the --data directory that belongs to it, or another bucket or prefix for a new repository"
)


class _State(msgspec.Struct, frozen=True, array_like=True):
    """The coordinator's own copies of keys, beside its catalog."""

    version: int
    coordinator_id: bytes
    signing_seed: bytes
    config: bytes
    keys: RepositoryKeys
    # Objects still to be written; none once the repository is founded.
    pending: dict[str, bytes]

    @override
    def __repr__(self) -> str:
        return "_State(hidden)"


_states = msgspec.msgpack.Decoder(_State)


@dataclass(frozen=True)
class Repository:
    """A repository that is this coordinator's: where it lies, who it is, and the keys at hand."""

    store: Store
    place: Place
    config: RepositoryConfig
    keys: RepositoryKeys
    signing: SigningKey
    coordinator_id: bytes

    @property
    def signing_store(self) -> Signing | None:
        """The store, where agents may send it requests that are signed here."""
        return self.place.signing if self._is_written else None

    @property
    def locking(self) -> Locking | None:
        """The store's locks, where the settings ask for some and it may be written to."""
        return self.place.locking if self._is_written else None

    @property
    def _is_written(self) -> bool:
        """Whether it is more than read."""
        return self.store is self.place.store

    @property
    def location(self) -> str:
        """Where it lies, as a person writes it."""
        return self.place.location

    @property
    def metadata_key(self) -> UnsealingKey:
        """Opens footers of packs, refs and labels."""
        return UnsealingKey(self.keys.metadata_private)

    def writer_keys(self) -> bytes:
        """What an agent needs to write."""
        keys = WriterKeys(
            repository=self.config.repository,
            ids=self.keys.ids,
            chunker=self.keys.chunker,
            boundaries=self.keys.boundaries,
            recovery_public=self.config.recovery_public,
            metadata_public=self.config.metadata_public,
        )
        return keys.encode()

    def reader_keys(self) -> bytes:
        """What a restoring agent needs beside the keys of packs."""
        return ReaderKeys(self.config.repository, self.keys.ids).encode()

    async def keep_certificate(self, node_id: NodeId, signing_public: bytes) -> None:
        """Write that statement into the repository; once is enough."""
        try:
            await self.store.put(
                certificate_name(node_id), self.certify_node(node_id, signing_public)
            )
        except ObjectExistsError:
            return

    def certify_node(self, node_id: NodeId, signing_public: bytes) -> bytes:
        """The coordinator's statement that a signing key is a node's."""
        return certify(self.signing, Certificate("node", node_id, signing_public))


async def open_repository(
    place: Place, state_file: Path, custody: Custody, *, random: Random, now: int
) -> Repository:
    """The coordinator's own repository, made if there is none; NoRepositoryError for another's.

    One with a feature that this version does not know is opened with a store that takes nothing.
    """
    store = place.store
    state = _read_state(state_file)
    if state is None:
        await _check_empty(place)
        if place.directory is not None:
            await asyncio.to_thread(_try_directory, place.directory)
        state = repository_init(custody, random=random, now=now)
        write_secret(state_file, msgspec.msgpack.encode(state))
        failpoint("coordinator.founding.begun", StoreError)
    if state.pending:
        if place.directory is not None:
            await asyncio.to_thread(_make_directory, place.directory)
        await _write_pending(store, state.pending)
        state = msgspec.structs.replace(state, pending={})
        write_secret(state_file, msgspec.msgpack.encode(state))
        failpoint("coordinator.founding.done", StoreError)
    config = await read_config(place)
    check_ours(place, config, decode_config(state.config).repository)
    try:
        config.check_writable()
    except UnsupportedFormatError as error:
        log.warning("the repository is only read", reason=error.message, hint=error.hint)
        store = ReadOnlyStore(store, error)
    # It is ours, and nothing writes yet.
    await asyncio.to_thread(store.remove_leftovers)
    return Repository(
        store=store,
        place=place,
        config=config,
        keys=state.keys,
        signing=SigningKey(state.signing_seed),
        coordinator_id=state.coordinator_id,
    )


def repository_init(custody: Custody, *, random: Random, now: int) -> _State:
    """All keys of a new repository, and the objects that found it. Writes nothing."""
    repository = RepositoryId(random(ID_BYTES))
    metadata = UnsealingKey(random(KEY_BYTES))
    keys = RepositoryKeys(
        ids=IdKeys(data=random(KEY_BYTES), node=random(KEY_BYTES), list=random(KEY_BYTES)),
        chunker=random(KEY_BYTES),
        boundaries=random(KEY_BYTES),
        metadata_private=metadata.reveal(),
    )
    signing = custody.signing_key()
    config = RepositoryConfig(
        format=FORMAT,
        repository=repository,
        created_ns=now,
        features=[],
        recovery_public=custody.recovery_public(),
        signing_public=signing.public,
        metadata_public=metadata.public,
    ).encode(signing)
    coordinator_id, seed = random(ID_BYTES), random(KEY_BYTES)
    certificate = Certificate("coordinator", coordinator_id, SigningKey(seed).public)
    pending = {
        KEYS_NAME: keys.sealed_to(custody.recovery_public(), repository),
        certificate_name(coordinator_id): certify(signing, certificate),
        # Last: its presence says that the rest is there.
        CONFIG_NAME: config,
    }
    return _State(1, coordinator_id, seed, config, keys, pending)


def is_founded(state_file: Path) -> bool:
    """Whether this coordinator has a repository, whole or begun."""
    return _read_state(state_file) is not None


def founded_config(state_file: Path) -> RepositoryConfig | None:
    """What the repository is, whole or begun, without looking at it; None where there is none."""
    state = _read_state(state_file)
    return None if state is None else decode_config(state.config)


def _read_state(path: Path) -> _State | None:
    content = read_secret(path)
    if content is None:
        return None
    try:
        return _states.decode(content)
    except (msgspec.DecodeError, ValueError) as error:
        raise FormatError(
            f"the coordinator's keys {path} are damaged", hint="put the file back from a copy"
        ) from error


async def _check_empty(place: Place) -> None:
    """NoRepositoryError unless nothing is there that somebody may want to keep."""
    if place.directory is not None:
        await asyncio.to_thread(_check_empty_directory, place.directory)
        return
    if await _is_there(place.store, CONFIG_NAME):
        raise NoRepositoryError(
            f"{place.location} holds a repository, and this coordinator has none of its keys",
            hint=_BUCKET_HINT,
        )
    async for info in place.store.list_objects(""):
        # Whoever may not delete leaves there what the probe has written.
        if info.name != CAPABILITIES_NAME and not info.name.startswith(PROBE_PREFIX):
            raise NoRepositoryError(
                f"{place.location} is not empty and holds no repository",
                hint="choose an empty bucket, or another prefix in it",
            )


async def _is_there(store: Store, name: str) -> bool:
    try:
        await store.head(name)
    except ObjectMissingError:
        return False
    return True


def _check_empty_directory(directory: Path) -> None:
    with _telling(directory):
        if not directory.exists():
            return
        if not directory.is_dir():
            raise NoRepositoryError(f"{directory} is not a directory", hint=_REBUILD_HINT)
        names = {entry.name for entry in directory.iterdir()} - {"lost+found"}
    if CONFIG_NAME in names:
        raise NoRepositoryError(
            f"{directory} holds a repository, and this coordinator has none of its keys",
            hint=_REBUILD_HINT,
        )
    if names:
        raise NoRepositoryError(
            f"{directory} is not empty and holds no repository", hint="choose an empty directory"
        )


def _try_directory(directory: Path) -> None:
    """StoreError unless it can be written to; as a bucket is, it is tried before keys are drawn.

    A founding that has begun goes on until it is done, and here it never could.
    """
    was_there = directory.exists()
    _make_directory(directory)
    try:
        with _telling(directory), TemporaryFile(dir=directory) as file:
            file.write(bytes(_TRIED_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except StoreError:
        if not was_there:
            with suppress(OSError):
                directory.rmdir()
        raise


def _make_directory(directory: Path) -> None:
    with _telling(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def _telling(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"no repository can be made in {directory}: {error.strerror}",
            hint="choose a directory on a disk with space that the coordinator may write to; "
            "its unit lets it write where ReadWritePaths says",
        ) from error


async def _write_pending(store: Store, pending: Mapping[str, bytes]) -> None:
    for name, content in pending.items():
        try:
            await store.put(name, content)
            failpoint("coordinator.founding.object_written", StoreUnavailableError)
        except ObjectExistsError:
            # Written by the same founding before it was interrupted, or by somebody else.
            if await store.get(name) != content:
                raise NoRepositoryError(
                    "somebody else has written to the repository's place meanwhile",
                    hint="choose an empty one",
                ) from None


async def read_config(place: Place, store: Store | None = None) -> RepositoryConfig:
    """The config that lies there, read from another view of the store if one is given."""
    try:
        return decode_config(await (store or place.store).get(CONFIG_NAME))
    except ObjectMissingError as error:
        raise NoRepositoryError(
            f"there is no repository in {place.location}, where this coordinator's was",
            hint="mount its disk or give --repository; nothing new is made in its place"
            if place.directory is not None
            else "check the bucket, the prefix and the endpoint; nothing new is made in its place",
        ) from error


def check_ours(place: Place, config: RepositoryConfig, ours: RepositoryId) -> None:
    """NoRepositoryError where what lies there is another repository."""
    if config.repository != ours:
        raise NoRepositoryError(
            f"{place.location} holds the repository {config.repository.hex()}, "
            "which is not this coordinator's",
            hint=_of_another(place),
        )


def _of_another(place: Place) -> str:
    return _BUCKET_HINT if place.directory is None else _REBUILD_HINT
