"""Directory trees to protect, and their exact comparison."""

import hashlib
import os
import random
import stat
from pathlib import Path
from typing import Any

# Whole seconds, halves and single nanoseconds: each has been lost by some tool.
_TIMES = (1_000_000_000_000_000_000, 1_600_000_000_500_000_000, 1_700_000_000_123_456_789)


def build(root: Path, *, seed: int = 1, files: int = 60) -> None:
    """A tree with small and large files, links, modes, odd names, and empty things."""
    source = random.Random(seed)
    for directory in ("", "a", "a/b", "a/b/c", "empty", "ключ", "a b"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for number in range(files):
        directory = source.choice(["", "a", "a/b", "a/b/c", "ключ", "a b"])
        content = source.randbytes(source.choice([0, 1, 100, 5_000, 70_000]))
        (root / directory / f"file-{number:04d}").write_bytes(content)
    (root / "large").write_bytes(source.randbytes(3_000_000))
    (root / "text").write_bytes(b"the same line again and again\n" * 40_000)
    (root / "zeros").write_bytes(bytes(1_000_000))
    (root / "link").symlink_to("a/b")
    (root / "dangling").symlink_to("../nowhere/at/all")
    (root / "secret").write_bytes(b"secret")
    (root / "run").write_bytes(b"#!/bin/sh\n")
    os.link(root / "large", root / "a" / "same inode")
    with open(os.fsencode(root) + b"/not-utf8-\xff", "wb") as file:
        file.write(b"odd")
    (root / "new\nline").write_bytes(b"line feed in the name")
    (root / "secret").chmod(0o600)
    (root / "run").chmod(0o4755)
    (root / "empty").chmod(0o1777)
    _set_times(root)


def change(root: Path, *, seed: int = 2) -> None:
    """Add, remove, rewrite, rename and retouch."""
    source = random.Random(seed)
    (root / "a" / "added").write_bytes(source.randbytes(10_000))
    (root / "secret").unlink()
    (root / "run").write_bytes(b"#!/bin/bash\n")
    (root / "text").rename(root / "a" / "moved text")
    (root / "link").unlink()
    (root / "link").symlink_to("empty")
    (root / "zeros").chmod(0o640)
    with (root / "large").open("r+b") as file:
        file.seek(1_000_000)
        file.write(source.randbytes(1000))
    (root / "empty").rmdir()


def snapshot_of(root: Path) -> dict[bytes, Any]:
    """Everything about every entry that a restore must bring back, by path."""
    top = os.fsencode(root)
    found: dict[bytes, Any] = {b"": _entry(top)}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = _entry(path)
    links: dict[tuple[int, int], list[bytes]] = {}
    for path, entry in found.items():
        links.setdefault(entry.pop("inode"), []).append(path)
    for paths in links.values():
        for path in paths:
            found[path]["links"] = sorted(paths)
    return found


def assert_same(expected: dict[bytes, Any], actual: dict[bytes, Any]) -> None:
    """Fail with the paths that differ, not with two whole trees."""
    missing = sorted(expected.keys() - actual.keys())
    extra = sorted(actual.keys() - expected.keys())
    different = {
        path: {
            key: (expected[path][key], actual[path].get(key))
            for key in expected[path]
            if expected[path][key] != actual[path].get(key)
        }
        for path in expected.keys() & actual.keys()
        if expected[path] != actual[path]
    }
    assert not missing, missing
    assert not extra, extra
    assert not different, different


def _entry(path: bytes) -> dict[str, Any]:
    found = os.lstat(path)
    entry: dict[str, Any] = {
        "inode": (found.st_dev, found.st_ino),
        "mode": oct(found.st_mode),
        "owner": (found.st_uid, found.st_gid),
        "modified": found.st_mtime_ns,
    }
    if stat.S_ISLNK(found.st_mode):
        entry["target"] = os.readlink(path)
    elif stat.S_ISREG(found.st_mode):
        entry["size"] = found.st_size
        with open(path, "rb") as file:
            entry["content"] = hashlib.file_digest(file, "sha256").hexdigest()
    return entry


def _set_times(root: Path) -> None:
    # Children before their directories, whose own times they would move.
    for directory, names, files in os.walk(os.fsencode(root), topdown=False):
        for number, name in enumerate(sorted(names + files)):
            at = _TIMES[number % len(_TIMES)]
            os.utime(os.path.join(directory, name), ns=(at, at), follow_symlinks=False)
    os.utime(root, ns=(_TIMES[2], _TIMES[2]))
