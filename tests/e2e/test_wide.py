"""A directory of very many entries: 60,000 here, TIDEMARK_ENTRIES of them in a campaign."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.e2e.harness import Machine, Up

ENTRIES = int(os.environ.get("TIDEMARK_ENTRIES", "60000"))
MIB = 1 << 20
T = TypeVar("T")


def name(number: int) -> str:
    """Names whose order is not the order in which they are made."""
    return f"{number * 7919 % 1_000_003:07d}-{number}"


def fill(directory: Path) -> None:
    directory.mkdir(parents=True)
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(ENTRIES):
        file = os.open(name(number), os.O_WRONLY | os.O_CREAT, dir_fd=opened)
        os.write(file, b"content of %d" % number)
        os.close(file)
    os.close(opened)


def told(up: Up, what: str, work: Callable[[], T]) -> T:
    """Do it; say what it took, to whoever lets pytest show logs."""
    began = time.monotonic()
    done = work()
    peak = up.peak_bytes("agent") / MIB
    took = time.monotonic() - began
    logging.getLogger(__name__).info(
        "%s: %.1f s, agent at most %.0f MiB until now", what, took, peak
    )
    return done


@pytest.mark.timeout(3600)
def test_a_directory_of_very_many_entries(machine: Machine, tmp_path: Path) -> None:
    top = tmp_path / "volume"
    wide = top / "wide"
    fill(wide)
    with machine.up(tmp_path / "data", f"v={top}") as up:
        first = told(up, f"{ENTRIES} files, first backup", lambda: up.backup("v"))
        again = told(up, "nothing changed", lambda: up.backup("v"))
        (wide / "0500000-added").write_bytes(b"added")
        (wide / name(1)).unlink()
        more = told(up, "one added, one removed", lambda: up.backup("v"))
        one = name(ENTRIES // 2)
        words = ("--path", f"wide/{one}")
        snapshot = more["snapshot_id"]
        alone = tmp_path / "alone"
        restored = told(up, "one restored", lambda: up.restore(snapshot, alone, *words))
        agent_bytes = up.peak_bytes("agent")

    assert (first["files_new"], first["errors_total"]) == (ENTRIES, 0)
    assert (again["files_unmodified"], again["bytes_read"]) == (ENTRIES, 0)
    assert (more["files_new"], more["files_removed"], more["files_changed"]) == (1, 1, 0)
    assert more["files_unmodified"] == ENTRIES - 1
    assert more["data_added_packed"] < 2 * MIB
    assert restored["files_restored"] == 1
    assert (alone / "wide" / one).read_bytes() == b"content of %d" % (ENTRIES // 2)
    assert os.listdir(alone / "wide") == [one]
    assert agent_bytes < 256 * MIB
