"""Servers for tests end with the run that they were started for."""

import select
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.processes import answers

CHECKOUT = Path(__file__).parents[2]
SECONDS = 8.0


def test_a_server_and_what_it_started_end_with_the_process_they_are_for(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.servers", "rclone", str(tmp_path)]
    with (
        subprocess.Popen(["sleep", "60"]) as run,
        subprocess.Popen(
            [*command, str(run.pid)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
        ) as server,
    ):
        assert server.stdout is not None
        port = urlsplit(server.stdout.readline().strip()).port
        assert port is not None
        assert answers(port)

        run.kill()

        assert server.wait(SECONDS) == 0
    for _ in range(int(SECONDS / 0.05)):
        if not answers(port):
            return
        select.select([], [], [], 0.05)
    raise AssertionError("what the server started goes on")
