"""Which volumes are due for a scheduled backup. Pure.

One interval for all protected volumes. A volume is first due one whole interval after it was
first seen, so that starting a coordinator never starts a storm, and then one interval after its
last scheduled run was asked for. Missed runs coalesce into one. A volume that is being backed up,
or waits for it, is not due: runs of one volume never overlap.
"""

from collections.abc import Collection, Iterable

from coordinator.model import Volume
from repository.ids import VolumeId


def due(
    volumes: Iterable[Volume], *, busy: Collection[VolumeId], interval_ns: int, now: int
) -> list[Volume]:
    """The volumes to back up now, those that have waited longest first."""
    waiting = [
        (due_at(volume, interval_ns), volume)
        for volume in volumes
        if is_scheduled(volume) and volume.volume_id not in busy
    ]
    waiting.sort(key=lambda pair: (pair[0], pair[1].volume_id))
    return [volume for at, volume in waiting if at <= now]


def is_scheduled(volume: Volume) -> bool:
    """Whether the volume is ever due: it is there, and is to be backed up."""
    return volume.present and volume.verdict == "protected"


def soonest(volumes: Iterable[Volume], *, interval_ns: int) -> int | None:
    """When the next of these volumes is due; None if none ever is."""
    return min((due_at(each, interval_ns) for each in volumes if is_scheduled(each)), default=None)


def due_at(volume: Volume, interval_ns: int) -> int:
    """When the volume's next scheduled backup is due."""
    since = volume.first_seen_at if volume.scheduled_at is None else volume.scheduled_at
    return since + interval_ns
