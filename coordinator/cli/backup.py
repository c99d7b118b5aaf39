"""`tidemark backup`: begin backups and see how they went."""

import click

from coordinator.cli.command import Invocation, noun, verb
from coordinator.cli.documents import Document, document, documents
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
from proto.tidemark.v1.admin_pb2 import CreateBackupRequest, Job, JobKind

app = noun("backup", "Back volumes up.")


@verb(app, "create")
@click.argument("volumes", metavar="[VOLUME]...", nargs=-1)
@click.option("--all", "all_volumes", is_flag=True, help="Every protected volume.")
@wait_option
def create_backup(
    cli: Invocation, *, volumes: tuple[str, ...], all_volumes: bool, wait: bool
) -> None:
    """Back volumes up now, behind a backup of them that already runs.

    VOLUME is a name, node/name or an id.
    """
    if bool(volumes) == all_volumes:
        raise UsageError(
            "name volumes or say --all" if not volumes else "name volumes or say --all, not both",
            hint="`tidemark volume list` shows the volumes",
        )
    request = CreateBackupRequest(volumes=volumes, all=all_volumes)
    job = cli.client.ask(cli.client.admin.CreateBackup, request).job
    start(cli, job, wait=wait, result=backup_document)


@verb(app, "list")
@limit_option
def list_backups(cli: Invocation, *, limit: int) -> None:
    """List backup jobs, newest first."""
    print_jobs(cli, JobKind.JOB_KIND_BACKUP, limit)


@verb(app, "show")
@job_argument
def show_backup(cli: Invocation, *, job: str) -> None:
    """Show one backup job with the result for each volume."""
    print_kind(cli, job, JobKind.JOB_KIND_BACKUP)


def backup_document(job: Job) -> Document:
    """What a script reads of a backup that it waited for."""
    return {
        "job_id": job.job_id,
        "phase": phase_word(job),
        "snapshots": documents(job.snapshots),
        "store_requests": document(job)["store_requests"],
    }
