"""`tidemark snapshot`: the restore points, and what is in them."""

import os
import stat

import click

from coordinator.cli.command import Invocation, noun, verb
from coordinator.cli.documents import Document, document, documents
from coordinator.cli.durations import format_size
from coordinator.cli.output import Table, fields_table, printable, write_bytes, write_stream
from coordinator.cli.times import local_time
from proto.tidemark.v1.admin_pb2 import (
    DiffSnapshotsRequest,
    FindEntriesRequest,
    GetSnapshotRequest,
    ListEntriesRequest,
    ListSnapshotsRequest,
    ReadFileRequest,
)

app = noun("snapshot", "List snapshots and look into them.")

snapshot_argument = click.argument("snapshot", metavar="SNAPSHOT")
volume_option = click.option(
    "--volume", metavar="VOLUME", help="Whose snapshot: a name, node/name or an id."
)

_TYPE_BITS = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "character_device": stat.S_IFCHR,
    "block_device": stat.S_IFBLK,
}
_SIGNS = {"added": "+", "removed": "-", "modified": "M"}


@verb(app, "list")
@volume_option
def list_snapshots(cli: Invocation, *, volume: str | None) -> None:
    """List snapshots, oldest first."""
    request = ListSnapshotsRequest(volume=volume)
    snapshots = documents(cli.client.ask(cli.client.admin.ListSnapshots, request).snapshots)
    cli.print(
        snapshots,
        lambda: Table(
            titles=("snapshot", "volume", "node", "committed", "phase", "files", "size", "added"),
            rows=[
                (
                    one["snapshot_id"][:12],
                    one["volume"],
                    one["node"],
                    local_time(one["committed_at"]),
                    one["phase"] or "",
                    f"{one['total_files']:,}",
                    format_size(one["total_bytes"]),
                    format_size(one["data_added_packed"]),
                )
                for one in snapshots
            ],
            right=frozenset({5, 6, 7}),
            empty="no snapshots yet; `tidemark backup create --all --wait` makes the first",
        ),
    )


@verb(app, "show")
@snapshot_argument
@volume_option
def show_snapshot(cli: Invocation, *, snapshot: str, volume: str | None) -> None:
    """Show one snapshot and what its backup reported."""
    answer = cli.client.ask(
        cli.client.admin.GetSnapshot, GetSnapshotRequest(snapshot=snapshot, volume=volume)
    )
    made = document(answer.snapshot)
    made["result"] = document(answer.result) if answer.HasField("result") else None
    cli.print(made, lambda: _table(made))


@verb(app, "ls")
@snapshot_argument
@click.argument("path", metavar="[PATH]", default="")
@click.option("--recursive", "-r", is_flag=True, help="With everything below.")
@volume_option
def list_entries(
    cli: Invocation, *, snapshot: str, path: str, recursive: bool, volume: str | None
) -> None:
    """List a directory of a snapshot."""
    request = ListEntriesRequest(
        snapshot=snapshot, volume=volume, path=_inside(path), recursive=recursive
    )
    answers = cli.client.stream(cli.client.admin.ListEntries, request)
    entries = (document(entry) for answer in answers for entry in answer.entries)
    write_stream(entries, cli.output, _entry_line)


@verb(app, "find")
@click.argument("patterns", metavar="PATTERN...", nargs=-1, required=True)
@click.option(
    "--snapshot",
    "snapshots",
    metavar="SNAPSHOT",
    multiple=True,
    help="Only in this one; repeatable.",
)
@volume_option
def find_entries(
    cli: Invocation, *, patterns: tuple[str, ...], snapshots: tuple[str, ...], volume: str | None
) -> None:
    """Find files in snapshots.

    PATTERN is a shell pattern for the name, or for the whole path if it holds a slash.
    """
    request = FindEntriesRequest(snapshots=snapshots, volume=volume, patterns=patterns)
    answers = cli.client.stream(cli.client.admin.FindEntries, request)
    found = (
        {"snapshot_id": one.snapshot_id, **document(one.entry)}
        for answer in answers
        for one in answer.found
    )
    write_stream(found, cli.output, lambda one: f"{one['snapshot_id'][:12]}  {_entry_line(one)}")


@verb(app, "cat")
@snapshot_argument
@click.argument("path", metavar="PATH")
@volume_option
def read_file(cli: Invocation, *, snapshot: str, path: str, volume: str | None) -> None:
    """Write a file of a snapshot to stdout, as it is whatever -o says."""
    request = ReadFileRequest(snapshot=snapshot, volume=volume, path=_inside(path))
    for answer in cli.client.stream(cli.client.admin.ReadFile, request):
        write_bytes(answer.data)


@verb(app, "diff")
@click.argument("snapshot_a", metavar="A")
@click.argument("snapshot_b", metavar="B")
@volume_option
def diff_snapshots(
    cli: Invocation, *, snapshot_a: str, snapshot_b: str, volume: str | None
) -> None:
    """List what snapshot B added to, removed from and modified in snapshot A."""
    request = DiffSnapshotsRequest(snapshot_a=snapshot_a, snapshot_b=snapshot_b, volume=volume)
    answers = cli.client.stream(cli.client.admin.DiffSnapshots, request)
    changes = (document(change) for answer in answers for change in answer.changes)
    write_stream(
        changes, cli.output, lambda one: f"{_SIGNS[one['change']]} {printable(one['path'])}"
    )


def _inside(path: str) -> bytes:
    """A path as snapshots hold it: relative to the volume, without `.` and empty parts."""
    parts = os.fsencode(path).split(b"/")
    return b"/".join(part for part in parts if part not in (b"", b"."))


def _entry_line(entry: Document) -> str:
    mode = stat.filemode(_TYPE_BITS.get(entry["type"], 0) | entry["mode"])
    target = "" if entry["target"] is None else f" -> {printable(entry['target'])}"
    return (
        f"{mode}  {entry['uid']:>5} {entry['gid']:>5}  {entry['size']:>12}  "
        f"{local_time(entry['modified_at'])}  {printable(entry['path'])}{target}"
    )


def _table(snapshot: Document) -> Table:
    fields = [
        ("snapshot", snapshot["snapshot_id"]),
        ("volume", f"{snapshot['node']}/{snapshot['volume']}"),
        ("sequence", str(snapshot["sequence"])),
        ("committed", local_time(snapshot["committed_at"])),
        ("repository", snapshot["repository"]),
        ("phase", snapshot["phase"] or ""),
        ("change detection", snapshot["change_detection"] or "unknown"),
        ("proof", (snapshot["result"] or {}).get("proof") or "unknown"),
        ("files", f"{snapshot['total_files']:,}"),
        ("size", format_size(snapshot["total_bytes"])),
        ("added", format_size(snapshot["data_added_packed"])),
        ("errors", f"{snapshot['errors_total']:,}"),
        ("last proof", local_time(snapshot["last_proof_at"])),
        ("locked until", local_time(snapshot["locked_until"], none="not locked")),
        ("pinned", "yes" if snapshot["pinned"] else "no"),
    ]
    fields += [
        ("error", f"{problem['path']}: {problem['message']}")
        for problem in (snapshot["result"] or {}).get("errors", [])
    ]
    return fields_table(fields)
