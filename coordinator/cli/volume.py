"""`tidemark volume`: what is protected, what is not, and where it is."""

import sys
from collections.abc import Sequence

import click

from coordinator.cli.backup import backup_document
from coordinator.cli.command import Invocation, noun, verb
from coordinator.cli.documents import Document, document, documents, list_field, path_text
from coordinator.cli.durations import format_duration
from coordinator.cli.failure import CommandError, UsageError
from coordinator.cli.job import phase_word, start, wait_option
from coordinator.cli.output import Table, fields_table, printable
from coordinator.cli.times import local_time
from coordinator.cli.waiting import raise_for
from proto.tidemark.v1.admin_pb2 import (
    AssignVolumesRequest,
    CreateBackupRequest,
    Job,
    ListVolumesRequest,
    MoveVolumeRequest,
)
from proto.tidemark.v1.common_pb2 import BackupResult

app = noun("volume", "List volumes and their protection, audit, assign and move them.")


@verb(app, "list")
@click.option("--unprotected", is_flag=True, help="Only those that no backup covers.")
def list_volumes(cli: Invocation, *, unprotected: bool) -> None:
    """List the volumes and when each was last backed up."""
    request = ListVolumesRequest(unprotected_only=unprotected)
    volumes = documents(cli.client.ask(cli.client.admin.ListVolumes, request).volumes)
    cli.print(volumes, lambda: volumes_table(volumes))


@verb(app, "show")
@click.argument("volume", metavar="VOLUME")
def show_volume(cli: Invocation, *, volume: str) -> None:
    """Show one volume: VOLUME is a name, node/name or an id."""
    answer = cli.client.ask(cli.client.admin.ListVolumes, ListVolumesRequest(volume=volume))
    if not answer.volumes:
        raise UsageError(f"no volume is called {volume!r}", hint="`tidemark volume list` shows all")
    made = document(answer.volumes[0])
    cli.print(made, lambda: _table(made))


@verb(app, "audit")
@click.argument("volumes", metavar="VOLUME...", nargs=-1, required=True)
@wait_option
def audit_volumes(cli: Invocation, *, volumes: tuple[str, ...], wait: bool) -> None:
    """Back volumes up by a sweep, and say what events missed that it found.

    Exits with 1 if they missed anything; then the volume is swept at each backup until an audit of
    it comes out clean. VOLUME is a name, node/name or an id.
    """
    request = CreateBackupRequest(volumes=volumes, audit=True)
    job = cli.client.ask(cli.client.admin.CreateBackup, request).job
    start(cli, job, wait=wait, result=audit_document, table=audit_table, end=raise_for_audit)


def audit_document(job: Job) -> Document:
    """What a script reads of an audit that it waited for; all volumes together."""
    results = [one.audit for one in job.snapshots]
    return backup_document(job) | {
        "audit": {
            "audited": bool(results) and all(one.audited for one in results),
            "missed": sum(one.missed for one in results),
            **list_field("missed_paths", [path for one in results for path in one.missed_paths]),
        }
    }


def raise_for_audit(job: Job) -> None:
    """Raise what an ended audit means; where nothing was missed, as a backup that ended so."""
    missed = sum(one.audit.missed for one in job.snapshots)
    if missed:
        raise CommandError(
            f"events missed {missed:,} changes; what was missed is in the snapshot",
            hint="the volume is swept from now on; audit it again when you know what was missed",
        )
    raise_for(job)


def audit_table(job: Job) -> Table:
    """What was found out of each volume's events."""
    fields = [("job", job.job_id), ("phase", phase_word(job))]
    for one in job.snapshots:
        audit = one.audit
        fields += [("", ""), ("volume", f"{one.node}/{one.volume}"), ("phase", phase_word(one))]
        fields.append(("audited", "yes" if audit.audited else f"no: {_without_audit(one)}"))
        if not audit.audited and not audit.missed:
            continue  # nothing was counted, and a zero would look as if it had been
        fields += [
            ("places told", f"{audit.places_told:,}"),
            ("changes found", f"{audit.candidates:,}"),
            ("missed", f"{audit.missed:,}"),
            *(("", path_text(path)) for path in audit.missed_paths),
        ]
        if 0 < len(audit.missed_paths) < audit.missed:
            fields.append(("", f"… and {audit.missed - len(audit.missed_paths):,} more"))
    return fields_table(fields)


def _without_audit(one: BackupResult) -> str:
    """Why there was no audit; a backup that failed before it says why it failed."""
    return one.audit.reason or next((each.message for each in one.errors), "no answer")


@verb(app, "assign")
@click.argument("volumes", metavar="[VOLUME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that are protected.")
@click.option("--repository", metavar="REPOSITORY", required=True, help="Its name or id.")
def assign_volumes(
    cli: Invocation, *, volumes: tuple[str, ...], everything: bool, repository: str
) -> None:
    """Send the next snapshots of volumes to another repository.

    The first backup there stores everything anew. What was stored before stays where it is, and
    restores as it did. VOLUME is a name, node/name or an id.
    """
    request = AssignVolumesRequest(volumes=volumes, all=everything, repository=repository)
    made = documents(cli.client.ask(cli.client.admin.AssignVolumes, request).volumes)
    cli.print(made, lambda: _assigned_table(made))


@verb(app, "move")
@click.argument("volume", metavar="VOLUME")
@click.option("--to", "node", metavar="NODE", required=True, help="The node that has it now.")
@click.option("--as", "name", metavar="NAME", help="What it is called there, if not the same.")
@click.option("--replace", is_flag=True, help="End the history of the volume of that name there.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def move_volume(
    cli: Invocation, *, volume: str, node: str, name: str | None, replace: bool, yes: bool
) -> None:
    """Let NODE go on with a volume: the next backup there continues its snapshots.

    What is stored is not sent again. From this moment on no other node backs the volume up, and a
    backup of it that runs on its former node ends. The data itself is not brought there.
    """
    if not yes:
        _ask(volume, node, replacing=replace)
    request = MoveVolumeRequest(volume=volume, node=node, name=name, replace=replace)
    answer = cli.client.ask(cli.client.admin.MoveVolume, request)
    made = document(answer.volume)
    cli.print(made, lambda: _table(made))


def _ask(volume: str, node: str, *, replacing: bool) -> None:
    """Let a person think again; a script must have done so before."""
    also = ", and end the history of the volume of that name there" if replacing else ""
    does = f"node {node} go on with volume {volume}, and no other node{also}"
    if not sys.stdin.isatty():
        raise UsageError(f"this would let {does}", hint="say --yes if that is meant")
    if not click.confirm(printable(f"Let {does}?"), err=True):
        raise CommandError("nothing was moved", hint="`tidemark volume list` shows who holds what")


def volumes_table(volumes: Sequence[Document]) -> Table:
    """One row for each volume: why it is not backed up, or where it lies."""
    return Table(
        titles=("volume", "node", "verdict", "last backup", "age", "last proof", "path or reason"),
        rows=[
            (
                volume["volume"],
                volume["node"],
                volume["verdict"] if volume["present"] else "gone",
                volume["last_phase"] or "none",
                age(volume),
                local_time(volume["last_proof_at"]),
                volume["path"] if volume["verdict"] == "protected" else volume["reason"],
            )
            for volume in volumes
        ],
        right=frozenset({4}),
        empty="no volumes; `tidemark up --data DIR --docker --protect PATH` protects some",
    )


def _assigned_table(volumes: Sequence[Document]) -> Table:
    """Where each goes from now on."""
    return Table(
        titles=("volume", "node", "repository", "last backup", "age"),
        rows=[
            (
                volume["volume"],
                volume["node"],
                volume["repository"],
                volume["last_phase"] or "none",
                age(volume),
            )
            for volume in volumes
        ],
        right=frozenset({4}),
        empty="no volume is protected",
    )


def age(volume: Document) -> str:
    """How old the newest Completed snapshot is."""
    seconds = volume["age_seconds"]
    return "never" if seconds is None else format_duration(seconds)


def _tracking(volume: Document) -> str:
    """What tells of changes, and why nothing better does."""
    source, reason = volume["tracked_by"] or "unknown", volume["tracking_reason"]
    return f"{source} ({reason})" if reason else source


def _table(volume: Document) -> Table:
    return fields_table(
        [
            ("volume", volume["volume"]),
            ("id", volume["volume_id"]),
            ("node", volume["node"]),
            ("source", volume["source"]),
            ("path", volume["path"]),
            ("verdict", volume["verdict"]),
            ("reason", volume["reason"]),
            ("containers", ", ".join(volume["containers"]) or "none"),
            ("project", volume["project"] or "none"),
            ("labels", ", ".join(f"{key}={value}" for key, value in volume["labels"].items())),
            ("policy", volume["policy"] or "none"),
            ("repository", volume["repository"]),
            ("last backup", volume["last_phase"] or "none"),
            ("last message", volume["last_message"]),
            ("last snapshot", volume["last_snapshot_id"] or "none"),
            ("last completed", local_time(volume["last_completed_at"])),
            ("age", age(volume)),
            ("tracked by", _tracking(volume)),
            ("last detection", volume["change_detection"] or "unknown"),
            ("last proof", local_time(volume["last_proof_at"])),
        ]
    )
