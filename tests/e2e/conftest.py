from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import trees
from tests.e2e.engine import Engine, missing, running_engine
from tests.e2e.harness import Machine, Up


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "home")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree to protect."""
    root = tmp_path / "volume"
    trees.build(root)
    return root


@pytest.fixture
def up(machine: Machine, tree: Path, tmp_path: Path) -> Iterator[Up]:
    """`up` with the tree protected as `web`."""
    with machine.up(tmp_path / "data", f"web={tree}") as running:
        yield running


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A real Docker engine of our own."""
    if lacking := missing():
        pytest.skip(lacking)
    with running_engine() as running:
        yield running
