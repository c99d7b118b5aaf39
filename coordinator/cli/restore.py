"""`tidemark restore`: bring a snapshot's files back."""

import os

import click

from coordinator.cli.command import Invocation, noun, verb
from coordinator.cli.documents import Document, document
from coordinator.cli.job import (
    job_argument,
    limit_option,
    phase_word,
    print_jobs,
    print_kind,
    start,
    wait_option,
)
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
@click.option("--to", "target", metavar="DIR", required=True, help="Directory on the node.")
@click.option("--volume", help="Whose snapshot, where `latest` needs it.")
@click.option("--path", "paths", metavar="PATH", multiple=True, help="Only this path; repeatable.")
@click.option("--node", help="Restore on this node, not on that of the volume.")
@wait_option
def create_restore(
    cli: Invocation,
    *,
    snapshot: str,
    target: str,
    volume: str | None,
    paths: tuple[str, ...],
    node: str | None,
    wait: bool,
) -> None:
    """Restore a snapshot, or some of its paths, to a directory."""
    request = CreateRestoreRequest(
        snapshot=snapshot,
        volume=volume,
        # The agent has a working directory of its own.
        target=os.path.abspath(os.fsencode(target)),
        paths=[os.fsencode(one) for one in paths],
        node=node,
    )
    job = cli.client.ask(cli.client.admin.CreateRestore, request).job
    start(cli, job, wait=wait, result=restore_document)


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
