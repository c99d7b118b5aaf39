"""Waiting for a job, and what its end means for the exit code."""

import importlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

from coordinator.cli.client import Client, UnreachableError
from coordinator.cli.documents import path_text
from coordinator.cli.failure import FAILED, INTERRUPTED, PARTLY, CommandError
from coordinator.cli.output import printable
from proto.tidemark.v1.admin_pb2 import Job, JobKind, WatchJobRequest
from proto.tidemark.v1.common_pb2 import BackupResult, Phase, RestoreResult

ENDED = frozenset(
    {
        Phase.PHASE_COMPLETED,
        Phase.PHASE_PARTIALLY_FAILED,
        Phase.PHASE_FAILED,
        Phase.PHASE_CANCELED,
    }
)
# A coordinator that restarts is back by then; its jobs go on meanwhile.
_RECONNECT_SECONDS = (0.5, 1, 2, 4, 8, 15, 30)
# Enough to see what is wrong; the document has them all.
_ERRORS_SHOWN = 10


def wait_for(client: Client, job: Job) -> Job:
    """The job when it has ended. Ctrl-C leaves it running and says how to go on."""
    bar = _bar(_title(job))
    try:
        for seen in _watched(client, job.job_id):
            job = seen
            if bar is not None:
                bar.show(job)
    except KeyboardInterrupt as interrupt:
        raise CommandError(
            f"interrupted; job {job.job_id} goes on without this command",
            hint=f"`tidemark job watch {job.job_id}` follows it, "
            f"`tidemark job cancel {job.job_id}` ends it",
            exit_code=INTERRUPTED,
        ) from interrupt
    finally:
        if bar is not None:
            bar.stop()
    return job


def raise_for(job: Job) -> None:
    """Raise what an ended job means to the command that waited for it; Completed is nothing."""
    code = exit_code(job)
    if code == 0:
        return
    _show_errors(job)
    word, hint = _reason(job)
    raise CommandError(word, hint=hint, exit_code=code)


def exit_code(job: Job) -> int:
    """Any volume Failed is 1, else any PartiallyFailed 3; the coordinator's own code goes first."""
    damaged = job.HasField("verify") and job.verify.damaged_total > 0
    if job.phase == Phase.PHASE_COMPLETED and not damaged:
        return 0
    if job.exit_code:
        return job.exit_code
    if job.phase == Phase.PHASE_PARTIALLY_FAILED and not damaged:
        failed = any(one.phase == Phase.PHASE_FAILED for one in job.snapshots)
        return FAILED if failed else PARTLY
    return INTERRUPTED if job.phase == Phase.PHASE_CANCELED else FAILED


def _watched(client: Client, job_id: str) -> Iterator[Job]:
    """The job after each change until it has ended, across lost connections."""
    pauses = iter(_RECONNECT_SECONDS)
    while True:
        try:
            for answer in client.stream(client.admin.WatchJob, WatchJobRequest(job_id=job_id)):
                pauses = iter(_RECONNECT_SECONDS)
                yield answer.job
                if answer.job.phase in ENDED:
                    return
        except UnreachableError as error:
            lost = error
        else:
            lost = UnreachableError("the coordinator ended the stream before the job")
        pause = next(pauses, None)
        if pause is None:
            raise CommandError(
                f"lost the coordinator while job {job_id} was running: {lost.message}",
                hint=f"the job goes on when it is back: `tidemark job watch {job_id}`",
            ) from lost
        sys.stderr.write(f"lost the coordinator ({lost.message}); trying again\n")
        threading.Event().wait(pause)


def _bar(title: str) -> Any:
    if not sys.stderr.isatty():
        return None
    bar = importlib.import_module("coordinator.cli.progress").ProgressBar(title)
    bar.start()
    return bar


def _title(job: Job) -> str:
    subjects = ", ".join(job.subjects[:2]) + (" …" if len(job.subjects) > 2 else "")
    kind = JobKind.Name(job.kind).removeprefix("JOB_KIND_").lower()
    return f"{kind} {subjects}".strip()


def _show_errors(job: Job) -> None:
    """Name on stderr what could not be done, for whoever does not read the document."""
    results: list[BackupResult | RestoreResult] = [*job.snapshots]
    if job.HasField("restore"):
        results.append(job.restore)
    problems = [problem for result in results for problem in result.errors]
    total = sum(result.errors_total for result in results)
    for problem in problems[:_ERRORS_SHOWN]:
        where = printable(path_text(problem.path))
        sys.stderr.write(f"{where}: {problem.message}\n" if where else f"{problem.message}\n")
    if total > _ERRORS_SHOWN:
        sys.stderr.write(f"… and {total - _ERRORS_SHOWN} more\n")


def _reason(job: Job) -> tuple[str, str]:
    look = f"`tidemark job logs {job.job_id}` tells more"
    if job.HasField("verify") and job.verify.damaged_total:
        packs = ", ".join(one.pack for one in job.verify.damaged[:3])
        return (
            job.message or f"{job.verify.damaged_total} damaged: {packs}",
            job.hint or "back the named paths up again, and restore others from another snapshot",
        )
    if job.phase == Phase.PHASE_CANCELED:
        return job.message or f"job {job.job_id} was canceled", job.hint
    if job.phase == Phase.PHASE_PARTIALLY_FAILED:
        return (
            job.message or "some data could not be read; the rest is safe",
            job.hint or look,
        )
    return job.message or f"job {job.job_id} failed", job.hint or look
