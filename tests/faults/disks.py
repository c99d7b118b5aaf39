"""Small disks for one test: one in a file, whose power can be cut, one in memory, layers, FUSE."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

# FS_IOC_SHUTDOWN of ext4, XFS_IOC_GOINGDOWN of XFS: _IOR('X', 125, __u32) for both.
_SHUTDOWN: Final = 0x8004587D
# What was not written yet is lost, and what the journal holds in memory too: a power cut.
NO_LOG_FLUSH: Final = 2
# Less is refused by mkfs.xfs.
_IMAGE_BYTES: Final = 320 * 1024 * 1024
_MAKERS: Final = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
# Those whose power can be cut.
FILESYSTEMS: Final = ("ext4", "xfs")


class LoopDisk:
    """A mounted filesystem whose power can be cut."""

    def __init__(self, kind: str, image: Path, path: Path, size_bytes: int) -> None:
        self.path = path
        self._image = image
        with image.open("wb") as file:
            file.truncate(size_bytes)
        _run(*_MAKERS[kind], str(image))
        path.mkdir()
        self._mount()

    def cut(self) -> None:
        """Lose everything that was not synced; from now on every call on the disk fails."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def again(self) -> None:
        """Mount it anew, as after a reboot. Nobody may hold a file in it."""
        self.unmount()
        self._mount()

    def unmount(self) -> None:
        """Unmount it."""
        _run("umount", str(self.path))

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.path))


@contextmanager
def loop_disk(kind: str, directory: Path, size_bytes: int = _IMAGE_BYTES) -> Iterator[LoopDisk]:
    """A disk with ext4, xfs or btrfs, as long as the block lasts. Needs root and loop devices."""
    image = directory / f"{kind}.img"
    disk = LoopDisk(kind, image, directory / kind, size_bytes)
    try:
        yield disk
    finally:
        with suppress(subprocess.CalledProcessError):
            disk.unmount()
        image.unlink()


@contextmanager
def loop_disks(make_directory: Callable[[str], Path]) -> Iterator[Callable[[str], LoopDisk]]:
    """One of each kind, made when it is asked for first."""
    made: dict[str, LoopDisk] = {}
    with ExitStack() as opened:

        def disk(kind: str) -> LoopDisk:
            if kind not in made:
                made[kind] = opened.enter_context(loop_disk(kind, make_directory(kind)))
            return made[kind]

        yield disk


@contextmanager
def memory_disk(path: Path, size_bytes: int) -> Iterator[Path]:
    """A directory with no more room than that, for as long as the block lasts. Needs root."""
    path.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path))
    try:
        yield path
    finally:
        _run("umount", "--lazy", str(path))


@contextmanager
def overlay_disk(lower: Path, upper: Path, path: Path) -> Iterator[Path]:
    """One directory over another, as in a container, for as long as the block lasts. Needs root."""
    layers = [upper / "layer", upper / "work"]
    for each in (*layers, path):
        each.mkdir()
    options = f"lowerdir={lower},upperdir={layers[0]},workdir={layers[1]}"
    _run("mount", "-t", "overlay", "overlay", "-o", options, str(path))
    try:
        yield path
    finally:
        _run("umount", "--lazy", str(path))


@contextmanager
def fuse_disk(source: Path, path: Path) -> Iterator[Path]:
    """A directory that a process of its own shows elsewhere, for as long as the block lasts.

    Needs root and bindfs. What changes in the source is seen at once, and no event tells of it.
    """
    path.mkdir()
    _run("bindfs", "-o", "attr_timeout=0,entry_timeout=0", str(source), str(path))
    try:
        yield path
    finally:
        _run("umount", "--lazy", str(path))


def fill(directory: Path, leave_bytes: int = 0) -> Path:
    """Take all the room of a disk but so much; the file that does, to be removed."""
    filler = directory / "filler"
    room = os.statvfs(directory)
    size = max(0, room.f_bavail * room.f_frsize - leave_bytes)
    with filler.open("wb") as file:
        while size > 0:
            try:
                size -= file.write(bytes(min(size, 1 << 16)))
                file.flush()
            except OSError:
                break
    return filler


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
