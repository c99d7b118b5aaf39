"""Roots: signed by the node, countersigned by the coordinator, and by nobody else."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.entries import Pointer
from repository.errors import DamagedError, FormatError, UnsupportedFormatError
from repository.ids import ChunkId, NodeId, PackNonce, RepositoryId, SessionId, VolumeId
from repository.keys import SigningKey
from repository.snapshot import (
    Countersigning,
    Detection,
    Label,
    RootBody,
    Verdict,
    check_countersigned,
    check_signed_root,
    countersign,
    decode_label,
    peek_signed_root,
    root_hash,
    sign_root,
    snapshot_id,
    split_root,
)
from tests.unit.repository.damage import altered, flipped

NODE = SigningKey(b"n" * 32)
COORDINATOR = SigningKey(b"c" * 32)
BODY = RootBody(
    format=0,
    repository=RepositoryId(b"R" * 16),
    volume=VolumeId(b"V" * 16),
    node=NodeId(b"N" * 16),
    session=SessionId(b"S" * 16),
    parent=b"",
    manifest=Pointer(ChunkId(b"i" * 32), PackNonce(b"p" * 16), 1, 2, 3),
    refs_hash=b"r" * 32,
    detection=Detection.SWEEP,
    started_ns=1,
    total_files=2,
    total_bytes=3,
    fuzzy_files=0,
    errors_total=0,
    label=b"sealed",
)
ADDITION = Countersigning(sequence=4, committed_ns=5, incarnation=6, verdict=Verdict.COMPLETED)
SIGNED = sign_root(BODY, NODE)
ROOT = countersign(SIGNED, ADDITION, COORDINATOR)


@pytest.mark.parametrize(
    "body", [BODY, msgspec.structs.replace(BODY, manifest=None, parent=b"h" * 32)]
)
@pytest.mark.parametrize("verdict", Verdict)
def test_a_root_comes_back_when_both_have_signed(body: RootBody, verdict: Verdict) -> None:
    signed = sign_root(body, NODE)
    addition = msgspec.structs.replace(ADDITION, verdict=verdict)

    root = check_countersigned(countersign(signed, addition, COORDINATOR), COORDINATOR.public)

    assert check_signed_root(signed, NODE.public) == root.body == body
    assert root.countersigning == addition
    assert root.id == snapshot_id(signed)
    assert split_root(countersign(signed, addition, COORDINATOR)) == (addition, signed)


def test_no_byte_of_a_root_can_change_unnoticed() -> None:
    for position in range(len(SIGNED)):
        with pytest.raises((DamagedError, UnsupportedFormatError)):
            check_signed_root(flipped(SIGNED, position), NODE.public)
    for position in range(len(ROOT)):
        with pytest.raises((DamagedError, UnsupportedFormatError)):
            check_countersigned(flipped(ROOT, position), COORDINATOR.public)


@given(st.data())
def test_nothing_of_a_root_can_be_cut_off_or_appended_unnoticed(data: st.DataObject) -> None:
    with pytest.raises((DamagedError, UnsupportedFormatError)):
        check_signed_root(data.draw(altered(SIGNED)), NODE.public)
    with pytest.raises((DamagedError, UnsupportedFormatError)):
        check_countersigned(data.draw(altered(ROOT)), COORDINATOR.public)


def test_a_root_signed_by_another_key_is_refused() -> None:
    with pytest.raises(DamagedError, match="signature"):
        check_signed_root(SIGNED, COORDINATOR.public)
    with pytest.raises(DamagedError, match="signature"):
        check_countersigned(ROOT, NODE.public)


def test_a_coordinator_s_signature_does_not_pass_for_a_node_s() -> None:
    forged = COORDINATOR.sign(b"tidemark root countersigned", SIGNED[64:]) + SIGNED[64:]

    with pytest.raises(DamagedError, match="signature"):
        check_signed_root(forged, COORDINATOR.public)


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 5},
        {"committed_ns": 6},
        {"incarnation": 7},
        {"verdict": Verdict.PARTIALLY_FAILED},
    ],
)
def test_a_root_keeps_the_place_and_time_that_were_countersigned(change: dict[str, int]) -> None:
    moved = countersign(SIGNED, msgspec.structs.replace(ADDITION, **change), SigningKey(b"x" * 32))

    with pytest.raises(DamagedError, match="signature"):
        check_countersigned(ROOT[:64] + moved[64:], COORDINATOR.public)


def test_snapshots_that_differ_have_different_ids_and_hashes() -> None:
    other = sign_root(msgspec.structs.replace(BODY, total_files=9), NODE)

    assert snapshot_id(other) != snapshot_id(SIGNED)
    assert len(snapshot_id(SIGNED)) == 16
    assert root_hash(ROOT) != root_hash(countersign(other, ADDITION, COORDINATOR))


def test_a_root_of_a_newer_format_is_refused() -> None:
    newer = sign_root(msgspec.structs.replace(BODY, format=1), NODE)

    with pytest.raises(UnsupportedFormatError):
        peek_signed_root(newer)


@given(st.binary(max_size=150))
def test_any_bytes_are_no_root(raw: bytes) -> None:
    with pytest.raises(FormatError):
        peek_signed_root(raw)
    with pytest.raises(FormatError):
        split_root(raw)


LABEL = Label(
    "data", "node-1", "path", b"/srv/\xff", [(b"a/b", "it is gone", "look for it")], "sweep: first"
)


def test_a_label_comes_back_from_its_encoding() -> None:
    assert decode_label(LABEL.encode()) == LABEL


@given(st.binary(max_size=60))
def test_any_bytes_are_no_label(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_label(raw)
