from pathlib import Path

import pytest

from coordinator.cli.failure import CommandError, UsageError
from coordinator.cli.up.engine import choose_engine

HERE = {"DOCKER_HOST": "unix:///run/user/1000/docker.sock"}


def test_no_engine_is_protected_before_somebody_asks(tmp_path: Path) -> None:
    assert choose_engine(tmp_path / "docker", None, HERE) is None


def test_the_engine_is_the_one_that_docker_itself_would_ask(tmp_path: Path) -> None:
    file = tmp_path / "docker"

    assert choose_engine(file, True, {}) == "unix:///var/run/docker.sock"
    assert choose_engine(file, True, HERE) == HERE["DOCKER_HOST"]


def test_what_was_asked_for_is_remembered_until_it_is_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "docker"
    choose_engine(file, True, HERE)

    assert choose_engine(file, None, {}) == HERE["DOCKER_HOST"]
    assert choose_engine(file, False, HERE) is None
    assert choose_engine(file, None, HERE) is None


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:2375", "ssh://host", "unix://relative"])
def test_an_engine_elsewhere_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match="on this machine"):
        choose_engine(tmp_path / "docker", True, {"DOCKER_HOST": address})


def test_a_damaged_memory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "docker").write_text("tcp://x")

    with pytest.raises(CommandError):
        choose_engine(tmp_path / "docker", None, {})
