"""Changes told by inotify, where fanotify is not allowed: a watch for each directory.

What of watchdog (7.1) is used, and why. Its `Observer` walks trees by path, as text, and after an
overflow walks again and says nothing; with its default mask its own walk raises events enough to
overflow the queue, again and again. Its `InotifyFD` is one inotify instance with one thread, takes
any number of directories with a mask of ours, calls back in the order of the queue, with names in
bytes, and calls back at an overflow, too. So all volumes and the cookies' directory share one
`InotifyFD`, and which directory a watch means is kept here. Three of its ways need care: where
permission is missing it returns -1 instead of raising; an error in a callback ends its thread, so
each swap and barrier asks whether it lives; and it leaves its descriptor to child processes.

A directory is opened beneath the volume's root, through no link, and watched by that descriptor.
Its watch comes first, then its listing. A directory that appears in a watched volume counts with
its whole subtree, and once more when all of that is watched: what happened meanwhile is found by
whoever looks there, be it after this swap or the next. Whatever is told of a directory's name, the
name is looked at again: events come late, and it may mean another directory by then.

What inotify cannot tell: a file written through a name outside of the volume, or through another
hard link in it that was made and removed again between two backups. Its own name did not change. So
files that have several names are looked at whatever is told, and a further name of a file is looked
at as soon as it is told. What stays unheard is a file that had one name when it was backed up, and
got another one outside, or one that was gone before it could be looked at, within milliseconds.
"""

import errno
import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from typing_extensions import override
from watchdog.observers.inotify_c import (
    DEFAULT_EVENT_BUFFER_SIZE,
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchCallback,
    WatchDescriptor,
)

from agent.beneath import Tree, open_directory
from agent.errors import UntrackableError, VolumeError
from agent.tracking.cookies import Cookies
from agent.tracking.dirty import CAP, Dirty
from agent.tracking.roots import Root, check_trackable, look_at, mounted_beneath, mounts
from agent.tracking.source import Source, Swapped

# Neither opens nor closes of what was only read: our own walks would raise those.
_MASK: Final = Mask(
    InotifyConstants.IN_MODIFY
    | InotifyConstants.IN_ATTRIB
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_CREATE
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF
    | InotifyConstants.IN_ONLYDIR
)
_COOKIE_MASK: Final = Mask(InotifyConstants.IN_CREATE | InotifyConstants.IN_ONLYDIR)
_LISTED: Final = (
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
)
_ARRIVED: Final = InotifyConstants.IN_CREATE | InotifyConstants.IN_MOVED_TO
_DIRECTORY: Final = InotifyConstants.IN_ISDIR
_UNMOUNT: Final = InotifyConstants.IN_UNMOUNT
# Somebody took it away, put something else there, or mounted something over it; events tell.
_ELSE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE})
_REFUSALS: Final = {
    errno.ENOSPC: "the limit of inotify watches is reached (fs.inotify.max_user_watches)",
    errno.EMFILE: "the limit of inotify instances is reached (fs.inotify.max_user_instances)",
    errno.EACCES: "a directory of the volume may not be read",
}
# Between two reads of a queue that was nearly empty: to be woken costs as much as many events, and
# the writer waits for that. The queue holds 16,384; 10 ms bring some 2,000.
_NAP_SECONDS: Final = 0.01
_FEW: Final = 1000
# Each callback has one of its own: two of one id at one directory are an error to watchdog.
_IDS: Final = itertools.count(1)
_SWEEP: Final = "nothing needs to be done: its backups sweep it"


class _Instance(InotifyFD):
    """watchdog's, but not for child processes, and one that waits for more than single events."""

    def __init__(self, awaited: threading.Event) -> None:
        """Begin one; `awaited` is set while somebody waits for an event. Raises OSError."""
        super().__init__()
        self._awaited = awaited
        self._had_few = True

    @override
    def read_events(
        self, *, event_buffer_size: int = DEFAULT_EVENT_BUFFER_SIZE
    ) -> list[InotifyEvent]:
        if self._had_few:
            self._awaited.wait(_NAP_SECONDS)
        events = super().read_events(event_buffer_size=event_buffer_size)
        self._had_few = len(events) < _FEW
        return events

    @classmethod
    @override
    def _create_inotify_fd(cls) -> int:
        descriptor = super()._create_inotify_fd()
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - it has no name
        return descriptor


class _Directory:
    """A directory that is watched."""

    __slots__ = ("children", "id", "is_gone", "name", "parent", "wd")

    def __init__(
        self, parent: "_Directory | None", name: bytes, wd: WatchDescriptor, id_: CallbackId
    ) -> None:
        self.parent = parent
        self.name = name
        self.wd = wd
        self.id = id_
        self.children: dict[bytes, _Directory] = _NONE
        self.is_gone = False
        """Whether the volume has it there no longer, as far as was told."""

    def key(self) -> bytes:
        """Its key in the volume."""
        names = []
        directory = self
        while directory.parent is not None:
            names.append(directory.name)
            directory = directory.parent
        return b"\0".join(reversed(names))

    def adopt(self, child: "_Directory") -> None:
        """Have it as a child."""
        if self.children is _NONE:
            self.children = {}
        self.children[child.name] = child


# Of all directories that hold none: an empty dictionary for each would be a third of their memory.
_NONE: Final[dict[bytes, _Directory]] = {}


class _CookieEvents(WatchCallback):
    """The cookies' directory."""

    def __init__(self, cookies: Cookies) -> None:
        self._cookies = cookies

    @override
    def on_event(self, event: InotifyEvent) -> None:
        self._cookies.see(event.name)

    @override
    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """No event will come; who waits finds out by the clock."""

    @override
    def on_queue_overflow(self) -> None:
        self._cookies.drop()


class _Watched(WatchCallback):
    """A volume: its directories, and what was told of it since the last swap.

    Events come in the instance's thread. The lock is held for moments only, so that a long walk in
    another thread does not make the queue grow.
    """

    def __init__(self, instance: InotifyFD, root: Root) -> None:
        self.root = root
        self._instance = instance
        self._lock = threading.Lock()
        self._directories: dict[WatchDescriptor, _Directory] = {}
        self._top: _Directory | None = None
        self._mounted: frozenset[bytes] = frozenset()
        self._dirty = Dirty()
        self._lost: str | None = None

    # Which directories are watched.

    def begin(self, tree: Tree) -> None:
        """Watch all directories. Raises UntrackableError, and then watches none."""
        try:
            self._mounted = mounted_beneath(self.root, mounts())
            top, _ = self._add(None, b"", tree.root)
            if top is not None and not tree.is_file:
                self._watch_beneath(tree, _subdirectories(tree.root, top, b""))
        except OSError as error:
            self.end()
            raise UntrackableError(_refusal(error), hint=_SWEEP) from error

    def end(self) -> None:
        """Watch nothing any more."""
        with self._lock:
            if self._top is not None:
                self._drop(self._top)
                self._top = None

    def _watch_beneath(self, tree: Tree, places: "Iterable[_Place]") -> None:
        """Watch directories and all beneath them, each before it is listed. Raises OSError."""
        waiting = list(places)
        while waiting:
            parent, name, key = waiting.pop()
            try:
                opened = open_directory(tree.root, key.replace(b"\0", b"/"), same_filesystem=True)
            except OSError as error:
                if error.errno not in _ELSE:
                    raise
                self._drop_child(parent, name)
                continue
            try:
                directory, is_new = self._add(parent, name, opened)
                if directory is not None and is_new:
                    waiting += _subdirectories(opened, directory, key)
            finally:
                os.close(opened)

    def _add(
        self, parent: _Directory | None, name: bytes, opened: int
    ) -> tuple[_Directory | None, bool]:
        """Watch an open directory, and tell whether it was not there already.

        None if its parent has gone: whatever it is now has another place. Raises OSError.
        """
        with self._lock:
            if parent is not None and parent.is_gone:
                return None, False
            id_ = CallbackId(next(_IDS))
            path = b"/proc/self/fd/%d" % opened
            wd = self._instance.add_callback(path, _MASK, self, id_)
            if wd == -1:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            known = self._directories.get(wd)
            child = None if parent is None else parent.children.get(name)
            if known is not None:
                if known is child:
                    self._instance.remove_callbacks([(wd, id_)])
                    return known, False
                # It was elsewhere; that it left there is still to be told.
                self._instance.remove_callbacks([(wd, known.id)])
            directory = self._directories[wd] = _Directory(parent, name, wd, id_)
            if child is not None:
                self._drop(child)
            if parent is None:
                self._top = directory
            else:
                parent.adopt(directory)
            return directory, True

    def _drop_child(self, parent: _Directory, name: bytes) -> None:
        with self._lock:
            child = parent.children.pop(name, None)
            if child is not None:
                self._drop(child)

    def _drop(self, directory: _Directory) -> None:
        """Watch a directory and all beneath it no longer; the lock is held."""
        waiting, callbacks = [directory], []
        while waiting:
            each = waiting.pop()
            each.is_gone = True
            waiting += each.children.values()
            # It may be watched as something else already.
            if self._directories.get(each.wd) is each:
                del self._directories[each.wd]
                callbacks.append((each.wd, each.id))
        self._instance.remove_callbacks(callbacks)

    # What is told. In the instance's thread, and nothing may be raised: that would end it.

    @override
    def on_event(self, event: InotifyEvent) -> None:
        place = self._tell(event)
        if place is None:
            return
        try:
            with Tree.of_volume(self.root.path, through_links=False) as tree:
                found = os.fstat(tree.root)
                if (found.st_dev, found.st_ino) != (self.root.device, self.root.inode):
                    self.lose("another directory is at the volume's path")
                    return
                self._watch_beneath(tree, [place])
        except OSError as error:
            self.lose(_refusal(error))
        except VolumeError as error:
            self.lose(str(error))
        self._tell_subtree(place.key)

    def _tell(self, event: InotifyEvent) -> "_Place | None":
        """Note what happened; return the name of a directory that has to be looked at again."""
        if event.mask & _UNMOUNT:
            self.lose("the filesystem was unmounted")
        with self._lock:
            directory = self._directories.get(event.wd)
            if directory is None or self._lost is not None:
                return None
            if self.root.file_name is not None:
                if event.name == self.root.file_name:
                    self._dirty.names.add(b"")
                return None
            key = directory.key()
            if not event.name or event.mask & _LISTED:
                self._dirty.names.add(key)
            if not event.name:
                return None
            place = _Place(directory, event.name, key + b"\0" + event.name if key else event.name)
            self._dirty.names.add(place.key)
            is_listed_directory = event.mask & _DIRECTORY and event.mask & _LISTED
            if is_listed_directory and event.mask & _ARRIVED:
                self._dirty.subtrees.add(place.key)
            if event.mask & _ARRIVED and not event.mask & _DIRECTORY:
                self._look_for_other_names(place.key)
            self._bound()
            return place if is_listed_directory else None

    def _look_for_other_names(self, key: bytes) -> None:
        """Note the number of what came there, if it has other names: this one may go again.

        By its path alone, since nothing more comes of it than a look too many or one too few.
        """
        with suppress(OSError):
            found = os.lstat(self.root.path + b"/" + key.replace(b"\0", b"/"))
            if found.st_nlink > 1:
                self._dirty.inodes.add(found.st_ino)

    def _tell_subtree(self, key: bytes) -> None:
        with self._lock:
            if self._lost is None:
                self._dirty.names.add(key)
                self._dirty.subtrees.add(key)
                self._bound()

    def _bound(self) -> None:
        if self._dirty.size() > CAP:
            self._lose(f"more than {CAP:,} changes since the last backup")

    @override
    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        with self._lock:
            directory = self._directories.pop(wd, None)
            if directory is not None and directory is self._top:
                self._lose("the volume's directory was removed")

    @override
    def on_queue_overflow(self) -> None:
        self.lose("the queue of events overflowed")

    def lose(self, reason: str) -> None:
        """More may have changed than is known. The first reason stays, and nothing helps it."""
        with self._lock:
            self._lose(reason)

    def _lose(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._dirty = Dirty()

    # What was told.

    def take(self, tree: Tree) -> Swapped:
        """Return it, and begin anew unless all is lost."""
        reason = self._unproven(tree)
        if reason is None:
            self._look_at_mounts(tree)
        else:
            self.lose(reason)
        with self._lock:
            dirty, self._dirty = self._dirty, Dirty()
            return Swapped(dirty, self._lost)

    def _unproven(self, tree: Tree) -> str | None:
        """Why it is not sure that this volume was watched."""
        try:
            root = look_at(tree)
        except OSError as error:
            return f"the volume's root cannot be looked at: {(error.strerror or '').lower()}"
        if not root.is_same(self.root):
            return "another directory or another mount is at the volume's path"
        self.root = root
        return None

    def _look_at_mounts(self, tree: Tree) -> None:
        """What was mounted, or is so no longer, changes what can be seen, and raises no event."""
        mounted = mounted_beneath(self.root, mounts())
        changed, self._mounted = mounted ^ self._mounted, mounted
        try:
            for key in changed:
                place = self._place(key)
                if place is not None:
                    self._watch_beneath(tree, [place])
        except OSError as error:
            self.lose(_refusal(error))
        for key in changed:
            self._tell_subtree(key)

    def _place(self, key: bytes) -> "_Place | None":
        """Where that key is; None if a directory on the way there is not watched."""
        with self._lock:
            directory = self._top
            *above, name = key.split(b"\0")
            for each in above:
                directory = None if directory is None else directory.children.get(each)
            return None if directory is None else _Place(directory, name, key)


class _Place(NamedTuple):
    """A name in a watched directory."""

    parent: _Directory
    name: bytes
    key: bytes


def _subdirectories(opened: int, directory: _Directory, key: bytes) -> Iterator[_Place]:
    """List an open directory. Raises OSError."""
    prefix = key + b"\0" if key else b""
    with os.scandir(opened) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                name = os.fsencode(entry.name)
                yield _Place(directory, name, prefix + name)


class InotifySource(Source):
    """Watches of all volumes, and of the cookies' directory, in one instance."""

    name: ClassVar[str] = "inotify"
    tells_inodes: ClassVar[bool] = False

    def __init__(self, state: Path) -> None:
        """Begin an instance with a directory in the agent's state. Raises StateError.

        Where the kernel refuses it, watch() will say so.
        """
        self._cookies = Cookies(state)
        self._lock = threading.Lock()
        """Of the table alone."""
        self._volumes: dict[bytes, _Watched] = {}
        self._instance: _Instance | None = None
        self._refusal = "inotify has ended"
        try:
            self._instance = self._begin_instance()
        except OSError as error:
            self._refusal = _refusal(error)

    def _begin_instance(self) -> _Instance:
        instance = _Instance(self._cookies.awaited)
        instance.start()
        directory, events = os.fsencode(self._cookies.directory), _CookieEvents(self._cookies)
        try:
            instance.add_callback(directory, _COOKIE_MASK, events, CallbackId(0))
        except OSError:
            instance.stop()
            raise
        return instance

    @override
    def watch(self, volume_id: bytes, path: bytes) -> None:
        with Tree.of_volume(path) as tree:
            fresh = self._begin(tree)
        self._replace(volume_id, fresh)

    @override
    def forget(self, volume_id: bytes) -> None:
        self._replace(volume_id, None)

    @override
    def barrier(self, timeout_seconds: float) -> bool:
        instance = self._instance
        if instance is None or not instance.is_alive():
            return False
        return self._cookies.wait(timeout_seconds)

    @override
    def swap(self, volume_id: bytes, tree: Tree) -> Swapped:
        with self._lock:
            watched = self._volumes.get(volume_id)
        if watched is None:
            return Swapped(Dirty(), "the volume is not watched")
        if not self._is_alive():
            return Swapped(Dirty(), "inotify cannot be read any more")
        swapped = watched.take(tree)
        if swapped.lost is not None:
            # Directories may be without a watch now. Where not even this can be, it stays lost.
            with suppress(UntrackableError):
                self._replace(volume_id, self._begin(tree))
        return swapped

    @override
    def close(self) -> None:
        self._cookies.break_off()
        instance, self._instance = self._instance, None
        if instance is not None:
            instance.stop()
            instance.join()

    def _is_alive(self) -> bool:
        return self._instance is not None and self._instance.is_alive()

    def _begin(self, tree: Tree) -> _Watched:
        """Watch a tree. Raises UntrackableError."""
        if self._instance is None or not self._instance.is_alive():
            raise UntrackableError(self._refusal, hint=_SWEEP)
        try:
            check_trackable(tree)
            watched = _Watched(self._instance, look_at(tree))
        except OSError as error:
            raise UntrackableError(_refusal(error), hint=_SWEEP) from error
        watched.begin(tree)
        return watched

    def _replace(self, volume_id: bytes, fresh: _Watched | None) -> None:
        with self._lock:
            old = self._volumes.pop(volume_id, None)
            if fresh is not None:
                self._volumes[volume_id] = fresh
        if old is not None:
            old.end()


def _refusal(error: OSError) -> str:
    return _REFUSALS.get(error.errno or 0) or f"inotify fails: {(error.strerror or '').lower()}"
