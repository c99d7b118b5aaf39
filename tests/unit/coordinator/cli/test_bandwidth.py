import pytest

from coordinator.cli.bandwidth import _days, _minute, _nodes_table, _rate, _window
from coordinator.cli.documents import document
from coordinator.cli.failure import UsageError
from proto.tidemark.v1.admin_pb2 import NodeBandwidth


def test_rates_are_read() -> None:
    assert _rate("20MB/s") == 20_000_000
    assert _rate(" OFF ") is None


def test_a_rate_that_is_none_says_how_one_is_written() -> None:
    with pytest.raises(UsageError, match="'20mb' needs a number and a unit") as refused:
        _rate("20mb")

    assert "20MB/s" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "days"),
    [
        (None, []),
        ("mon-fri", [0, 1, 2, 3, 4]),
        ("fri-mon", [0, 4, 5, 6]),
        ("Sat,Sun", [5, 6]),
        ("mon", [0]),
        ("mon-wed, sat", [0, 1, 2, 5]),
    ],
)
def test_days_are_read(text: str | None, days: list[int]) -> None:
    assert _days(text) == days


@pytest.mark.parametrize("text", ["", "monday", "mon-", "mon-fry", "1-5", "-fri"])
def test_what_is_no_day_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no day"):
        _days(text)


@pytest.mark.parametrize(("text", "minute"), [("22:00", 1320), ("6:05", 365), ("00:00", 0)])
def test_times_are_read(text: str, minute: int) -> None:
    assert _minute(text) == minute


@pytest.mark.parametrize("text", ["24:00", "6", "6:5", "22:60", "ten"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no time of the day"):
        _minute(text)


def test_a_window_has_two_ends_and_may_have_a_zone() -> None:
    made = _window("22:00", "06:00", "Europe/Berlin", "mon-fri")

    assert made is not None
    assert (made.begin_minute, made.end_minute, made.zone) == (1320, 360, "Europe/Berlin")
    assert _window(None, None, None, None) is None


@pytest.mark.parametrize(
    "ends",
    [("22:00", None, None), (None, "06:00", None), (None, None, "UTC")],
)
def test_half_a_window_is_refused(ends: tuple[str | None, str | None, str | None]) -> None:
    with pytest.raises(UsageError):
        _window(*ends, None)


def test_nodes_are_shown_with_what_they_may_and_what_they_use() -> None:
    nodes = [
        NodeBandwidth(
            node="a",
            backup_limit=2_000_000,
            backup_used=1_500_000,
            restore_limit=0,
            obeys=True,
        ),
        NodeBandwidth(node="free", obeys=True),
        NodeBandwidth(node="old", obeys=False),
    ]

    rows = _nodes_table([document(each) for each in nodes]).rows

    assert list(rows[0]) == ["a", "2 MB/s", "1.5 MB/s", "idle", "0 B/s"]
    assert [list(row)[1] for row in rows[1:]] == ["no limit", "agent too old"]
