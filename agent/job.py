"""The life of a task as a table: what each event does in each state, and what follows from it.

Pure: the daemon performs the effects and knows no rule, this module knows every rule and performs
nothing. Work continues across a lost connection; an end that could not be reported is kept until
it can be. An event that a state does not name changes nothing.

    QUEUED ──start──► RUNNING ──end──► REPORTING ──reported──► (forgotten)
      │                  │ cancel          ▲
      │                  ▼                 │
      └───cancel───► CANCELING ──end───────┘
"""

import enum
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple


class State(enum.Enum):
    """Where a task stands."""

    QUEUED = "queued"
    """Another task of the same volume, or a restore of the same target, still runs."""
    RUNNING = "running"
    CANCELING = "canceling"
    REPORTING = "reporting"
    """Ended; the coordinator has not been told yet."""
    FORGOTTEN = "forgotten"


class Event(enum.Enum):
    """What happens to a task."""

    START = "start"
    """Its turn has come."""
    CANCEL = "cancel"
    """The coordinator says so, or no longer knows the task."""
    END = "end"
    """Its work is over, however it went."""
    REPORTED = "reported"
    """The report has been sent."""


class Effect(enum.Enum):
    """What has to be done now."""

    RUN = "run"
    STOP = "stop"
    """Cancel the work; its end comes as an event of its own."""
    END_UNSTARTED = "end unstarted"
    """There is no work to cancel: it ended before it began."""
    REPORT = "report"
    """Hand the end to the stream, which keeps it until it can be sent."""
    TAKE_NEXT = "take next"
    """What it held is free for the next task that waits for it."""


class Step(NamedTuple):
    """A new state and its effects, in order."""

    state: State
    effects: tuple[Effect, ...] = ()


TABLE: Final[Mapping[State, Mapping[Event, Step]]] = {
    State.QUEUED: {
        Event.START: Step(State.RUNNING, (Effect.RUN,)),
        Event.CANCEL: Step(State.CANCELING, (Effect.END_UNSTARTED,)),
    },
    State.RUNNING: {
        Event.CANCEL: Step(State.CANCELING, (Effect.STOP,)),
        Event.END: Step(State.REPORTING, (Effect.TAKE_NEXT, Effect.REPORT)),
    },
    State.CANCELING: {
        Event.END: Step(State.REPORTING, (Effect.TAKE_NEXT, Effect.REPORT)),
    },
    State.REPORTING: {
        Event.REPORTED: Step(State.FORGOTTEN),
    },
    State.FORGOTTEN: {},
}


def step(state: State, event: Event) -> Step:
    """Return what an event does in a state; nothing, unless the table says otherwise."""
    return TABLE[state].get(event, Step(state))


def next_to_start(queued: Iterable[tuple[str, bytes]], held: Iterable[bytes]) -> list[str]:
    """Choose which of the queued (task id, what it holds) may start, first come first served.

    Two tasks never hold the same thing at once.
    """
    taken = set(held)
    chosen = []
    for task_id, holds in queued:
        if holds not in taken:
            taken.add(holds)
            chosen.append(task_id)
    return chosen
