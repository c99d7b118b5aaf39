"""`tidemark repo`: where the data lies, and the key that opens it when all else is lost."""

import sys

from coordinator.cli.command import Invocation, noun, verb
from coordinator.cli.documents import Document, document
from coordinator.cli.durations import format_duration, format_size
from coordinator.cli.output import Table, fields_table
from coordinator.cli.times import local_time
from proto.tidemark.v1.admin_pb2 import ExportRecoveryKitRequest, GetRepositoryRequest

app = noun("repo", "Look after the repository and its recovery kit.")


@verb(app, "show")
def show_repository(cli: Invocation) -> None:
    """Show the repository."""
    made = _repository(cli)
    cli.print(made, lambda: _table(made))


@verb(app, "recovery-kit")
def export_recovery_kit(cli: Invocation) -> None:
    """Print the recovery kit. Keep it away from this machine: it opens every backup."""
    answer = cli.client.ask(cli.client.admin.ExportRecoveryKit, ExportRecoveryKitRequest())
    cli.print(document(answer), lambda: answer.kit.rstrip("\n"))


@verb(app, "init")
def initialise_repository(cli: Invocation) -> None:
    """Make sure that the repository exists, and print its recovery kit if nobody has it yet."""
    made = _repository(cli)
    if not made["recovery_kit_exported"]:
        answer = cli.client.ask(cli.client.admin.ExportRecoveryKit, ExportRecoveryKitRequest())
        made["recovery_kit"] = answer.kit
        made["recovery_kit_exported"] = True
        sys.stderr.write(
            "This is the recovery kit. Without it a lost coordinator means lost backups: "
            "print it, and keep it away from this machine.\n"
        )
    cli.print(made, lambda: made.get("recovery_kit", "").rstrip("\n") or _table(made))


def _repository(cli: Invocation) -> Document:
    return document(cli.client.ask(cli.client.admin.GetRepository, GetRepositoryRequest()))


def _lock(seconds: int) -> str:
    return f"{format_duration(seconds)} from each commit on" if seconds else "none"


def _table(made: Document) -> Table:
    return fields_table(
        [
            ("repository", made["repository_id"]),
            ("format", made["format"]),
            ("location", made["location"]),
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
