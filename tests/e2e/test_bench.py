"""The bench's tools back up and restore the same, each by its own command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.results import STEPS
from tests.bench.tools import TOOLS

# One large file and many small ones: between them every step.
CASES = ("pages", "small")


@pytest.mark.skipif(shutil.which("restic") is None, reason="needs restic (Debian: restic)")
def test_each_tool_restores_what_it_backed_up(tmp_path: Path) -> None:
    tools = [tool for tool in TOOLS if tool in {"tidemark", "restic"} or shutil.which(tool)]
    report = tmp_path / "bench.json"
    words = ["--rounds", "1", "--scale", "0.002", "--json", str(report), "--scratch", str(tmp_path)]

    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *words, "--tools", *tools, "--cases", *CASES],
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    samples = json.loads(report.read_text())["samples"]
    assert not [sample for sample in samples if sample["error"]]
    # A tool that cannot restore is compared in nothing.
    for tool in ("tidemark", "restic"):
        steps = {sample["step"] for sample in samples if sample["tool"] == tool}
        assert steps == {step.value for step in STEPS}
