"""A task's life: every state with every event, and what a job makes of its tasks."""

from itertools import product

import pytest

from coordinator import life
from coordinator.life import ENDED, PHASES, TRANSITIONS, Effect, Event, State
from coordinator.model import Failure, JobId, Phase, Task, TaskId, VerifyDepth, VerifyOrder


def task(phase: Phase, failure: Failure | None = None) -> Task:
    order = VerifyOrder(VerifyDepth.PRESENT, ())
    return Task(TaskId("t"), JobId("j"), order, None, phase=phase, failure=failure)


def test_every_state_has_a_row_and_a_phase() -> None:
    assert set(TRANSITIONS) == set(State) == set(PHASES)


def test_what_stands_in_no_row_cannot_happen() -> None:
    for state, event in product(State, Event):
        assert life.can(state, event) == (event in TRANSITIONS[state])
        if not life.can(state, event):
            with pytest.raises(KeyError):
                life.step(state, event)


def test_nothing_follows_an_end() -> None:
    assert {State.COMPLETED, State.PARTLY, State.FAILED, State.CANCELED} == ENDED
    assert all(PHASES[state].ended == (state in ENDED) for state in State)


def test_every_end_is_concluded_and_only_ends_are() -> None:
    for ways in TRANSITIONS.values():
        for state, effects in ways.values():
            assert (Effect.CONCLUDE in effects) == (state in ENDED)


def test_every_state_is_reached_and_every_live_one_can_end() -> None:
    reached = {State.QUEUED}
    for ways in TRANSITIONS.values():
        reached |= {state for state, _ in ways.values()}
    assert reached == set(State)
    for state in set(State) - ENDED:
        assert any(target in ENDED for target, _ in TRANSITIONS[state].values())


def test_a_task_that_finished_before_it_was_canceled_is_done() -> None:
    state, _ = life.step(State.RUNNING, Event.CANCEL_ASKED)
    assert life.step(state, Event.DONE)[0] is State.COMPLETED


def test_an_agent_that_comes_back_in_time_goes_on() -> None:
    state, effects = life.step(State.RUNNING, Event.AGENT_GONE)
    assert effects == (Effect.BEGIN_GRACE,)
    assert life.step(state, Event.AGENT_BACK) == (State.RUNNING, (Effect.END_GRACE,))


def test_a_task_that_never_arrived_is_sent_again() -> None:
    assert life.step(State.RUNNING, Event.NEVER_ARRIVED) == (State.RUNNING, (Effect.SEND_TASK,))
    state, effects = life.step(State.ORPHANED, Event.NEVER_ARRIVED)
    assert (state, effects) == (State.RUNNING, (Effect.END_GRACE, Effect.SEND_TASK))


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([Phase.NEW, Phase.NEW], Phase.NEW),
        ([Phase.NEW, Phase.COMPLETED], Phase.IN_PROGRESS),
        ([Phase.IN_PROGRESS, Phase.FAILED], Phase.IN_PROGRESS),
        ([Phase.COMPLETED, Phase.COMPLETED], Phase.COMPLETED),
        ([Phase.COMPLETED, Phase.PARTIALLY_FAILED], Phase.PARTIALLY_FAILED),
        ([Phase.CANCELED, Phase.PARTIALLY_FAILED], Phase.CANCELED),
        ([Phase.FAILED, Phase.CANCELED], Phase.FAILED),
        ([], Phase.COMPLETED),
    ],
)
def test_a_job_runs_until_all_tasks_have_ended_and_then_takes_the_worst(
    phases: list[Phase], expected: Phase
) -> None:
    assert life.job_phase(phases) is expected


def test_only_completed_exits_with_zero() -> None:
    codes = {phase: life.exit_code(phase, []) for phase in Phase if phase.ended}
    assert codes == {
        Phase.COMPLETED: 0,
        Phase.PARTIALLY_FAILED: 3,
        Phase.FAILED: 1,
        Phase.CANCELED: 130,
    }


def test_one_kind_of_failure_keeps_its_exit_code_and_several_are_a_failure() -> None:
    locked = task(Phase.FAILED, Failure("locked", exit_code=12))
    full = task(Phase.FAILED, Failure("full", exit_code=1))
    assert life.exit_code(Phase.FAILED, [locked]) == 12
    assert life.exit_code(Phase.FAILED, [locked, full]) == 1


def test_a_job_tells_the_first_failure_once_it_has_ended_badly() -> None:
    failure = Failure("the disk is full")
    tasks = [task(Phase.COMPLETED), task(Phase.FAILED, failure)]
    assert life.job_failure(Phase.FAILED, tasks) == failure
    assert life.job_failure(Phase.IN_PROGRESS, tasks) is None
    assert life.job_failure(Phase.COMPLETED, []) is None
