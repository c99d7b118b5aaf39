"""A founded coordinator for each test, copied from one that was founded once."""

import asyncio
from pathlib import Path

import pytest

from coordinator.config import Config
from tests.integration.coordinator.serving import copy_template, make_template


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(make_template(tmp_path_factory.mktemp("template")))


@pytest.fixture
def config(template: Path, tmp_path: Path) -> Config:
    return copy_template(template, tmp_path)
