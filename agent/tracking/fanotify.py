"""Changes told by fanotify: one mark for a filesystem, whatever number of directories it has.

kernel queue ──reader──► records, each once ──┬─ swap ──────┬─► names of each volume
                                              └─ too many ──┘

The reader only takes bytes off the queue and counts equal ones once, so that the queue never grows:
to resolve a name costs ten times as much. Names are looked for when a volume is swapped, whose root
is open then, and when there are many of them, by a second thread that opens roots for a moment.

It needs CAP_SYS_ADMIN for the mark, CAP_DAC_READ_SEARCH for the names, and Linux 5.9. The mark goes
silently with its filesystem; so each swap asks the kernel whether it is there still.
"""

import errno
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

from typing_extensions import override

from agent.beneath import Tree
from agent.errors import UntrackableError
from agent.syscalls import open_by_handle
from agent.tracking.cookies import Cookies
from agent.tracking.dirty import Dirty
from agent.tracking.marks import Group, gather
from agent.tracking.resolving import Filesystem, Watched
from agent.tracking.roots import (
    Root,
    check_trackable,
    device_of,
    look_at,
    mounted_beneath,
    mounts,
)
from agent.tracking.source import Source, Swapped

# Records that are looked at before somebody asks: some 5 MB, and a third of a second.
_PENDING_MAX: Final = 20_000
# Records at which everything counts as lost: some 50 MB. The resolver is far behind then.
_RAW_MAX: Final = 200_000
# Between two reads of a queue that was nearly empty: each wake-up costs as much as 50 events, and
# the kernel adds an event to an equal one only as long as that is in the queue.
_NAP_SECONDS: Final = 0.01
_NEARLY_EMPTY_BYTES: Final = 64 * 1024
_SWEEP: Final = "nothing needs to be done: its backups sweep it"
_REFUSALS: Final = {
    errno.EPERM: "the agent has no CAP_SYS_ADMIN, which fanotify needs",
    errno.EXDEV: "a btrfs subvolume cannot be marked",
    errno.EOPNOTSUPP: "the filesystem gives its files no handles",
    errno.ENODEV: "the filesystem has no id",
    errno.EINVAL: "the kernel is too old for fanotify by name",
    errno.ENOSYS: "the kernel has no fanotify",
    errno.ENOSPC: "the limit of fanotify marks is reached",
    errno.EMFILE: "the limit of fanotify groups is reached",
}


class FanotifySource(Source):
    """Filesystem marks in one group, which the cookies' directory is in, too."""

    name: ClassVar[str] = "fanotify"

    def __init__(self, state: Path, *, unlimited: bool = True) -> None:
        """Begin a group with a directory in the agent's state. Raises StateError.

        Where the kernel refuses it, watch() will say so. `unlimited` is for tests of the overflow.
        """
        self._cookies = Cookies(state)
        self._lock = threading.Lock()
        """Of the tables, and of everything in them."""
        self._filesystems: dict[bytes, Filesystem] = {}
        self._volumes: dict[bytes, Watched] = {}
        self._raw: dict[bytes, int] = {}
        self._overflown = False
        self._raw_lock = threading.Lock()
        self._failed: str | None = None
        self._closing = False
        self._many = threading.Event()
        self._threads: list[threading.Thread] = []
        self._group: Group | None = None
        self._refusal = ""
        try:
            self._begin(unlimited=unlimited)
        except OSError as error:
            self._refusal = _refusal(error)

    def _begin(self, *, unlimited: bool) -> None:
        group = Group(unlimited=unlimited)
        descriptor = os.open(self._cookies.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            group.mark_directory(descriptor)
        except OSError:
            group.close()
            raise
        finally:
            os.close(descriptor)
        self._group = group
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        for work in (self._read, self._resolve):
            thread = threading.Thread(
                target=self._guarded, args=(work, group), name=f"fanotify{work.__name__}"
            )
            thread.daemon = True
            thread.start()
            self._threads.append(thread)

    @override
    def watch(self, volume_id: bytes, path: bytes) -> None:
        with Tree.of_volume(path) as tree, self._lock:
            self._watch(volume_id, tree)

    @override
    def forget(self, volume_id: bytes) -> None:
        with self._lock:
            self._forget(volume_id)

    @override
    def barrier(self, timeout_seconds: float) -> bool:
        if self._group is None:
            return False
        return self._cookies.wait(timeout_seconds)

    @override
    def swap(self, volume_id: bytes, tree: Tree) -> Swapped:
        with self._lock:
            watched = self._volumes.get(volume_id)
            if watched is None:
                return Swapped(Dirty(), "the volume is not watched")
            reason = self._failed or self._unproven(watched, tree)
            if reason is not None:
                self._watch_anew(volume_id, tree)
                return Swapped(Dirty(), reason)
            filesystem = self._filesystems[watched.root.fsid]
            self._take()
            filesystem.resolve(tree)
            watched.tell_mounted(mounted_beneath(watched.root, mounts()))
            return watched.take()

    @override
    def close(self) -> None:
        with self._lock:
            group, self._group = self._group, None
            self._failed = "fanotify has ended"
        if group is None:
            return
        self._closing = True
        self._cookies.break_off()
        self._many.set()
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join()
        group.close()
        os.close(self._wake)

    # The tables; the lock is held.

    def _watch(self, volume_id: bytes, tree: Tree) -> None:
        group = self._group
        if group is None:
            raise UntrackableError(self._refusal or "fanotify has ended", hint=_SWEEP)
        check_trackable(tree)
        try:
            root = look_at(tree)
            self._check_handle(tree, root)
            # The open tree keeps the filesystem, so that it is one and the same in all of this.
            filesystem = self._filesystem(group, root, device_of(tree.root))
            group.mark_filesystem(tree.root)
            mounted = mounted_beneath(root, mounts())
        except OSError as error:
            raise UntrackableError(_refusal(error), hint=_SWEEP) from error
        self._forget(volume_id, root.fsid)
        self._filesystems[root.fsid] = filesystem
        # What was told before is no business of the new one.
        self._take()
        filesystem.resolve(tree)
        watched = Watched(root, mounted)
        self._volumes[volume_id] = filesystem.volumes[volume_id] = watched

    @staticmethod
    def _check_handle(tree: Tree, root: Root) -> None:
        if root.handle is None or not any(root.fsid):
            raise OSError(errno.EOPNOTSUPP, "no handles")
        try:
            os.close(open_by_handle(tree.root, root.handle))
        except PermissionError as error:
            raise UntrackableError(
                "the agent has no CAP_DAC_READ_SEARCH, which fanotify's names need", hint=_SWEEP
            ) from error

    def _filesystem(self, group: Group, root: Root, device: int) -> Filesystem:
        known = self._filesystems.get(root.fsid)
        if known is None:
            return Filesystem(device)
        if known.device in group.marked():
            if known.device == device:
                return known
            raise UntrackableError("another filesystem that is mounted has its id", hint=_SWEEP)
        # It was unmounted; its volumes see that at their next swap.
        return Filesystem(device)

    def _forget(self, volume_id: bytes, keep: bytes | None = None) -> None:
        watched = self._volumes.pop(volume_id, None)
        if watched is None:
            return
        filesystem = self._filesystems.get(watched.root.fsid)
        if filesystem is None or filesystem.volumes.get(volume_id) is not watched:
            return
        del filesystem.volumes[volume_id]
        if not filesystem.volumes and watched.root.fsid != keep:
            del self._filesystems[watched.root.fsid]
            self._unmark(watched.root, filesystem.device)

    def _unmark(self, root: Root, device: int) -> None:
        """Take a mark away. Where its filesystem cannot be opened any more it stays, unheard."""
        with suppress(OSError):
            descriptor = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if self._group is not None and device_of(descriptor) == device:
                    self._group.unmark_filesystem(descriptor)
            finally:
                os.close(descriptor)

    def _unproven(self, watched: Watched, tree: Tree) -> str | None:
        """Why it is not sure that all of this time was watched."""
        marked = set() if self._group is None else self._group.marked()
        try:
            root = look_at(tree)
            if not root.is_same(watched.root):
                return "another directory or another mount is at the volume's path"
            filesystem = self._filesystems.get(root.fsid)
            if (
                filesystem is None
                or watched not in filesystem.volumes.values()
                or filesystem.device not in marked
                # The number of a mount may be another's by now, but not the device's, too.
                or (not root.mount.is_unique and device_of(tree.root) != filesystem.device)
            ):
                return "the filesystem was unmounted, and its mark went with it"
        except OSError as error:
            return f"the volume's root cannot be looked at: {(error.strerror or '').lower()}"
        watched.root = root
        return None

    def _watch_anew(self, volume_id: bytes, tree: Tree) -> None:
        """Watch what is there now. Where that cannot be, nothing is watched until somebody asks.

        What was watched before must not count again when it comes back: nobody looked at it
        meanwhile.
        """
        try:
            self._watch(volume_id, tree)
        except UntrackableError:
            self._forget(volume_id)

    def _take(self) -> None:
        """Give each filesystem what the reader has for it; nobody asks for the rest."""
        with self._raw_lock:
            raw, self._raw = self._raw, {}
            overflown, self._overflown = self._overflown, False
        if overflown:
            for each in self._filesystems.values():
                each.lose("the queue of events overflowed")
        for records, mask in raw.items():
            # Whatever a record is, it begins with the filesystem it is about.
            filesystem = self._filesystems.get(records[4:12])
            if filesystem is not None:
                filesystem.pending[records] = filesystem.pending.get(records, 0) | mask

    # The threads.

    def _guarded(self, work: Callable[[Group], None], group: Group) -> None:
        try:
            work(group)
        except Exception as error:  # noqa: BLE001 - the threads' guard: said at each swap
            self._failed = f"fanotify cannot be read: {error}"
            self._cookies.break_off()

    def _read(self, group: Group) -> None:
        """Keep the queue empty."""
        poll = select.poll()
        poll.register(group.descriptor, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._closing:
            poll.poll()
            events = group.read()
            with self._raw_lock:
                overflown = gather(events, self._raw)
                many = len(self._raw) > _PENDING_MAX
                if overflown or len(self._raw) > _RAW_MAX:
                    self._overflown = True
                    self._raw.clear()
            self._cookies.see_in(events)
            if overflown:
                self._cookies.drop()
            if many:
                self._many.set()
            if len(events) < _NEARLY_EMPTY_BYTES:
                self._cookies.awaited.wait(_NAP_SECONDS)

    def _resolve(self, _: Group) -> None:
        """Look at names before there are too many of them."""
        while True:
            self._many.wait()
            self._many.clear()
            if self._closing:
                return
            with self._lock:
                self._take()
                for filesystem in self._filesystems.values():
                    if len(filesystem.pending) > _PENDING_MAX:
                        filesystem.resolve()


def _refusal(error: OSError) -> str:
    return _REFUSALS.get(error.errno or 0) or f"fanotify fails: {(error.strerror or '').lower()}"
