"""Where the coordinator of `up` answers, and the contexts by which the command line finds it."""

import json
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path

from coordinator.cli.contexts import Context, home_context, parse_context
from coordinator.cli.failure import CommandError
from coordinator.cli.up.directory import Directory
from coordinator.cli.up.protection import write_private

# An address to listen on is not always one to call.
_CALLABLE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - to be replaced
_LOOPBACK = "127.0.0.1"
ANY_PORT = f"{_LOOPBACK}:0"


@dataclass(frozen=True)
class Endpoints:
    """HOST:PORT of gRPC and of HTTP; what signed URLs of stores begin with; local repositories."""

    grpc: str
    http: str
    stores: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()


def read_endpoints(directory: Directory, pid: int) -> Endpoints | None:
    """Where the coordinator with this process id answers; None while it does not yet."""
    try:
        fields = json.loads(directory.endpoints.read_bytes())
        if fields["pid"] != pid:
            return None
        return Endpoints(
            _callable(fields["grpc"]),
            _callable(fields["http"]),
            tuple(fields["stores"]),
            tuple(fields["directories"]),
        )
    except (OSError, ValueError, KeyError):
        return None


def former_listen(directory: Directory) -> str:
    """The loopback port of the last time if it is free, so that contexts stay good."""
    try:
        former = str(json.loads(directory.endpoints.read_bytes())["grpc"])
        is_ours = former.startswith(f"{_LOOPBACK}:") and is_free(former)
    except (OSError, ValueError, KeyError):
        return ANY_PORT
    return former if is_ours else ANY_PORT


def is_free(address: str) -> bool:
    """Whether one could listen there just now; of loopback."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((_LOOPBACK, int(address.rpartition(":")[2])))
    except (OSError, ValueError, OverflowError):
        return False
    return True


def former_address(directory: Directory) -> str | None:
    """Where the coordinator answered the last time; None where there was none."""
    try:
        return parse_context(directory.context.read_bytes(), directory.context).address
    except (OSError, CommandError):
        return None


def write_contexts(directory: Directory, endpoints: Endpoints) -> Context:
    """Write DIR/context, and the home one if there is none or it is ours."""
    try:
        made = parse_context(directory.admin_context.read_bytes(), directory.admin_context)
    except OSError as error:
        raise CommandError(
            f"the coordinator wrote no {directory.admin_context}: {error.strerror}",
            hint=f"see its log {directory.log('coordinator')}",
        ) from error
    made = replace(made, address=endpoints.grpc, path=directory.context)
    content = _encoded(made)
    write_private(directory.context, content)
    home = home_context()
    if not home.exists() or _same_authority(home, made):
        _write_home(home, content)
    return made


def _callable(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{_CALLABLE.get(host, host)}:{port}"


def _same_authority(home: Path, made: Context) -> bool:
    try:
        return parse_context(home.read_bytes(), home).ca == made.ca
    except (OSError, CommandError):
        return False


def _write_home(home: Path, content: bytes) -> None:
    try:
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(home, content)
    except OSError:
        # A read-only home is no reason not to run: DIR/context is there, and is what is printed.
        return


def _encoded(context: Context) -> bytes:
    fields = {
        "address": context.address,
        "ca": context.ca,
        "certificate": context.certificate,
        "key": context.key,
    }
    return json.dumps(fields, indent=2).encode() + os.linesep.encode()
