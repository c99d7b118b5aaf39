"""A filesystem of files that are not as files should be, spoken straight to /dev/fuse.

usage: strange.py DIRECTORY NAME...     mounts it there with these of FILES, says so, and serves it
                                        until it is killed
"""

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Callable
from typing import NamedTuple

_IN = struct.Struct("=IIQQIIII")  # length, operation, unique, node, uid, gid, process, padding
_OUT = struct.Struct("=IiQ")  # length, negative errno, unique
_ATTR = struct.Struct("=6Q10I")
_DIRECT_IO = 1
_ROOT = 1
_BUFFER = 1 << 20
_GONE = {errno.ENOENT, errno.EINTR}  # a request was taken back before it was read


class File(NamedTuple):
    """What it says its size is, how many bytes it gives, and whether a cache believes its size."""

    name: bytes
    says: int
    gives: int
    cached: bool = False


ENDLESS = 1 << 63
FILES = (
    File(b"endless", 0, ENDLESS),
    File(b"longer", 0, 1_000_000),
    File(b"plain", 5, 5, cached=True),
    File(b"proc", 0, 100),
    File(b"shorter", 1 << 20, 0),
    File(b"vast", ENDLESS - 1, ENDLESS),
)
ATTRIBUTES = {b"user.good": b"value", b"user.refused": None}
"""Of `plain`; reading the second is not allowed."""


def _attr(node: int) -> bytes:
    if node == _ROOT:
        size, mode = 0, 0o040755
    else:
        size, mode = FILES[node - 2].says, 0o100644
    times = (1_700_000_000, 1_700_000_000, 1_700_000_000)
    return _ATTR.pack(node, size, 0, *times, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _init(_node: int, _body: bytes) -> bytes:
    limits = (7, 31, 0, 0, 12, 9, _BUFFER, 1, 256, 0, 0)
    answer: bytes = struct.pack("=IIIIHHIIHHI28x", *limits)
    return answer


def _look_up(_node: int, body: bytes) -> bytes | int:
    found = [each.name for each in FILES]
    name = body.rstrip(b"\0")
    if name not in found:
        return errno.ENOENT
    number = found.index(name) + 2
    entry: bytes = struct.pack("=QQQQII", number, 0, 1, 1, 0, 0)
    return entry + _attr(number)


def _get_attr(node: int, _body: bytes) -> bytes:
    valid: bytes = struct.pack("=QII", 1, 0, 0)
    return valid + _attr(node)


def _open(node: int, _body: bytes) -> bytes:
    is_cached = node == _ROOT or FILES[node - 2].cached
    answer: bytes = struct.pack("=QII", 0, 0 if is_cached else _DIRECT_IO, 0)
    return answer


def _read(node: int, body: bytes) -> bytes:
    offset, size = map(int, struct.unpack_from("=8xQI", body))
    return b"x" * max(0, min(size, FILES[node - 2].gives - offset))


def _read_directory(_node: int, body: bytes) -> bytes:
    _, offset, _ = struct.unpack_from("=QQI", body)
    return b"" if offset else b"".join(map(_listed, _shown()))


def _shown() -> list[int]:
    return [number for number, each in enumerate(FILES) if each.name.decode() in sys.argv[2:]]


def _listed(index: int) -> bytes:
    name = FILES[index].name
    head = struct.pack("=QQII", index + 2, index + 1, len(name), 8)
    return head + name + bytes(-len(name) % 8)


def _get_attribute(node: int, body: bytes) -> bytes | int:
    name = body[8:].rstrip(b"\0")
    if name not in _attributes(node):
        return errno.ENODATA
    value = ATTRIBUTES[name]
    return errno.EACCES if value is None else _sized(body, value)


def _list_attributes(node: int, body: bytes) -> bytes:
    return _sized(body, b"".join(name + b"\0" for name in _attributes(node)))


def _attributes(node: int) -> list[bytes]:
    return list(ATTRIBUTES) if node != _ROOT and FILES[node - 2].name == b"plain" else []


def _sized(body: bytes, value: bytes) -> bytes:
    """The value, or how long it is, as was asked."""
    (size,) = struct.unpack_from("=I", body)
    return value if size else struct.pack("=II", len(value), 0)


def _nothing(_node: int, _body: bytes) -> bytes:
    return b""


# By the number of the operation; all others are not there.
_ANSWERS: dict[int, Callable[[int, bytes], bytes | int]] = {
    1: _look_up,
    3: _get_attr,
    14: _open,
    15: _read,
    18: _nothing,  # a file is let go
    22: _get_attribute,
    23: _list_attributes,
    26: _init,
    27: _open,  # a directory
    28: _read_directory,
    29: _nothing,  # a directory is let go
}
# Nodes are forgotten, and nobody waits for a word.
_UNANSWERED = {2, 42}


def _serve(device: int) -> None:
    while True:
        try:
            request = os.read(device, _BUFFER + 4096)
        except OSError as error:
            if error.errno in _GONE:
                continue
            return  # unmounted
        _, operation, unique, node, *_ = _IN.unpack_from(request)
        if operation in _UNANSWERED:
            continue
        found = _ANSWERS.get(operation)
        answer = errno.ENOSYS if found is None else found(node, request[_IN.size :])
        failed = answer if isinstance(answer, int) else 0
        body = b"" if isinstance(answer, int) else answer
        try:
            os.write(device, _OUT.pack(_OUT.size + len(body), -failed, unique) + body)
        except OSError as error:
            if error.errno not in _GONE:
                raise


def main() -> None:
    """Mount and serve."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"strange", os.fsencode(sys.argv[1]), b"fuse", 0, options) != 0:
        code = ctypes.get_errno()
        sys.exit(f"cannot mount: {os.strerror(code)}")
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    _serve(device)


if __name__ == "__main__":
    main()
