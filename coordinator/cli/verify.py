"""`tidemark verify`: prove that what was stored can be read."""

import click

from coordinator.cli.command import Invocation, noun, verb
from coordinator.cli.documents import Document, document
from coordinator.cli.failure import UsageError
from coordinator.cli.job import (
    job_argument,
    limit_option,
    phase_word,
    print_jobs,
    print_kind,
    start,
    wait_option,
)
from proto.tidemark.v1.admin_pb2 import CreateVerifyRequest, Job, JobKind, VerifyDepth

app = noun("verify", "Prove that snapshots can be restored.")

_DEPTHS = {
    "present": VerifyDepth.VERIFY_DEPTH_PRESENT,
    "data": VerifyDepth.VERIFY_DEPTH_DATA,
}


@verb(app, "create")
@click.argument("snapshots", metavar="[SNAPSHOT]...", nargs=-1)
@click.option("--all", "all_snapshots", is_flag=True, help="Every snapshot.")
@click.option(
    "--depth",
    type=click.Choice(list(_DEPTHS)),
    default="present",
    show_default=True,
    help="present: every pack is there and of the right length and hash; "
    "data: everything is decrypted and hashed again.",
)
@wait_option
def create_verify(
    cli: Invocation, *, snapshots: tuple[str, ...], all_snapshots: bool, depth: str, wait: bool
) -> None:
    """Check snapshots; exit 1 if anything is damaged.

    SNAPSHOT is an id or a unique beginning of one.
    """
    if bool(snapshots) == all_snapshots:
        raise UsageError(
            "name snapshots or say --all"
            if not snapshots
            else "name snapshots or say --all, not both",
            hint="`tidemark snapshot list` shows the snapshots",
        )
    request = CreateVerifyRequest(depth=_DEPTHS[depth], all=all_snapshots, snapshots=snapshots)
    job = cli.client.ask(cli.client.admin.CreateVerify, request).job
    start(cli, job, wait=wait, result=verify_document)


@verb(app, "list")
@limit_option
def list_verifies(cli: Invocation, *, limit: int) -> None:
    """List verify jobs, newest first."""
    print_jobs(cli, JobKind.JOB_KIND_VERIFY, limit)


@verb(app, "show")
@job_argument
def show_verify(cli: Invocation, *, job: str) -> None:
    """Show one verify job and what it found."""
    print_kind(cli, job, JobKind.JOB_KIND_VERIFY)


def verify_document(job: Job) -> Document:
    """What a script reads of a verification that it waited for."""
    return {"job_id": job.job_id, "phase": phase_word(job), **document(job.verify)}
