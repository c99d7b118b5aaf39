"""Connections of agents, as the dispatcher sees them: what each is to be told next."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.grants import Grant
from coordinator.model import Node, Task, TaskId

if TYPE_CHECKING:
    from collections.abc import Callable

_OUTBOX_MESSAGES: Final = 1000


@dataclass(frozen=True, slots=True)
class RunTask:
    """To an agent: do this."""

    task: Task


@dataclass(frozen=True, slots=True)
class CancelTask:
    """To an agent: stop that."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class GrantBandwidth:
    """To an agent: so much of the network is yours for a moment; None: as much as there is."""

    grant: Grant | None


Message = RunTask | CancelTask | GrantBandwidth


class AgentLink:
    """One connected agent: what it is to be told. `None` in the outbox ends the connection."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.outbox: asyncio.Queue[Message | None] = asyncio.Queue(_OUTBOX_MESSAGES)
        self.before_task: Callable[[AgentLink], None] | None = None
        """Sends what the agent must have heard before it is told of a task."""

    def send(self, message: Message) -> None:
        """Queue a message; an agent that reads none of a thousand is cut off."""
        if isinstance(message, RunTask) and self.before_task is not None:
            self.before_task(self)
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.close()

    def close(self) -> None:
        """End the connection once what is queued was sent."""
        while self.outbox.full():
            self.outbox.get_nowait()
        self.outbox.put_nowait(None)
