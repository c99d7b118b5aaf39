"""What the catalog knows is in the store: told by it and the recovery kit, equal to the last row.

The catalog and all else of the coordinator and the agent is only looked at to compare.
"""

import asyncio
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from typing import TypeVar

import pytest

from coordinator.founding import _read_state
from repository.copying import Collector, copy_packs
from repository.entries import path_of
from repository.frames import FrameIdentity
from repository.keys import SigningKey
from repository.layout import ReaderKeys, RecoveryKit, parse_kit
from repository.pack import PackKind, Signer, identities
from repository.reader import SnapshotReader
from repository.rebuilding import Rebuilder, StoredPack, StoredVolume, Unreadable, home_of
from repository.store.local import LocalStore
from tests.e2e.harness import Machine
from tests.fakes.ledger import held_by_catalog, held_by_store
from tests.fakes.packs import StoreFrames

T = TypeVar("T")
ROUNDS = 7


@dataclass(frozen=True)
class History:
    """A repository after a random history, its catalog, its kit, and what was backed up last."""

    repository: Path
    catalog: Path
    kit: RecoveryKit
    coordinator_id: bytes
    signing: SigningKey
    files: dict[str, dict[bytes, bytes]]
    """Contents by path, by volume's name."""
    volumes: dict[str, bytes]
    """Ids by name."""


def change(root: Path, source: random.Random) -> None:
    """A few random things happen to a tree: files come, grow, are edited, move, and go."""
    for _ in range(source.randrange(1, 9)):
        files = sorted(path for path in root.rglob("*") if path.is_file())
        act = source.choice(["make", "make", "edit", "append", "remove", "rename", "prune"])
        if act == "make" or not files:
            directory = root / source.choice(["", "d", "d/e"])
            directory.mkdir(parents=True, exist_ok=True)
            # Content from few different ones, so that chunks are shared; paged and general files.
            size = source.choice([0, 10, 5_000, 300_000, 1_500_000])
            content = random.Random(source.randrange(6)).randbytes(size)
            name = f"{source.randrange(30)}{source.choice(['', '.db'])}"
            (directory / name).write_bytes(content)
            continue
        path = source.choice(files)
        if act == "edit" and path.stat().st_size:
            with path.open("r+b") as file:
                file.seek(source.randrange(path.stat().st_size))
                file.write(source.randbytes(100))
        elif act == "append":
            with path.open("ab") as file:
                file.write(source.randbytes(70_000))
        elif act == "rename":
            path.rename(path.with_name(f"renamed-{source.randrange(30)}"))
        elif act == "prune" and (root / "d").exists():
            shutil.rmtree(root / "d")
        else:
            path.unlink()


def contents(root: Path) -> dict[bytes, bytes]:
    return {
        bytes(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module", params=[1, 2])
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> History:
    source = random.Random(request.param)
    top = tmp_path_factory.mktemp("history")
    machine, data = Machine(top / "home"), top / "data"
    trees = {name: top / name for name in ("one", "two")}
    for tree in trees.values():
        tree.mkdir()
        change(tree, source)
    protect = [f"{name}={tree}" for name, tree in trees.items()]
    lost_state_after = source.randrange(2, ROUNDS - 1)
    with machine.up(data, *protect) as up:
        up.backup()
        for _ in range(lost_state_after):
            chosen = source.choice(["one", "two"])
            change(trees[chosen], source)
            up.backup(*source.choice([(chosen,), ("one", "two")]))
    # From an agent without its state comes a base, which replaces what was needed before.
    for path in data.rglob("state.db*"):
        path.unlink()
    with machine.up(data, *protect) as up:
        for _ in range(ROUNDS - lost_state_after):
            change(trees[source.choice(["one", "two"])], source)
            up.backup()
        kit = up.json("repo", "recovery-kit")["kit"]
        volumes = {
            one["volume"]: bytes.fromhex(one["volume_id"]) for one in up.json("volume", "list")
        }
    files = {name: contents(tree) for name, tree in trees.items()}
    state = _read_state(data / "coordinator/keys")
    assert state is not None
    return History(
        repository=data / "repository",
        catalog=data / "coordinator/catalog.db",
        kit=parse_kit(kit),
        coordinator_id=state.coordinator_id,
        signing=SigningKey(state.signing_seed),
        files=files,
        volumes=volumes,
    )


async def read_everything(store: LocalStore, history: History) -> dict[str, dict[bytes, bytes]]:
    """The newest snapshot of each volume, read with the store and the kit alone."""
    rebuilder = await Rebuilder.open(store, history.kit)
    repository, metadata = rebuilder.config.repository, rebuilder.metadata_key
    recovery = history.kit.secret.unsealing_key()
    frames = await StoreFrames.of(store, repository, recovery, metadata)
    names = {identity: name for name, identity in history.volumes.items()}
    found: dict[str, dict[bytes, bytes]] = {}
    async for volume in rebuilder.volumes():
        assert isinstance(volume, StoredVolume)
        reader = SnapshotReader(frames, ReaderKeys(repository, rebuilder.keys.ids), run)
        manifest = volume.snapshots[max(volume.snapshots)].root.body.manifest
        assert manifest is not None
        found[names[volume.volume]] = {
            path_of(key): b"".join([bytes(piece) async for piece in reader.content(entry)])
            async for batch in reader.entries(manifest)
            for key, entry in batch
            if entry.type.name == "FILE"
        }
    return found


async def run(work: Callable[[], T]) -> T:
    return work()


def test_packs_and_references_are_told_by_the_store_as_the_catalog_has_them(
    history: History,
) -> None:
    async def rebuild() -> None:
        rebuilder = await Rebuilder.open(LocalStore(history.repository), history.kit)
        held, unreadable = await held_by_store(rebuilder)
        expected = held_by_catalog(history.catalog)

        assert unreadable == []
        assert held == expected
        assert len(expected.snapshots) >= 10
        assert any(row[4] is not None for row in expected.refs)

    asyncio.run(rebuild())


def test_the_newest_snapshots_are_read_with_the_store_and_the_kit_alone(history: History) -> None:
    found = asyncio.run(read_everything(LocalStore(history.repository), history))

    assert found == history.files


def test_what_is_needed_is_copied_and_the_old_packs_go(history: History, tmp_path: Path) -> None:
    """By somebody with the metadata key and a coordinator's signature, and no recovery secret."""

    async def collect() -> None:
        shutil.copytree(history.repository, tmp_path / "repository")
        store = LocalStore(tmp_path / "repository")
        rebuilder = await Rebuilder.open(store, history.kit)
        before = [pack async for pack in rebuilder.packs() if isinstance(pack, StoredPack)]
        needed = await needed_now(rebuilder)
        collector = Collector(
            rebuilder.config.repository,
            history.coordinator_id,
            history.signing,
            rebuilder.metadata_key,
            rebuilder.signers,
        )
        for kind in PackKind:
            chosen = {
                pack.name: live
                for pack in before
                if pack.kind is kind
                and (live := {each for each, _ in identities(pack.index)} & needed)
            }
            await copy_packs(store, chosen, collector, random=token_bytes, run=run)
        both = [pack async for pack in rebuilder.packs() if isinstance(pack, StoredPack)]
        homes = {
            nonce: home_of(
                nonce,
                [pack for pack in both if nonce in pack.index.table().places],
                {each.number for each in needed if each.nonce == nonce},
            )
            for nonce in {identity.nonce for identity in needed}
        }
        assert {home.tail.signer for home in homes.values() if home} == {Signer.COORDINATOR}
        assert None not in homes.values()
        for pack in before:
            await store.delete(pack.name)

        after = [pack async for pack in rebuilder.packs()]
        assert len(after) == 2
        assert not any(isinstance(pack, Unreadable) for pack in after)
        assert await read_everything(store, history) == history.files

    asyncio.run(collect())


async def needed_now(rebuilder: Rebuilder) -> set[FrameIdentity]:
    """What the newest snapshot of any volume needs."""
    needed: set[FrameIdentity] = set()
    async for volume in rebuilder.volumes():
        assert isinstance(volume, StoredVolume)
        needed |= volume.log.needed().keys()
    return needed
