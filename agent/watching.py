"""Has every protected volume watched, from when the agent knows of it to when it is gone.

With it go the clones of its files.

A backup would do it as well, but only a volume that is watched before its first backup can tell
beforehand how its changes are found. To watch a large volume may take seconds where the kernel has
no better way, so it is done in a thread, one volume after the other.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from agent.clones import Clones
from agent.services import BY_HAND, Verdict, Volume
from agent.tracking.tracker import Mode, Tracker


class Watching:
    """What tells of each volume's changes. Belongs to the event loop."""

    def __init__(
        self,
        tracker: Tracker,
        clones: Clones,
        volumes: Callable[[], Sequence[Volume]],
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called whenever something else tells of a volume's changes than before."""
        self._tracker = tracker
        self._clones = clones
        self._volumes = volumes
        self._changed = changed
        self._modes: Mapping[bytes, Mode] = {}
        self._again = asyncio.Event()
        self._again.set()

    def look_again(self) -> None:
        """There may be other volumes now, or another source for one of them."""
        self._again.set()

    async def run(self) -> None:
        """Watch what there is, for ever."""
        while True:
            await self._again.wait()
            self._again.clear()
            modes = await asyncio.to_thread(self._watch, self._volumes())
            if modes != self._modes:
                self._modes = modes
                self._changed()

    def _watch(self, volumes: Sequence[Volume]) -> Mapping[bytes, Mode]:
        protected = [each for each in volumes if each.verdict is Verdict.PROTECTED]
        self._tracker.keep_only(each.volume_id for each in protected)
        self._clones.keep_only(each.volume_id for each in protected)
        return {
            each.volume_id: self._tracker.watch(each.volume_id, watched_path(each))
            for each in protected
        }

    def count(self) -> Mapping[str, int]:
        """Return how many volumes each source tells of."""
        return Counter(mode.source for mode in self._modes.values())

    def told(self, volumes: Sequence[Volume]) -> Sequence[Volume]:
        """Return volumes, each with what tells of its changes as far as that is known."""
        return [
            msgspec.structs.replace(each, tracked=self._modes.get(each.volume_id))
            for each in volumes
        ]


def watched_path(volume: Volume) -> bytes:
    """Return where a volume lies: links are followed only where a person named it."""
    return os.path.realpath(volume.path) if volume.source == BY_HAND else volume.path
