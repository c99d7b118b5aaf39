import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.rates import RATE_MAX, RATE_MIN, format_rate, parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20MB/s", 20_000_000),
        (" 20 MB/s ", 20_000_000),
        ("20MiB/s", 20 * 2**20),
        ("160Mbit/s", 20_000_000),
        ("160Mbps", 20_000_000),
        ("1.5GB/s", 1_500_000_000),
        ("500kB/s", 500_000),
        ("128kbit/s", 16_000),
    ],
)
def test_rates_are_read_as_they_are_written(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text",
    ["", "20", "20MB", "20mb/s", "MB/s", "-1MB/s", "1 furlong/s", "0MB/s", "1B/s", "9999TB/s"],
)
def test_what_is_no_rate_or_an_impossible_one_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(needs|is not)"):
        parse_rate(text)


@given(st.integers(RATE_MIN, RATE_MAX))
def test_what_is_shown_is_read_again_as_nearly_the_same(rate: int) -> None:
    shown = parse_rate(format_rate(max(rate, 17_000)))

    assert abs(shown - max(rate, 17_000)) <= rate * 0.01


def test_nothing_is_shown_as_nothing() -> None:
    assert format_rate(0) == "0 B/s"
