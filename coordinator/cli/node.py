"""`tidemark node`: the machines that run an agent."""

from collections.abc import Sequence

import click

from coordinator.cli.command import Invocation, noun, verb
from coordinator.cli.documents import document, documents
from coordinator.cli.durations import parse_duration
from coordinator.cli.failure import UsageError
from coordinator.cli.output import Table, fields_table
from coordinator.cli.times import local_time
from proto.tidemark.v1.admin_pb2 import (
    CreateNodeTokenRequest,
    ListNodesRequest,
    Node,
    RevokeNodeRequest,
)

app = noun("node", "Enrol, list and revoke nodes.")

node_argument = click.argument("node", metavar="NODE")


@verb(app, "list")
def list_nodes(cli: Invocation) -> None:
    """List the nodes."""
    nodes = _nodes(cli)
    cli.print(
        documents(nodes),
        lambda: Table(
            titles=("node", "state", "volumes", "agent", "last seen", "id"),
            rows=[
                (
                    node.name,
                    node.state,
                    str(node.volumes),
                    node.agent_version,
                    local_time(document(node)["last_seen_at"]),
                    node.node_id,
                )
                for node in nodes
            ],
            right=frozenset({2}),
            empty="no nodes yet; `tidemark node token` makes the token with which one joins",
        ),
    )


@verb(app, "show")
@node_argument
def show_node(cli: Invocation, *, node: str) -> None:
    """Show one node: NODE is a name or an id."""
    found = _find(_nodes(cli), node)
    cli.print(document(found), lambda: _table(found))


@verb(app, "token")
@click.option(
    "--valid",
    metavar="DURATION",
    default="1h",
    show_default=True,
    help="How long it may be used.",
)
def create_token(cli: Invocation, *, valid: str) -> None:
    """Print a token with which one new node may join."""
    request = CreateNodeTokenRequest(valid_seconds=parse_duration(valid))
    answer = cli.client.ask(cli.client.admin.CreateNodeToken, request)
    cli.print(document(answer), lambda: answer.token)


@verb(app, "revoke")
@node_argument
def revoke_node(cli: Invocation, *, node: str) -> None:
    """Shut a node out for good; its snapshots stay."""
    answer = cli.client.ask(cli.client.admin.RevokeNode, RevokeNodeRequest(node=node))
    cli.print(document(answer.node), lambda: _table(answer.node))


def _nodes(cli: Invocation) -> Sequence[Node]:
    return cli.client.ask(cli.client.admin.ListNodes, ListNodesRequest()).nodes


def _find(nodes: Sequence[Node], selector: str) -> Node:
    exact = [node for node in nodes if selector in (node.name, node.node_id)]
    found = exact or [node for node in nodes if node.node_id.startswith(selector)]
    if not found:
        raise UsageError(f"no node is called {selector!r}", hint="`tidemark node list` shows all")
    if len(found) > 1:
        candidates = ", ".join(f"{node.name} ({node.node_id})" for node in found)
        raise UsageError(f"{selector!r} is ambiguous: {candidates}", hint="give the id")
    return found[0]


def _table(node: Node) -> Table:
    made = document(node)
    return fields_table(
        [
            ("node", node.name),
            ("id", node.node_id),
            ("state", node.state),
            ("agent", node.agent_version),
            ("protocol", str(node.protocol_version or "")),
            *((("refused", node.message), ("hint", node.hint)) if node.message else ()),
            ("volumes", str(node.volumes)),
            ("enrolled", local_time(made["enrolled_at"])),
            ("last seen", local_time(made["last_seen_at"])),
            ("certificate until", local_time(made["certificate_expires_at"])),
        ]
    )
