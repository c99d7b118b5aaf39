"""`tidemark restore`: bring a snapshot's files back."""

import os
import sys

import click

from coordinator.cli.command import Invocation, noun, verb
from coordinator.cli.documents import Document, document
from coordinator.cli.failure import CommandError, UsageError
from coordinator.cli.job import (
    job_argument,
    limit_option,
    phase_word,
    print_jobs,
    print_kind,
    start,
    wait_option,
)
from coordinator.cli.output import printable
from proto.tidemark.v1.admin_pb2 import CreateRestoreRequest, Job, JobKind

app = noun("restore", "Restore snapshots.")


@verb(app, "create")
@click.option(
    "--from",
    "snapshot",
    metavar="SNAPSHOT",
    required=True,
    help="Id, a unique beginning of one, or `latest`.",
)
@click.option("--to", "target", metavar="DIR", help="Directory on the node.")
@click.option("--in-place", is_flag=True, help="To where the volume lies; only what differs.")
@click.option("--volume", help="Whose snapshot, where `latest` needs it.")
@click.option("--path", "paths", metavar="PATH", multiple=True, help="Only this path; repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace what exists in DIR.")
@click.option("--delete", is_flag=True, help="Remove what the snapshot does not have.")
@click.option("--dry-run", is_flag=True, help="Do nothing; say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--node", help="Restore on this node, not on that of the volume.")
@wait_option
def create_restore(
    cli: Invocation,
    *,
    snapshot: str,
    target: str | None,
    in_place: bool,
    volume: str | None,
    paths: tuple[str, ...],
    overwrite: bool,
    delete: bool,
    dry_run: bool,
    yes: bool,
    node: str | None,
    wait: bool,
) -> None:
    """Restore a snapshot, or some of its paths, to a directory or in place.

    A directory that is not empty needs --overwrite. What else is in it stays, but with --delete.
    """
    if in_place == (target is not None):
        raise UsageError("a restore goes to a directory or in place", hint="--to DIR or --in-place")
    if delete and not (in_place or overwrite):
        raise UsageError(
            "--delete removes from what exists already", hint="add --in-place or --overwrite"
        )
    if (in_place or delete) and not (yes or dry_run):
        _ask(snapshot, target, volume, delete=delete)
    request = CreateRestoreRequest(
        snapshot=snapshot,
        volume=volume,
        # The agent has a working directory of its own.
        target=os.path.abspath(os.fsencode(target)) if target is not None else b"",
        in_place=in_place,
        paths=[os.fsencode(one) for one in paths],
        overwrite=overwrite,
        delete_extra=delete,
        dry_run=dry_run,
        node=node,
    )
    job = cli.client.ask(cli.client.admin.CreateRestore, request).job
    # What a dry run is for is its answer.
    start(cli, job, wait=wait or dry_run, result=restore_document)


def _ask(snapshot: str, target: str | None, volume: str | None, *, delete: bool) -> None:
    """Let a person think again; a script must have done so before."""
    where = f"{volume or 'the volume'} in place" if target is None else target
    also = " and remove what it does not have" if delete else ""
    if not sys.stdin.isatty():
        raise UsageError(
            f"this would overwrite {where} with snapshot {snapshot}{also}",
            hint="say --yes if that is meant; --dry-run shows what would change",
        )
    question = f"Overwrite {where} with snapshot {snapshot}{also}?"
    if not click.confirm(printable(question), err=True):
        raise CommandError("nothing was restored", hint="--dry-run shows what would change")


@verb(app, "list")
@limit_option
def list_restores(cli: Invocation, *, limit: int) -> None:
    """List restore jobs, newest first."""
    print_jobs(cli, JobKind.JOB_KIND_RESTORE, limit)


@verb(app, "show")
@job_argument
def show_restore(cli: Invocation, *, job: str) -> None:
    """Show one restore job with its result."""
    print_kind(cli, job, JobKind.JOB_KIND_RESTORE)


def restore_document(job: Job) -> Document:
    """What a script reads of a restore that it waited for."""
    return {"job_id": job.job_id, "phase": phase_word(job), **document(job.restore)}
