"""Small files that hold secrets: mode 0600 from their first byte, replaced whole or not at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from coordinator.errors import StoreError, StoreFullError
from repository.failpoints import failpoint

_OWNER_ONLY: Final = 0o600


def write_secret(path: Path, content: bytes) -> None:
    """Make or replace a file that only its owner may read; durable when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            failpoint("coordinator.secret.written")
            os.fsync(file.fileno())
        failpoint("coordinator.secret.synced")
        temporary.replace(path)
        failpoint("coordinator.secret.replaced")
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        kind = StoreFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else StoreError
        raise kind(
            f"{path} cannot be written: {error.strerror}", hint="check its disk and its mode"
        ) from error


def read_secret(path: Path) -> bytes | None:
    """What `write_secret` wrote, None if it never did."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}", hint="check its disk and its mode"
        ) from error


def sync_directory(path: Path) -> None:
    """Make a new or renamed name in this directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
