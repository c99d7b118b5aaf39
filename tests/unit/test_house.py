"""The checkout itself: its package names, its lock, and what its CI requires."""

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
LOCK = (CHECKOUT / "requirements.lock").read_text()
CI = (CHECKOUT / ".ci/run").read_text()
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


@pytest.mark.parametrize("package", ["agent", "coordinator", "proto", "repository"])
def test_no_other_distribution_owns_our_package(package: str) -> None:
    owners = packages_distributions().get(package, [])

    assert set(owners) <= {"tidemark-backup"}


def test_packages_in_the_wheel_are_the_ones_the_contracts_cover() -> None:
    shipped = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

    assert shipped == PROJECT["tool"]["importlinter"]["root_packages"]


def test_lock_names_no_address() -> None:
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", LOCK)


def test_lock_pins_every_package_with_a_hash() -> None:
    pinned = re.split(r"\n(?=\S)", re.sub(r"^ *#.*\n", "", LOCK, flags=re.MULTILINE).strip())

    unhashed = [entry for entry in pinned if "==" not in entry or "--hash=sha256:" not in entry]

    assert pinned
    assert not unhashed


def test_ci_installs_what_required_tests_would_be_skipped_without() -> None:
    installed = re.search(r"packages=\(([^)]*)\)", CI)
    sources = "".join(path.read_text() for path in (CHECKOUT / "tests").glob("*/*.py"))
    wanted = re.findall(r"\(Debian: ([\w., -]+)\)", sources)

    assert installed
    assert len(wanted) >= 2
    assert {name for names in wanted for name in names.split(", ")} <= set(installed[1].split())


def test_ci_requires_every_kind_of_test_there_is() -> None:
    required = re.findall(r"^REQUIRE_TESTS=([\w,-]+) make", CI, re.MULTILINE)
    kinds = {
        path.relative_to(CHECKOUT / "tests").parts[0]
        for path in (CHECKOUT / "tests").glob("*/**/test_*.py")
    }

    assert {kind for kinds in required for kind in kinds.split(",")} == kinds
    markers = {
        line.partition(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    }
    assert kinds <= markers, "a kind without a marker is never found"


def test_ci_leaves_out_of_all_tests_only_what_it_has_run_before() -> None:
    before, _, after = CI.partition("make test")
    left_out = re.findall(r"--ignore=tests/(\w+)", after)

    assert left_out == ["unit"]
    assert "REQUIRE_TESTS=unit make check\n" in before
    assert "pytest tests/unit " in (CHECKOUT / "Makefile").read_text()


@pytest.mark.parametrize("folder", ["agent", "coordinator", "repository"])
def test_nothing_is_raised_for_some_of_a_group(folder: str) -> None:
    """What `except*` raises comes as a group again before Python 3.11.4, and nobody knows it."""
    raising = [
        f"{path.relative_to(CHECKOUT)}:{node.lineno}"
        for path in (CHECKOUT / folder).rglob("*.py")
        for tried in ast.walk(ast.parse(path.read_text()))
        if isinstance(tried, ast.TryStar)
        for handler in tried.handlers
        for node in ast.walk(handler)
        if isinstance(node, ast.Raise)
    ]

    assert raising == []
