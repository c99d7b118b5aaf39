"""A start loads what every run needs; the rest comes when somebody asks for it."""

import subprocess
import sys

import pytest

# Each takes a tenth of a second and more, and most starts need none of them.
DEAR = {
    "aiobotocore",
    "aiodocker",
    "aiohttp",
    "alembic",
    "botocore",
    "rich",
    "sqlalchemy.orm",
    "watchdog",
}


@pytest.mark.parametrize("program", ["agent", "coordinator"])
def test_a_start_does_not_load_what_it_may_never_need(program: str) -> None:
    code = f"import sys, {program}.__main__; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )

    loaded = set(done.stdout.split())
    assert "grpc" in loaded
    assert not loaded & DEAR


@pytest.mark.parametrize(("endpoints", "is_loaded"), [([], False), (["http://store/"], True)])
def test_an_agent_loads_what_speaks_to_a_store_where_it_has_one(
    endpoints: list[str], is_loaded: bool
) -> None:
    code = (
        "import sys; from agent.direct import DirectStore; from agent.throttle import Throttles;"
        " from agent.daemon import SystemClock;"
        f" DirectStore({endpoints}, throttles=Throttles(SystemClock())).load();"
        " print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )

    assert ("aiohttp" in done.stdout.split()) is is_loaded


def test_a_bucket_is_known_without_what_speaks_to_it() -> None:
    modules = "location, opening, probe, check"
    code = f"from repository.store.s3 import {modules}; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )

    loaded = set(done.stdout.split())
    assert "repository.store.s3.probe" in loaded
    assert not loaded & DEAR
