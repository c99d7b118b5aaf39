"""Files that may be written to without an event: what is open for writing, or mapped and shared.

Asynchronous writes, and stores through a mapping, tell nobody; so a backup looks at each such file
of its own accord. What ends before the scan comes to it has told: the last close of a file that was
open for writing raises an event, and so does the end of its last mapping. To suspect a file too
many costs a look at it, to miss one may lose data: what could not be looked at is said.

What no scan can see, and does not say:
- a file that is in no process's table: on its way through a Unix socket, or registered with an
  io_uring whose own descriptor is closed;
- a descriptor or a mapping that is moved to another number or address, or handed to a process that
  was looked at before, in the very moment in which its owner is looked at;
- which file of its upper layer an overlay writes to. It is suspected under the overlay's own
  numbers alone: a volume that holds such a layer needs more than this.
A process that the kernel holds up may hold up the scan with it.
"""

import os
import re
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agent.syscalls import has_same_descriptors, identity_of
from agent.tracking.backing import backing_files

# From <linux/nsfs.h>: the number of the PID namespace that holds all others.
_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC
# From <linux/capability.h>: to look into any process.
_SYS_PTRACE: Final = 1 << 19
# A mount of /proc that leaves out processes, rather than refusing to show them.
_LEAVES_OUT: Final = frozenset({b"hidepid=2", b"hidepid=4", b"hidepid=invisible"})
_ENDED: Final = (FileNotFoundError, ProcessLookupError)
# A list that changes while it is read is read again. A server's table of descriptors changes all
# the time: what it loses has raised an event, unless it was moved.
_PASSES: Final = 4
# A round is over within a millisecond. Where every one of so many loses a process, it does all the
# time.
_ROUNDS: Final = 64
# So many are enough to know what to do.
_REASONS_MAX: Final = 5
_RING: Final = "anon_inode:[io_uring]"
_RING_FILES: Final = re.compile(rb"^UserFiles:\t(\d+)\n((?: *\d+: .*\n)*)", re.MULTILINE)
# seq_file_path() writes white space and backslashes of a path so.
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


class Suspects(msgspec.Struct, frozen=True):
    """What may have been written to without an event."""

    inodes: dict[int, frozenset[int]]
    """Inode numbers by st_dev."""
    unseen: str | None
    """What was not looked at, in words for a person: there, anything may be suspect."""
    begun_ns: int
    """When the scan began, by the clock that stamps files. A file that changed later may have a
    writer that came later, whether it is suspect or not."""

    def count(self) -> int:
        """How many there are on this node."""
        return sum(map(len, self.inodes.values()))

    def on(self, device: int) -> frozenset[int]:
        """Inode numbers of the suspects of one st_dev."""
        return self.inodes.get(device, frozenset())

    def beneath(self, device: int) -> frozenset[int]:
        """Those that may lie in a volume whose root has that st_dev, and some others.

        Where that is no disk's number, as on btrfs, what is beneath may have others like it.
        """
        if os.major(device):
            return self.on(device)
        alike = (found for other, found in self.inodes.items() if not os.major(other))
        return frozenset().union(*alike)


def scan(
    proc: Path = Path("/proc"),
    sys: Path = Path("/sys"),
    dev: Path = Path("/dev"),
    *,
    vouched_for: Container[int] = (),
    now_ns: Callable[[], int] = time.time_ns,
) -> Suspects:
    """Look at every process of the host. Blocks, about 0.1 ms for each process.

    An operator may have `vouched_for` numbers of processes that write to no volume: these may
    refuse to be looked at. Raises OSError where /proc is none.
    """
    begun_ns = now_ns()
    looking = _Scan(proc)
    looking.look_at_all()
    unseen = [*_hidden(proc), *looking.reasons(vouched_for)]
    for file in backing_files(proc, sys, dev):
        if file.unseen is None:
            looking.found[file.device].add(file.inode)
        else:
            unseen.append(file.unseen)
    inodes = {device: frozenset(found) for device, found in looking.found.items()}
    return Suspects(inodes, _in_words(unseen), begun_ns)


def _in_words(unseen: list[str]) -> str | None:
    reasons = list(dict.fromkeys(unseen))
    rest = len(reasons) - _REASONS_MAX
    told = [*reasons[:_REASONS_MAX], f"and {rest} more"] if rest > 0 else reasons
    return "; ".join(told) or None


class SuspectScanner:
    """Scans for all who ask at one time. Used from many threads."""

    def __init__(self, look: Callable[[], Suspects] = scan) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._awaited: Future[Suspects] | None = None
        """Of the scan that has not begun yet, and may still be joined."""

    def scan(self) -> Suspects:
        """Return the result of a scan that begins after this call does. Blocks; raises its error.

        One that runs already is of no use: it may be past what the caller wants it to see.
        """
        with self._lock:
            leads = self._awaited is None
            awaited = self._awaited = self._awaited or Future()
        if leads:
            self._run(awaited)
        return awaited.result()

    def _run(self, awaited: "Future[Suspects]") -> None:
        with self._turn:
            with self._lock:
                self._awaited = None
            try:
                awaited.set_result(self._look())
            except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
                awaited.set_exception(error)


class _Scan:
    """One look at the processes: what was found, and what refused."""

    def __init__(self, proc: Path) -> None:
        self.found: defaultdict[int, set[int]] = defaultdict(set)
        self._proc = proc
        self._refused: dict[int, str] = {}
        self._unseen: list[str] = []
        # Numbers of processes mean the same to kcmp as in this /proc.
        self._same_numbers = len(_status(proc / "self", b"NSpid:").split()) == 1
        self._nameless, self._anonymous = _kernel_devices()

    def look_at_all(self) -> None:
        """Look at each process, and at those that came out of one before it was looked at."""
        seen: set[int] = set()
        for _ in range(_ROUNDS):
            new = {int(name) for name in os.listdir(self._proc) if name.isdigit()} - seen
            seen |= new
            # Whoever is forked later has what its parent had when that one was looked at.
            gone = [pid for pid in sorted(new) if not self._look_at(pid)]
            if not gone:
                return
        self._unseen.append("processes that kept coming while others ended")

    def reasons(self, vouched_for: Container[int]) -> list[str]:
        """What was not looked at."""
        refused = {pid: name for pid, name in self._refused.items() if pid not in vouched_for}
        if not refused:
            return self._unseen
        pid, name = next(iter(refused.items()))
        return [f"processes that refuse: {len(refused)}, such as {pid} ({name})", *self._unseen]

    def _look_at(self, pid: int) -> bool:
        """Look at a process; False if it ended before that was done."""
        try:
            process = os.open(self._proc / str(pid), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return self._look_into(process, pid)
        except _ENDED:
            return False
        except PermissionError:
            self._refused[pid] = _name(self._proc / str(pid))
        except OSError as error:
            self._unseen.append(f"process {pid}: {_reason(error)}")
        finally:
            os.close(process)
        return True

    def _look_into(self, process: int, pid: int) -> bool:
        threads = _threads(process, pid)
        for thread in self._with_own_table(threads):
            self._look_at_table(process, f"task/{thread}")
        # After the descriptors: what a process maps is the first that it loses when it ends.
        return any(self._look_at_mappings(process, f"task/{thread}") for thread in threads) or (
            _is_alive(process, threads)
        )

    def _with_own_table(self, threads: list[int]) -> list[int]:
        """One thread for each table of descriptors, or more than one where that is not known."""
        chosen: list[int] = []
        for thread in threads:
            if not (
                self._same_numbers and any(has_same_descriptors(thread, one) for one in chosen)
            ):
                chosen.append(thread)
        return chosen

    def _look_at_table(self, process: int, thread: str) -> None:
        try:
            table = _open(process, f"{thread}/fd", os.O_DIRECTORY)
        except _ENDED:  # the thread alone, it may be
            return
        try:
            for _ in range(_PASSES):
                names = os.listdir(table)
                gone = [
                    name
                    for name in names
                    if not self._look_at_descriptor(process, thread, table, name)
                ]
                if not gone:
                    return
        except _ENDED:
            return
        finally:
            os.close(table)

    def _look_at_descriptor(self, process: int, thread: str, table: int, name: str) -> bool:
        """False if it is there no more: it may be another one now."""
        try:
            # The link's own mode says how the file was opened; of O_PATH, that it was not.
            if not os.stat(name, dir_fd=table, follow_symlinks=False).st_mode & stat.S_IWUSR:
                return True
            mode, device, inode = identity_of(table, name)
            if device == self._anonymous:
                if os.readlink(name, dir_fd=table) == _RING:
                    self._look_at_ring(process, f"{thread}/fdinfo/{name}")
            elif _takes_writes(mode, device) and device not in self._nameless:
                self.found[device].add(inode)
        except _ENDED:
            return False
        except PermissionError:
            raise
        except OSError as error:  # a stale file of a server's
            self._unseen.append(f"a file that a process has open: {_reason(error)}")
        return True

    def _look_at_ring(self, process: int, information: str) -> None:
        """Add what is registered with an io_uring; it need not be in the table any more."""
        paths = None
        for _ in range(_PASSES):
            # The kernel leaves the list out while the ring is busy.
            paths = ring_files(_read(process, information))
            if paths is not None:
                break
        if paths is None:
            self._unseen.append("files of an io_uring that is busy")
            return
        for path in paths:
            if not self._add_named(process, path):
                self._unseen.append(f"the file {path} of an io_uring")

    def _add_named(self, process: int, path: str) -> bool:
        """Add what has that path in the process's tree of names, and in the agent's own."""
        exists = False
        for root in ("root", "../self/root"):
            try:
                mode, device, inode = identity_of(process, root + path)
            except OSError:
                continue
            exists = True
            if _takes_writes(mode, device):
                self.found[device].add(inode)
        return exists

    def _look_at_mappings(self, process: int, thread: str) -> bool:
        """False if there are none, as in a thread that ended."""
        for _ in range(_PASSES):
            try:
                text = _read(process, f"{thread}/maps")
            except _ENDED:
                return False
            gone = [one for one in shared_mappings(text) if not self._look_at_mapping(process, one)]
            if not gone:
                return bool(text)
        self._unseen.append("mappings of a process that changes them all the time")
        return True

    def _look_at_mapping(self, process: int, mapping: "Mapping") -> bool:
        """False if it is there no more: it may be split, or have moved."""
        device, inode = os.makedev(mapping.major, mapping.minor), mapping.inode
        if not inode or device in self._nameless or device == self._anonymous:
            return True
        if not mapping.major:
            # No disk's number, and so not always st_dev: on btrfs that is the subvolume's own.
            try:
                mode, device, inode = identity_of(process, f"map_files/{mapping.addresses}")
            except _ENDED:
                return False
            if not stat.S_ISREG(mode):
                return True
        self.found[device].add(inode)
        return True


class Mapping(NamedTuple):
    """A shared mapping, as /proc tells it."""

    addresses: str
    major: int
    minor: int
    inode: int
    """0 for what is no file's."""


def shared_mappings(text: bytes) -> Iterator[Mapping]:
    """Yield the shared ones of the mappings that /proc/PID/maps tells. Pure.

    Of a hundred thousand lines hardly one is shared: they are passed by in one search, and the
    letter is looked for where it must be only in those that have it anywhere.
    """
    at = text.find(b"s ")
    while at >= 0:
        begin = text.rfind(b"\n", 0, at) + 1
        # addresses, a space, and the last of four letters
        if text.find(b" ", begin) + 4 == at:
            addresses, _, _, device, inode = text[begin : text.find(b"\n", at)].split(None, 5)[:5]
            major, _, minor = device.partition(b":")
            yield Mapping(addresses.decode(), int(major, 16), int(minor, 16), int(inode))
        at = text.find(b"s ", at + 1)


def ring_files(text: bytes) -> list[str] | None:
    """Paths of the files that an io_uring has, from its /proc/PID/fdinfo/N. Pure.

    None if they are not all told. What is no file has no path.
    """
    told = _RING_FILES.search(text)
    if told is None:
        return None
    lines = told[2].splitlines()
    # A table of which nothing is told may be empty, or the kernel had no time.
    if int(told[1]) and not lines:
        return None
    names = [_ESCAPED.sub(_unescaped, line.partition(b": ")[2]) for line in lines]
    return [os.fsdecode(name) for name in names if name[:1] == b"/" and name[:7] != b"/memfd:"]


def _unescaped(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[1], 8)])


def _hidden(proc: Path) -> Iterator[str]:
    """Yield why this /proc does not have all processes of the host."""
    try:
        namespace = os.stat(proc / "1/ns/pid").st_ino
    except FileNotFoundError:
        yield "processes of others, which this mount of /proc leaves out (hidepid)"
        return
    except PermissionError:
        # Which will be said of process 1; /proc is of the agent's own namespace, but for oddities.
        namespace = os.stat(proc / "self/ns/pid").st_ino
    if namespace != _FIRST_PID_NAMESPACE:
        yield "processes of the host, since the agent is in a PID namespace of its own"
    capable = int(_status(proc / "self", b"CapEff:"), 16) & _SYS_PTRACE
    if not capable and _LEAVES_OUT & _options(proc):
        yield "processes of others, which this mount of /proc leaves out (hidepid)"


def _options(proc: Path) -> frozenset[bytes]:
    device = os.stat(proc).st_dev
    number = b"%d:%d" % (os.major(device), os.minor(device))
    lines = (proc / "self/mountinfo").read_bytes().splitlines()
    mounts = [fields for fields in (line.split() for line in lines) if fields[2] == number]
    return frozenset(option for fields in mounts for option in fields[-1].split(b","))


def _kernel_devices() -> tuple[frozenset[int], int]:
    """The st_dev of memory and pipes that have no name, and of what is no file at all."""
    nameless, event = [os.memfd_create("tidemark"), *os.pipe()], os.eventfd(0)
    try:
        return frozenset(os.fstat(each).st_dev for each in nameless), os.fstat(event).st_dev
    finally:
        for each in [*nameless, event]:
            os.close(each)


def _takes_writes(mode: int, device: int) -> bool:
    """Whether a write moves the times of a name, if no more: of a FIFO or a terminal it does.

    Device nodes count on disks alone. Everybody has some of /dev open, whose small numbers are
    those of many files where numbers of filesystems do not tell volumes apart.
    """
    is_node = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or (is_node and os.major(device) > 0)


def _threads(process: int, pid: int) -> list[int]:
    # A link for each thread, beside the two that any directory has.
    if os.stat("task", dir_fd=process).st_nlink == 3:
        return [pid]
    listing = _open(process, "task", os.O_DIRECTORY)
    try:
        return [int(name) for name in os.listdir(listing)]
    finally:
        os.close(listing)


def _is_alive(process: int, threads: list[int]) -> bool:
    """Tell whether something without mappings is a part of the kernel, rather than a dead body."""
    if not threads:
        return False
    state = _read(process, f"task/{threads[0]}/stat").rpartition(b") ")[2][:1]
    return state not in b"ZX"


def _status(process: Path, field: bytes) -> bytes:
    lines = (process / "status").read_bytes().splitlines()
    return next((line[len(field) :].strip() for line in lines if line.startswith(field)), b"")


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return "ended"


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _open(directory: int, name: str, flags: int = 0) -> int:
    return os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=directory)


def _read(directory: int, name: str) -> bytes:
    with FileIO(_open(directory, name)) as file:
        return file.readall()
