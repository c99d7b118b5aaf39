"""From handles to names: what the records of one filesystem's events mean for its volumes.

A directory's handle is opened through the mount of a volume's root, and the path that the kernel
then names is compared with those of the roots, named through that same mount. Nothing is kept of
it: a place that was remembered would be wrong after a rename, and each directory comes once for
thousands of events.

An inode's handle tells under which name it was changed, but not which other names it has. It is
settled if a name of its event has it now, and it has no other. What exists and is not settled
counts by its number, for each volume of the filesystem.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from typing import Final

from agent.beneath import Tree
from agent.errors import VolumeError
from agent.syscalls import Mount, file_handle, mount_of, open_by_handle
from agent.tracking.dirty import CAP, Dirty
from agent.tracking.marks import FS_ERROR, LISTED, ONDIR, RENAME, parse
from agent.tracking.roots import Root, path_of
from agent.tracking.source import Swapped

# A directory that is no more was removed, and its parent's event told so.
_GONE: Final = frozenset({errno.ESTALE, errno.ENOENT})
# Times that everything is resolved anew since a root's own path changed meanwhile.
_ATTEMPTS: Final = 4
_DELETED: Final = b" (deleted)"


class Watched:
    """A volume, and what was told of it since the last swap."""

    __slots__ = ("_lost", "dirty", "mounted", "root")

    def __init__(self, root: Root, mounted: frozenset[bytes]) -> None:
        self.root = root
        self.mounted = mounted
        """Keys of places where something is mounted."""
        self.dirty = Dirty()
        self._lost: str | None = None

    def lose(self, reason: str) -> None:
        """More may have changed than is known. The first reason stays."""
        self._lost = self._lost or reason
        self.dirty = Dirty()

    def tell(self, directory: bytes, name: bytes, told: "_Told") -> None:
        """Something happened to a name in a directory; `.` is the directory itself."""
        if self._lost is not None:
            return
        if self.root.file_name is not None:
            if not directory and name == self.root.file_name:
                self.dirty.names.add(b"")
            return
        if name == b".":
            self.dirty.names.add(directory)
            return
        key = directory + b"\0" + name if directory else name
        self.dirty.names.add(key)
        if told.has_arrived:
            self.dirty.subtrees.add(key)
        if told.is_listed:
            self.dirty.names.add(directory)

    def tell_subtree(self, directory: bytes) -> None:
        """Something happened somewhere beneath a directory."""
        if self._lost is None:
            self.dirty.names.add(directory)
            self.dirty.subtrees.add(directory)

    def tell_inode(self, number: int) -> None:
        """Something happened to an inode whose names are not all known."""
        if self._lost is None:
            self.dirty.inodes.add(number)

    def tell_mounted(self, mounted: frozenset[bytes]) -> None:
        """What is mounted within the volume now."""
        for key in mounted ^ self.mounted:
            self.tell_subtree(key)
        self.mounted = mounted

    def bound(self) -> None:
        """Keep no more than the cap."""
        if self.dirty.size() > CAP:
            self.lose(f"more than {CAP:,} changes since the last backup")

    def take(self) -> Swapped:
        """Return what was told, and begin anew."""
        swapped = Swapped(self.dirty, self._lost)
        self.dirty, self._lost = Dirty(), None
        return swapped


class _Told:
    """What events said of a name in a directory."""

    __slots__ = ("has_arrived", "inodes", "is_listed")

    def __init__(self) -> None:
        self.is_listed = False
        """Whether it was made, removed or renamed: its directory changed, too."""
        self.has_arrived = False
        """Whether a directory came there."""
        self.inodes: set[bytes] = set()
        """Handles of what was there, but directories: they have one name."""


_Directories = dict[bytes, dict[bytes, _Told]]


class _View:
    """A filesystem seen through one mount of it."""

    def __init__(self, mounted: int, volumes: list[Watched]) -> None:
        self.mounted = mounted
        self._volumes = volumes
        self.roots: dict[bytes, list[Watched]] = {}

    def look(self) -> bool:
        """Name the roots; tell whether they had these names before."""
        roots: dict[bytes, list[Watched]] = {}
        for watched in self._volumes:
            path = self._path_of_root(watched)
            if path is not None:
                roots.setdefault(path.rstrip(b"/"), []).append(watched)
        same, self.roots = roots == self.roots, roots
        return same

    def _path_of_root(self, watched: Watched) -> bytes | None:
        assert watched.root.handle is not None
        try:
            held = open_by_handle(self.mounted, watched.root.handle)
        except OSError as error:
            watched.lose(f"the volume's root cannot be opened: {_words(error)}")
            return None
        try:
            return path_of(held)
        finally:
            os.close(held)

    def tell(self, directory: int, names: Mapping[bytes, _Told]) -> None:
        """Tell the volumes that an open directory lies in."""
        try:
            path = path_of(directory)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            self._tell_deep(directory)
            return
        if path.endswith(_DELETED) and not os.fstat(directory).st_nlink:
            return
        for watched, key in self._places(path):
            for name, told in names.items():
                watched.tell(key, name, told)
            watched.bound()

    def _tell_deep(self, directory: int) -> None:
        """Tell of all beneath the nearest directory above that the kernel can name."""
        path = _path_above(directory)
        if path is not None:
            for watched, key in self._places(path):
                watched.tell_subtree(key)

    def _places(self, path: bytes) -> Iterator[tuple[Watched, bytes]]:
        """Each volume that a path lies in, and its key there; volumes may hold one another."""
        path = path.rstrip(b"/")
        cut = len(path)
        while cut >= 0:
            for watched in self.roots.get(path[:cut], ()):
                yield watched, path[cut + 1 :].replace(b"/", b"\0")
            cut = path.rfind(b"/", 0, cut)


def _path_above(directory: int) -> bytes | None:
    """The path of the nearest directory above whose path is not too long to be told.

    None where this mount does not lead there. One step at a time, never above a volume's root.
    """
    held = os.dup(directory)
    try:
        while True:
            above = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=held)
            os.close(held)
            held = above
            with contextlib.suppress(OSError):
                return path_of(held)
    except FileNotFoundError:
        return None
    finally:
        os.close(held)


class Filesystem:
    """Volumes of one filesystem, and the records of its events that were not looked at yet.

    No method may be called by two threads at once.
    """

    def __init__(self, device: int) -> None:
        self.device = device
        """Its number, as fdinfo of a group names it."""
        self.volumes: dict[bytes, Watched] = {}
        self.pending: dict[bytes, int] = {}

    def lose(self, reason: str) -> None:
        """Nothing is known of any volume."""
        for watched in self.volumes.values():
            watched.lose(reason)

    def resolve(self, tree: Tree | None = None) -> None:
        """Tell the volumes what is pending. `tree` is one of them that is open already."""
        pending, self.pending = self.pending, {}
        if not pending:
            return
        directories, inodes = _sort(pending)
        if any(mask & FS_ERROR for mask in pending.values()):
            self.lose("the filesystem reports an error")
        try:
            with self._views(tree) as views:
                settled: set[bytes] = set()
                for _ in range(_ATTEMPTS):
                    settled |= _tell(views, directories)
                    if not [view for view in views if not view.look()]:
                        break
                else:
                    self.lose("the volume's directory moves all the time")
                self._tell_inodes(views, inodes - settled)
        except OSError as error:
            self.lose(f"a changed directory cannot be opened: {_words(error)}")

    @contextlib.contextmanager
    def _views(self, tree: Tree | None) -> Iterator[list[_View]]:
        """One for each mount that a volume is reached through; loses those that cannot be."""
        groups: dict[Mount, list[Watched]] = {}
        for watched in self.volumes.values():
            groups.setdefault(watched.root.mount, []).append(watched)
        with contextlib.ExitStack() as opened:
            views = []
            for mount, volumes in groups.items():
                mounted = _open_mount(mount, volumes, tree, opened)
                if mounted is None:
                    for watched in volumes:
                        watched.lose("the volume's root cannot be opened")
                else:
                    views.append(_View(mounted, volumes))
            for view in views:
                view.look()
            yield views

    def _tell_inodes(self, views: list[_View], inodes: set[bytes]) -> None:
        """Tell every volume the numbers of what exists still."""
        for handle in inodes if views else ():
            try:
                held = open_by_handle(views[0].mounted, handle)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise
            try:
                found = os.fstat(held)
            finally:
                os.close(held)
            if found.st_nlink:
                for watched in self.volumes.values():
                    watched.tell_inode(found.st_ino)
        for watched in self.volumes.values():
            watched.bound()


def _open_mount(
    mount: Mount, volumes: list[Watched], tree: Tree | None, opened: contextlib.ExitStack
) -> int | None:
    """A directory in that mount: the tree's root, or a root that stays open for a moment."""
    if tree is not None and mount_of(tree.root) == mount:
        return tree.root
    for watched in volumes:
        with contextlib.suppress(VolumeError, OSError):
            other = opened.enter_context(Tree.of_volume(watched.root.path, through_links=False))
            if mount_of(other.root) == mount:
                return other.root
    return None


def _sort(pending: Mapping[bytes, int]) -> tuple[_Directories, set[bytes]]:
    """By directory and name what was told of it; and all handles of inodes but directories."""
    directories: _Directories = {}
    inodes: set[bytes] = set()
    for records, mask in pending.items():
        if mask & FS_ERROR:
            continue
        _, names, inode = parse(records)
        for directory, name, is_new in names:
            told = directories.setdefault(directory, {}).setdefault(name, _Told())
            if mask & LISTED:
                told.is_listed = True
                # Of a rename only the new name has something to look into.
                if mask & ONDIR and (is_new or not mask & RENAME):
                    told.has_arrived = True
            if inode is not None and not mask & ONDIR:
                told.inodes.add(inode)
        if inode is not None and not mask & ONDIR:
            inodes.add(inode)
    return directories, inodes


def _tell(views: list[_View], directories: _Directories) -> set[bytes]:
    """Tell the volumes of the names; return the inodes that are settled by that."""
    settled: set[bytes] = set()
    for view in views:
        for handle, names in directories.items():
            try:
                directory = open_by_handle(view.mounted, handle)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise
            try:
                view.tell(directory, names)
                if view is views[0]:
                    settled.update(_settled(directory, names))
            finally:
                os.close(directory)
    return settled


def _settled(directory: int, names: Mapping[bytes, _Told]) -> Iterator[bytes]:
    """Inodes that a name has which was told of, and that have no other name."""
    for name, told in names.items():
        if not told.inodes:
            continue
        handle = file_handle(directory, name)
        if handle in told.inodes:
            assert handle is not None
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if found.st_nlink == 1:
                    yield handle


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
