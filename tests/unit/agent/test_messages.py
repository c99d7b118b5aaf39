"""What a task tells the coordinator, in the words of the protocol."""

from agent.messages import backup_result
from agent.services import BackupStatistics, PathProblem


def test_lists_of_errors_are_bounded_and_the_total_counts_all() -> None:
    problems = [PathProblem(b"%d" % number, "m") for number in range(150)]

    result = backup_result(BackupStatistics(errors=problems, errors_total=150))

    assert len(result.errors) == 100
    assert result.errors_total == 150
