import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.job import TABLE, Effect, Event, State, next_to_start, step

STARTED = (State.RUNNING, State.CANCELING)


def test_a_task_runs_reports_and_is_forgotten() -> None:
    states = [State.QUEUED]
    for event in (Event.START, Event.END, Event.REPORTED):
        states.append(step(states[-1], event).state)

    assert states == [State.QUEUED, State.RUNNING, State.REPORTING, State.FORGOTTEN]


def test_a_queued_task_that_is_canceled_never_runs_but_is_reported() -> None:
    canceled = step(State.QUEUED, Event.CANCEL)

    assert canceled.effects == (Effect.END_UNSTARTED,)
    assert Effect.REPORT in step(canceled.state, Event.END).effects


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_what_the_table_does_not_name_changes_nothing(state: State, event: Event) -> None:
    if event not in TABLE[state]:
        assert step(state, event) == (state, ())


@given(st.lists(st.sampled_from(Event)))
def test_whatever_happens_a_task_runs_once_and_ends_once(events: list[Event]) -> None:
    state = State.QUEUED
    seen: list[Effect] = []
    for event in events:
        state, effects = step(state, event)
        seen += effects

    assert seen.count(Effect.RUN) <= 1
    assert seen.count(Effect.REPORT) <= 1
    assert seen.count(Effect.REPORT) == seen.count(Effect.TAKE_NEXT)
    assert (state in STARTED) == (
        seen.count(Effect.RUN) + seen.count(Effect.END_UNSTARTED) - seen.count(Effect.REPORT) == 1
    )


def test_one_task_per_volume_starts_first_come_first_served() -> None:
    queued = [("1", b"a"), ("2", b"a"), ("3", b"b"), ("4", b"c")]

    assert next_to_start(queued, [b"c"]) == ["1", "3"]
