"""Ids: keyed by type, and the same whatever holds the bytes."""

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from repository.ids import CHUNK_ID_BYTES, ID_BYTES, IdKeys, NodeId, ObjectType, volume_id

KEYS = IdKeys(b"d" * 32, b"n" * 32, b"l" * 32)
NODE = NodeId(b"N" * 16)


@given(st.binary(max_size=500))
def test_a_chunk_id_is_the_keyed_hash_of_its_content(content: bytes) -> None:
    found = KEYS.chunk_id(ObjectType.DATA, content)

    assert found == blake3(content, key=b"d" * 32).digest()
    assert found == KEYS.chunk_id(ObjectType.DATA, memoryview(content))
    assert found == KEYS.chunk_id(ObjectType.DATA, bytearray(content))
    assert len(found) == CHUNK_ID_BYTES


@given(st.binary(max_size=100))
def test_the_same_bytes_have_another_id_as_another_type(content: bytes) -> None:
    assert len({KEYS.chunk_id(kind, content) for kind in ObjectType}) == len(ObjectType)


TEXTS = st.text(max_size=8)


@given(st.tuples(TEXTS, TEXTS), st.tuples(TEXTS, TEXTS))
def test_volumes_that_differ_in_engine_or_name_have_different_ids(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert (volume_id(NODE, *one) == volume_id(NODE, *other)) == (one == other)


def test_the_same_name_on_two_nodes_is_two_volumes() -> None:
    mine = volume_id(NODE, "path", "data")

    assert mine != volume_id(NodeId(b"M" * 16), "path", "data")
    assert len(mine) == ID_BYTES


@pytest.mark.parametrize(("engine", "name"), [("ab", "c"), ("a", "bc")])
def test_parts_of_a_volume_s_name_do_not_run_into_each_other(engine: str, name: str) -> None:
    assert volume_id(NODE, engine, name) != volume_id(NODE, "abc", "")
