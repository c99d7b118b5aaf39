"""Small files that hold secrets."""

from pathlib import Path

import pytest

from coordinator.errors import StoreError
from coordinator.vault import read_secret, write_secret


def test_a_secret_is_replaced_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        write_secret(tmp_path / "s", content)
    assert read_secret(tmp_path / "s") == b"second"
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_what_was_never_written_is_none(tmp_path: Path) -> None:
    assert read_secret(tmp_path / "s") is None


def test_a_place_that_cannot_be_written_or_read_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(StoreError) as reading:
        read_secret(tmp_path / "s")
    with pytest.raises(StoreError) as writing:
        write_secret(tmp_path / "missing" / "s", b"x")
    assert reading.value.hint
    assert writing.value.hint
