"""Trees of files made from plain data, and what an independent walk says of them."""

import os
import shutil
from pathlib import Path

from agent.sweep import entry_type
from repository.entries import Entry, EntryType

Spec = dict[bytes, "bytes | Spec"]


def make(root: Path, spec: Spec) -> None:
    for name, content in spec.items():
        path = os.fsencode(root) + b"/" + name
        if isinstance(content, dict):
            os.mkdir(path)
            make(Path(os.fsdecode(path)), content)
        else:
            Path(os.fsdecode(path)).write_bytes(content)


def change(root: Path, spec: Spec) -> None:
    """Make the tree what the spec says, leaving alone what is so already."""
    for path in root.iterdir():
        wanted = spec.get(os.fsencode(path.name))
        if path.is_dir() and isinstance(wanted, dict):
            change(path, wanted)
        elif path.is_dir():
            shutil.rmtree(path)
        elif isinstance(wanted, dict) or wanted is None or path.read_bytes() != wanted:
            path.unlink()
    present = {os.fsencode(path.name) for path in root.iterdir()}
    make(root, {name: content for name, content in spec.items() if name not in present})


def stats(root: bytes, key: bytes = b"") -> dict[bytes, os.stat_result]:
    """Every key beneath the root by plain recursion."""
    path = root + b"/" + key.replace(b"\0", b"/") if key else root
    found = {key: os.lstat(path)}
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            found |= stats(root, key + b"\0" + name if key else name)
    return found


def entry_of(found: os.stat_result) -> Entry:
    kind = entry_type(found.st_mode)
    return Entry(
        type=kind,
        mode=found.st_mode & 0o7777,
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        size=found.st_size,
        inode=found.st_ino,
        ctime_ns=found.st_ctime_ns,
        links=found.st_nlink,
        flags=0,
        device=0,
        target=b"somewhere" if kind is EntryType.SYMLINK else None,
        xattrs=None,
        long_xattrs=None,
        content=None,
    )


def manifest(root: Path) -> list[tuple[bytes, Entry]]:
    found = stats(os.fsencode(root))
    return sorted((key, entry_of(stat)) for key, stat in found.items())
