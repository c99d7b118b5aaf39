"""The life of a task and of the job it belongs to, as tables. Pure.

Every transition stands in TRANSITIONS; what is not there cannot happen, and `step` says so by
raising. Whatever must be done because of a transition is named by its effects, which the
dispatcher carries out. Change the table and tests/unit/test_life.py together.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from coordinator.model import Failure, Phase, Task


class State(StrEnum):
    """Where a task is. People see its phase."""

    QUEUED = "queued"
    RUNNING = "running"
    # The agent's connection is gone; it may come back within the grace.
    ORPHANED = "orphaned"
    # Asked to stop; still writing until the worker says otherwise.
    STOPPING = "stopping"
    COMPLETED = "completed"
    PARTLY = "partly"
    FAILED = "failed"
    CANCELED = "canceled"


class Event(StrEnum):
    """What can happen to a task."""

    HANDED_OVER = "handed over"
    NOBODY_CAME = "nobody came"
    CANCEL_ASKED = "cancel asked"
    AGENT_GONE = "agent gone"
    AGENT_BACK = "agent back"
    NEVER_ARRIVED = "never arrived"
    GRACE_OVER = "grace over"
    DONE = "done"
    DONE_PARTLY = "done partly"
    WENT_WRONG = "went wrong"
    STOPPED = "stopped"


class Effect(StrEnum):
    """What the dispatcher does because of a transition."""

    SEND_TASK = "send task"
    SEND_CANCEL = "send cancel"
    BEGIN_GRACE = "begin grace"
    END_GRACE = "end grace"
    # Fence the session, free the volume, tell who waits.
    CONCLUDE = "conclude"


_ENDINGS: Final = {
    Event.DONE: (State.COMPLETED, (Effect.CONCLUDE,)),
    Event.DONE_PARTLY: (State.PARTLY, (Effect.CONCLUDE,)),
    Event.WENT_WRONG: (State.FAILED, (Effect.CONCLUDE,)),
    Event.STOPPED: (State.CANCELED, (Effect.CONCLUDE,)),
}

TRANSITIONS: Final[dict[State, dict[Event, tuple[State, tuple[Effect, ...]]]]] = {
    State.QUEUED: {
        Event.HANDED_OVER: (State.RUNNING, (Effect.SEND_TASK,)),
        Event.NOBODY_CAME: (State.FAILED, (Effect.CONCLUDE,)),
        Event.CANCEL_ASKED: (State.CANCELED, (Effect.CONCLUDE,)),
        Event.WENT_WRONG: (State.FAILED, (Effect.CONCLUDE,)),
    },
    State.RUNNING: {
        **_ENDINGS,
        Event.CANCEL_ASKED: (State.STOPPING, (Effect.SEND_CANCEL,)),
        Event.AGENT_GONE: (State.ORPHANED, (Effect.BEGIN_GRACE,)),
        # It was on a connection that ended.
        Event.NEVER_ARRIVED: (State.RUNNING, (Effect.SEND_TASK,)),
    },
    State.ORPHANED: {
        # A commit that was under way when the connection broke may still be acknowledged.
        **_ENDINGS,
        Event.AGENT_BACK: (State.RUNNING, (Effect.END_GRACE,)),
        Event.NEVER_ARRIVED: (State.RUNNING, (Effect.END_GRACE, Effect.SEND_TASK)),
        Event.GRACE_OVER: (State.FAILED, (Effect.CONCLUDE,)),
        Event.CANCEL_ASKED: (State.CANCELED, (Effect.CONCLUDE,)),
    },
    State.STOPPING: {
        # It may have finished before the wish reached it: what is done is done.
        **_ENDINGS,
        Event.CANCEL_ASKED: (State.STOPPING, ()),
        Event.AGENT_GONE: (State.CANCELED, (Effect.CONCLUDE,)),
    },
    State.COMPLETED: {},
    State.PARTLY: {},
    State.FAILED: {},
    State.CANCELED: {},
}

PHASES: Final = {
    State.QUEUED: Phase.NEW,
    State.RUNNING: Phase.IN_PROGRESS,
    State.ORPHANED: Phase.IN_PROGRESS,
    State.STOPPING: Phase.IN_PROGRESS,
    State.COMPLETED: Phase.COMPLETED,
    State.PARTLY: Phase.PARTIALLY_FAILED,
    State.FAILED: Phase.FAILED,
    State.CANCELED: Phase.CANCELED,
}

ENDED: Final = frozenset(state for state, ways in TRANSITIONS.items() if not ways)


def step(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
    """Where the event leads, and what must be done; KeyError if it cannot happen there."""
    return TRANSITIONS[state][event]


def can(state: State, event: Event) -> bool:
    """Whether the event means anything in this state."""
    return event in TRANSITIONS[state]


def job_phase(phases: Iterable[Phase]) -> Phase:
    """The phase of a job from those of its tasks: running until all have ended, then the worst."""
    seen = set(phases)
    if all(phase.ended for phase in seen):
        worst = (Phase.FAILED, Phase.CANCELED, Phase.PARTIALLY_FAILED)
        return next((phase for phase in worst if phase in seen), Phase.COMPLETED)
    if seen == {Phase.NEW}:
        return Phase.NEW
    return Phase.IN_PROGRESS


_EXIT_CODES: Final = {
    Phase.COMPLETED: 0,
    Phase.FAILED: 1,
    Phase.PARTIALLY_FAILED: 3,
    Phase.CANCELED: 130,
}


def exit_code(phase: Phase, tasks: Iterable[Task]) -> int:
    """Exit code of a command that waited for the job: 0 only for Completed."""
    if phase is Phase.FAILED:
        codes = {task.failure.exit_code for task in tasks if task.failure is not None}
        # Failures of several kinds are simply a failure.
        return codes.pop() if len(codes) == 1 else 1
    return _EXIT_CODES.get(phase, 0)


def job_failure(phase: Phase, tasks: Iterable[Task]) -> Failure | None:
    """What to tell of a job that did not complete: the first of its tasks' failures."""
    if not phase.ended or phase is Phase.COMPLETED:
        return None
    return next((task.failure for task in tasks if task.failure is not None), None)
