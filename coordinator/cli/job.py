"""`tidemark job`: what runs and what ran. Backups, restores and verifications are views of it."""

import sys
from collections.abc import Callable
from typing import Any

import click

from coordinator.cli.command import Invocation, noun, verb
from coordinator.cli.documents import Document, document, documents, enum_word, path_text
from coordinator.cli.durations import format_duration, format_size
from coordinator.cli.failure import UsageError
from coordinator.cli.output import Table, fields_table, printable
from coordinator.cli.times import local_time
from coordinator.cli.waiting import raise_for, wait_for
from proto.tidemark.v1.admin_pb2 import (
    CancelJobRequest,
    GetJobLogsRequest,
    GetJobRequest,
    Job,
    JobKind,
    ListJobsRequest,
)
from proto.tidemark.v1.common_pb2 import AuditResult, RestoreResult, StoreRequests

app = noun("job", "List, watch and cancel jobs.")

job_argument = click.argument("job", metavar="JOB")
limit_option = click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="Show at most so many.",
)
wait_option = click.option(
    "--wait", "-w", is_flag=True, help="Wait until it has ended, and exit as it did."
)


@verb(app, "list")
@limit_option
def list_jobs(cli: Invocation, *, limit: int) -> None:
    """List jobs of every kind, newest first."""
    print_jobs(cli, None, limit)


@verb(app, "show")
@job_argument
def show_job(cli: Invocation, *, job: str) -> None:
    """Show one job with its results."""
    print_job(cli, get_job(cli, job))


@verb(app, "watch")
@job_argument
def watch_job(cli: Invocation, *, job: str) -> None:
    """Follow a job until it ends, and exit as it did."""
    ended = wait_for(cli.client, get_job(cli, job))
    print_job(cli, ended)
    raise_for(ended)


@verb(app, "cancel")
@job_argument
def cancel_job(cli: Invocation, *, job: str) -> None:
    """Ask a job to end; what it made so far is removed or left unreferenced."""
    answer = cli.client.ask(cli.client.admin.CancelJob, CancelJobRequest(job_id=job))
    print_job(cli, answer.job)


@verb(app, "logs")
@job_argument
def job_logs(cli: Invocation, *, job: str) -> None:
    """Print the last lines that a job logged."""
    answer = cli.client.ask(cli.client.admin.GetJobLogs, GetJobLogsRequest(job_id=job))
    lines = documents(answer.lines)

    def text() -> str:
        return "\n".join(
            f"{local_time(line['at'])}  {line['level']:<7}  {printable(line['message'])}"
            for line in lines
        )

    if lines or cli.output != "table":
        cli.print(lines, text)


def print_jobs(cli: Invocation, kind: "JobKind.ValueType | None", limit: int) -> None:
    """Print the jobs of one kind, or of all."""
    request = ListJobsRequest(kind=kind, limit=limit)
    jobs = cli.client.ask(cli.client.admin.ListJobs, request).jobs
    cli.print(documents(jobs), lambda: _jobs_table(jobs))


def print_kind(cli: Invocation, job_id: str, kind: "JobKind.ValueType") -> None:
    """Print one job, which must be of this kind."""
    job = get_job(cli, job_id)
    if job.kind != kind:
        raise UsageError(
            f"job {job.job_id} is a {kind_word(job.kind)}, not a {kind_word(kind)}",
            hint=f"tidemark {kind_word(job.kind)} show {job.job_id}",
        )
    print_job(cli, job)


def print_job(cli: Invocation, job: Job) -> None:
    """Print one job."""
    cli.print(document(job), lambda: job_table(job))


def get_job(cli: Invocation, job_id: str) -> Job:
    """The job with this id, or a unique beginning of it."""
    return cli.client.ask(cli.client.admin.GetJob, GetJobRequest(job_id=job_id)).job


def start(
    cli: Invocation,
    job: Job,
    *,
    wait: bool,
    result: Callable[[Job], Document],
    table: Callable[[Job], Table] | None = None,
    end: Callable[[Job], None] = raise_for,
) -> None:
    """Print that a job began or, having waited for it, what it did; and exit as `end` says."""
    table = table or job_table
    if not wait:
        cli.print(
            {"job_id": job.job_id, "phase": phase_word(job)},
            lambda: f"job {job.job_id}: `tidemark job watch {job.job_id}` follows it",
        )
        return
    if sys.stderr.isatty():
        sys.stderr.write(f"job {job.job_id}\n")
    ended = wait_for(cli.client, job)
    cli.print(result(ended), lambda: table(ended))
    end(ended)


def phase_word(message: Any) -> str:
    """Velero's word for the phase of a job, a snapshot or a backup's result."""
    descriptor = message.DESCRIPTOR.fields_by_name["phase"].enum_type
    return enum_word(descriptor, message.phase) or "New"


def kind_word(kind: "JobKind.ValueType") -> str:
    """`backup`, `restore` or `verify`."""
    return JobKind.Name(kind).removeprefix("JOB_KIND_").lower()


def _jobs_table(jobs: Any) -> Table:
    return Table(
        titles=("job", "kind", "phase", "subject", "origin", "started", "took"),
        rows=[
            (
                job.job_id,
                kind_word(job.kind),
                phase_word(job),
                ", ".join(job.subjects),
                job.origin,
                local_time(document(job)["started_at"]),
                _took(job),
            )
            for job in jobs
        ],
        right=frozenset({6}),
        empty="no jobs yet; `tidemark backup create --all --wait` makes the first",
    )


def job_table(job: Job) -> Table:
    """One job and what it did."""
    fields = [
        ("job", job.job_id),
        ("kind", kind_word(job.kind)),
        ("phase", phase_word(job)),
        ("took", _took(job)),
    ]
    for one in job.snapshots:
        fields += [
            ("", ""),
            ("volume", f"{one.node}/{one.volume}" if one.node else one.volume),
            ("phase", phase_word(one)),
            ("snapshot", one.snapshot_id or "none"),
            (
                "files",
                ", ".join(
                    (
                        f"{one.total_files_processed:,}: {one.files_new:,} new",
                        f"{one.files_changed:,} changed",
                        f"{one.files_removed:,} removed",
                        f"{one.files_unmodified:,} unmodified",
                    )
                ),
            ),
            ("size", format_size(one.total_bytes_processed)),
            ("read", format_size(one.bytes_read)),
            (
                "added",
                f"{format_size(one.data_added)}, stored in {format_size(one.data_added_packed)}",
            ),
            ("problems", _problems(one)),
            *_requests_fields(one),
        ]
        if one.HasField("audit"):
            fields.append(("audit", audit_words(one.audit)))
    if job.HasField("restore"):
        done = job.restore
        fields += _restore_fields(done)
    if job.HasField("verify"):
        proof = job.verify
        fields += [
            ("snapshots", f"{proof.snapshots_checked:,}"),
            ("packs", f"{proof.packs_checked:,}"),
            ("chunks", f"{proof.chunks_checked:,}"),
            ("read", format_size(proof.bytes_read)),
            ("damaged", f"{proof.damaged_total:,}"),
            *_requests_fields(proof),
        ]
        for damaged in document(proof)["damaged"]:
            fields += [
                ("pack", damaged["pack"]),
                ("  snapshots", ", ".join(damaged["snapshots"])),
                *(("  path", path) for path in damaged["paths"]),
            ]
    if job.message:
        fields.append(("message", job.message))
    return fields_table(fields)


def audit_words(audit: AuditResult) -> str:
    """What a sweep beside the events said of them."""
    if not audit.audited and not audit.missed:
        return f"none: {audit.reason}"
    return f"events missed {audit.missed:,} of {audit.candidates:,} changes"


def _restore_fields(done: RestoreResult) -> list[tuple[str, str]]:
    fields = [
        ("files", f"{done.files_restored:,}, of them {done.files_unchanged:,} unchanged"),
        ("removed", f"{done.files_removed:,}"),
        ("restored", format_size(done.bytes_restored)),
        ("written", format_size(done.bytes_written)),
        ("fetched", format_size(done.bytes_fetched)),
        ("problems", _problems(done)),
        *_requests_fields(done),
    ]
    if done.dry_run:
        fields.append(("dry run", f"nothing was done; {done.changes_total:,} paths would change:"))
        fields += [(change.change, path_text(change.path)) for change in done.changes]
        if done.changes_total > len(done.changes):
            fields.append(("", f"… and {done.changes_total - len(done.changes):,} more"))
    return fields


def _requests_fields(result: Any) -> list[tuple[str, str]]:
    """What the store was asked for it; nothing where that is not known."""
    if not result.HasField("store_requests"):
        return []
    return [("requests", requests_words(result.store_requests))]


def requests_words(asked: StoreRequests) -> str:
    """What a store was asked, the dear ones always, and deletions where there were any."""
    words = f"{asked.put:,} PUT, {asked.get:,} GET, {asked.head:,} HEAD, {asked.list:,} LIST"
    return f"{words}, {asked.delete:,} DELETE" if asked.delete else words


def _problems(result: Any) -> str:
    return f"{result.errors_total:,} errors, {len(result.warnings):,} warnings"


def _took(job: Job) -> str:
    if not (job.HasField("started_at") and job.HasField("finished_at")):
        return ""
    seconds = (job.finished_at.ToNanoseconds() - job.started_at.ToNanoseconds()) / 1e9
    return format_duration(seconds)
