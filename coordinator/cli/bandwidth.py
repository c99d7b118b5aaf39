"""`tidemark bandwidth`: how fast the fleet, a repository or a node may use the network."""

import re
from collections.abc import Sequence

import click

from coordinator.cli.command import Invocation, noun, verb
from coordinator.cli.documents import Document, document
from coordinator.cli.failure import UsageError
from coordinator.cli.output import Table
from coordinator.cli.times import local_time
from proto.rates import format_rate, parse_rate
from proto.tidemark.v1.admin_pb2 import (
    BandwidthWindow,
    GetBandwidthRequest,
    SetBandwidthRequest,
)

app = noun("bandwidth", "Show and set limits of the network.")

_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@verb(app, "show")
def show_bandwidth(cli: Invocation) -> None:
    """Show all limits, what counts now, and what each node uses."""
    made = document(cli.client.ask(cli.client.admin.GetBandwidth, GetBandwidthRequest()))
    if cli.output != "table":
        cli.print(made, str)
        return
    cli.print(made, lambda: _limits_table(made["limits"]))
    cli.print(made, lambda: "")
    cli.print(made, lambda: _nodes_table(made["nodes"]))


@verb(app, "set")
@click.option("--fleet", is_flag=True, help="For all nodes together.")
@click.option("--node", metavar="NODE", help="For one node: its name or id.")
@click.option(
    "--repository", metavar="NAME", help="For all that one repository takes and gives; or its id."
)
@click.argument("rate", metavar="RATE|off")
@click.option("--from", "begin", metavar="HH:MM", help="Only in a window that begins then.")
@click.option("--to", "end", metavar="HH:MM", help="Where that window ends.")
@click.option("--zone", metavar="ZONE", help="The window's time zone (default UTC).")
@click.option("--days", metavar="DAYS", help="Days on which it begins: mon-fri, or sat,sun.")
def set_bandwidth(
    cli: Invocation,
    *,
    fleet: bool,
    node: str | None,
    repository: str | None,
    rate: str,
    begin: str | None,
    end: str | None,
    zone: str | None,
    days: str | None,
) -> None:
    """Limit the network to RATE, such as 20MB/s or 160Mbit/s, at once and for running jobs too.

    A limit with --from and --to counts in that window, in the place of the one without; `off` says
    that there is none then. `off` without a window takes all limits of that scope away.
    """
    if sum((fleet, node is not None, repository is not None)) != 1:
        raise UsageError(
            "a limit is for one thing", hint="give one of --fleet, --node NODE or --repository NAME"
        )
    request = SetBandwidthRequest(
        bytes_per_second=_rate(rate), window=_window(begin, end, zone, days)
    )
    if node is not None:
        request.node = node
    elif repository is not None:
        request.repository = repository
    else:
        request.fleet = True
    answer = cli.client.ask(cli.client.admin.SetBandwidth, request)
    made = document(answer.limit)
    cli.print(made, lambda: _limits_table([made]))


def _rate(text: str) -> int | None:
    if text.strip().lower() == "off":
        return None
    try:
        return parse_rate(text)
    except ValueError as error:
        raise UsageError(
            f"the rate {text!r} {error}", hint="write a rate as 20MB/s, or off for no limit"
        ) from error


def _window(
    begin: str | None, end: str | None, zone: str | None, days: str | None
) -> BandwidthWindow | None:
    if begin is None and end is None:
        if zone is not None or days is not None:
            raise UsageError(
                "--zone and --days belong to a window", hint="give --from HH:MM and --to HH:MM too"
            )
        return None
    if begin is None or end is None:
        raise UsageError("a window has two ends", hint="give both --from HH:MM and --to HH:MM")
    return BandwidthWindow(
        begin_minute=_minute(begin),
        end_minute=_minute(end),
        zone=zone or "UTC",
        days=_days(days),
    )


def _minute(text: str) -> int:
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no time of the day", hint="write it as 22:00")
    return int(match[1]) * 60 + int(match[2])


def _days(text: str | None) -> list[int]:
    """Days in `mon-fri`, `fri-mon` or `sat,sun`; none for all of them."""
    found: set[int] = set()
    for part in [] if text is None else text.lower().split(","):
        ends = [each.strip() for each in part.split("-", 1)]
        if not all(each in _DAYS for each in ends):
            raise UsageError(f"{part!r} is no day", hint="write days as mon-fri or sat,sun")
        begin, end = _DAYS.index(ends[0]), _DAYS.index(ends[-1])
        found.update((begin + number) % 7 for number in range((end - begin) % 7 + 1))
    return sorted(found)


def _limits_table(limits: Sequence[Document]) -> Table:
    return Table(
        titles=("limit of", "rule", "now", "until"),
        rows=[
            (
                " ".join((limit["scope"], limit["subject"])).strip(),
                rule["text"],
                "in force" if rule["in_force"] else "",
                local_time(limit["changes_at"]) if rule["in_force"] and limit["changes_at"] else "",
            )
            for limit in limits
            for rule in limit["rules"]
        ],
        empty="no limits; `tidemark bandwidth set --fleet RATE` sets one",
    )


def _nodes_table(nodes: Sequence[Document]) -> Table:
    return Table(
        titles=("node", "backups may use", "and use", "restores may use", "and use"),
        rows=[
            (
                node["node"],
                *(
                    cell
                    for way in ("backup", "restore")
                    for cell in (_limit_cell(node, way), format_rate(node[f"{way}_used"]))
                ),
            )
            for node in nodes
        ],
        right=frozenset({1, 2, 3, 4}),
        empty="no node is connected",
    )


def _limit_cell(node: Document, way: str) -> str:
    if not node["obeys"]:
        return "agent too old"
    limit = node[f"{way}_limit"]
    if limit is None:
        return "no limit"
    return format_rate(limit) if limit else "idle"
