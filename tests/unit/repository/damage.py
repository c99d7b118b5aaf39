"""What can happen to stored bytes."""

from hypothesis import strategies as st


def flipped(raw: bytes, position: int, mask: int = 1) -> bytes:
    """The bytes with some bits of one of them turned over."""
    changed = bytearray(raw)
    changed[position] ^= mask
    return bytes(changed)


def altered(raw: bytes) -> st.SearchStrategy[bytes]:
    """A byte changed, an end cut off, something appended."""
    return st.one_of(
        st.builds(flipped, st.just(raw), st.integers(0, len(raw) - 1), st.integers(1, 255)),
        st.integers(0, len(raw) - 1).map(lambda length: raw[:length]),
        st.binary(min_size=1, max_size=8).map(lambda more: raw + more),
    )
