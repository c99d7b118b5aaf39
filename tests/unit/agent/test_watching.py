"""Volumes are watched as soon as they are known, and one that is not there ends nothing."""

import asyncio
import os
from pathlib import Path

import pytest
from typing_extensions import override

from agent.clones import Clones
from agent.services import Verdict, Volume
from agent.state import State
from agent.tracking.inotify import InotifySource
from agent.tracking.suspects import Suspects
from agent.tracking.tracker import Mode, Scanner, Tracker
from agent.watching import Watching


class NobodyScanner(Scanner):
    """Finds nobody."""

    @override
    def scan(self) -> Suspects:
        return Suspects({}, None, 0)


@pytest.mark.asyncio
async def test_a_protected_path_that_is_missing_is_told_and_others_are_watched(
    tmp_path: Path,
) -> None:
    volumes = [
        Volume(b"gone", "gone", os.fsencode(tmp_path / "gone")),
        Volume(b"there", "there", os.fsencode(tmp_path)),
        Volume(b"excluded", "excluded", b"", verdict=Verdict.EXCLUDED),
    ]
    (tmp_path / "state").mkdir()
    tracker = Tracker([lambda: InotifySource(tmp_path / "state")], NobodyScanner())
    changed = asyncio.Event()
    state = State(tmp_path / "state" / "state.db")
    watching = Watching(tracker, Clones(state, []), lambda: volumes, changed.set)
    try:
        async with asyncio.TaskGroup() as group, asyncio.timeout(10):
            running = group.create_task(watching.run())
            await changed.wait()
            running.cancel()
        told = {each.name: each.tracked for each in watching.told(volumes)}
    finally:
        tracker.close()
        state.close()

    assert told == {
        "gone": Mode("sweep", f"{tmp_path}/gone is not there"),
        "there": Mode("inotify", ""),
        "excluded": None,
    }
    assert watching.count() == {"sweep": 1, "inotify": 1}
