import pytest

from coordinator.cli.durations import format_duration, format_size, parse_duration
from coordinator.cli.failure import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("1h", 3600),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        ("45", 45),
        (" 1H ", 3600),
        ("1.5h", 5400),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "1x", "-1h", "1h x", "0s", "0", "1h1", "off", "1 h", "²"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(text)

    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.2s"),
        (9.96, "10.0s"),
        (10, "10s"),
        (61, "1m 1s"),
        (3600, "1h"),
        (3661, "1h 1m"),
        (86_400 * 3, "3d"),
        (86_400 + 59, "1d"),
    ],
)
def test_durations_show_their_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (150 * 1024, "150 KiB"), (2**70, "1024 EiB")],
)
def test_sizes_are_binary_with_about_three_digits(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
