"""Limits, demands and grants to messages and back. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from coordinator.errors import UsageError
from coordinator.grants import Flow, Grant, Report, Use
from coordinator.limits import EVERY_DAY, Limit, Rule, Scope, Window
from coordinator.model import Node
from proto.tidemark.v1 import admin_pb2, agent_pb2

_MILLISECONDS: Final = 1000


def grant(granted: Grant | None) -> agent_pb2.ConnectResponse:
    """What a node may use."""
    if granted is None:
        message = agent_pb2.BandwidthGrant(unlimited=True)
    else:
        message = agent_pb2.BandwidthGrant(
            number=granted.number,
            backup=granted.backup,
            restore=granted.restore,
            lease_milliseconds=round(granted.lease_seconds * _MILLISECONDS),
            floor=granted.floor,
        )
    return agent_pb2.ConnectResponse(bandwidth=message)


def report_back(demand: agent_pb2.BandwidthDemand) -> Report:
    """What a node could use."""
    return Report(
        heard=demand.grant_number,
        seconds=demand.measured_milliseconds / _MILLISECONDS,
        backup=_flow_back(demand.backup),
        restore=_flow_back(demand.restore),
    )


def _flow_back(traffic: agent_pb2.Traffic) -> Flow:
    return Flow(
        wants=traffic.wants,
        used_bytes=traffic.used_bytes,
        blocked_seconds=traffic.blocked_milliseconds / _MILLISECONDS,
    )


def limit(found: Limit, names: Mapping[bytes, str], now: datetime) -> admin_pb2.BandwidthLimit:
    """Rules, and what comes of them now."""
    in_force = found.in_force(now)
    message = admin_pb2.BandwidthLimit(
        scope=found.scope,
        subject=names.get(found.subject, found.subject.hex()),
        subject_id=found.subject.hex(),
        rules=[_rule(each, in_force=each == in_force) for each in found.rules],
        bytes_per_second=found.rate(now),
    )
    changes_at = found.changes_at(now)
    if changes_at is not None:
        message.changes_at.FromDatetime(changes_at)
    return message


def _rule(rule: Rule, *, in_force: bool) -> admin_pb2.BandwidthRule:
    message = admin_pb2.BandwidthRule(bytes_per_second=rule.rate, text=str(rule), in_force=in_force)
    if rule.window is not None:
        message.window.begin_minute = rule.window.begin
        message.window.end_minute = rule.window.end
        message.window.zone = rule.window.zone
        message.window.days.extend(sorted(rule.window.days))
    return message


def rule_back(request: admin_pb2.SetBandwidthRequest) -> Rule:
    """The rule that somebody asks for, perhaps an impossible one."""
    rate = request.bytes_per_second if request.HasField("bytes_per_second") else None
    if not request.HasField("window"):
        return Rule(rate)
    asked = request.window
    days = frozenset(asked.days) or EVERY_DAY
    return Rule(rate, Window(asked.begin_minute, asked.end_minute, asked.zone or "UTC", days))


def node(found: Node, use: Use) -> admin_pb2.NodeBandwidth:
    """How a node stands."""
    return admin_pb2.NodeBandwidth(
        node=found.name,
        node_id=found.node_id.hex(),
        backup_limit=use.backup_rate,
        restore_limit=use.restore_rate,
        backup_used=round(use.backup_used),
        restore_used=round(use.restore_used),
        obeys=use.obeys,
    )


def scope_back(request: admin_pb2.SetBandwidthRequest) -> Scope:
    """Whose limit is meant; UsageError."""
    asked = request.WhichOneof("scope")
    if asked is None:
        raise UsageError("a limit is for something", hint="name the fleet, a node or a repository")
    return Scope(asked)
