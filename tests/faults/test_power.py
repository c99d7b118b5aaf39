"""The short form of tests/faults/power.py: a moment and a filesystem, drawn anew each time."""

import random
import subprocess
import sys
from pathlib import Path

from tests.faults.disks import FILESYSTEMS, loop_disk
from tests.faults.power import ACKNOWLEDGED, POINTS, Bench

_PUT = """
import asyncio, sys
from pathlib import Path
from repository.store.local import LocalStore
asyncio.run(LocalStore(Path(sys.argv[1])).put("packs/a", b"content"))
"""


def test_what_was_acknowledged_survives_a_power_cut(seed: int, tmp_path: Path) -> None:
    chosen = random.Random(seed)
    kind = chosen.choice(sorted(FILESYSTEMS))
    with loop_disk(kind, tmp_path) as disk:
        bench = Bench(disk, tmp_path / "bench")
        for moment in (ACKNOWLEDGED, chosen.choice(POINTS)):
            try:
                bench.run(moment)
            except BaseException as error:
                error.add_note(f"TIDEMARK_TEST_SEED={seed}: {kind}, cut at {moment}")
                raise


def test_a_name_that_is_taken_is_durable_before_that_is_said(tmp_path: Path) -> None:
    """Whoever took it may have died between name and flush; the next one's word counts on it."""
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs/a").write_bytes(b"content")
    trace = tmp_path / "trace"
    watched = ("strace", "-f", "-y", "-o", str(trace), "-e", "trace=link,linkat,fsync")

    done = subprocess.run(
        [*watched, sys.executable, "-c", _PUT, str(tmp_path)], capture_output=True, check=False
    )

    assert b"ObjectExistsError" in done.stderr
    calls = trace.read_text().splitlines()
    taken = next(number for number, line in enumerate(calls) if "EEXIST" in line)
    assert any(f"{tmp_path}/packs>" in line and "fsync" in line for line in calls[taken:]), calls
