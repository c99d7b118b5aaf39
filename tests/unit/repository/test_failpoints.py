"""Failpoints: what the variable may say, what a place does, and that the list is the source's."""

import errno
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from repository.errors import StoreUnavailableError, UsageError
from repository.failpoints import AGENT, COORDINATOR, NAMES, STORE, VARIABLE, arm, failpoint, parse

CHECKOUT = Path(__file__).parents[3]
_CALL = re.compile(r"failpoint\(\s*([^,)]+)")


def in_source(*folders: str) -> Counter[str]:
    """The first argument of each call, as it is written."""
    return Counter(
        name
        for folder in folders
        for path in (CHECKOUT / folder).rglob("*.py")
        for name in _CALL.findall(path.read_text())
    )


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm({})


@pytest.mark.parametrize(
    ("folder", "names"),
    [("agent", AGENT), ("coordinator", COORDINATOR), ("repository/store", STORE)],
)
def test_the_list_is_what_the_source_has(folder: str, names: tuple[str, ...]) -> None:
    assert set(in_source(folder)) == {f'"{name}"' for name in names}


def test_no_place_is_listed_twice_and_each_daemon_has_thirty() -> None:
    assert len(NAMES) == len(AGENT) + len(COORDINATOR) + len(STORE)
    assert min(len(AGENT), len(COORDINATOR)) >= 30


def test_only_both_ways_to_one_step_share_a_name() -> None:
    shared = {
        name
        for name, count in in_source("agent", "coordinator", "repository/store").items()
        if count > 1
    }

    # A file is written whole, or in parts.
    assert shared == {f'"agent.file.{step}"' for step in ("created", "written", "finished")}


def test_what_is_asked_for_is_understood() -> None:
    asked = parse(" store.linked=kill@3; agent.root.signed=error;store.read=pause:/go@2 ;")

    assert {name: tuple(action) for name, action in asked.items()} == {
        "store.linked": ("kill", 3, ""),
        "agent.root.signed": ("error", 1, ""),
        "store.read": ("pause", 2, "/go"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "store.nowhere=kill",
        "store.linked",
        "store.linked=explode",
        "store.linked=kill@0",
        "store.linked=kill@x",
        "store.linked=pause",
        "store.linked=kill:/x",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=VARIABLE):
        arm({VARIABLE: text})


def test_a_place_fails_at_its_hit_and_only_then() -> None:
    arm({VARIABLE: "store.linked=error@2"})

    failpoint("store.linked", StoreUnavailableError)
    with pytest.raises(StoreUnavailableError, match=r"store\.linked"):
        failpoint("store.linked", StoreUnavailableError)
    failpoint("store.linked", StoreUnavailableError)
    failpoint("store.read")


def test_a_place_without_an_error_of_its_own_has_eio() -> None:
    arm({VARIABLE: "store.linked=error"})

    with pytest.raises(OSError, match="Input/output") as caught:
        failpoint("store.linked")

    assert caught.value.errno == errno.EIO


def test_a_pause_lasts_until_its_file_appears(tmp_path: Path) -> None:
    arm({VARIABLE: f"store.linked=pause:{tmp_path}/go"})
    (tmp_path / "go").touch()

    failpoint("store.linked")

    assert (tmp_path / "go.reached").exists()


def test_a_file_says_what_to_do_and_may_be_replaced(tmp_path: Path) -> None:
    script, acted = tmp_path / "script", tmp_path / "script.acted"
    armed = arm({VARIABLE: f"@{script}"})
    failpoint("store.linked")

    write(script, "store.linked=error@2;store.read=note")
    failpoint("store.linked")
    failpoint("store.read")
    failpoint("store.read")
    with pytest.raises(OSError, match="Input/output"):
        failpoint("store.linked")
    write(script, "store.linked=error@2")
    failpoint("store.linked")
    script.unlink()
    failpoint("store.linked")

    # A daemon that may be told later to fail is no sound one, and says so.
    assert armed
    assert acted.read_text().split() == ["store.read", "store.read", "store.linked"]


def test_without_a_file_nothing_is_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "script", "store.linked=error")
    arm({VARIABLE: f"@{tmp_path}/script"})
    arm({})

    failpoint("store.linked")


def write(path: Path, text: str) -> None:
    path.with_name("new").write_text(text)
    path.with_name("new").rename(path)


def test_a_kill_is_sigkill() -> None:
    program = (
        "from repository.failpoints import *\n"
        f"arm({{{VARIABLE!r}: 'store.linked=kill'}})\n"
        "failpoint('store.linked')\n"
    )

    assert (
        subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    )


@pytest.mark.parametrize("module", ["agent", "coordinator"])
def test_a_daemon_refuses_a_name_that_it_does_not_know(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--check-config", "--config", "/dev/null"],
        env={VARIABLE: "store.lniked=kill", "PATH": "/usr/bin:/bin"},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "store.lniked" in done.stderr
