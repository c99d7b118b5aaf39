"""Rules for every test run: each test carries its folder's marker; required tests never skip.

`REQUIRE_TESTS` is a comma-separated list of markers and node-id prefixes. A skip of a test that
matches one becomes a failure, and so does a run that collected no test for one of them: a suite
that silently did not run proves nothing.
"""

import os
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest
from hypothesis import settings

# Examples enough to find what is wrong over many runs, few enough for a quick one; and no deadline,
# since a busy machine is not a defect.
# What must pass gives the same verdict on the same code; runs by hand look further every time.
settings.register_profile(
    "tidemark",
    max_examples=60,
    deadline=None,
    print_blob=True,
    derandomize="STEADY_TESTS" in os.environ,
)
settings.load_profile("tidemark")

TESTS = Path(__file__).parent
REQUIRED = [name.strip() for name in os.environ.get("REQUIRE_TESTS", "").split(",") if name.strip()]


def folder_of(path: Path) -> str:
    """Return the name of the folder directly below tests/ that holds `path`, or ""."""
    inside = path.relative_to(TESTS).parts if path.is_relative_to(TESTS) else ()
    return inside[0] if len(inside) > 1 else ""


def matches(required: str, nodeid: str, markers: Iterable[str]) -> bool:
    """Tell whether one entry of REQUIRE_TESTS means this test."""
    return nodeid.startswith(required) or required.replace("-", "_") in markers


def is_required(nodeid: str, markers: Iterable[str]) -> bool:
    """Tell whether any entry of REQUIRE_TESTS means this test."""
    names = set(markers)
    return any(matches(required, nodeid, names) for required in REQUIRED)


@pytest.hookimpl(tryfirst=True)  # before -m selects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test the marker named as its folder, where there is such a marker."""
    known = {line.split(":")[0].strip() for line in config.getini("markers")}
    for item in items:
        folder = folder_of(item.path)
        if folder in known:
            item.add_marker(folder)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse a run without a single test for something required."""
    found = [(item.nodeid, {mark.name for mark in item.iter_markers()}) for item in session.items]
    missing = [
        required
        for required in REQUIRED
        if not any(matches(required, nodeid, markers) for nodeid, markers in found)
    ]
    if missing:
        raise pytest.UsageError(
            f"REQUIRE_TESTS names {', '.join(missing)}, and no collected test matches"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a required test into a failure; an expected failure is not a skip."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and is_required(report.nodeid, (mark.name for mark in item.iter_markers())):
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_TESTS forbids this skip: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole required module into a failure."""
    report = yield
    if report.skipped and is_required(report.nodeid, [folder_of(collector.path)]):
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_TESTS forbids this skip: {report.longrepr}"
    return report
