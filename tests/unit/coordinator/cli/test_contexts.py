import json
from pathlib import Path

import pytest

from coordinator.cli.contexts import SYSTEM_CONTEXT, find_context, home_context, read_context
from coordinator.cli.failure import CommandError

FIELDS = {"address": "127.0.0.1:1", "ca": "CA", "certificate": "CERTIFICATE", "key": "KEY"}


def write_context(path: Path, *, mode: int = 0o600, address: str = "127.0.0.1:1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(FIELDS | {"address": address}))
    path.chmod(mode)
    return path


def test_the_option_goes_before_the_environment_and_that_before_home(tmp_path: Path) -> None:
    chosen = write_context(tmp_path / "chosen", address="chosen:1")
    environment = write_context(tmp_path / "environment", address="environment:1")
    write_context(tmp_path / "tidemark" / "context", address="home:1")
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    both = home | {"TIDEMARK_CONTEXT": str(environment)}

    assert find_context(str(chosen), both).address == "chosen:1"
    assert find_context(None, both).address == "environment:1"
    assert find_context(None, home).address == "home:1"


def test_home_is_the_configuration_directory() -> None:
    assert home_context({"XDG_CONFIG_HOME": "/x"}) == Path("/x/tidemark/context")
    assert home_context({}) == Path("~/.config/tidemark/context").expanduser()
    assert home_context({"XDG_CONFIG_HOME": "relative"}) == home_context({})


def test_without_any_context_the_error_says_what_was_tried(tmp_path: Path) -> None:
    if SYSTEM_CONTEXT.exists():
        pytest.skip("this machine has a context of its own")

    with pytest.raises(CommandError) as caught:
        find_context(None, {"XDG_CONFIG_HOME": str(tmp_path)})

    for tried in ("--context", "TIDEMARK_CONTEXT", str(tmp_path), str(SYSTEM_CONTEXT)):
        assert tried in caught.value.message
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_context_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write_context(tmp_path / "context", mode=mode)

    with pytest.raises(CommandError, match="others may read"):
        read_context(path, named_by="test")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"address": 1}', "{", '"text"'])
def test_a_damaged_context_is_an_error_with_advice(tmp_path: Path, content: str) -> None:
    path = tmp_path / "context"
    path.write_text(content)
    path.chmod(0o600)

    with pytest.raises(CommandError, match="damaged") as caught:
        read_context(path, named_by="test")

    assert caught.value.hint


def test_a_missing_context_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="nowhere"):
        read_context(tmp_path / "nowhere", named_by="--context")


def test_a_context_does_not_show_its_key(tmp_path: Path) -> None:
    context = read_context(write_context(tmp_path / "context"), named_by="test")

    assert "KEY" not in repr(context)
