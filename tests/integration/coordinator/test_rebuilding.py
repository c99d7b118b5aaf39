"""What a store that was damaged or tampered with tells to whoever has the recovery kit."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_bytes

import grpc.aio
import pytest

from proto.tidemark.v1 import admin_pb2
from repository.errors import DamagedError, NoRepositoryError, StoreUnavailableError, WrongKeyError
from repository.failpoints import VARIABLE, arm
from repository.ids import NodeId, ObjectType, SessionId
from repository.keys import RecoverySecret, Secret, SigningKey, seal
from repository.layout import (
    DATA_KEY_INFO,
    RecoveryKit,
    WriterKeys,
    certificate_name,
    parse_kit,
    refs_name,
    root_name,
)
from repository.pack import PackKind, parse_tail
from repository.rebuilding import Rebuilder, Unreadable
from repository.snapshot import countersign, split_root
from tests.fakes.agent import FakeAgent, Writing
from tests.fakes.ledger import Held, held_by_catalog, held_by_store
from tests.fakes.store import MemoryStore
from tests.integration.coordinator.serving import Coordinator, config_in, serving
from tests.integration.coordinator.test_settling import uploaded

pytestmark = pytest.mark.asyncio

Objects = dict[str, bytes]


@dataclass(frozen=True)
class Stored:
    """A repository: two nodes, three volumes, two commits that were given up."""

    objects: Objects
    held: Held
    kit: RecoveryKit
    agent: FakeAgent
    data: bytes
    other: bytes
    pack: str


async def give_up_commit(coordinator: Coordinator, agent: FakeAgent, volume: str) -> None:
    """A commit whose refs are stored and whose root is not: it was never sent."""
    async with agent.connected() as connection:
        await coordinator.order_backup(volume)
        task = (await connection.next_message()).run_backup
        writing, made, signed = await uploaded(agent, connection, task)
        arm({VARIABLE: "coordinator.commit.refs_stored=error"})
        try:
            with pytest.raises(grpc.aio.AioRpcError):
                await connection.commit(writing, signed, made.refs)
        finally:
            arm({})
        await connection.finish_backup(task.task_id, message="given up")


async def make(directory: Path) -> Stored:
    config = config_in(directory)
    async with serving(config) as coordinator:
        agent, another = await coordinator.agent("one"), await coordinator.agent("two")
        data, other = agent.volume("data"), agent.volume("other")
        another.volume("elsewhere")
        await coordinator.back_up(agent, "data", {"a": b"first"})
        await give_up_commit(coordinator, agent, "data")
        await coordinator.back_up(agent, "data", {"a": b"second", "b": b"new"})
        await coordinator.back_up(agent, "data", {"b": b"third"})
        await coordinator.back_up(agent, "other", {"c": b"other"})
        await give_up_commit(coordinator, another, "elsewhere")
        pack = coordinator.packs()[0].relative_to(config.repository)
        export = await coordinator.admin.ExportRecoveryKit(admin_pb2.ExportRecoveryKitRequest())
    objects = {
        str(path.relative_to(config.repository)): path.read_bytes()
        for path in config.repository.rglob("*")
        if path.is_file()
    }
    held = held_by_catalog(config.data / "catalog.db")
    return Stored(objects, held, parse_kit(export.kit), agent, data, other, str(pack))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return asyncio.run(make(tmp_path_factory.mktemp("stored")))


async def told(stored: Stored, objects: Objects) -> tuple[Held, list[Unreadable]]:
    store = MemoryStore()
    store.objects = dict(objects)
    return await held_by_store(await Rebuilder.open(store, stored.kit))


def without_pack(held: Held, *names: str) -> Held:
    packs = {name: row for name, row in held.packs.items() if name not in names}
    origins = {nonce: row for nonce, row in held.origins.items() if row[0] not in names}
    return replace(held, packs=packs, origins=origins)


def without_volume(held: Held, *volumes: bytes) -> Held:
    return replace(
        held,
        refs={row for row in held.refs if row[0] not in volumes},
        snapshots={key: row for key, row in held.snapshots.items() if key[0] not in volumes},
        last_sequences={
            key: last for key, last in held.last_sequences.items() if key not in volumes
        },
    )


async def test_commits_that_were_given_up_are_no_snapshots_and_their_sequences_stay_used(
    stored: Stored,
) -> None:
    held, unreadable = await told(stored, stored.objects)

    assert unreadable == []
    assert held == stored.held
    assert [key[1] for key in sorted(held.snapshots) if key[0] == stored.data] == [1, 3, 4]
    assert refs_name(stored.data, 2) in stored.objects  # type: ignore[arg-type]
    assert sorted(held.last_sequences.values()) == [1, 1, 4]
    assert len({key[0] for key in held.snapshots}) == 2


async def test_a_damaged_pack_is_named_and_everything_else_is_told(stored: Stored) -> None:
    """Wherever it is damaged but in its body, which is not read: that is for verify to find."""
    name = stored.pack
    size = len(stored.objects[name])
    footer = parse_tail(stored.objects[name], size).footer_offset
    for position in (0, 8, 10, 16, 31, *range(footer, size, 7), size - 1):
        raw = bytearray(stored.objects[name])
        raw[position] ^= 1

        held, unreadable = await told(stored, stored.objects | {name: bytes(raw)})

        assert [each.name for each in unreadable] == [name]
        assert held == without_pack(stored.held, name)


async def test_packs_in_each_others_place_are_named(stored: Stored) -> None:
    one, other = sorted(stored.held.packs)[:2]
    swapped = {one: stored.objects[other], other: stored.objects[one]}

    held, unreadable = await told(stored, stored.objects | swapped)

    assert [each.name for each in unreadable] == [one, other]
    assert held == without_pack(stored.held, one, other)


async def test_a_pack_that_claims_an_origin_and_is_signed_by_a_stranger_is_not_believed(
    stored: Stored,
) -> None:
    rebuilder = await opened(stored)
    config, keys = rebuilder.config, rebuilder.keys
    data_key = token_bytes(32)
    sealed = seal(config.recovery_public, data_key, DATA_KEY_INFO + config.repository)
    writer = WriterKeys(
        config.repository,
        keys.ids,
        keys.chunker,
        keys.boundaries,
        config.recovery_public,
        config.metadata_public,
    )
    writing = Writing(SessionId(token_bytes(16)), 1, writer, data_key, sealed, b"", 0)
    stranger = replace(stored.agent, signing=SigningKey(token_bytes(32)))
    nobody = replace(stored.agent, node_id=NodeId(token_bytes(16)))
    forged = {
        made.name: made.raw
        for made in (
            each.make_pack(writing, PackKind.DATA, ObjectType.DATA, [b"forged"])
            for each in (stranger, nobody)
        )
    }

    held, unreadable = await told(stored, stored.objects | forged)

    assert sorted(each.name for each in unreadable) == sorted(forged)
    assert {type(each.error) for each in unreadable} == {DamagedError}
    assert held == stored.held


Damage = Callable[[Stored, Objects], str]


def missing_root(sequence: int) -> Damage:
    def damage(stored: Stored, objects: Objects) -> str:
        del objects[root_name(stored.data, sequence)]  # type: ignore[arg-type]
        # It shows in the root that follows.
        return root_name(stored.data, {1: 3, 3: 4}[sequence])  # type: ignore[arg-type]

    return damage


def foreign_root(stored: Stored, objects: Objects) -> str:
    name = root_name(stored.data, 1)  # type: ignore[arg-type]
    objects[name] = objects[root_name(stored.other, 1)]  # type: ignore[arg-type]
    return name


def later_root(stored: Stored, objects: Objects) -> str:
    name = root_name(stored.data, 3)  # type: ignore[arg-type]
    objects[name] = objects[root_name(stored.data, 4)]  # type: ignore[arg-type]
    return name


def forged_root(stored: Stored, objects: Objects) -> str:
    name = root_name(stored.data, 4)  # type: ignore[arg-type]
    addition, signed = split_root(objects[name])
    objects[name] = countersign(signed, addition, SigningKey(token_bytes(32)))
    return name


def altered_root(stored: Stored, objects: Objects) -> str:
    name = root_name(stored.data, 4)  # type: ignore[arg-type]
    objects[name] = objects[name][:-1] + bytes([objects[name][-1] ^ 1])
    return name


def missing_refs(stored: Stored, objects: Objects) -> str:
    name = refs_name(stored.data, 3)  # type: ignore[arg-type]
    del objects[name]
    return name


def swapped_refs(stored: Stored, objects: Objects) -> str:
    name = refs_name(stored.data, 3)  # type: ignore[arg-type]
    objects[name] = objects[refs_name(stored.data, 4)]  # type: ignore[arg-type]
    return name


def foreign_refs(stored: Stored, objects: Objects) -> str:
    name = refs_name(stored.data, 1)  # type: ignore[arg-type]
    objects[name] = objects[refs_name(stored.other, 1)]  # type: ignore[arg-type]
    return name


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(missing_root(1), id="the first root is missing"),
        pytest.param(missing_root(3), id="a root is missing"),
        foreign_root,
        later_root,
        forged_root,
        altered_root,
        missing_refs,
        swapped_refs,
        foreign_refs,
    ],
)
async def test_a_volume_whose_log_is_not_whole_is_named_and_the_others_are_told(
    stored: Stored, damage: Damage
) -> None:
    objects = dict(stored.objects)
    name = damage(stored, objects)

    held, unreadable = await told(stored, objects)

    assert [each.name for each in unreadable] == [name]
    assert held == without_volume(stored.held, stored.data)


async def test_an_object_under_a_strange_name_is_named(stored: Stored) -> None:
    volume = stored.data.hex()
    strange = [
        f"packs/{'0' * 32}",
        f"refs/{volume[:-2]}/{1:020d}",
        f"roots/{volume}/{1:019d}",
        f"roots/{volume}/{1:020d}/more",
        "roots/readme",
    ]

    held, unreadable = await told(stored, stored.objects | dict.fromkeys(strange, b"?"))

    assert sorted(each.name for each in unreadable) == sorted(strange)
    assert held == stored.held


@pytest.mark.parametrize("certificate", ["missing", "altered", "another's", "a coordinator's"])
async def test_nothing_of_a_node_is_believed_without_its_certificate(
    stored: Stored, certificate: str
) -> None:
    name = certificate_name(stored.agent.node_id)
    objects = dict(stored.objects)
    rest = sorted(each for each in objects if each.startswith("certificates/") and each != name)
    coordinator = next(each for each in rest if b"coordinator" in objects[each])
    node = next(each for each in rest if each != coordinator)
    objects[name] = {
        "missing": b"",
        "altered": objects[name][:-1] + b"?",
        "another's": objects[node],
        "a coordinator's": objects[coordinator],
    }[certificate]
    if certificate == "missing":
        del objects[name]
    mine = [
        pack for pack, _, node, _ in stored.held.origins.values() if node == stored.agent.node_id
    ]

    held, unreadable = await told(stored, objects)

    expected = [*mine, *(root_name(each, 1) for each in (stored.data, stored.other))]  # type: ignore[arg-type]
    expected += [name] if certificate != "missing" else []
    assert sorted(each.name for each in unreadable) == sorted(expected)
    assert held == without_volume(without_pack(stored.held, *mine), stored.data, stored.other)


async def opened(stored: Stored, kit: RecoveryKit | None = None) -> Rebuilder:
    store = MemoryStore()
    store.objects = dict(stored.objects)
    return await Rebuilder.open(store, kit or stored.kit)


async def test_the_kit_of_another_repository_opens_nothing(stored: Stored) -> None:
    secret = RecoverySecret(Secret(token_bytes(32)))
    strangers = [
        RecoveryKit(secret, stored.kit.repository, stored.kit.signing_public),
        RecoveryKit(stored.kit.secret, stored.kit.repository, secret.signing_key().public),
        RecoveryKit(
            stored.kit.secret,
            type(stored.kit.repository)(token_bytes(16)),
            stored.kit.signing_public,
        ),
    ]

    for kit in strangers:
        with pytest.raises(WrongKeyError, match="not this repository's"):
            await opened(stored, kit)


async def test_a_store_that_does_not_answer_is_no_empty_repository(stored: Stored) -> None:
    store = MemoryStore()
    store.objects = dict(stored.objects)
    rebuilder = await Rebuilder.open(store, stored.kit)
    store.is_gone = True

    with pytest.raises(StoreUnavailableError):
        await held_by_store(rebuilder)
    with pytest.raises(StoreUnavailableError):
        [volume async for volume in rebuilder.volumes()]
    with pytest.raises(StoreUnavailableError):
        await Rebuilder.open(store, stored.kit)


async def test_a_config_that_is_none_is_no_repository(stored: Stored) -> None:
    for config, error in ((b"?", NoRepositoryError), (bytes(64), NoRepositoryError)):
        store = MemoryStore()
        store.objects = stored.objects | {"config": config}
        with pytest.raises(error):
            await Rebuilder.open(store, stored.kit)
