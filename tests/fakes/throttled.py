"""The way between a coordinator's grants and an agent's throttles, without the messages."""

from agent.throttle import Grant as AgentGrant
from agent.throttle import Throttles
from coordinator.grants import Flow, Grant, Report


def hear(throttles: Throttles, grant: Grant | None) -> None:
    """What an agent does with a grant; None lifts all limits."""
    if grant is None:
        throttles.on_grant(None)
    else:
        number, backup, restore, floor, lease = grant
        throttles.on_grant(AgentGrant(number, backup, restore, floor, lease))


def report_of(throttles: Throttles) -> Report | None:
    """What an agent could use; None where nothing limits it."""
    demand = throttles.demand()
    if demand is None:
        return None
    backup, restore = (Flow(*flow) for flow in (demand.upload, demand.restore))
    return Report(demand.number, demand.seconds, backup, restore)
