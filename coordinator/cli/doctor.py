"""`tidemark doctor`: is everything as it must be?"""

from coordinator.cli.command import Invocation, single
from coordinator.cli.documents import document
from coordinator.cli.failure import CommandError
from coordinator.cli.output import Table
from proto.tidemark.v1.admin_pb2 import RunDoctorRequest


@single("doctor")
def app(cli: Invocation) -> None:
    """Check coordinator, repository and nodes; exit 1 if something is wrong."""
    checks = document(cli.client.ask(cli.client.admin.RunDoctor, RunDoctorRequest()))["checks"]
    cli.print(
        {"checks": checks},
        lambda: Table(
            titles=("check", "result", "message", "hint"),
            rows=[
                (one["name"], "ok" if one["ok"] else "FAILED", one["message"], one["hint"])
                for one in checks
            ],
        ),
    )
    wrong = [one for one in checks if not one["ok"]]
    if wrong:
        raise CommandError(
            f"{len(wrong)} of {len(checks)} checks failed: "
            + ", ".join(one["name"] for one in wrong),
            hint=wrong[0]["hint"],
        )
