"""Refs: what a snapshot holds of each frame, in one encoding."""

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from repository.errors import FormatError
from repository.frames import FrameIdentity
from repository.ids import PackNonce
from repository.refs import Refs, RefsLog, decode_refs, refs_hash
from tests.unit.repository.damage import altered

NONCES = st.sampled_from([PackNonce(bytes([letter]) * 16) for letter in b"abc"])
LIVE = st.dictionaries(
    st.builds(FrameIdentity, NONCES, st.integers(0, (1 << 32) - 1)),
    st.integers(0, 1 << 40),
    max_size=20,
)


@given(LIVE, st.booleans())
def test_live_bytes_come_back_by_frame(live: dict[FrameIdentity, int], base: bool) -> None:
    refs = decode_refs(Refs.of(live, base=base).encode())

    assert refs.live() == live
    assert refs.base is base


@given(LIVE)
def test_the_order_in_which_frames_came_does_not_show(live: dict[FrameIdentity, int]) -> None:
    backwards = dict(reversed(live.items()))

    assert Refs.of(live, base=True).encode() == Refs.of(backwards, base=True).encode()


@given(st.binary(max_size=80))
@example(b"\x92\xc2" + b"\x91" * 100_000)
def test_any_bytes_decode_to_refs_or_to_the_declared_error(raw: bytes) -> None:
    try:
        refs = decode_refs(raw)
    except FormatError:
        return
    assert refs.encode() == raw


@given(LIVE, st.data())
def test_altered_refs_are_other_refs_or_the_declared_error(
    live: dict[FrameIdentity, int], data: st.DataObject
) -> None:
    encoded = Refs.of(live, base=False).encode()
    changed = data.draw(altered(encoded))
    assume(changed != encoded)

    try:
        refs = decode_refs(changed)
    except FormatError:
        return
    assert (refs.base, refs.live()) != (False, live)
    assert refs_hash(changed) != refs_hash(encoded)


A, B = b"a" * 16, b"b" * 16


@pytest.mark.parametrize(
    "packs",
    [
        [(b"short", [(0, 1)])],
        [(A, [(-1, 1)])],
        [(A, [(1 << 32, 1)])],
        [(A, [(0, -1)])],
        [(A, [(1, 1), (0, 1)])],
        [(A, [(0, 1), (0, 1)])],
        [(B, [(0, 1)]), (A, [(0, 1)])],
        [(A, [(0, 1)]), (A, [(1, 1)])],
        [(A, [])],
    ],
)
def test_refs_that_no_writer_makes_are_refused(packs: list[object]) -> None:
    with pytest.raises(FormatError):
        decode_refs(msgspec.msgpack.encode((False, packs)))


Live = dict[FrameIdentity, int]
FRAMES = st.sampled_from([FrameIdentity(PackNonce(b"a" * 16), number) for number in range(6)])
LOGS = st.lists(
    st.tuples(st.integers(1, 3), st.booleans(), st.dictionaries(FRAMES, st.integers(0, 9))),
    max_size=12,
)


@given(LOGS)
def test_a_log_tells_what_each_snapshot_needs(changes: list[tuple[int, bool, Live]]) -> None:
    """Against a dict that is changed step by step. Some sequences are never used."""
    log, sequence = RefsLog(), 0
    now: Live = {}
    needed: dict[int, Live] = {}
    for step, base, live in changes:
        sequence += step
        log.append(sequence, Refs.of(live, base=base))
        before = {} if base else now
        now = {frame: size for frame, size in (before | live).items() if size}
        needed[sequence] = now
    intervals = list(log.intervals())

    assert log.needed() == now
    assert len({(each.identity, each.begin) for each in intervals}) == len(intervals)
    for at, expected in needed.items():
        alive = [each for each in intervals if each.begin <= at and (each.end or at + 1) > at]
        assert {each.identity: each.live_bytes for each in alive} == expected
        assert len(alive) == len(expected)


def test_a_log_goes_forward_only() -> None:
    log = RefsLog()
    log.append(2, Refs.of({}, base=True))

    for sequence in (2, 1):
        with pytest.raises(AssertionError, match="forward"):
            log.append(sequence, Refs.of({}, base=True))
