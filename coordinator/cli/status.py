"""`tidemark status`: one look at everything."""

from coordinator.cli.command import Invocation, single
from coordinator.cli.documents import Document, document
from coordinator.cli.durations import format_duration
from coordinator.cli.output import fields_table
from coordinator.cli.volume import volumes_table
from proto.tidemark.v1.admin_pb2 import GetStatusRequest


@single("status")
def app(cli: Invocation) -> None:
    """Show nodes, volumes, the age of their backups, and what is unprotected."""
    made = document(cli.client.ask(cli.client.admin.GetStatus, GetStatusRequest()))
    if cli.output != "table":
        cli.print(made, str)
        return
    cli.print(made, lambda: fields_table(_summary(made)))
    cli.print(made, lambda: "")
    cli.print(made, lambda: volumes_table(made["volumes"]))


def _summary(made: Document) -> list[tuple[str, str]]:
    connected = sum(node["state"] == "connected" for node in made["nodes"])
    present = [volume for volume in made["volumes"] if volume["present"]]
    protected = sum(volume["verdict"] == "protected" for volume in present)
    unprotected = sum(volume["verdict"] == "unprotected" for volume in present)
    every = made["schedule_seconds"]
    fields = [
        ("coordinator", made["coordinator_version"]),
        ("repository", made["repository_id"]),
        ("custody", "unlocked" if made["unlocked"] else "locked: restore and verify need it open"),
        ("nodes", f"{connected} of {len(made['nodes'])} connected"),
        ("volumes", f"{protected} protected, {unprotected} unprotected"),
        ("schedule", f"every {format_duration(every)}" if every else "off"),
    ]
    fields += [
        ("warning", f"repository {one['name']}: {one['message']}: {one['hint']}")
        for one in made["absent_repositories"]
    ]
    fields += [
        ("warning", f"{node['name']}: {node['message']}: {node['hint']}")
        for node in made["nodes"]
        if node["message"]
    ]
    fields += [
        (engine["name"], f"{node['name']}: {engine['message'] or 'answers'}")
        for node in made["nodes"]
        for engine in node["engines"]
    ]
    fields += [
        ("running", f"{job['kind']} {', '.join(job['subjects'])} ({job['job_id']})")
        for job in made["running_jobs"]
    ]
    if not made["recovery_kit_exported"]:
        fields.append(
            ("warning", "the recovery kit was never exported: `tidemark repo recovery-kit`")
        )
    return fields
