"""An agent that does nothing but go by the grants of its coordinator."""

import asyncio
from collections.abc import Sequence

from typing_extensions import override

from agent.channel import NodeChannel
from agent.line import Line
from agent.services import Clock, RestoreTask
from agent.session import BackupWish, ControlStream, Greeting, Handler
from agent.throttle import Demand, Grant, Throttles


class QuietHandler(Handler):
    """Has no volumes and takes no tasks."""

    def __init__(self, throttles: Throttles, line: Line[NodeChannel], clock: Clock) -> None:
        self._throttles = throttles
        self.stream = ControlStream(line, self, clock)
        self.granted = asyncio.Event()
        throttles.tell_with(self.stream.send_demand)

    @override
    def greeting(self) -> Greeting:
        return Greeting("1", [], [], [], [])

    @override
    def on_welcome(self, unknown_task_ids: Sequence[str]) -> None:
        pass

    @override
    def on_backup(self, wish: BackupWish) -> None:
        raise AssertionError("it takes no tasks")

    @override
    def on_restore(self, task: RestoreTask) -> None:
        raise AssertionError("it takes no tasks")

    @override
    def on_cancel(self, task_id: str) -> None:
        pass

    @override
    def on_reported(self, task_id: str) -> None:
        pass

    @override
    def on_bandwidth(self, grant: Grant | None) -> None:
        self._throttles.on_grant(grant)
        self.granted.set()

    @override
    def demand(self) -> Demand | None:
        return self._throttles.demand()
