"""`tidemark up`: the embedded default, a coordinator and an agent on one machine."""

import asyncio
import ipaddress
import os
import re

import click

from coordinator.cli.command import Invocation, single
from coordinator.cli.durations import parse_duration
from coordinator.cli.failure import UsageError
from coordinator.cli.up.bucket import choose_bucket
from coordinator.cli.up.directory import lock_directory, open_directory
from coordinator.cli.up.engine import choose_engine
from coordinator.cli.up.protection import additions, check_new, load, parse_wish, save
from coordinator.cli.up.supervisor import Settings, supervise

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):(\d{1,5})")


@single("up")
@click.option("--data", metavar="DIR", required=True, help="Where everything is kept.")
@click.option(
    "--protect",
    "wishes",
    metavar="[NAME=]PATH",
    multiple=True,
    help="Protect this directory or file from now on; repeatable.",
)
@click.option(
    "--docker/--no-docker",
    default=None,
    help="Protect the volumes of this machine's containers.  [default: as the last time]",
)
@click.option(
    "--every",
    metavar="DURATION|off",
    default="1h",
    show_default=True,
    help="How often every volume is backed up.",
)
@click.option(
    "--repository",
    metavar="s3://BUCKET/PREFIX",
    help="Keep the repository in a bucket.  [default: as the last time, or below --data]",
)
@click.option("--repository-endpoint", metavar="URL", help="Of an S3 that is not AWS.")
@click.option("--repository-region", metavar="NAME", help="Of the bucket.")
@click.option(
    "--repository-addressing",
    type=click.Choice(["auto", "path", "virtual"]),
    help="Whether the bucket stands in the path or in the host of a URL.",
)
@click.option(
    "--repository-ca", metavar="FILE", help="Certificates that vouch for the endpoint (PEM)."
)
@click.option(
    "--repository-credentials",
    metavar="FILE",
    help="Key of the bucket, as AWS tools keep it.  [default: where they look]",
)
@click.option(
    "--repository-lock",
    metavar="DURATION|off",
    help="How long nobody can delete what a snapshot needs; of a bucket that can lock.",
)
@click.option(
    "--listen", metavar="HOST:PORT", help="gRPC address.  [default: a free port on 127.0.0.1]"
)
def app(
    _cli: Invocation,
    *,
    data: str,
    wishes: tuple[str, ...],
    docker: bool | None,
    every: str,
    listen: str | None,
    **bucket: str | None,
) -> None:
    """Run a coordinator and an agent on this machine until interrupted.

    Prints a line that begins with `ready` on stdout once every protected path is watched over.
    """
    every_seconds = parse_every(every)
    address = parse_listen(listen) if listen is not None else None
    asked = [parse_wish(text) for text in wishes]
    directory = open_directory(data)
    # Held until this process ends.
    lock_directory(directory)
    known = load(directory.protect)
    new = additions(known, asked)
    for volume in new:
        check_new(volume, directory.path)
    volumes = [*known, *new]
    said = {flag.replace("_", "-"): value for flag, value in bucket.items()}
    chosen = choose_bucket(directory.bucket, said)
    save(directory.protect, volumes)
    settings = Settings(
        directory=directory,
        volumes=volumes,
        engine=choose_engine(directory.engine, docker, os.environ),
        bucket=chosen,
        every_seconds=every_seconds,
        listen=address,
    )
    asyncio.run(supervise(settings))


def parse_every(text: str) -> int | None:
    """Seconds, or None for `off`."""
    return None if text.strip().lower() == "off" else parse_duration(text)


def parse_listen(text: str) -> str:
    """HOST:PORT, as it was typed."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise UsageError(f"{text!r} is not an address", hint="--listen HOST:PORT")
    if match[1].startswith("["):
        try:
            ipaddress.IPv6Address(match[1][1:-1])
        except ValueError as error:
            raise UsageError(f"{match[1]} is not an IPv6 address") from error
    return text
