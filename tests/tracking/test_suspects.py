"""Files of other processes that may be written to unheard: real ones, on real disks."""

import mmap
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from agent import syscalls
from agent.syscalls import Identity
from agent.tracking.suspects import (
    Mapping,
    Suspects,
    SuspectScanner,
    ring_files,
    scan,
    shared_mappings,
)
from tests.faults.disks import loop_disk, overlay_disk

AS_NOBODY: Final = ["setpriv", "--reuid=65534", "--clear-groups"]
# Runs its argument, tells that it has, and waits to be killed.
HOLDER: Final = """
import ctypes, mmap, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_int64]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
path = sys.argv[2]
def mapped(flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, mode=os.O_RDWR):
    opened = os.open(path, mode)
    address = libc.mmap(None, 4096, prot, flags, opened, 0)
    assert address not in (None, 2 ** 64 - 1)
    os.close(opened)
    return address
exec(sys.argv[1])
print("holds", flush=True)
sys.stdin.read()
"""
OWN_TABLE: Final = """
ready = threading.Event()
def hold():
    assert libc.unshare(0x400) == 0  # CLONE_FILES
    os.open(path, os.O_WRONLY)
    ready.set()
    sys.stdin.read()
threading.Thread(target=hold).start()
ready.wait()
"""
WITHOUT_LEADER: Final = """
held = os.open(path, os.O_WRONLY)
mapped()
def hold():
    import time
    while open("/proc/self/stat").read().rpartition(") ")[2][0] != "Z":
        time.sleep(0.001)
    print("holds", flush=True)
    sys.stdin.read()
threading.Thread(target=hold).start()
libc.pthread_exit(None)
"""
RING: Final = """
parameters = (ctypes.c_char * 120)()
ring = libc.syscall(425, 4, parameters)  # io_uring_setup
opened = os.open(path, os.O_RDWR)
files = (ctypes.c_int * 2)(opened, -1)
assert ring >= 0 and libc.syscall(427, ring, 2, files, 2) == 0  # register the files
os.close(opened)
"""
SUSPECT: Final = {
    "open for writing": "os.open(path, os.O_WRONLY)",
    "open for both": "os.open(path, os.O_RDWR)",
    "mapped for reading": "mapped()",
    "mapped for writing": "mapped(prot=mmap.PROT_WRITE)",
    "made read-only": "libc.mprotect(mapped(prot=mmap.PROT_WRITE), 4096, mmap.PROT_READ)",
    "made inaccessible": "libc.mprotect(mapped(prot=mmap.PROT_WRITE), 4096, 0)",
    "unlinked": "os.open(path, os.O_WRONLY); os.unlink(path)",
    "mapped and unlinked": "mapped(); os.unlink(path)",
    "in a thread's own table": OWN_TABLE,
    "without the first thread": WITHOUT_LEADER,
    "registered with an io_uring": RING,
}
HARMLESS: Final = {
    "open for reading": "os.open(path, os.O_RDONLY)",
    "held as a path": "os.open(path, os.O_PATH)",
    "mapped for itself": "mapped(mmap.MAP_PRIVATE, mmap.PROT_WRITE)",
    "closed again": "os.close(os.open(path, os.O_WRONLY))",
}


@contextmanager
def holding(how: str, path: Path, *before: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = [*before, sys.executable, "-c", HOLDER, how, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"holds\n"
            yield holder
        finally:
            holder.kill()


@contextmanager
def held(how: str, path: Path, *before: str, count: int = 1) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(holding(how, path, *before))
        yield


def is_suspect(found: os.stat_result, suspects: Suspects) -> bool:
    return found.st_ino in suspects.on(found.st_dev)


@pytest.fixture(scope="module")
def disks() -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place, ExitStack() as stack:
        found = {
            kind: stack.enter_context(loop_disk(kind, Path(place))).path
            for kind in ("ext4", "btrfs")
        }
        command = ["btrfs", "subvolume", "create", str(found["btrfs"] / "inside")]
        subprocess.run(command, check=True, capture_output=True)
        found["subvolume"] = found["btrfs"] / "inside"
        for each in ("lower", "upper"):
            (found["ext4"] / each).mkdir()
        found["overlay"] = stack.enter_context(
            overlay_disk(found["ext4"] / "lower", found["ext4"] / "upper", Path(place) / "overlay")
        )
        yield found


def made(directory: Path) -> Path:
    path = directory / "file"
    path.write_bytes(bytes(4096))
    return path


@pytest.mark.parametrize("how", SUSPECT)
def test_what_may_be_written_to_is_suspect(tmp_path: Path, how: str) -> None:
    path = made(tmp_path)
    found = os.stat(path)

    with held(SUSPECT[how], path):
        assert is_suspect(found, scan())


def test_a_fifo_that_may_be_written_to_is_suspect_and_a_nameless_pipe_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    found, pipe = os.stat(path), os.pipe()

    with held("os.open(path, os.O_RDWR)", path):
        suspects = scan()

    assert is_suspect(found, suspects)
    assert not is_suspect(os.fstat(pipe[1]), suspects)
    for each in pipe:
        os.close(each)


def test_a_device_is_suspect_where_a_volume_may_have_it_and_not_where_everybody_has_it(
    disks: dict[str, Path],
) -> None:
    node = disks["ext4"] / "node"
    os.mknod(node, 0o600 | stat.S_IFCHR, os.stat("/dev/null").st_rdev)

    with (
        held("os.open(path, os.O_RDWR)", node),
        held("os.open(path, os.O_RDWR)", Path("/dev/null")),
    ):
        suspects = scan()

    assert is_suspect(os.stat(node), suspects)
    assert not is_suspect(os.stat("/dev/null"), suspects)


@pytest.mark.parametrize("how", HARMLESS)
def test_what_cannot_be_written_to_is_not(tmp_path: Path, how: str) -> None:
    path = made(tmp_path)

    with held(HARMLESS[how], path):
        assert not is_suspect(os.stat(path), scan())


@pytest.mark.parametrize("disk", ["ext4", "btrfs", "subvolume", "overlay"])
@pytest.mark.parametrize("how", ["open for writing", "mapped for reading"])
def test_a_suspect_has_the_numbers_that_a_stat_has(
    disks: dict[str, Path], disk: str, how: str
) -> None:
    path = made(disks[disk])

    with held(SUSPECT[how], path):
        assert is_suspect(os.stat(path), scan())
    assert not is_suspect(os.stat(path), scan())


def test_files_of_two_subvolumes_are_told_apart(disks: dict[str, Path]) -> None:
    paths = [made(disks["btrfs"]), made(disks["subvolume"])]
    numbers = {os.stat(path).st_ino for path in paths}

    with held(SUSPECT["mapped for reading"], paths[1]):
        assert [is_suspect(os.stat(path), scan()) for path in paths] == [False, True]
    assert len(numbers) == 1, "else this shows nothing"


@pytest.mark.parametrize("how", ["open for writing", "mapped for reading"])
def test_a_bind_mount_elsewhere_hides_nothing(disks: dict[str, Path], how: str) -> None:
    path = made(disks["ext4"])
    elsewhere = disks["ext4"] / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    mount = f'mount --bind "{path.parent}" "{elsewhere}" && cd "{elsewhere}" && exec "$@"'

    with held(SUSPECT[how], elsewhere / "file", "unshare", "-m", "sh", "-c", mount, "sh"):
        suspects = scan()

    assert is_suspect(os.stat(path), suspects)
    assert not (elsewhere / "file").exists()


def test_what_backs_a_loop_device_is_suspect(disks: dict[str, Path]) -> None:
    images = [disks[kind].parent / f"{kind}.img" for kind in ("ext4", "btrfs")]

    assert all(is_suspect(os.stat(image), scan()) for image in images)


def test_what_backs_a_read_only_loop_device_is_not(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    command = ["losetup", "--read-only", "--show", "--find", str(image)]
    loop = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        assert not is_suspect(os.stat(image), scan())
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_shared_memory_is_no_file() -> None:
    memory = os.memfd_create("memory")
    os.ftruncate(memory, 4096)

    with mmap.mmap(memory, 4096), mmap.mmap(-1, 4096):
        assert not scan().on(os.fstat(memory).st_dev)
    os.close(memory)


def test_what_a_child_took_over_is_suspect(tmp_path: Path) -> None:
    # The one that opened it is a dead body, and may have died before it was looked at.
    path = made(tmp_path)
    how = "os.open(path, os.O_WRONLY)\nif os.fork(): os._exit(0)"

    with held(how, path):
        assert is_suspect(os.stat(path), scan())


MOVED: Final = {
    "to a child": ("os.open(path, os.O_WRONLY)", "if os.fork(): os._exit(0)"),
    "to another number": (
        "held = os.open(path, os.O_WRONLY)",
        "os.dup2(held, 100); os.close(held)",
    ),
    "by a split of its mapping": (
        "at = libc.mmap(None, 8192, 1, 1, os.open(path, os.O_RDONLY), 0)",
        "assert libc.mprotect(at, 4096, 0) == 0",
    ),
}


@pytest.mark.parametrize("how", MOVED)
def test_what_moves_between_the_list_and_the_look_is_suspect(
    disks: dict[str, Path], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path = made(disks["btrfs"])
    before, after = MOVED[how]
    wait = 'print("holds", flush=True); sys.stdin.readline()'
    with holding(f"{before}\n{wait}\n{after}", path) as holder:
        still = iter([holder])
        list_, identity = os.listdir, syscalls.identity_of

        def listdir(place: "Path | int") -> list[str]:
            names = list_(place)
            if how == "to a child" and place == Path("/proc"):
                move_once()
            if how == "to another number" and isinstance(place, int):
                where = os.readlink(f"/proc/self/fd/{place}")
                if where == f"/proc/{holder.pid}/task/{holder.pid}/fd":
                    move_once()
            return names

        def identity_of(directory: int, name: str) -> Identity:
            if name.startswith("map_files/") and how == "by a split of its mapping":
                move_once()
            return identity(directory, name)

        def move_once() -> None:
            for one in still:
                tell(one)

        monkeypatch.setattr(os, "listdir", listdir)
        monkeypatch.setattr("agent.tracking.suspects.identity_of", identity_of)
        suspects = scan()

        assert next(still, None) is None, "else nothing moved"
        assert is_suspect(os.stat(path), suspects)


def tell(holder: "subprocess.Popen[bytes]") -> None:
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(b"\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == b"holds\n"


def test_processes_that_come_and_go_are_no_failure(tmp_path: Path) -> None:
    path = made(tmp_path)
    vouched_for = refusing()
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            subprocess.run(["true"], check=True)

    with held(SUSPECT["open for writing"], path):
        coming = [threading.Thread(target=come_and_go) for _ in range(2)]
        for each in coming:
            each.start()
        found = [scan(vouched_for=vouched_for) for _ in range(12)]
        over.set()
        for each in coming:
            each.join()

    assert all(is_suspect(os.stat(path), suspects) for suspects in found)
    assert not [suspects.unseen for suspects in found if suspects.unseen]


def test_descriptors_that_come_and_go_are_no_failure(tmp_path: Path) -> None:
    path = made(tmp_path)
    held_all_the_time = path.open("r+b")
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            with (tmp_path / "other").open("wb") as file:
                os.close(os.dup(file.fileno()))

    with held_all_the_time:
        coming = threading.Thread(target=come_and_go)
        coming.start()
        found = [scan(vouched_for=refusing()) for _ in range(8)]
        over.set()
        coming.join()

    assert all(is_suspect(os.stat(path), suspects) for suspects in found)
    assert not [suspects.unseen for suspects in found if suspects.unseen]


# What is not seen.


def refusing() -> set[int]:
    """Processes that even root may not look at on this machine, if any."""
    found = set()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            (Path("/proc") / str(pid) / "maps").read_bytes()
        except PermissionError:
            found.add(pid)
        except OSError:
            pass
    return found


def test_all_processes_of_the_host_are_seen_by_root() -> None:
    assert scan(vouched_for=refusing()).unseen is None


def test_a_process_that_refuses_is_said() -> None:
    unseen = unseen_by(AS_NOBODY)

    assert "processes that refuse: " in unseen


def unseen_by(before: list[str]) -> str:
    program = "from agent.tracking.suspects import scan; print(scan().unseen)"
    command = [*before, sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_pid_namespace_is_said() -> None:
    unseen = unseen_by(["unshare", "--pid", "--fork", "--mount-proc"])

    assert "PID namespace of its own" in unseen


def test_hidden_processes_are_said() -> None:
    mount = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'

    unseen = unseen_by(["unshare", "-m", "sh", "-c", mount, "sh", *AS_NOBODY])

    assert "hidepid" in unseen


def test_exported_files_are_suspect_and_what_is_not_found_is_said(tmp_path: Path) -> None:
    path = made(tmp_path)
    sys_, core = tmp_path / "sys", "kernel/config/target/core"
    for name, told in {"fileio_0/a": str(path), "fileio_1/b": "/nowhere/file"}.items():
        (sys_ / core / name).mkdir(parents=True)
        (sys_ / core / name / "udev_path").write_text(told + "\n")
    for each in ("block", "module/target_core_file", "module/nvmet"):
        (sys_ / each).mkdir(parents=True)

    suspects = scan(sys=sys_, vouched_for=refusing())

    assert is_suspect(os.stat(path), suspects)
    assert suspects.unseen is not None
    assert "the file /nowhere/file" in suspects.unseen
    assert "what nvmet exports" in suspects.unseen
    assert len(suspects.unseen.split("; ")) == 2


@pytest.mark.usefixtures("disks")
def test_loop_devices_without_nodes_are_said(tmp_path: Path) -> None:
    unseen = scan(dev=tmp_path, vouched_for=refusing()).unseen

    assert unseen is not None
    assert "the file of " in unseen
    assert "loop" in (scan(sys=tmp_path).unseen or "")


def test_of_many_reasons_some_are_told(tmp_path: Path) -> None:
    sys_ = tmp_path / "sys"
    (sys_ / "module/target_core_file").mkdir(parents=True)
    for number in range(9):
        disk = sys_ / f"kernel/config/target/core/fileio_{number}/a"
        disk.mkdir(parents=True)
        (disk / "udev_path").touch()

    unseen = scan(sys=sys_, vouched_for=refusing()).unseen

    assert unseen is not None
    assert unseen.endswith("; and 5 more")


# The text of /proc.


def test_the_letter_of_a_shared_mapping_is_found_nowhere_else() -> None:
    text = (
        b"7f00-7f01 rw-p 00000000 fd:00 12                         /srv/-s 0 a/s file\n"
        b"7f01-7f02 r--s 00001000 fd:1a 4294967296                 /srv/with -s xs s name\n"
        b"7f02-7f03 ---p 00000000 00:00 0 \n"
        b"ffff-10000 rwxs 00000000 00:2f 257 \n"
    )

    found = list(shared_mappings(text))

    assert found == [
        Mapping("7f01-7f02", 0xFD, 0x1A, 4294967296),
        Mapping("ffff-10000", 0, 0x2F, 257),
    ]
    assert not list(shared_mappings(b""))


def test_files_of_a_ring_are_told_or_it_is_said_that_not() -> None:
    text = b"SqThreadCpu:\t-1\nUserFiles:\t%d\n%sUserBufs:\t0\n"
    some = b"    0: /a\\040b\n    1: socket:[12]\n    2: /memfd:x (deleted)\n   12: /c\n"

    assert ring_files(text % (13, some)) == ["/a b", "/c"]
    assert ring_files(text % (0, b"")) == []
    assert ring_files(text % (4, b"")) is None
    assert ring_files(b"SqMask:\t0x3\n") is None


def test_what_a_hundred_thousand_mappings_and_ten_thousand_descriptors_cost(tmp_path: Path) -> None:
    # Several times what it takes, for a busy machine; most of it is the kernel's to write the text.
    path = made(tmp_path)
    mappings = "mode = os.open(path, 0)\nfor _ in range(50_000): "
    mappings += "libc.mmap(None, 4096, 1, 2, mode, 0)"
    descriptors = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (11_000, 11_000))\n"
    descriptors += "for _ in range(10_000): os.open(path, os.O_RDWR)"

    alone = cpu_seconds()
    with held(mappings, path, count=2):
        with_mappings = cpu_seconds()
    with held(descriptors, path):
        with_descriptors = cpu_seconds()

    assert with_mappings - alone < 0.4
    assert with_descriptors - alone < 0.4


def cpu_seconds() -> float:
    begun = time.thread_time()
    scan()
    return time.thread_time() - begun


# One scan for all who ask.


class Looks:
    """Scans that take until they are let go, and count."""

    def __init__(self) -> None:
        self.begun = 0
        self.going_on = threading.Semaphore(0)
        self.has_begun = threading.Semaphore(0)

    def __call__(self) -> Suspects:
        self.begun += 1
        number = self.begun
        self.has_begun.release()
        assert self.going_on.acquire(timeout=10)
        return Suspects({}, None, number)


class CountingLock:
    """Tells how often it was left: whoever asks has joined a scan then."""

    def __init__(self) -> None:
        self.left = threading.Semaphore(0)
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self.left.release()


def test_a_scan_that_runs_is_never_joined_and_one_that_waits_is() -> None:
    looks = Looks()
    scanner = SuspectScanner(looks)
    numbers: list[int] = []

    def ask() -> None:
        numbers.append(scanner.scan().begun_ns)

    first = threading.Thread(target=ask)
    first.start()
    assert looks.has_begun.acquire(timeout=10)
    lock = scanner._lock = CountingLock()  # type: ignore[assignment]
    later = [threading.Thread(target=ask) for _ in range(5)]
    for each in later:
        each.start()
    for _ in later:
        assert lock.left.acquire(timeout=10)
    looks.going_on.release(2)
    for each in (first, *later):
        each.join(10)

    assert sorted(numbers) == [1, 2, 2, 2, 2, 2]
    assert looks.begun == 2


def test_an_error_of_a_scan_reaches_all_and_the_next_one_runs() -> None:
    errors = iter([OSError("no /proc")])

    def look() -> Suspects:
        for error in errors:
            raise error
        return Suspects({}, None, 7)

    scanner = SuspectScanner(look)
    with pytest.raises(OSError, match="no /proc"):
        scanner.scan()

    assert scanner.scan().begun_ns == 7
