"""Connections of agents, as the dispatcher sees them: what each is to be told next."""

import asyncio
from dataclasses import dataclass
from typing import Final

from coordinator.grants import Grant
from coordinator.model import Node, Task, TaskId

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

    def send(self, message: Message) -> None:
        """Queue a message; an agent that reads none of a thousand is cut off."""
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.close()

    def close(self) -> None:
        """End the connection once what is queued was sent."""
        while self.outbox.full():
            self.outbox.get_nowait()
        self.outbox.put_nowait(None)
