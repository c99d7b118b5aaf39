"""`tidemark repo`: where the data lies, and the key that opens it when all else is lost."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from coordinator.cli.command import Invocation, noun, verb
from coordinator.cli.documents import Document, document, documents
from coordinator.cli.durations import format_duration, format_size
from coordinator.cli.failure import UsageError
from coordinator.cli.output import Table, fields_table
from coordinator.cli.times import local_time
from proto.tidemark.v1.admin_pb2 import (
    ExportRecoveryKitRequest,
    GetRepositoryRequest,
    InitRepositoryRequest,
    ListRepositoriesRequest,
)

app = noun("repo", "Look after the repositories and their recovery kits.")

repository_argument = click.argument("repository", metavar="[REPOSITORY]", default="")


@verb(app, "list")
def list_repositories(cli: Invocation) -> None:
    """List the repositories; the first one is that of the coordinator's settings."""
    answer = cli.client.ask(cli.client.admin.ListRepositories, ListRepositoriesRequest())
    made = documents(answer.repositories)
    cli.print(made, lambda: _list_table(made))


@verb(app, "show")
@repository_argument
def show_repository(cli: Invocation, *, repository: str) -> None:
    """Show a repository: REPOSITORY is a name or an id, or else it is the first one."""
    made = _repository(cli, repository)
    cli.print(made, lambda: _table(made))


@verb(app, "recovery-kit")
@repository_argument
def export_recovery_kit(cli: Invocation, *, repository: str) -> None:
    """Print a recovery kit. Keep it away from this machine: it opens every backup."""
    request = ExportRecoveryKitRequest(repository=repository)
    answer = cli.client.ask(cli.client.admin.ExportRecoveryKit, request)
    cli.print(document(answer), lambda: answer.kit.rstrip("\n"))


@verb(app, "init")
@click.argument("url", metavar="[URL]", required=False)
@click.option("--name", metavar="NAME", help="What another repository is called from now on.")
@click.option("--endpoint", metavar="URL", help="Of an S3 that is not AWS.")
@click.option("--region", metavar="NAME", help="Of the bucket.")
@click.option(
    "--addressing",
    type=click.Choice(["auto", "path", "virtual"]),
    help="Whether the bucket stands in the path or in the host of a URL.",
)
@click.option("--ca", metavar="FILE", help="Certificates that vouch for the endpoint (PEM).")
@click.option(
    "--credentials",
    metavar="FILE",
    help="Key of the bucket, as AWS tools keep it; the coordinator keeps a copy."
    "  [default: where they look, on the coordinator's machine]",
)
@click.option(
    "--lock",
    metavar="DURATION|off",
    help="How long nobody can delete what a snapshot needs; of a bucket that can lock.",
)
def initialise_repository(
    cli: Invocation, *, url: str | None, name: str | None, **bucket: str | None
) -> None:
    """Make a repository, and print its recovery kit if nobody has it yet.

    URL is s3://BUCKET/PREFIX or file:///DIR, the latter on the coordinator's machine. Volumes go
    there once `tidemark volume assign` says so. Without URL it is the first repository, which the
    coordinator makes by itself. What exists is left as it is.
    """
    if url is None:
        if name is not None or any(bucket.values()):
            raise UsageError("which place?", hint="give s3://BUCKET/PREFIX or file:///DIR")
        made = _repository(cli, "")
    else:
        made = _made(cli, url, name, bucket)
    if not made["recovery_kit_exported"]:
        request = ExportRecoveryKitRequest(repository=made["repository_id"])
        answer = cli.client.ask(cli.client.admin.ExportRecoveryKit, request)
        made["recovery_kit"] = answer.kit
        made["recovery_kit_exported"] = True
        sys.stderr.write(
            "This is the recovery kit. Without it a lost coordinator means lost backups: "
            "print it, and keep it away from this machine.\n"
        )
    cli.print(made, lambda: made.get("recovery_kit", "").rstrip("\n") or _table(made))


def _made(cli: Invocation, url: str, name: str | None, bucket: dict[str, str | None]) -> Document:
    if name is None:
        raise UsageError("a further repository needs a name", hint="--name NAME")
    fields: dict[str, Any] = {**bucket}
    for secret in ("credentials", "ca"):
        fields[secret] = _content(f"--{secret}", bucket[secret])
    request = InitRepositoryRequest(name=name, url=url, **fields)
    return document(cli.client.ask(cli.client.admin.InitRepository, request).repository)


def _content(option: str, file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"{option} {file} cannot be read: {error.strerror}") from error


def _repository(cli: Invocation, selector: str) -> Document:
    request = GetRepositoryRequest(repository=selector)
    return document(cli.client.ask(cli.client.admin.GetRepository, request))


def _list_table(repositories: Sequence[Document]) -> Table:
    return Table(
        titles=("repository", "id", "snapshots", "stored", "kit", "location"),
        rows=[
            (
                one["name"],
                one["repository_id"][:12],
                f"{one['snapshots']:,}",
                format_size(one["stored_bytes"]),
                "exported" if one["recovery_kit_exported"] else "never",
                one["location"] if one["opened"] else f"not open: {one['problem']}",
            )
            for one in repositories
        ],
        right=frozenset({2, 3}),
        empty="no repositories",
    )


def _lock(seconds: int) -> str:
    return f"{format_duration(seconds)} from each commit on" if seconds else "none"


def _table(made: Document) -> Table:
    return fields_table(
        [
            ("name", made["name"]),
            ("repository", made["repository_id"]),
            ("format", made["format"]),
            ("location", made["location"]),
            ("open", "yes" if made["opened"] else f"no: {made['problem']}"),
            ("created", local_time(made["created_at"])),
            ("snapshots", f"{made['snapshots']:,}"),
            ("packs", f"{made['packs']:,}"),
            ("stored", format_size(made["stored_bytes"])),
            ("recovery kit", "exported" if made["recovery_kit_exported"] else "never exported"),
            ("custody", "unlocked" if made["unlocked"] else "locked"),
            ("object lock", _lock(made["lock_seconds"])),
            ("packs go", "to the store" if made["signs_requests"] else "through the coordinator"),
            ("features", ", ".join(made["features"]) or "none"),
        ]
    )
